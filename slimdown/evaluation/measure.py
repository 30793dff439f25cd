"""One evaluation per model, settings and benchmark: found again in the record, never made twice.

Decides what counts as the same evaluation, and lets one process at a time make it. The record itself is kept by
`recording/`; the questions are asked by `harness.py`.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import version
from math import nan
from pathlib import Path
from typing import Any, Protocol

from slimdown.config.schema import BenchmarkConfig, EvaluationConfig, OnProgress, TrainConfig
from slimdown.evaluation.answers import BenchmarkEvaluation, Evaluation
from slimdown.evaluation.engine import Scoring
from slimdown.evaluation.harness import Evaluator
from slimdown.evaluation.parts import Parts
from slimdown.evaluation.questions import Staged
from slimdown.evaluation.validation import validation_loss
from slimdown.models.dequantize import dequantizes
from slimdown.models.memory import peak_memory
from slimdown.models.model import LoadedModel
from slimdown.utils.digests import digest
from slimdown.utils.errors import SlimdownError

# Begins every key: evaluations of other keys are not looked at. Keys without it missed the quantization's details, the
# tokenizer and the adapter's config.
KEY_VERSION = "2-"
# The modules that answers come from; tests/test_evaluation_key.py follows the imports.
MEASURING = (
    "evaluation/engine/attention.py",
    "evaluation/engine/decoding.py",
    "evaluation/engine/drafting.py",
    "evaluation/engine/forward.py",
    "evaluation/engine/packing.py",
    "evaluation/engine/probe.py",
    "evaluation/engine/scoring.py",
    "evaluation/engine/shares.py",
    "evaluation/engine/sharing.py",
    "evaluation/engine/slots.py",
    "evaluation/harness.py",
    "evaluation/order.py",
    "evaluation/parts.py",
    "evaluation/questions.py",
    "evaluation/results.py",
    "models/causal.py",
    "models/dequantize.py",
    "models/model.py",
    "models/products.py",
)


class Record(Protocol):
    """Where finished evaluations are kept."""

    def lock(self, key: str) -> AbstractContextManager[Any]:
        """Held by the one process that makes the evaluation of this key."""

    def find(self, name: str, key: str, benchmark: BenchmarkConfig) -> BenchmarkEvaluation | None:
        """The evaluation of this key, or None where there is none."""

    def keep(self, name: str, key: str, report: BenchmarkEvaluation) -> None:
        """Keep a finished evaluation, so that it can be found from now on."""

    def parts(self, key: str) -> Parts:
        """What is kept of the evaluation of this key while it is made."""

    def keep_asked(self, evaluation: Evaluation) -> None:
        """Keep what was asked in stages, for the run that asked."""

    def of_stage(self, n: int) -> "Record":
        """The record of stages of evaluations, after which `n` questions have been asked."""

    def find_loss(self, key: str) -> float | None:
        """The validation loss of this key, or None where there is none."""

    def keep_loss(self, key: str, loss: float) -> None:
        """Keep a validation loss, so that it can be found from now on."""


def measure(
    loaded: LoadedModel,
    tasks: dict[str, Any],
    chosen: dict[str, BenchmarkConfig],
    config: EvaluationConfig,
    scoring: Scoring,
    record: Record,
    on_progress: OnProgress,
    expected: Evaluation | None = None,
) -> Evaluation:
    """The report on every benchmark: from the record where an equal evaluation is in it, else made and kept.

    Each benchmark is kept as soon as it is finished, so that a run that is stopped in the third finds the first two;
    of one that takes long also what is answered so far.

    Args:
        loaded: the model, the adapter on it or not.
        tasks: what `load_tasks` returned for `chosen`.
        chosen: settings by benchmark name.
        config: budget and prompt format.
        scoring: how answers come about, the same for the base and the tuned model.
        record: where finished evaluations are kept.
        on_progress: told how many questions of a benchmark are done.
        expected: what another model answered; what this one generates is had sooner where it is alike.
    """
    with Asker(loaded, config, scoring, record, on_progress) as asker:
        for report in expected.benchmarks.values() if expected else ():
            asker.evaluator.expect(report)
        return asker.evaluation(
            {name: asker.whole(name, tasks[name], b) for name, b in chosen.items()}
        )


class Asker:
    """Asks one model, for what is not in the record, and keeps it there; use as a context manager."""

    def __init__(
        self,
        loaded: LoadedModel,
        config: EvaluationConfig,
        scoring: Scoring,
        record: Record,
        on_progress: OnProgress,
    ) -> None:
        """See `measure`."""
        self._loaded, self._config, self._scoring, self._record = loaded, config, scoring, record
        self.evaluator = Evaluator(loaded, config, scoring, on_progress)
        self._open = ExitStack()
        self.seconds, self.n_made = 0.0, 0

    def __enter__(self) -> "Asker":
        started = time.perf_counter()
        self._peak = self._open.enter_context(peak_memory(self._loaded.device))
        self._open.enter_context(self.evaluator)
        self.seconds += time.perf_counter() - started
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(None, None, None)

    def whole(self, name: str, task: Any, benchmark: BenchmarkConfig) -> BenchmarkEvaluation:
        """All questions of a benchmark, asked at once."""
        started = time.perf_counter()
        key = self._key(task, self.evaluator.questions_hash(task, benchmark), benchmark)
        make = partial(self.evaluator.evaluate, name, task, benchmark)
        return self._had(self._record, name, key, benchmark, make, started)

    def stage(
        self, name: str, staged: Staged, stage: int, benchmark: BenchmarkConfig
    ) -> BenchmarkEvaluation:
        """The questions of one stage: an evaluation of its own, whichever run asks it."""
        started = time.perf_counter()
        key = self._key(staged.loaded, self.evaluator.stage_hash(staged, stage), benchmark)
        make = partial(self.evaluator.evaluate_stage, name, staged, stage, benchmark)
        return self._had(
            self._record.of_stage(staged.ends[stage]), name, key, benchmark, make, started
        )

    def evaluation(self, reports: dict[str, BenchmarkEvaluation]) -> Evaluation:
        """What was asked, with the seconds that it took, and the memory that was held for it."""
        held, guessed = (
            (self._peak(), self.evaluator.accepted_draft_share) if self.n_made else (nan, nan)
        )
        made = self._scoring.path, self.seconds, held, guessed
        return Evaluation(reports, version("lm-eval"), *made)

    def _key(self, task: Any, questions: str, benchmark: BenchmarkConfig) -> str:
        return evaluation_key(
            self._loaded, self.evaluator.path(task), questions, benchmark, self._config
        )

    def _had(
        self,
        record: Record,
        name: str,
        key: str,
        benchmark: BenchmarkConfig,
        make: Callable[[Parts], BenchmarkEvaluation],
        started: float,
    ) -> BenchmarkEvaluation:
        with record.lock(key):
            evaluation = record.find(name, key, benchmark)
            if evaluation is None:
                parts = record.parts(key)
                evaluation = make(parts)
                record.keep(name, key, evaluation)
                parts.finish()
                self.n_made += 1
        check_paired(name, evaluation)
        self.seconds += time.perf_counter() - started
        return evaluation


def check_paired(name: str, report: BenchmarkEvaluation) -> None:
    """Refuse a primary metric that scores no single question: base and tuned model could not be paired."""
    benchmark = report.benchmark
    if any(benchmark.metric not in sample.scores for sample in report.samples):
        there = ", ".join(sorted(report.samples[0].scores)) or "none such"
        raise SlimdownError(
            f"benchmark.{name}.metric={benchmark.metric} has no score for each question, so base and tuned model "
            f"cannot be paired; {benchmark.task} has {there}"
        )


def measure_loss(
    base: LoadedModel, rows: Any, config: TrainConfig, dequantize: str, record: Record
) -> float:
    """The base's validation loss on `rows`: from the record where it is in it, else made and kept.

    Args:
        base: the model, without an adapter.
        rows: columns `input_ids` and `labels`.
        config: how many rows make one of the batches that are averaged.
        dequantize: quantization.dequantize_for_training.
        record: where finished evaluations are kept.
    """
    key = loss_key(base, rows, config, dequantize)
    with record.lock(key):
        loss = record.find_loss(key)
        if loss is None:
            loss = validation_loss(base, base.model, rows, config, dequantize)
            record.keep_loss(key, loss)
    return loss


def loss_key(base: LoadedModel, rows: Any, config: TrainConfig, dequantize: str) -> str:
    """A digest of everything that a model's loss on `rows` depends on."""
    own = [_source(name) for name in ("evaluation/validation.py", "evaluation/rows_apart.py")]
    parts = {
        "model": base.identity,
        "rows": [rows["input_ids"][:], rows["labels"][:]],
        "settings": [config.per_device_eval_batch_size],
        "dequantized": dequantizes(base.model, dequantize),
        "code": [code_digest(), *own],
    }
    return f"{KEY_VERSION}{digest(parts)}"


