"""Budgets: what a fine-tuning may lose, and the exit code that says whether it kept to it."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import (
    Patch,
    draw_scores,
    judge_scores,
    make_benchmark,
    make_evaluation,
    make_scores,
    stop_early,
)

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
from slimdown.judging.findings import Findings, judge
from slimdown.judging.pairing import pair_evaluations
from slimdown.report.findings_report import write_junit
from slimdown.stats import likelihood
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
    pairs = {name: make_scores(*counts) for name, counts in COUNTS.items()}
    roles = {name: Role.target if name == "learned" else Role.retained for name in COUNTS}
    both = [
        make_evaluation(**{n: make_benchmark(p[side], role=roles[n]) for n, p in pairs.items()})
        for side in (0, 1)
    ]
    return judge(*both)


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
def test_the_worst_benchmark_decides(
    findings: Findings, budgets: dict[str, float], expected: Outcome
) -> None:
    off = [""] if budgets else []
    checks = check_budgets(findings, budgets, off=off)
    assert overall_outcome(checks) is expected
    assert [check.benchmark for check in checks] == list(budgets or ("kept", "lost", "unclear"))
    with pytest.raises(ConfigError, match="give a share"):
        check_budgets(findings, {"kept": "0.1"})  # type: ignore[dict-item]
    again = check_budgets(Findings.from_dict(findings.to_dict()), budgets, off=off)
    assert [c.reason for c in again] == [c.reason for c in checks]


def test_reasons_say_what_is_shown_by_the_interval_that_agrees(findings: Findings) -> None:
    kept, lost, unclear = (check.reason for check in check_budgets(findings, {}))
    assert re.fullmatch(r"one-sided at 95 %, it lost at most [01]\.\d points", kept)
    # of three budgets, the first of Holm's steps
    least = re.fullmatch(r"one-sided at 98\.33 %, it lost at least (\S+) points", lost)
    assert float(least[1]) > 2
    assert re.match(
        r"1,000 questions cannot tell: one-sided at 95 %, it lost at most \d\.\d points; if the "
        r"change is as measured, about",
        unclear,
    )


def test_a_share_of_the_base_is_a_budget_where_the_base_is_above_nothing(
    findings: Findings,
) -> None:
    lost, kept = check_budgets(findings, {}, {"lost": 0.3, "kept": 0.05}, off=[""])
    assert (lost.outcome, lost.budget) == (Outcome.within, 0.3 * 0.6)
    assert (kept.outcome, kept.budget) == (Outcome.within, 0.05 * 0.605)
    low = judge_scores(*make_scores(52, 3, 2, 143))  # 27.5 % of four choices
    assert check_budgets(low, {}, {"": 0.5})[0].outcome is Outcome.within
    [check] = check_budgets(judge_scores(*make_scores(0, 0, 20, 143)), {}, {"": 0.5})
    assert check.outcome is Outcome.undecided
    assert "not shown to score above 0" in check.reason
    both = check_budgets(findings, {"": 0.02}, {"lost": 0.3})
    assert {one.benchmark: one.budget for one in both} == {
        "kept": 0.02, "unclear": 0.02, "lost": 0.3 * 0.6
    }  # fmt: skip
    for budget, relative, problem in (
        ({"kept": 0.02}, {"nope": 0.1}, "was not measured"),
        ({"kept": 0.02}, {"kept": 0.1}, "budget of kept: give .* not both"),
        ({"": 0.02}, {"": 0.1}, "budget of every retained benchmark: give"),
    ):
        with pytest.raises(ConfigError, match=problem):
            check_budgets(findings, budget, relative)


def test_a_share_of_a_graded_score_must_hold_for_other_questions_too() -> None:
    """All lose 18 points; that this is less than 0.3 of the base is luck of the questions."""
    before = np.repeat([0.3, 0.9], [1_470, 1_530])
    findings = judge_scores(before, before - 0.18)
    assert check_budgets(findings, {"a": 0.3 * before.mean()})[0].outcome is Outcome.within
    [check] = check_budgets(findings, {}, {"a": 0.3})
    assert check.outcome is Outcome.undecided
    assert check.bound < -0.3 * before.mean()
    assert f"it lost at most {-100 * check.bound:.1f} points" in check.reason
    assert check_budgets(findings, {}, {"a": 0.4})[0].outcome is Outcome.within


def test_what_is_off_decides_nothing(findings: Findings) -> None:
    [kept] = check_budgets(findings, {"": 0.02}, off=["lost", "unclear"])
    assert (kept.benchmark, kept.outcome) == ("kept", Outcome.within)
    assert 'failures="0"' in write_junit(Gate((kept,)), "run")
    worse = Gate((kept,), mean=Estimate(-0.1, 0.01, -0.12, -0.08))
    assert 'failures="1"' in write_junit(worse, "run")
    [kept] = check_budgets(findings, {"kept": 0.02}, off=[""])
    assert (kept.benchmark, kept.budget) == ("kept", 0.02)
    every = ["kept", "lost", "unclear"]
    for budgets, off, problem in (
        ({"kept": 0.02}, ["kepd"], "kepd was not measured; did you mean kept"),
        ({"kept": 0.02}, ["kept"], "budget of kept: give a number or off, not both"),
        ({"": 0.02}, [""], "budget of every retained benchmark: give a number or off"),
        ({}, [""], "every benchmark is off; give one a budget"),
        ({}, every, "every benchmark is off; give one a budget"),
    ):
        with pytest.raises(ConfigError, match=problem):
            check_budgets(findings, budgets, off=off)


def test_what_is_off_does_not_harden_what_decides() -> None:
    lost, gained = make_scores(91, 9, 0, 100), make_scores(0, 0, 200, 0)
    base, tuned = (make_evaluation(lost=a, gained=b) for a, b in zip(lost, gained, strict=True))
    findings = judge(base, tuned)
    checks = check_budgets(findings, {"lost": 0.02})
    assert overall_outcome(checks) is Outcome.undecided
    assert (
        overall_outcome(check_budgets(findings, {"lost": 0.02}, off=["gained"])) is Outcome.beyond
    )


def test_a_named_budget_leaves_the_others_theirs(findings: Findings) -> None:
    for budgets, relative in (({"kept": 0.3}, {}), ({}, {"kept": 0.5})):
        checks = check_budgets(findings, budgets, relative)
        assert [one.budget for one in checks if one.benchmark != "kept"] == [0.02, 0.02]
        assert overall_outcome(checks) is Outcome.beyond


def test_a_budget_above_half_says_how_often_it_is_kept_by_luck() -> None:
    findings = judge_scores(*make_scores(100, 40, 0, 60))
    for budget, is_said in ((0.5, False), (0.6, True)):
        [check] = check_budgets(findings, {"a": budget})
        assert check.outcome is Outcome.within
        assert ("PASSED is wrong in up to 10 %" in check.reason) is is_said


def test_what_stopped_early_or_is_one_question_says_how_to_go_on() -> None:
    before, after = make_scores(400, 20, 19, 561)
    tuned = make_evaluation(a=stop_early(make_benchmark(after), 63))
    [early] = check_budgets(judge(make_evaluation(a=before), tuned), {})
    assert "after 63 of 1,000; a run with" in early.reason
    assert "evaluation.until=budget benchmark.a.max_loss=0.02" in early.reason
    [one] = check_budgets(judge_scores([1.0], [1.0]), {})
    assert one.outcome is Outcome.undecided


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["kept=2"], "give a share from 0 up to"),
        (["kept=nan"], "give a share"),
        (["kept"], "give a share"),
        (["=0.1"], "gsm8k=0.02 is two points"),
        (["kept=0.1", "kept=0.2"], "kept has 0.1 already; keep one"),
        (["kepd=0.1"], "kepd was not measured; did you mean kept"),
    ],
)
def test_budgets_that_are_none_are_refused(
    findings: Findings, arguments: list[str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_budgets(findings, read_budgets(arguments))


def test_a_run_is_decided_by_the_budgets_that_its_settings_name() -> None:
    scores = make_scores(600, 100, 5, 295)
    assert decide_by_settings(judge_scores(*scores)) is None
    before, after = (make_benchmark(side, max_loss=0.02) for side in scores)
    both = [make_evaluation(a=a, b=b) for a, b in zip((before, after), scores, strict=True)]
    gate = decide_by_settings(judge(*both))
    assert gate is not None
    assert [(one.benchmark, one.budget) for one in gate.checks] == [("a", 0.02)]
    assert gate.outcome is Outcome.beyond


def test_a_gate_of_many_benchmarks_solves_few_equations_for_each(monkeypatch: Patch) -> None:
    """Hundreds of benchmarks are judged in seconds; the mean of all is not judged anew."""
    n_solved, solve = [0], likelihood._solve

    def count(*arguments: Any) -> Any:
        n_solved[0] += 1
        return solve(*arguments)

    monkeypatch.setattr(likelihood, "_solve", count)
    names = [f"task_{i}" for i in range(12)]
    drawn = [draw_scores(100, 0.6, 0.05, 0.03, seed) for seed in range(len(names))]
    sides = zip(*drawn, strict=True)
    pair: Any = [make_evaluation(**dict(zip(names, side, strict=True))) for side in sides]
    findings = judge(*pair)
    rules = GateRules({}, {}, [], overall=True)
    gate = rules.decide(findings, lambda: pair_evaluations(*pair))
    assert gate.mean == findings.mean_change(Role.retained)
    assert n_solved[0] < 60 * len(names)
    without = GateRules({}, {}, names[:5], overall=True).decide(
        findings, lambda: pair_evaluations(*pair)
    )
    rest = [replace(e, benchmarks={n: e.benchmarks[n] for n in names[5:]}) for e in pair]
    assert without.mean == judge(*rest).mean_change(Role.retained)
