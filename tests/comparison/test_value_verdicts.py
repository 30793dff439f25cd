"""Verdicts over seeds: what they rest on, and where none is given."""

from dataclasses import replace

import numpy as np
import pytest
from builders import (
    draw_scores,
    judge_pairs,
    judge_scores,
    make_benchmark,
    make_ranks,
    make_scores,
    stop_early,
)
from scipy.stats import ttest_1samp

from bench.statistics import build_table, contradicts, draw_table
from slimdown.comparison.run_comparison import compare_runs
from slimdown.comparison.value_verdicts import SeedAnswers, build_tests, judge_configurations
from slimdown.judging.answer_traits import NEVER_ENDED, Trait
from slimdown.judging.findings import Findings
from slimdown.judging.verdicts import Verdict, decide_verdicts
from slimdown.stats.estimates import compare_scores
from slimdown.stats.seeds import pool_spreads
from slimdown.stats.sequential import Floats

LOST = judge_scores(*make_scores(300, 60, 10, 230))
SAME = judge_scores(*make_scores(1500, 8, 8, 484))


def collect(answers: Floats) -> SeedAnswers:
    return SeedAnswers([answers], [1.0])


def judge_ranks(by_rank: dict[int, list[Findings]]) -> list[Verdict]:
    return [row["a"].verdict for row in judge_configurations(compare_runs(make_ranks(by_rank)))]


def test_one_seed_is_the_test_of_its_questions() -> None:
    before, after = draw_scores(200, 0.6, 0.1, 0.03, 0)
    difference = compare_scores(before, after)
    test = SeedAnswers([(after - before)[None]], [1.0], is_binary=True).build_test(None)
    assert test.value == difference.value
    assert test.equivalence_p_value(0.02) == pytest.approx(difference.equivalence_p_value(0.02))
    assert test.p_value == pytest.approx(2 * difference.p_value_below(0))
    assert test.shown_sign(test.p_value * 1.01) == -1
    assert test.shown_sign(test.p_value) == 0


def test_without_noise_of_questions_it_is_students_test() -> None:
    by_seed = np.array([-0.04, -0.07, -0.05])
    answers = np.repeat(by_seed[:, None], 100_000, axis=1)
    test = collect(answers).build_test(collect(answers).measure_spread())
    assert test.p_value == pytest.approx(ttest_1samp(by_seed, 0).pvalue, rel=0.01)
    expected = ttest_1samp(by_seed, -0.1, alternative="greater").pvalue
    assert test.equivalence_p_value(0.1) == pytest.approx(expected, rel=0.01)


def test_configurations_below_five_seeds_lend_each_other_their_spread() -> None:
    draw = np.random.default_rng(0)
    rows = [draw.normal(-0.05, 0.02, (2, 1)) + draw.normal(0, 0.2, (2, 300)) for _ in range(4)]
    answers = {i: collect(row) for i, row in enumerate(rows)}
    spreads = [collect(row).measure_spread() for row in rows]
    assert build_tests(answers)[0].spread == pool_spreads(spreads)
    assert pool_spreads(spreads).freedom == 4
    many = draw.normal(-0.05, 0.02, (5, 1)) + draw.normal(0, 0.2, (5, 300))
    tests = build_tests({**answers, 4: collect(many)})
    assert tests[4].spread == collect(many).measure_spread()
    assert tests[0].spread.freedom == 8


def test_more_values_make_a_loss_of_two_seeds_surer() -> None:
    """Two seeds alone say almost nothing; with those of five other ranks they do."""
    seeds = [LOST, judge_scores(*make_scores(280, 80, 10, 230))]
    assert judge_ranks({2: seeds}) == [Verdict.undecided]
    many = dict.fromkeys((2, 4, 8, 16, 32, 64), seeds)
    assert set(judge_ranks(many)) == {Verdict.forgotten}


def test_seeds_whose_test_cannot_hold_have_no_verdict() -> None:
    base, tuned = make_scores(300, 60, 10, 230)
    other = judge_scores(base[1:], tuned[1:])
    early = judge_scores(base, stop_early(make_benchmark(tuned), 89))
    trait = Trait(NEVER_ENDED, 0.0, 0.9, 0.8, 1.0)  # so that it measures the limit of tokens
    unclear = replace(LOST.benchmarks["a"], traits=(trait,), verdict=Verdict.undecided)
    never_ended = replace(LOST, benchmarks={"a": unclear})
    many = {rank: [LOST, LOST] for rank in (2, 4, 8, 16, 32, 64)}
    for pair in ([LOST, other], [early, early], [never_ended, never_ended]):
        verdicts = judge_ranks({**many, 1: pair})
        assert verdicts[-1] is Verdict.undecided
        assert set(verdicts[:-1]) == {Verdict.forgotten}


def test_what_no_run_got_right_is_not_retained() -> None:
    same = {2: [SAME] * 3, 4: [SAME] * 3}
    assert judge_ranks(same) == [Verdict.retained] * 2
    nothing = judge_scores(*make_scores(0, 0, 0, 2000))
    assert judge_ranks({2: [nothing] * 3, 4: [nothing] * 3}) == [Verdict.undecided] * 2


def test_means_are_judged_beside_their_benchmarks_and_corrected_with_them() -> None:
    before, after = make_scores(300, 60, 10, 230)
    findings = judge_pairs(a=(before, after), b=(before[::-1], after[::-1]))
    runs = make_ranks({rank: [findings, findings] for rank in (2, 4, 8, 16, 32, 64)})
    rows = judge_configurations(compare_runs(runs))
    assert list(rows[0]) == ["a", "b", "kept"]
    assert rows[0]["kept"].value == pytest.approx(-50 / 600)
    assert {mean.verdict for row in rows for mean in row.values()} == {Verdict.forgotten}
    assert "kept" not in judge_configurations(compare_runs(make_ranks({2: [LOST]})))[0]


@pytest.mark.parametrize("has_spread", [True, False])
def test_the_interval_holds_what_the_test_does_not_rule_out(has_spread: bool) -> None:
    random = np.random.default_rng(3)
    answers = random.choice([-1.0, 0.0, 1.0], p=[0.12, 0.84, 0.04], size=(3, 200))
    spread = collect(answers).measure_spread() if has_spread else None
    test = collect(answers).build_test(spread)
    low, high = test.interval(test.p_value)
    assert high == pytest.approx(0, abs=1e-5)
    assert low < test.value
    margin = -test.interval(0.1)[0]
    assert test.equivalence_p_value(margin) == pytest.approx(0.05, rel=1e-3)


def test_a_verdict_over_seeds_and_its_interval_agree() -> None:
    random = np.random.default_rng(4)
    tests = [
        test
        for change in (0.0, -0.03, -0.2)
        for test in build_table(draw_table((2, 3, 2, 200), change, (0.02, 0.05, 0.01), random))
    ]
    decisions = decide_verdicts(tests, [0.05] * len(tests))
    assert len({decision.verdict for decision in decisions}) > 1
    for test, decision in zip(tests, decisions, strict=True):
        assert not contradicts(decision, decision.form_interval(test, 0.05), 0.05)
