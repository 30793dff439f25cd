"""A verdict and the interval beside it never disagree, and neither do a budget and its bound."""

import re
from itertools import product

import numpy as np
import pytest
from builders import judge_pairs, judge_scores, make_benchmark, make_scores, stop_early

from bench.statistics import contradicts, draw_any
from slimdown.judging.budgets import Outcome, decide_outcomes, judge_look
from slimdown.judging.verdicts import Decision, Verdict, correct_with_levels, decide_verdicts
from slimdown.stats.estimates import Difference, Sampling, compare_scores


def decide_at(d: Difference, margin: float, change: float, equivalence: float) -> Decision:
    """The decision of a benchmark whose steps have these levels."""
    verdict = Verdict.undecided
    if d.equivalence_p_value(margin) < equivalence:
        verdict = Verdict.retained
    elif sign := d.shown_sign(change):
        verdict = Verdict.forgotten if sign < 0 else Verdict.improved
    return Decision(verdict, d.p_value, d.equivalence_p_value(margin), change, equivalence)


@pytest.mark.parametrize("margin", [0.02, 0.05])
def test_no_table_of_answers_contradicts_itself(margin: float) -> None:
    """At any two steps of Holm; `python -m bench.statistics` draws more kinds of benchmarks."""
    n = 20
    for lost in range(0, n + 1, 2):
        for gained in range(0, n + 1 - lost, 3):
            d = compare_scores(*make_scores(n - lost - gained, lost, gained, 0))
            for steps in product((1, 20), (1, 20)):
                decision = decide_at(d, margin, *(0.05 / k for k in steps))
                shown = decision.form_interval(d, margin)
                assert not contradicts(decision, shown, margin), (lost, gained, steps)
                assert shown.low <= d.value <= shown.high


def test_no_kind_of_benchmark_contradicts_itself() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        found = [draw_any(random) for _ in range(3)]
        for d, decision in zip(found, decide_verdicts(found, [0.03] * 3), strict=True):
            assert not contradicts(decision, decision.form_interval(d, 0.03), 0.03)
            budget = decide_outcomes({"a": d}, {"a": 0.03})["a"]
            is_within = budget.find_bound(d, 0.03) >= -0.03
            assert is_within is (budget.outcome is Outcome.within) or budget.level == 0


def test_a_plain_interval_would_contradict_a_corrected_verdict() -> None:
    """Excludes 0 at 95 %, and four benchmarks ask for more: undecided, and its interval holds 0."""
    lost, calm = make_scores(180, 16, 5, 0), make_scores(200, 0, 0, 0)
    change = judge_pairs(lost=lost, b=calm, c=calm, d=calm).benchmarks["lost"]
    assert change.verdict is Verdict.undecided
    assert change.primary.difference.high < 0 <= change.shown_change.high
    assert change.shown_level == pytest.approx(0.05 / 4)
    alone = judge_scores(*lost).benchmarks["a"]
    assert alone.verdict is Verdict.forgotten
    assert (alone.shown_level, alone.shown_change.high) == (0.05, alone.primary.difference.high)


def test_a_retained_benchmark_is_shown_at_twice_the_level_of_its_step() -> None:
    change = judge_scores(*make_scores(1500, 3, 3, 494)).benchmarks["a"]
    assert change.verdict is Verdict.retained
    assert change.shown_level == 0.1
    d = change.primary.difference
    assert (change.shown_change.low, change.shown_change.high) == d.margin_interval()


def test_looks_that_rule_out_both_sides_show_neither() -> None:
    """All of the first 32 answers are lost, and all later ones gained."""
    before = make_benchmark([1.0] * 32 + [0.0] * 168)
    after = stop_early(make_benchmark([0.0] * 32 + [1.0] * 168), 200)
    change = judge_scores(before, after).benchmarks["a"]
    d = change.primary.difference
    assert d.p_value < 0.001
    assert d.shown_sign(0.05) == 0
    assert change.verdict is Verdict.undecided
    assert change.shown_change.low <= 0 <= d.value <= change.shown_change.high


def test_levels_are_those_of_the_steps_until_holm_stops() -> None:
    corrected, levels = correct_with_levels([0.04, 0.001, 0.02, 0.9])
    assert corrected == pytest.approx([0.08, 0.004, 0.06, 0.9])
    assert levels == pytest.approx([0.05 / 3, 0.05 / 4, 0.05 / 3, 0.05 / 3])
    _, levels = correct_with_levels([0.001, 0.002], n_reports=2, n_unknown=1)
    assert levels == pytest.approx([0.05 / 6, 0.05 / 4])


@pytest.mark.parametrize("n_budgets", [1, 8])
def test_a_budgets_bound_is_at_the_level_that_decided(n_budgets: int) -> None:
    lost = compare_scores(*make_scores(150, 45, 5, 0))
    calm = compare_scores([1.0] * 200, [1.0] * 200, Sampling())
    budgets = {"lost": 0.06} | {f"calm{i}": 0.06 for i in range(n_budgets - 1)}
    decided = decide_outcomes({name: lost if name == "lost" else calm for name in budgets}, budgets)
    assert decided["lost"].outcome is Outcome.beyond
    assert decided["lost"].level == pytest.approx(0.05 / n_budgets)
    bound = decided["lost"].find_bound(lost, 0.06)
    assert bound == pytest.approx(lost.margin_interval(0.1 / n_budgets)[1])
    assert bound < -0.06


def test_a_look_that_ends_a_training_says_by_which_bound() -> None:
    """With one look its test is one-sided at 5 %: the 95 % interval reaches over the budget."""
    findings = judge_scores(*make_scores(44, 36, 20, 0))
    assert findings.benchmarks["a"].primary.difference.high > -0.02
    is_within, beyond = judge_look(findings, {"a": 0.02}, 1)
    assert (is_within, re.findall(r"[\d.]+", beyond)) == (False, ["3.2", "2"])
    assert judge_look(findings, {"a": 0.02}, 2) == (False, "")
