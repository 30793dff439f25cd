"""One evaluation per model, settings and benchmark: found again in the record, never made twice.

Decides what counts as the same evaluation, and lets one process at a time make it. The record itself is kept by
`recording/`; the questions are asked by `harness.py`.
"""

import time
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from math import nan
from pathlib import Path
from typing import Any, Protocol

from slimdown.guarding.errors import UserError
from slimdown.measuring.answers import BenchmarkEvaluation, Evaluation
from slimdown.measuring.engine import Scoring
from slimdown.measuring.harness import Evaluator
from slimdown.measuring.parts import Parts
from slimdown.measuring.validation import validation_loss
from slimdown.preparing.dequantize import dequantizes
from slimdown.preparing.digests import digest
from slimdown.preparing.memory import peak_memory
from slimdown.preparing.model import LoadedModel
from slimdown.settings.schema import BenchmarkConfig, EvaluationConfig, OnProgress, TrainConfig

# Begins every key: evaluations of other keys are not looked at. Keys without it missed the quantization's details, the
# tokenizer and the adapter's config.
KEY_VERSION = "2-"
# The modules that answers come from; tests/test_evaluation_key.py follows the imports.
MEASURING = (
    "measuring/engine/attention.py",
    "measuring/engine/decoding.py",
    "measuring/engine/drafting.py",
    "measuring/engine/forward.py",
    "measuring/engine/packing.py",
    "measuring/engine/probe.py",
    "measuring/engine/scoring.py",
    "measuring/engine/shares.py",
    "measuring/engine/sharing.py",
    "measuring/engine/slots.py",
    "measuring/harness.py",
    "measuring/parts.py",
    "measuring/questions.py",
    "measuring/results.py",
    "preparing/causal.py",
    "preparing/dequantize.py",
    "preparing/model.py",
    "preparing/products.py",
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
    """
    started = time.perf_counter()
    reports: dict[str, BenchmarkEvaluation] = {}
    n_made = 0
    with peak_memory(loaded.device) as peak, Evaluator(loaded, config, scoring, on_progress) as evaluator:
        for name, benchmark in chosen.items():
            questions = evaluator.questions_hash(tasks[name], benchmark)
            key = evaluation_key(loaded, evaluator.path(tasks[name]), questions, benchmark, config)
            with record.lock(key):
                evaluation = record.find(name, key, benchmark)
                if evaluation is None:
                    parts = record.parts(key)
                    evaluation = evaluator.evaluate(name, tasks[name], benchmark, parts)
                    record.keep(name, key, evaluation)
                    parts.forget()
                    n_made += 1
            check_paired(name, evaluation)
            reports[name] = evaluation
        seconds, held = time.perf_counter() - started, peak() if n_made else nan
        return Evaluation(reports, version("lm-eval"), scoring.path, seconds, peak_bytes=held)


def check_paired(name: str, report: BenchmarkEvaluation) -> None:
    """Refuse a primary metric that scores no single question: base and tuned model could not be paired."""
    benchmark = report.benchmark
    if any(benchmark.metric not in sample.scores for sample in report.samples):
        there = ", ".join(sorted(report.samples[0].scores)) or "none such"
        raise UserError(
            f"benchmark.{name}.metric={benchmark.metric} has no score for each question, so base and tuned model "
            f"cannot be paired; {benchmark.task} has {there}"
        )


def measure_loss(base: LoadedModel, rows: Any, config: TrainConfig, dequantize: str, record: Record) -> float:
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
    own = [_source(name) for name in ("measuring/validation.py", "measuring/rows_apart.py")]
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
        **{part: {k: v for k, v in values.items() if k not in READ_ONLY[part]} for part, values in settings.items()},
    }
    return f"{KEY_VERSION}{digest(parts)}"


@cache
def code_digest() -> str:
    """A digest of the modules that ask, compute and score: another way of measuring is another evaluation."""
    return digest([_source(file) for file in MEASURING])


def _source(file: str) -> str:
    return (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
