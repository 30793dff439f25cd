"""A watched benchmark shows its change, claims nothing, and takes nothing from the others."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import (
    draw_scores,
    judge_pairs,
    make_benchmark,
    make_evaluation,
    make_ranks,
    make_texts,
    stop_early,
)

from slimdown.comparison.group_tests import find_differences
from slimdown.comparison.run_comparison import compare_runs
from slimdown.comparison.trials import summarize_trial
from slimdown.comparison.value_verdicts import judge_configurations
from slimdown.config.benchmark_config import Role, Until
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.judging.budgets import Outcome, check_budgets, default_budgets
from slimdown.judging.findings import Findings
from slimdown.judging.serialization import to_plain
from slimdown.judging.stopping import stopping_rule
from slimdown.stats.estimates import compare_scores
from slimdown.utils.errors import ConfigError

Sides = tuple[BenchmarkEvaluation, BenchmarkEvaluation]


def draw_texts(fall: float, n: int = 300, seed: int = 0) -> Sides:
    """Byte probabilities of base and tuned model, which falls by so much on average."""
    random = np.random.default_rng(seed)
    base = random.uniform(0.4, 0.7, n)
    tuned = np.clip(base - fall + random.normal(0, 0.01, n), 0, 1)
    return make_texts(base), make_texts(tuned)


def draw_questions(lost: float, seed: int, **settings: Any) -> Sides:
    before, after = draw_scores(400, 0.6, lost, 0.02, seed)
    return make_benchmark(before, **settings), make_benchmark(after, **settings)


QUESTIONS = {"a": draw_questions(0.055, 1), "b": draw_questions(0.02, 2)}


@pytest.mark.parametrize("fall", [0.0, 0.1])
def test_the_others_are_judged_as_if_it_were_not_there(fall: float) -> None:
    alone, beside = judge_pairs(**QUESTIONS), judge_pairs(docs=draw_texts(fall), **QUESTIONS)
    for name, change in alone.benchmarks.items():
        assert to_plain(beside.benchmarks[name]) == to_plain(change)
    assert beside.mean_changes == alone.mean_changes
    assert default_budgets(beside.benchmarks) == default_budgets(alone.benchmarks)
    assert summarize_trial(beside, None) == summarize_trial(alone, None)


def test_its_interval_is_its_own_and_no_word_stands_beside_it() -> None:
    texts = draw_texts(0.03)
    change = judge_pairs(docs=texts, **QUESTIONS).benchmarks["docs"]
    scores = [side.scores_of("byte_probability") for side in texts]
    alone = compare_scores(*scores)
    assert (change.verdict, change.shown_level, change.p_value) == (None, 0.05, alone.p_value)
    assert change.shown_change == alone.estimate
    assert change.shown_change.high < 0
    n_bytes = np.arange(10, 310)
    bits = [float(n_bytes @ -np.log2(side) / n_bytes.sum()) for side in scores]
    [trait] = change.traits
    assert (trait.name, trait.base, trait.tuned) == ("bits a byte", *map(pytest.approx, bits))
    findings = judge_pairs(docs=texts)
    restored = Findings.from_dict(findings.to_dict()).benchmarks["docs"]
    assert to_plain(restored) == to_plain(findings.benchmarks["docs"])
    assert (restored.verdict, to_plain(restored.traits)) == (None, to_plain(change.traits))


def test_any_benchmark_can_be_watched() -> None:
    fallen = draw_questions(0.3, 3, role=Role.watched)
    findings = judge_pairs(seen=fallen, **QUESTIONS)
    change = findings.benchmarks["seen"]
    assert (change.verdict, change.find_trait("bits a byte")) == (None, None)
    assert change.shown_change.high < 0
    assert not findings.lost_answers["seen"].is_loss_shown


def test_it_has_the_budget_that_is_named_and_no_other() -> None:
    findings = judge_pairs(docs=draw_texts(0.03), **QUESTIONS)
    assert [check.benchmark for check in check_budgets(findings, {"": 0.5})] == ["a", "b"]
    named = {check.benchmark: check for check in check_budgets(findings, {"docs": 0.01})}
    assert named["docs"].outcome is Outcome.beyond
    with pytest.raises(ConfigError, match="NAME="):
        check_budgets(judge_pairs(docs=draw_texts(0.03)), {})


def test_looks_end_where_its_own_test_would_decide() -> None:
    texts, questions = draw_texts(0.2), draw_questions(0.02, 4)
    rule = stopping_rule(Until.decided, make_evaluation(docs=texts[0], a=questions[0]))
    few = {"docs": stop_early(texts[1], 160), "a": stop_early(questions[1], 160)}
    assert rule(few) == {"a"}
    base, tuned = draw_texts(0.0, seed=5)
    base = replace(base, benchmark=replace(base.benchmark, margin=0.001))
    rule = stopping_rule(Until.decided, make_evaluation(docs=base))
    assert rule({"docs": stop_early(tuned, 32)}) == {"docs"}


def test_a_table_of_runs_claims_nothing_of_it() -> None:
    judged = [
        judge_pairs(docs=draw_texts(fall, seed=i), a=draw_questions(0.02, 9 + i // 2))
        for i, fall in enumerate((0.01, 0.011, 0.1, 0.11))
    ]
    runs = make_ranks({8: judged[:2], 64: judged[2:]})
    for group_seeds in (True, False):
        comparison = compare_runs(runs, group_seeds)
        assert comparison.benchmarks == ("a", "docs")
        for row, means in zip(comparison.rows, judge_configurations(comparison), strict=True):
            mean = means["docs"]
            assert mean.verdict is None
            assert mean.shown.low < mean.value < mean.shown.high
            assert row.changes["docs"].verdict == ""
            assert row.retained.value == pytest.approx(row.changes["a"].change.value)
    found = find_differences(compare_runs(runs), "lora.r")
    assert len(found.tested) == 1  # of the questions
