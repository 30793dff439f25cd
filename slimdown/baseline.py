"""One evaluation per model, settings and benchmark: found again in the record, never made twice.

Decides what counts as the same evaluation, and lets one process at a time make it. The record itself is kept by
`tracking.py`; the questions are asked by `evaluate.py`.
"""

import hashlib
import json
import time
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Protocol

from slimdown.config import BenchmarkConfig, EvaluationConfig, OnProgress
from slimdown.evaluate import Evaluator
from slimdown.model import LoadedModel
from slimdown.samples import BenchmarkReport, EvalReport


class Record(Protocol):
    """Where finished evaluations are kept."""

    def lock(self, key: str) -> AbstractContextManager[Any]:
        """Held by the one process that makes the evaluation of this key."""

    def find(self, name: str, key: str, benchmark: BenchmarkConfig) -> BenchmarkReport | None:
        """The evaluation of this key, or None where there is none."""

    def keep(self, name: str, key: str, report: BenchmarkReport) -> None:
        """Keep a finished evaluation, so that it can be found from now on."""


def measure(
    loaded: LoadedModel,
    adapter: str,
    tasks: dict[str, Any],
    chosen: dict[str, BenchmarkConfig],
    config: EvaluationConfig,
    dequantize: str,
    record: Record,
    on_progress: OnProgress,
) -> EvalReport:
    """The report on every benchmark: from the record where an equal evaluation is in it, else made and kept.

    Each benchmark is kept as soon as it is finished, so that a run that is stopped in the third finds the first two.

    Args:
        loaded: the model, the adapter on it or not.
        adapter: a digest of the adapter's weights; empty for the base.
        tasks: what `load_tasks` returned for `chosen`.
        chosen: settings by benchmark name.
        config: budget and prompt format.
        dequantize: quantization.dequantize_for_evaluation.
        record: where finished evaluations are kept.
        on_progress: told how many questions of a benchmark are done.
    """
    started = time.perf_counter()
    reports: dict[str, BenchmarkReport] = {}
    with Evaluator(loaded, config, dequantize, on_progress) as evaluator:
        for name, benchmark in chosen.items():
            questions = evaluator.questions_hash(tasks[name], benchmark)
            key = evaluation_key(loaded, adapter, evaluator.scoring_path, questions, benchmark, config)
            with record.lock(key):
                found = record.find(name, key, benchmark)
                if found is None:
                    found = evaluator.evaluate(name, tasks[name], benchmark)
                    record.keep(name, key, found)
            reports[name] = found
        return EvalReport(reports, version("lm-eval"), evaluator.scoring_path, time.perf_counter() - started)


def evaluation_key(
    loaded: LoadedModel,
    adapter: str,
    scoring_path: str,
    questions: str,
    benchmark: BenchmarkConfig,
    config: EvaluationConfig,
) -> str:
    """A digest of everything that an answer depends on; two evaluations of one key give the same answers.

    How the scores are read (role, chance, the paper's metric) is not part of it; the run's seed is not either: it never
    touches the questions.
    """
    parts = {
        "model": [loaded.id, loaded.revision, loaded.quantization, loaded.dtype, loaded.device],
        "adapter": adapter,
        "scoring_path": scoring_path,
        "harness": version("lm-eval"),
        "task": [benchmark.task, questions],
        "num_fewshot": benchmark.num_fewshot,
        "limit": benchmark.limit,
        "numeric_tolerance": benchmark.numeric_tolerance,
        "evaluation": asdict(config),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
