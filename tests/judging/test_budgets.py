"""Budgets: what a fine-tuning may lose, and the exit code that says whether it kept to it."""

import re
from typing import Any

import numpy as np
import pytest
from builders import draw_scores, judge_pairs, judge_scores, make_benchmark, make_scores, stop_early

from slimdown.commands.gate import GateRules
from slimdown.config.benchmark_config import Role
from slimdown.judging.budgets import (
    Gate,
    Outcome,
    check_budgets,
    decide_by_settings,
    overall_outcome,
    read_budgets,
)
from slimdown.judging.findings import Findings
from slimdown.report.findings_report import write_junit
from slimdown.stats.estimates import Estimate
from slimdown.utils.errors import ConfigError

COUNTS = {
    "kept": (600, 5, 5, 390),
    "lost": (500, 100, 5, 395),
    "unclear": (540, 60, 42, 358),
    "learned": (300, 5, 200, 495),
}


@pytest.fixture(scope="module")
def findings() -> Findings:
    pairs = {}
    for name, counts in COUNTS.items():
        role = Role.target if name == "learned" else Role.retained
        pairs[name] = [make_benchmark(scores, role=role) for scores in make_scores(*counts)]
    return judge_pairs(**pairs)


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ({"kept": 0.02}, Outcome.within),
        ({"kept": 0.02, "unclear": 0.02}, Outcome.undecided),
        ({"kept": 0.02, "unclear": 0.02, "lost": 0.02}, Outcome.beyond),
        ({"learned": 0.0}, Outcome.within),
        ({"lost": 0.5}, Outcome.within),
        ({}, Outcome.beyond),  # each retained one is held to its margin
    ],
)
def test_worst_decides(findings: Findings, budgets: dict[str, float], expected: Outcome) -> None:
    off = [""] if budgets else []
    checks = check_budgets(findings, budgets, off=off)
    assert overall_outcome(checks) is expected
    assert [check.benchmark for check in checks] == list(budgets or ("kept", "lost", "unclear"))
    again = check_budgets(Findings.from_dict(findings.to_dict()), budgets, off=off)
    assert [c.reason for c in again] == [c.reason for c in checks]


def test_reasons_say_what_is_shown_by_the_interval_that_agrees(findings: Findings) -> None:
    kept, lost, unclear = check_budgets(findings, {})
    # The loss is shown at the first of Holm's steps for three budgets.
    for check, level in ((kept, "95"), (lost, "98.33"), (unclear, "95")):
        shown = re.findall(r"[\d.]+(?= %| points)", check.reason)
        assert shown[:2] == [f"{-100 * check.bound:.1f}", level]
    assert kept.bound > -0.02 > lost.bound
    assert "1,000 questions" in unclear.reason
    assert "about" in unclear.reason  # so many would decide


def test_a_share_of_the_base_is_a_budget_if_the_base_is_above_nothing(findings: Findings) -> None:
    lost, kept = check_budgets(findings, {}, {"lost": 0.3, "kept": 0.05}, off=[""])
    assert (lost.outcome, lost.budget) == (Outcome.within, 0.3 * 0.6)
    assert (kept.outcome, kept.budget) == (Outcome.within, 0.05 * 0.605)
    low = judge_scores(*make_scores(52, 3, 2, 143))  # 27.5 % of four choices
    assert check_budgets(low, {}, {"": 0.5})[0].outcome is Outcome.within
    [check] = check_budgets(judge_scores(*make_scores(0, 0, 20, 143)), {}, {"": 0.5})
    assert check.outcome is Outcome.undecided
    mixed = check_budgets(findings, {"": 0.02}, {"lost": 0.3})
    budgets = {check.benchmark: check.budget for check in mixed}
    assert budgets == {"kept": 0.02, "unclear": 0.02, "lost": 0.3 * 0.6}


def test_a_share_of_a_graded_score_must_hold_for_other_questions_too() -> None:
    """All lose 18 points; that this is less than 0.3 of the base is luck of the questions."""
    before = np.repeat([0.3, 0.9], [1_470, 1_530])
    findings = judge_scores(before, before - 0.18)
    assert check_budgets(findings, {"a": 0.3 * before.mean()})[0].outcome is Outcome.within
    [check] = check_budgets(findings, {}, {"a": 0.3})
    assert check.outcome is Outcome.undecided
    assert check.bound < -0.3 * before.mean()
    assert check_budgets(findings, {}, {"a": 0.4})[0].outcome is Outcome.within


def test_what_is_off_decides_nothing(findings: Findings) -> None:
    [kept] = check_budgets(findings, {"": 0.02}, off=["lost", "unclear"])
    assert (kept.benchmark, kept.outcome) == ("kept", Outcome.within)
    assert 'failures="0"' in write_junit(Gate((kept,)), "run")
    worse = Gate((kept,), mean=Estimate(-0.1, 0.01, -0.12, -0.08))
    assert 'failures="1"' in write_junit(worse, "run")
    [kept] = check_budgets(findings, {"kept": 0.02}, off=[""])
    assert (kept.benchmark, kept.budget) == ("kept", 0.02)


