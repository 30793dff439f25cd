"""A training from its settings to the tuned model, as an experiment goes about it."""

from pathlib import Path
from typing import Any

from slimdown.config.schema import RunConfig
from slimdown.experiment import read_rows
from slimdown.models.base_model import LoadedModel, load_base_model
from slimdown.training.fine_tuning import fine_tune, prepare_training
from slimdown.training.result import StepLog, TrainingResult
from slimdown.training.tokenizing import TokenizedRows


class TrainingRun:
    """A training that is prepared, and what it logs."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.base = load_base_model(config.model, config.quantization)
        self.rows = self.prepare(config)
        self.logs: list[StepLog] = []

    def prepare(self, config: RunConfig) -> TokenizedRows:
        self.data = read_rows(config, self.base.tokenizer)
        return prepare_training(self.base, self.data, config)

    def train(
        self,
        folder: Path,
        on_log: Any = None,
        on_progress: Any = lambda *done: None,
        look: Any = None,
    ) -> tuple[LoadedModel, TrainingResult]:
        on_log = on_log or self.logs.append
        return fine_tune(self.base, self.rows, self.config, folder, on_log, on_progress, look)

    @property
    def losses(self) -> list[float]:
        return [log.values["loss"] for log in self.logs]
