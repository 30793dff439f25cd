"""Questions that one model after another is asked, nothing taken from a record: benchmarks and a model -> `Measured`.

A base and what becomes of it are asked the same and scored alike, whoever trains in between.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from slimdown.config.keys import problems_of
from slimdown.config.schema import BenchmarkConfig, EvaluationConfig
from slimdown.evaluation.answers import DamagedSamples, Evaluation, read_samples, write_samples
from slimdown.evaluation.engine.sharing import Scoring, why_not_alike
from slimdown.evaluation.harness import choose_scoring, evaluate, generators_kept
from slimdown.evaluation.measure import check_paired
from slimdown.evaluation.questions import completed, load_tasks
from slimdown.models.causal import CausalModel
from slimdown.utils.errors import ConfigError, SlimdownError


@dataclass(frozen=True, kw_only=True)
class Measured(Evaluation):
    """An evaluation, and what it takes to make one like it of another model."""

    config: EvaluationConfig
    scoring: Scoring


@dataclass(frozen=True)
class Questions:
    """Benchmarks, ready to be asked of any number of models."""

    chosen: dict[str, BenchmarkConfig]
    config: EvaluationConfig
    tasks: dict[str, Any]  # of the harness

    def few(self, n: int) -> "Questions":
        """The first `n` of each benchmark; of a group, of each of its tasks."""
        return replace(
            self,
            chosen={
                name: replace(b, limit=min(n, b.limit or n)) for name, b in self.chosen.items()
            },
        )

    def ask(self, model: CausalModel, like: Scoring | None = None) -> Measured:
        """What `model` answers, its 4-bit layers as they are; bars show how far it is.

        Args:
            model: with adapters or without; it is handed back as it came.
            like: how the model was scored that this one will be compared with; None decides.

        Raises:
            SlimdownError: the questions cannot be asked of this model, or it cannot be scored like the other.
        """
        scoring = like or choose_scoring(
            model, self.tasks, self.chosen, self.config, dequantize="false"
        )
        if reason := why_not_alike(model.model, scoring):
            raise SlimdownError(
                f"the model cannot be scored as the other was ({scoring.path}): {reason}; measure both with stock=True"
            )
        found = evaluate(model, self.tasks, self.chosen, self.config, scoring, on_progress=None)
        for name, report in found.benchmarks.items():
            check_paired(name, report)
        return Measured(**vars(found), config=self.config, scoring=scoring)

    def write(self, measured: Measured, folder: Path) -> None:
        """Keep what a model answered, so that a training that is resumed finds it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, report in measured.benchmarks.items():
            write_samples(folder / f"{name}.parquet", "base", name, report)
        about = {
            "asked": self._asked,
            "scoring": asdict(measured.scoring),
            "harness_version": measured.harness_version,
        }
        (folder / "about.json").write_text(json.dumps(about, indent=2))

    def read(self, folder: Path) -> Measured | None:
        """What a model answered to these questions before; None where nothing of the kind is kept."""
        try:
            about = json.loads((folder / "about.json").read_text())
            found = {
                name: read_samples(folder / f"{name}.parquet", b) for name, b in self.chosen.items()
            }
        except (OSError, ValueError, DamagedSamples):
            return None
        if about["asked"] != self._asked:
            return None
        scoring, seconds = (
            Scoring(**about["scoring"]),
            sum(report.seconds for report in found.values()),
        )
        return Measured(
            found,
            about["harness_version"],
            scoring.path,
            seconds,
            config=self.config,
            scoring=scoring,
        )

    @property
    def _asked(self) -> Any:
        """The settings as JSON has them."""
        return json.loads(
            json.dumps([{name: asdict(b) for name, b in self.chosen.items()}, asdict(self.config)])
        )


def load_questions(chosen: dict[str, BenchmarkConfig], config: EvaluationConfig) -> Questions:
    """The harness's tasks and their data.

    Args:
        chosen: settings by benchmark name; what is missing is the harness's own.
        config: budget and prompt format.

    Raises:
        SlimdownError: an impossible setting, an unknown task, a dataset that cannot be had.
    """
    if problems := list(problems_of(config)):
        raise ConfigError("\n".join(problems))
    with generators_kept():
        tasks = load_tasks(chosen)
    return Questions({name: completed(b, tasks[name]) for name, b in chosen.items()}, config, tasks)