# How scores are read, which no answer depends on: these may differ between evaluations of one key.
READ_ONLY = {
    "benchmark": {
        "metric": "which of the metrics, all kept, is the primary one",
        "chance": "what guessing scores, for rates above it",
        "role": "whether a change counts as learned or as forgotten",
        "paper_metric": "which of the paper's metrics the change feeds",
        "margin": "which change counts as none",
        "max_loss": "when asking ends; the questions asked are in the key",
    },
    "evaluation": {
        "holdout": "which answers are shown; all questions are asked",
        "until": "when asking ends; the questions asked are in the key",
    },
}


def evaluation_key(
    loaded: LoadedModel,
    scoring_path: str,
    questions: str,
    benchmark: BenchmarkConfig,
    config: EvaluationConfig,
) -> str:
    """A digest of everything that an answer depends on; two evaluations of one key give the same answers.

    Settings are in it unless `READ_ONLY` says why not. Budget and batch size are: what is computed side by side decides
    how sums are rounded. The run's seed is not: it never touches the questions.
    """
    settings = {"benchmark": asdict(benchmark), "evaluation": asdict(config)}
    parts = {
        "model": loaded.identity,
        "scoring_path": scoring_path,
        "code": {"lm-eval": version("lm-eval"), "slimdown": code_digest()},
        "questions": questions,
        **{
            part: {k: v for k, v in values.items() if k not in READ_ONLY[part]}
            for part, values in settings.items()
        },
    }
    return f"{KEY_VERSION}{digest(parts)}"


@cache
def code_digest() -> str:
    """A digest of the modules that ask, compute and score: another way of measuring is another evaluation."""
    return digest([_source(file) for file in MEASURING])


def _source(file: str) -> str:
    return (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
