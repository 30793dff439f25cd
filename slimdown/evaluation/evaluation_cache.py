"""Keeps evaluations, so that each is made once: their key, their place, and if they are sound."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdown.config.benchmark_config import ResolvedBenchmark
from slimdown.config.naming import drop_defaults
from slimdown.config.schema import EvaluationConfig
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.utils.hashing import hash_json
from slimdown.utils.versions import find_version

if TYPE_CHECKING:  # it imports torch
    from slimdown.models.base_model import LoadedModel

# Raise it when the same settings give other answers, because questions are batched, ordered or read
# otherwise. Older evaluations are then not used. tests/evaluation/test_evaluation_key.py reminds.
MEASUREMENT_VERSION = 2
_PACKAGES = ("lm-eval", "torch", "transformers", "tokenizers")

# Settings of how scores are read or when asking ends. No answer depends on them, so the key leaves
# them out. Task and question files count by their content. The key's own `backend` names what
# answers, its version, and the batch size that was chosen.
READ_ONLY = {
    "benchmark": ["path", "metric", "chance", "role", "paper_metric", "margin", "max_loss"],
    # `limit` stands in each benchmark's settings, which count.
    "evaluation": ["limit", "holdout", "until", "include_path", "batch_size", "backend"],
}


class EvaluationCache:
    """Where finished evaluations are kept; this one finds nothing and keeps nothing."""

    def lock(self, key: str) -> AbstractContextManager[Any]:
        """Return the lock of the one process that evaluates this key; it is free between looks."""
        return nullcontext()

    def find(self, key: str, name: str, benchmark: ResolvedBenchmark) -> BenchmarkEvaluation | None:
        """Find the evaluation of this key, stopped early or whole; None: there is no such."""
        return None

    def save(self, key: str, name: str, evaluation: BenchmarkEvaluation) -> None:
        """Keep an evaluation, so that `find` returns it from now on."""

    def answers_file(self, key: str) -> Path | None:
        """Return the file that keeps answers during the evaluation; None keeps none."""
        return None


def evaluation_key(
    model: "LoadedModel",
    backend: str,
    questions_hash: str,
    benchmark: ResolvedBenchmark,
    config: EvaluationConfig,
) -> str:
    """Return a hash of everything that an answer depends on.

    Evaluations with the same key have the same answers.

    Args:
        model: Its identity is in the key.
        backend: The code that answers and its batch size. Both decide how sums are rounded.
        questions_hash: The hash of prompts, rows and task settings.
        benchmark: Its settings count, except those in `READ_ONLY`, on which no answer depends. If
            `scale` is set, the metric counts, too.
        config: Its settings count, except those in `READ_ONLY`.

    Returns:
        32 hex digits. The run's seed is not in the key, because no question depends on it.
    """
    # `drop_defaults` takes the tree of a run, in which benchmarks have names. It leaves out a
    # section of which all values are defaults.
    tree = drop_defaults({"benchmark": {"": asdict(benchmark)}, "evaluation": asdict(config)})
    settings = {"benchmark": tree["benchmark"][""], "evaluation": tree.get("evaluation", {})}
    for section, names in READ_ONLY.items():
        for name in names:
            settings[section].pop(name, None)
    # The scores of the primary metric are divided by the scale before they are kept. So the kept
    # scores depend on which metric is the primary one.
    scaled_metric = benchmark.metric if benchmark.scale is not None else ""
    versions = [find_version(package) for package in _PACKAGES]
    parts = [model.identity, backend, questions_hash, scaled_metric, versions, settings]
    return hash_json([MEASUREMENT_VERSION, *parts])
