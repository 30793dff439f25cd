"""Evaluations that are made once: their key, where they are kept, whether they are sound."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from slimdown.config.naming import select_for_key
from slimdown.config.schema import EvaluationConfig, ResolvedBenchmark
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.utils.hashing import hash_json

if TYPE_CHECKING:  # it imports torch
    from slimdown.models.base_model import LoadedModel

# Add a reason when the same settings give other answers: how questions are batched, ordered, read.
# It ends "... is measured again: ", and raises the version, so that no older evaluation is taken.
# tests/evaluation/test_evaluation_key.py fails when that is forgotten.
MEASUREMENT_CHANGES: tuple[str, ...] = ()
MEASUREMENT_VERSION = 1 + len(MEASUREMENT_CHANGES)
_PACKAGES = ("lm-eval", "torch", "transformers", "tokenizers")

# How scores are read or when asking ends; no answer depends on it, so the key leaves it out. Task
# and question files count by their content; the key's own `backend` says what answers, with its
# version, and the batch size that was chosen.
READ_ONLY = {
    "benchmark": ["path", "metric", "chance", "role", "paper_metric", "margin", "max_loss"],
    "evaluation": ["holdout", "until", "include_path", "batch_size", "backend"],
}


class EvaluationCache(Protocol):
    """Where finished evaluations are kept."""

    def lock(self, key: str) -> AbstractContextManager[Any]:
        """Held by the one process that makes the evaluation of this key, but not between looks."""
        return nullcontext()

    def find(
        self, key: str, name: str, benchmark: ResolvedBenchmark, *older: str
    ) -> BenchmarkEvaluation | None:
        """The evaluation of this key or an older one, stopped early or whole; None: there is none.

        `older` are the keys that earlier versions gave to the same answers.
        """
        return None

    def save(self, key: str, name: str, evaluation: BenchmarkEvaluation) -> None:
        """Keep an evaluation, so that `find` returns it from now on."""
        return

    def answers_file(self, key: str) -> Path | None:
        """Where answers lie while the evaluation goes on; None keeps none."""
        return None


class NoCache(EvaluationCache):
    """Finds nothing and keeps nothing."""


def evaluation_key(
    model: "LoadedModel",
    backend: str,
    questions_hash: str,
    benchmark: ResolvedBenchmark,
    config: EvaluationConfig,
    *,
    at_version: int | None = None,
) -> str:
    """Hash everything that an answer depends on: two evaluations of one key give the same answers.

    Args:
        model: Its identity is in the key.
        backend: The code that answers and its batch size: both decide how sums are rounded.
        questions_hash: Of prompts, rows and task settings.
        benchmark: Its settings, but those of `READ_ONLY`; `scale` and metric are read together.
        config: Likewise.
        at_version: An earlier `MEASUREMENT_VERSION`; None: today's.

    Returns:
        32 hex digits. The run's seed is not in it: it never touches the questions.
    """
    tree = select_for_key({"benchmark": {"": asdict(benchmark)}, "evaluation": asdict(config)})
    settings = {"benchmark": tree["benchmark"][""], "evaluation": tree["evaluation"]}
    for section, names in READ_ONLY.items():
        for name in names:
            settings[section].pop(name, None)
    scaled = benchmark.metric if benchmark.scale is not None else ""
    versions = [version(package) for package in _PACKAGES]
    number = at_version or MEASUREMENT_VERSION
    return hash_json([number, model.identity, backend, questions_hash, scaled, versions, settings])


def explain_older(cache: EvaluationCache, name: str, every_key_parts: list[Any]) -> list[str]:
    """Say which evaluation of an earlier version is there, and why it is not taken.

    Args:
        cache: Where evaluations are kept.
        name: The benchmark's name.
        every_key_parts: What `evaluation_key` takes, as each version had it; the fourth is the
            benchmark.
    """
    for number in range(MEASUREMENT_VERSION - 1, 0, -1):
        key, *others = [evaluation_key(*parts, at_version=number) for parts in every_key_parts]
        if older := cache.find(key, name, every_key_parts[0][3], *others):
            reasons = "; ".join(MEASUREMENT_CHANGES[number - 1 :])
            return [f"{name} ({older.origin or 'of this run'}) is measured again: {reasons}."]
    return []


def check_evaluation(evaluation: BenchmarkEvaluation) -> str:
    """Say what is odd about an evaluation that was found somewhere.

    Returns:
        What is wrong in a few words; empty where it is sound: questions once each, every number
        finite, scores between 0 and 1.
    """
    samples, metric = evaluation.samples, evaluation.benchmark.metric
    if not samples or len({(s.task, s.doc_id) for s in samples}) != len(samples):
        return "questions are missing or doubled"
    if metric not in samples[0].scores:
        return f"it has no {metric}"
    for sample in samples:
        if not all(map(isfinite, sample.log_likelihoods)):
            return f"a log-likelihood of question {sample.doc_id} of {sample.task} is not finite"
        if len(sample.choices) not in (0, len(sample.log_likelihoods)):
            return f"question {sample.doc_id} of {sample.task} lacks log-likelihoods"
        for name in samples[0].scores:
            if name not in sample.answers or not 0 <= sample.scores.get(name, -1) <= 1:
                return f"question {sample.doc_id} of {sample.task} has no {name} between 0 and 1"
    return ""
