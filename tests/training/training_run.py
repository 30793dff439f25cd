"""A training from its settings to the tuned model, with the steps of an experiment."""

from pathlib import Path
from typing import Any

import pytest
from record_builders import compose_config
from trl import SFTConfig, SFTTrainer

from slimdown.config.schema import RunConfig
from slimdown.models.adapters import attach_adapter
from slimdown.models.base_model import LoadedModel, load_base_model
from slimdown.runs.inputs import read_rows
from slimdown.training.fine_tuning import fine_tune, prepare_training
from slimdown.training.result import StepLog, TrainingResult
from slimdown.training.step_splits import Forwards
from slimdown.training.tokenizing import TokenizedRows

# The settings that slimdown hands on to TRL.
SHARED = ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
SHARED += ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay")
SHARED += ("max_grad_norm", "max_length", "completion_only_loss")


class TrainingRun:
    """A training that is prepared, and what it logs."""

    def __init__(self, config: RunConfig, prepared: "TrainingRun | None" = None) -> None:
        """Load the base, and prepare its rows unless another training did."""
        self.config = config
        self.base = load_base_model(config.model, config.quantization)
        self.rows = prepared.rows if prepared else self.prepare(config)
        self.logs: list[StepLog] = []

    def repeat(self) -> "TrainingRun":
        """Begin the same training anew; to prepare rows takes longer than a few steps."""
        return TrainingRun(self.config, self)

    def prepare(self, config: RunConfig) -> TokenizedRows:
        self.data = read_rows(config, self.base.tokenizer)
        return prepare_training(self.base, self.data, config)

    def train(
        self,
        folder: Path,
        on_log: Any = None,
        on_progress: Any = lambda *done: None,
        watcher: Any = None,
        forwards: Forwards | None = None,
    ) -> tuple[LoadedModel, TrainingResult]:
        on_log = on_log or self.logs.append
        return fine_tune(
            self.base,
            self.rows,
            self.config,
            folder,
            on_log,
            on_progress=on_progress,
            forwards=forwards,
            watcher=watcher,
        )

    def train_until(self, folder: Path, step: int, forwards: Forwards | None = None) -> None:
        """Train, and end when this step is made, as Ctrl-C does."""

        def end(log: StepLog) -> None:
            if log.step == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.train(folder, end, forwards=forwards)

    @property
    def losses(self) -> list[float]:
        return [log.values["loss"] for log in self.logs]

    def build_trl_trainer(self, folder: Path, **settings: Any) -> Any:
        """TRL's own trainer of the same adapter, rows and steps."""
        config, base = self.config, load_base_model(self.config.model, self.config.quantization)
        arguments = SFTConfig(
            str(folder),
            **{name: getattr(config.train, name) for name in SHARED} | settings,
            seed=config.seed,
            data_seed=config.seed,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
        )
        return SFTTrainer(
            attach_adapter(base, config.method, config.lora, config.seed),
            arguments,
            train_dataset=self.data.parts[0].train,
            eval_dataset=self.data.parts[0].validation,
            processing_class=base.tokenizer,
        )


def prepare_run(*settings: str) -> TrainingRun:
    """Prepare the training that these settings describe."""
    return TrainingRun(compose_config(*settings))