@pytest.mark.parametrize(
    ("arguments", "more", "problem"),
    [
        (["kept=2"], {}, "give a share from 0 to below 1"),
        (["kept=nan"], {}, "give a share"),
        (["kept"], {}, "give a share"),
        (["=0.1"], {}, "and so is 2%"),
        (["kept=0.1", "kept=0.2"], {}, "kept has 0.1 already; keep one"),
        (["kepd=0.1"], {}, "kepd was not measured; did you mean kept"),
        (["kept=2%"], {"relative": {"nope": 0.1}}, "nope was not measured"),
        (["kept=2%"], {"relative": {"kept": 0.1}}, "budget of kept: give .* not both"),
        (["2%"], {"relative": {"": 0.1}}, "budget of every retained benchmark: give .* not both"),
        (["kept=2%"], {"off": ["kepd"]}, "kepd was not measured; did you mean kept"),
        (["kept=2%"], {"off": ["kept"]}, "budget of kept: give a number or off"),
        (["2%"], {"off": [""]}, "budget of every retained benchmark: give a number or off"),
        ([], {"off": [""]}, "every benchmark is off"),
        ([], {"off": ["kept", "lost", "unclear"]}, "every benchmark is off"),
    ],
)
def test_wrong_budgets_are_refused(
    arguments: list[str], more: dict[str, Any], problem: str, findings: Findings
) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_budgets(findings, read_budgets(arguments), **more)


def test_a_budget_that_is_a_text_is_refused(findings: Findings) -> None:
    with pytest.raises(ConfigError, match="give a share"):
        check_budgets(findings, {"kept": "0.1"})  # type: ignore[dict-item]


def test_what_is_off_does_not_harden_what_decides() -> None:
    findings = judge_pairs(lost=make_scores(91, 9, 0, 100), gained=make_scores(0, 0, 200, 0))
    for off, outcome in (([], Outcome.undecided), (["gained"], Outcome.beyond)):
        assert overall_outcome(check_budgets(findings, {"lost": 0.02}, off=off)) is outcome


def test_a_named_budget_leaves_the_others_theirs(findings: Findings) -> None:
    for budgets, relative in (({"kept": 0.3}, {}), ({}, {"kept": 0.5})):
        checks = check_budgets(findings, budgets, relative)
        assert [c.budget for c in checks if c.benchmark != "kept"] == [0.02, 0.02]
        assert overall_outcome(checks) is Outcome.beyond


def test_a_budget_above_half_says_how_often_it_is_kept_by_luck() -> None:
    findings = judge_scores(*make_scores(100, 40, 0, 60))
    for budget, is_said in ((0.5, False), (0.6, True)):
        [check] = check_budgets(findings, {"a": budget})
        assert check.outcome is Outcome.within
        assert ("10 %" in check.reason) is is_said


def test_what_stopped_early_or_is_one_question_says_how_to_go_on() -> None:
    before, after = make_scores(400, 20, 19, 561)
    [early] = check_budgets(judge_scores(before, stop_early(make_benchmark(after), 63)), {})
    assert "63 of 1,000" in early.reason
    assert "evaluation.until=budget benchmark.a.max_loss=0.02" in early.reason
    [single] = check_budgets(judge_scores([1.0], [1.0]), {})
    assert single.outcome is Outcome.undecided


def test_a_benchmark_without_a_right_answer_passes_nothing() -> None:
    """Its questions may only be scored by the wrong rule."""
    for n_gained, outcome in ((0, Outcome.undecided), (3, Outcome.within)):
        findings = judge_scores(*make_scores(0, 0, n_gained, 1000 - n_gained))
        [check] = check_budgets(findings, {"": 0.02})
        assert check.outcome is outcome


def test_a_run_is_decided_by_the_budgets_that_its_settings_name() -> None:
    scores = make_scores(600, 100, 5, 295)
    assert decide_by_settings(judge_scores(*scores)) is None
    limited = [make_benchmark(side, max_loss=0.02) for side in scores]
    gate = decide_by_settings(judge_pairs(a=limited, b=scores))
    assert [(check.benchmark, check.budget) for check in gate.checks] == [("a", 0.02)]
    assert gate.outcome is Outcome.beyond


def test_the_mean_of_a_gate_is_that_of_the_benchmarks_that_are_not_off() -> None:
    drawn = {name: draw_scores(100, 0.6, 0.05, 0.03, seed) for seed, name in enumerate("abc")}
    for off, others in (([], "abc"), (["a"], "bc")):
        gate = GateRules({}, {}, off, overall=True).decide(judge_pairs(**drawn))
        judged = judge_pairs(**{name: drawn[name] for name in others})
        assert gate.mean == judged.mean_change(Role.retained)
