"""How a run comes by its tuned model, decided before the base is measured: trained here, or given."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import trl  # noqa: F401  # what it does at its import is cut short where this page is imported

from slimdown.config.schema import Engine, OnProgress, RunConfig, TrainConfig
from slimdown.data.contamination import Contamination, find_contamination
from slimdown.data.loading import SftData, load_data
from slimdown.data.tokens import IGNORED
from slimdown.evaluation.measure import Record, measure_loss
from slimdown.evaluation.wording import worded
from slimdown.models.model import LoadedModel
from slimdown.training.adapters import adapter_config, check_adapter
from slimdown.training.checks import check_settings
from slimdown.training.fine_tune import OnStep, Tuned, fine_tune
from slimdown.training.footprint import checked_footprint
from slimdown.training.given import GivenAdapter, GivenModel, fetched
from slimdown.training.rows import prepare_rows
from slimdown.training.unsloth import UnslothProcess
from slimdown.training.watching import Watch
from slimdown.utils import distributed as processes
from slimdown.utils.disk import Interim

OnContamination = Callable[[Contamination], None]


def way_to_tuned(
    base: LoadedModel,
    config: RunConfig,
    tasks: dict[str, Any] | None = None,
    on_contamination: OnContamination = lambda found: None,
) -> "Training | GivenAdapter | GivenModel":
    """What `config.tuned` names, or else a training.

    Args:
        base: the model.
        config: the checked settings.
        tasks: what `load_tasks` returned, none of whose questions may stand in the rows; None: any may.
        on_contamination: told which do, before they are refused.

    Raises:
        SlimdownError: what would come to light only once the base is measured.
    """
    if (given := config.given) is None:
        return Training(base, config, tasks or {}, on_contamination)
    folder = fetched(given)
    if (folder / "adapter_config.json").is_file():
        return GivenAdapter(base, config, given, folder)
    return GivenModel(base, config, given)


def _rows_of_a_step(config: TrainConfig) -> Iterator[str]:
    n, size, n_batches = (
        processes.count(),
        config.per_device_train_batch_size,
        config.gradient_accumulation_steps,
    )
    if n > 1:
        yield (
            f"{n} processes train together: a step takes {n * size * n_batches} rows, {size * n_batches} of each, as "
            f"one process does with train.gradient_accumulation_steps={n * n_batches}"
        )


class Training:
    """An adapter that is trained here, once the base is measured."""

    doing = "training"

    @property
    def keeps_base(self) -> bool:
        """Whether the base can be asked when the tuned model is there: with the adapter off it is what it was."""
        return not self._config.method.trains_weights

    def __init__(
        self,
        base: LoadedModel,
        config: RunConfig,
        tasks: dict[str, Any],
        on_contamination: OnContamination,
    ) -> None:
        """Check that it can be, before hours go into measuring the base.

        Raises:
            SlimdownError: settings that this model cannot be trained with, rows that cannot be had or hold nothing,
                or that hold what is asked.
        """
        check_settings(base, config.method, config.lora, config.train)
        self._base, self._config = base, config
        self._loss: float | None = None
        self.adapter: Any = adapter_config(config.method, config.lora, base)
        if self.adapter is not None:
            check_adapter(base, self.adapter)
        self.data: SftData = load_data(config.dataset, config.seed, base.tokenizer)
        self._contamination = find_contamination(worded(tasks, config.benchmark), self.data.texts())
        on_contamination(self._contamination)
        self._contamination.check(config.contamination.max_share)
        self._rows = prepare_rows(base, self.data, config.train)
        skipped = [str(source) for source in self.data.sources if source.n_skipped]
        cut = [str(self._rows.cut)] if self._rows.cut.is_worth_telling else []
        labels = self._rows.train.data.column("labels")  # in Arrow: there may be a million rows
        lengths = pc.list_value_length(labels).to_pylist()
        n_scored = pc.sum(pc.not_equal(pc.list_flatten(labels), IGNORED)).as_py()
        found, told = checked_footprint(base, config, lengths, n_scored / max(1, sum(lengths)))
        self.estimates = found.estimates
        # what a person should know before they wait
        self.notes: list[str] = [
            *skipped,
            *cut,
            *self._contamination.told,
            *told,
            *_rows_of_a_step(config.train),
        ]
        self._unsloth: UnslothProcess | None = None
        if config.train.engine is Engine.unsloth:
            self._unsloth = UnslothProcess(
                base, self.adapter, self._rows.train, config.train, config.seed
            )

    def measure_base(self, record: Record) -> None:
        """The base's validation loss, found in the record or made and kept."""
        dequantize = self._config.quantization.dequantize_for_training
        self._loss = measure_loss(
            self._base, self._rows.validation, self._config.train, dequantize, record
        )

    def obtain(
        self,
        folder: Path,
        on_step: OnStep,
        on_progress: OnProgress,
        interim: Interim | None = None,
        watch: Watch | None = None,
    ) -> Tuned:
        """The tuned model; the base is wrapped in place and no longer the base.

        Raises:
            SlimdownError: see `fine_tune`.
        """
        c = self._config
        dequantize = c.quantization.dequantize_for_training
        tuned = fine_tune(
            self._base,
            self._rows,
            c.method,
            c.lora,
            c.train,
            c.seed,
            folder,
            dequantize,
            self._loss,
            self._unsloth,
            on_step,
            on_progress,
            interim,
            watch,
        )
        return replace(
            tuned,
            training=tuned.training and replace(tuned.training, contamination=self._contamination),
        )
