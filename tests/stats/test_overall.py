"""The pooled test against exact enumeration of every exchange."""

from itertools import product
from math import isnan

import numpy as np
import pytest
from builders import make_benchmark, make_evaluation, make_scores

from slimdown.config.schema import Role
from slimdown.stats.findings import Findings, judge
from slimdown.stats.overall import judge_overall


def judge_many(**scores: tuple[list[float], list[float]]) -> Findings:
    base, tuned = (
        make_evaluation(**{name: make_benchmark(both[i]) for name, both in scores.items()})
        for i in (0, 1)
    )
    return judge(base, tuned)


@pytest.mark.parametrize("graded", [False, True])
def test_it_agrees_with_every_exchange(graded: bool) -> None:
    a = [1.0, 1, 1, 1, 1, 0], [0.0, 0, 0, 0, 1, 1]
    b = [1.0, 1, 1, 0], [0.0, 0.25 if graded else 0, 1, 0]
    findings = judge_many(a=a, b=b)
    changes = [np.array(y) - np.array(x) for x, y in (a, b)]
    observed = np.mean([c.mean() for c in changes])
    n_extreme = n_all = 0
    for signs in product((1, -1), repeat=10):
        mean = np.mean([(changes[0] * signs[:6]).mean(), (changes[1] * signs[6:]).mean()])
        n_extreme += abs(mean) >= abs(observed) - 1e-12
        n_all += 1
    overall = judge_overall(findings.benchmarks)
    assert overall.mean == pytest.approx(observed)
    assert overall.p_value == pytest.approx(n_extreme / n_all, abs=0.005)
    if graded:
        assert isnan(overall.mcnemar_p_value)
    else:  # six lost, one gained: 2 (1 + 7) / 2^7
        assert overall.mcnemar_p_value == pytest.approx(16 / 128)
    assert overall.answer == "undecided"


def test_small_losses_that_no_benchmark_shows_are_shown_together() -> None:
    findings = judge_many(**{name: make_scores(300, 22, 10, 68) for name in "abcd"})
    assert all(b.p_value > 0.05 for b in findings.benchmarks.values())
    assert judge_overall(findings.benchmarks).answer == "worse"


def test_targets_and_what_stopped_early_take_no_part() -> None:
    base = make_evaluation(a=make_benchmark([1.0] * 50, role=Role.target))
    tuned = make_evaluation(a=make_benchmark([0.0] * 50, role=Role.target))
    overall = judge_overall(judge(base, tuned).benchmarks)
    assert (overall.benchmarks, overall.p_value, overall.answer) == ((), 1.0, "undecided")
