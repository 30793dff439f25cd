"""Several benchmarks judged together: by the one test, and never twice by one question."""

from dataclasses import replace

import numpy as np
import pytest
from builders import change_samples, make_benchmark, make_evaluation, make_scores, stop_early

from slimdown.config.benchmark_config import Role
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation
from slimdown.judging.findings import judge
from slimdown.stats.estimates import Estimate, Sampling, compare_scores

Scores = tuple[list[float], list[float]]


def make_pair(is_shared: bool = False, **scores: Scores) -> tuple[Evaluation, Evaluation]:
    """Base and tuned answers; each benchmark asks documents of its own, or all the same ones."""
    sides: list[dict[str, BenchmarkEvaluation]] = [{}, {}]
    for name, pair in scores.items():
        prefix = "" if is_shared else name
        documents = [f"{prefix}{i}" for i in range(len(pair[0]))]
        for side, own_scores in zip(sides, pair, strict=True):
            side[name] = change_samples(make_benchmark(own_scores), doc_hash=documents)
    return make_evaluation(**sides[0]), make_evaluation(**sides[1])


def average(pair: tuple[Evaluation, Evaluation]) -> Estimate:
    return judge(*pair).mean_change(Role.retained)


def test_it_is_the_one_test_of_all_questions() -> None:
    a, b = make_scores(60, 12, 5, 23), make_scores(40, 30, 9, 21)
    mean = average(make_pair(a=a, b=b))
    together = compare_scores(a[0] + b[0], a[1] + b[1], Sampling(n_subjects=2))
    for end in ("value", "low", "high", "standard_error"):
        assert getattr(mean, end) == pytest.approx(getattr(together, end), abs=1e-6)


def test_small_losses_that_no_benchmark_shows_are_shown_together_unless_they_are_the_same() -> None:
    losses = {name: make_scores(300, 21, 10, 69) for name in "abcd"}
    assert all(b.p_value > 0.05 for b in judge(*make_pair(**losses)).benchmarks.values())
    assert average(make_pair(**losses)).high < 0
    assert average(make_pair(a=losses["a"])).high > 0
    assert average(make_pair(is_shared=True, **losses)).high > 0


@pytest.mark.parametrize(
    "scores",
    [
        {"a": ([0.5] * 50, [0.492] * 50)},  # a large gain may be rare
        {"few": ([1.0] * 20, [1.0] * 20), "many": make_scores(9000, 400, 150, 492)},
    ],
)
def test_what_rare_gains_may_make_up_for_is_not_called_worse(scores: dict[str, Scores]) -> None:
    mean = average(make_pair(**scores))
    assert mean.value < 0 < mean.high


def test_what_stopped_early_counts_with_an_interval_that_holds() -> None:
    base, tuned = make_pair(a=([1.0] * 400, [0.0, 1.0] * 200), b=([1.0] * 400, [1.0] * 400))
    stopped = stop_early(tuned.benchmarks["a"], 63)
    pair = base, replace(tuned, benchmarks=tuned.benchmarks | {"a": stopped})
    early = average(pair)
    assert early.low < average((base, tuned)).low < early.high < 0
    # each benchmark gets half of the error
    found = judge(base, pair[1])
    differences = [benchmark.primary.difference for benchmark in found.benchmarks.values()]
    intervals = [difference.interval(0.05 / 2) for difference in differences]
    assert (early.low, early.high) == pytest.approx(tuple(np.mean(intervals, axis=0)))
