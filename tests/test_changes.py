"""What two reports say together, and which two may not be compared."""

from dataclasses import replace
from math import isfinite, isnan, nan
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from made_up import stopped

from slimdown.config.schema import BenchmarkConfig, PaperMetric, Role, Until
from slimdown.evaluation.answers import BenchmarkEvaluation, Evaluation, Sample, Score
from slimdown.evaluation.order import stages_of
from slimdown.report.words import summary
from slimdown.stats.asked import rate_of
from slimdown.stats.budget import Outcome, hold_to_budgets
from slimdown.stats.changes import BenchmarkChange, Counts, Verdict, changes_between
from slimdown.stats.common import common_part
from slimdown.stats.paired import difference, mean_difference
from slimdown.stats.sequential import sequential_difference
from slimdown.stats.stopping import open_benchmarks
from slimdown.utils.errors import SlimdownError


def benchmark(
    scores: list[float],
    paper_metric: PaperMetric | None = None,
    role: Role = Role.retained,
    subjects: list[str] | None = None,
) -> BenchmarkEvaluation:
    n = len(scores)
    mean = sum(scores) / n
    samples = tuple(
        Sample(
            subjects[i] if subjects else "task",
            i,
            f"doc{i}",
            f"prompt{i}",
            "q",
            "t",
            "",
            (),
            (),
            {"acc": "a"},
            {"acc": score},
        )
        for i, score in enumerate(scores)
    )
    config = BenchmarkConfig(
        task="task", metric="acc", num_fewshot=0, chance=0.25, paper_metric=paper_metric, role=role
    )
    error = (sum((s - mean) ** 2 for s in scores) / (n - 1) / n) ** 0.5 if n > 1 else nan
    return BenchmarkEvaluation(config, "1.0", "hash", {"acc": Score(mean, error)}, samples, 1.0)


def report(**benchmarks: BenchmarkEvaluation) -> Evaluation:
    return Evaluation(benchmarks, "0.4.13", "shared", 1.0)


def test_a_change_is_tuned_minus_base_and_counts_the_answers() -> None:
    # base 3 of 4: mean .75, variance .25, standard error .25; tuned 1 of 4: the same error
    change = (
        changes_between(report(a=benchmark([1, 1, 1, 0])), report(a=benchmark([0, 1, 0, 0])))
        .benchmarks["a"]
        .primary
    )
    assert change.difference.value == -0.5
    assert change.unpaired_standard_error == pytest.approx((0.25**2 + 0.25**2) ** 0.5)
    assert change.counts == Counts(kept=1, lost=2, gained=0, missed=1)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        (PaperMetric.ability_augmentation, -50.0),
        (PaperMetric.knowledge_loss, 50.0),
        (PaperMetric.forgetting_rate, 1 - 0.25 / 0.75),
    ],
)
def test_each_of_the_papers_metrics_has_its_own_sign_and_unit(
    metric: PaperMetric, value: float
) -> None:
    changed = changes_between(
        report(a=benchmark([1, 1, 1, 0], metric)), report(a=benchmark([0, 1, 0, 0], metric))
    )
    found = changed.benchmarks["a"].paper_value
    assert found is not None
    assert found.value == pytest.approx(value)


def test_a_base_at_zero_has_no_forgetting_rate() -> None:
    rate = PaperMetric.forgetting_rate
    changed = changes_between(report(a=benchmark([0, 0], rate)), report(a=benchmark([0, 1], rate)))
    assert changed.benchmarks["a"].paper_value is not None
    assert isnan(changed.benchmarks["a"].paper_value.value)


def test_a_model_compared_with_itself_forgets_nothing() -> None:
    same = report(a=benchmark([1, 0, 1]), b=benchmark([0, 0, 1]))
    assert [
        b.primary.difference.value for b in changes_between(same, same).benchmarks.values()
    ] == [0.0, 0.0]
    assert changes_between(same, same).mean_retained_change.value == 0.0


def test_the_mean_leaves_the_target_out() -> None:
    base = report(a=benchmark([1, 1, 0, 0]), t=benchmark([0, 0, 0, 0], role=Role.target))
    tuned = report(a=benchmark([1, 0, 0, 0]), t=benchmark([1, 1, 1, 1], role=Role.target))
    assert changes_between(base, tuned).mean_retained_change.value == -0.25


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("task_version", {"task_version": "2.0"}),
        ("task_hash", {"task_hash": "other"}),
        ("num_fewshot", {"benchmark": replace(benchmark([1, 0]).benchmark, num_fewshot=5)}),
        ("task", {"benchmark": replace(benchmark([1, 0]).benchmark, task="another")}),
        ("n", {"samples": benchmark([1, 0, 1]).samples}),
        (
            "prompt_hash",
            {"samples": tuple(replace(s, prompt_hash="x") for s in benchmark([1, 0]).samples)},
        ),
        ("doc_hash", {"samples": tuple(reversed(benchmark([1, 0]).samples))}),
    ],
)
def test_reports_of_unlike_evaluations_are_refused_by_field(
    field: str, changes: dict[str, object]
) -> None:
    base = benchmark([1, 0])
    with pytest.raises(SlimdownError, match=f"a: base and tuned cannot be compared, {field} differs"):
        changes_between(report(a=base), report(a=replace(base, **changes)))  # type: ignore[arg-type]


def test_another_harness_or_another_choice_of_benchmarks_is_refused() -> None:
    one = report(a=benchmark([1, 0]))
    with pytest.raises(SlimdownError, match="harness_version differs"):
        changes_between(one, replace(one, harness_version="0.5"))
    with pytest.raises(SlimdownError, match="benchmarks differ"):
        changes_between(one, report(b=benchmark([1, 0])))
    with pytest.raises(SlimdownError, match="scoring_path differs: shared and stock"):
        changes_between(one, replace(one, scoring_path="stock"))


def answers(kept: int, lost: int, gained: int, missed: int) -> tuple[list[float], list[float]]:
    """Scores before and after with these counts."""
    before = [1.0] * (kept + lost) + [0.0] * (gained + missed)
    after = [1.0] * kept + [0.0] * lost + [1.0] * gained + [0.0] * missed
    return before, after


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((300, 100, 10, 90), Verdict.forgotten),
        ((100, 10, 100, 290), Verdict.improved),
        ((2000, 20, 20, 960), Verdict.retained),
        ((50, 3, 3, 44), Verdict.undecided),  # no change seen, and none excluded: not "retained"
        ((50, 0, 0, 0), Verdict.undecided),
    ],
)
def test_a_verdict_needs_evidence_for_what_it_says(
    counts: tuple[int, int, int, int], expected: Verdict
) -> None:
    before, after = answers(*counts)
    found = changes_between(report(a=benchmark(before)), report(a=benchmark(after))).benchmarks["a"]
    assert found.verdict is expected
    assert (found.n_to_decide is not None) == (expected is Verdict.undecided)


def test_a_shown_change_below_the_margin_is_retained() -> None:
    before, after = answers(kept=6000, lost=100, gained=40, missed=3900)
    found = changes_between(report(a=benchmark(before)), report(a=benchmark(after))).benchmarks["a"]
    assert found.primary.difference.p_value < 0.001
    assert found.verdict is Verdict.retained


def test_benchmarks_tested_together_are_corrected() -> None:
    before, after = answers(kept=60, lost=11, gained=2, missed=27)  # exact McNemar: p = 0.0225
    alone = changes_between(report(a=benchmark(before)), report(a=benchmark(after)))
    quiet = {name: benchmark([1.0, 0.0] * 50) for name in "bcd"}
    together = changes_between(
        report(a=benchmark(before), **quiet), report(a=benchmark(after), **quiet)
    )
    assert alone.benchmarks["a"].verdict is Verdict.forgotten
    assert together.benchmarks["a"].p_value == pytest.approx(4 * alone.benchmarks["a"].p_value)
    assert together.benchmarks["a"].verdict is Verdict.undecided


def test_any_rate_above_chance_is_possible_for_a_base_at_chance() -> None:
    before, after = answers(kept=10, lost=17, gained=13, missed=60)  # .27 where guessing scores .25
    found = changes_between(report(a=benchmark(before)), report(a=benchmark(after))).benchmarks["a"]
    assert found.forgetting_rate_above_chance is None
    assert found.forgetting_rate is not None


@pytest.mark.parametrize("scores", [[1.0], [0.0], [1.0] * 30, [0.0] * 30])
def test_one_sample_all_right_and_all_wrong_are_undecided(scores: list[float]) -> None:
    same = report(a=benchmark(scores))
    found = changes_between(same, same).benchmarks["a"]
    assert found.verdict is Verdict.undecided
    assert found.primary.difference.low < 0 < found.primary.difference.high


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(SlimdownError, match="a: 1 of 3 scores are not numbers"):
        changes_between(report(a=benchmark([1, 0, 1])), report(a=benchmark([1, float("nan"), 1])))


def test_no_question_at_all_is_refused() -> None:
    empty = replace(benchmark([1, 0]), samples=())
    with pytest.raises(SlimdownError, match="a: there is no question to compare"):
        changes_between(report(a=empty), report(a=empty))


def test_a_metric_without_a_score_for_each_question_is_refused() -> None:
    whole = replace(benchmark([1, 0]), scores={"f1": Score(0.5, 0.1), "acc": Score(0.5, 0.5)})
    config = replace(whole.benchmark, metric="f1")
    with pytest.raises(
        SlimdownError, match=r"f1 has no score for each question.*choose one that has: acc"
    ):
        changes_between(
            report(a=replace(whole, benchmark=config)), report(a=replace(whole, benchmark=config))
        )


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=40
    ),
    st.randoms(),
)
@settings(max_examples=60, deadline=None)
def test_the_order_of_questions_does_not_matter(
    pairs: list[tuple[float, float]], random: Random
) -> None:
    def compared(rows: list[tuple[float, float]]) -> BenchmarkChange:
        before, after = ([row[i] for row in rows] for i in (0, 1))
        return changes_between(report(a=benchmark(before)), report(a=benchmark(after))).benchmarks[
            "a"
        ]

    shuffled = random.sample(pairs, len(pairs))
    one, other = compared(pairs), compared(shuffled)
    assert replace(other.primary.difference, t_test_p_value=0) == replace(
        one.primary.difference, t_test_p_value=0
    )
    assert (other.verdict, other.forgetting_rate) == (one.verdict, one.forgetting_rate)


def test_the_mean_of_benchmarks_of_a_few_subjects_has_their_t() -> None:
    before, after = answers(kept=100, lost=25, gained=15, missed=110)
    names = [f"subject{i % 5}" for i in range(250)]
    one = benchmark(before, subjects=names), benchmark(after, subjects=names)
    found = changes_between(report(a=one[0], b=one[0]), report(a=one[1], b=one[1]))
    alone, both = found.benchmarks["a"].primary.difference, found.mean_retained_change
    assert both.standard_error == pytest.approx(alone.standard_error / 2**0.5)
    # two of four degrees of freedom are eight
    assert both.high - both.value == pytest.approx(2.306 * both.standard_error, rel=1e-3)
    assert -1 <= both.low < both.high <= 1


def test_the_mean_of_benchmarks_covers_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(3)
    at = np.repeat(np.arange(5), 40)
    covered = []
    for _ in range(1500):
        differences = []
        for _ in range(2):
            u, change = draw.random(200), draw.normal(0, 0.1, 5)[at]
            lost, gained = u < (0.2 - change) / 2, (u >= (0.2 - change) / 2) & (u < 0.2)
            differences.append(
                difference(lost.astype(float), gained.astype(float), [str(i) for i in at])
            )
        mean = mean_difference(differences)
        covered.append(mean.low <= 0 <= mean.high)
    assert 0.93 <= np.mean(covered) <= 0.975


def test_a_rate_that_is_bounded_on_one_side_reaches_the_paper_value_without_a_finite_lie() -> None:
    before, after = answers(kept=1, lost=1, gained=0, missed=98)
    metric = PaperMetric.forgetting_rate
    found = changes_between(
        report(a=benchmark(before, metric)), report(a=benchmark(after, metric))
    ).benchmarks["a"]
    assert found.paper_value is not None
    assert found.paper_value.value == pytest.approx(0.5)
    assert not isfinite(found.paper_value.low)


# --- asked in stages ----------------------------------------------------------------------------------


def drawn(
    n: int, base: float, lost: float, gained: float, seed: int
) -> tuple[list[float], list[float]]:
    """Scores before and after, `lost` and `gained` the chances of a question to change so."""
    draw = np.random.default_rng(seed)
    right, u = draw.random(n) < base, draw.random(n)
    return list(right * 1.0), list(np.where(right, u >= lost / base, u < gained / (1 - base)) * 1.0)


def asked_until(
    until: Until, **pairs: tuple[BenchmarkEvaluation, BenchmarkEvaluation]
) -> tuple[Evaluation, Evaluation]:
    """Both evaluations when asking has ended, stage by stage as a run asks."""
    stages = {name: list(stages_of(len(base.samples))) for name, (base, _) in pairs.items()}
    asked, going = dict.fromkeys(pairs, 0), set(pairs)
    while going:
        asked |= {name: stages[name].pop(0) for name in going}
        before, after = (
            report(**{name: stopped(pair[side], asked[name]) for name, pair in pairs.items()})
            for side in (0, 1)
        )
        going = {name for name in open_benchmarks(before, after, until) if stages[name]}
    return before, after


@pytest.mark.parametrize("seed", range(8))
def test_what_ends_the_asking_is_the_verdict_that_is_shown(seed: int) -> None:
    pairs = {
        "much": drawn(1319, 0.335, 0.31, 0.01, seed),
        "little": drawn(2000, 0.6, 0.02, 0.02, seed + 100),
        "few": drawn(60, 0.4, 0.1, 0.1, seed + 200),
    }
    found = changes_between(
        *asked_until(
            Until.decided, **{name: (benchmark(b), benchmark(a)) for name, (b, a) in pairs.items()}
        )
    )
    for name, one in found.benchmarks.items():
        assert one.is_stopped == (one.n < len(pairs[name][0]))
        assert one.verdict is not Verdict.undecided or not one.is_stopped
    assert found.benchmarks["much"].verdict is Verdict.forgotten
    assert found.benchmarks["much"].n <= 132
    assert found.benchmarks["little"].verdict is not Verdict.forgotten


def test_a_budget_ends_the_asking_of_what_has_one_and_a_verdict_that_of_a_target() -> None:
    before, after = drawn(4000, 0.5, 0.06, 0.01, 0)  # five points lost, of ten that may be
    kept, target = benchmark(before), benchmark(before, role=Role.target)
    kept = replace(kept, benchmark=replace(kept.benchmark, max_loss=0.1))
    pairs = {
        "kept": (kept, replace(kept, samples=benchmark(after).samples)),
        "target": (target, replace(target, samples=benchmark(after).samples)),
    }
    found = changes_between(*asked_until(Until.budget, **pairs))
    [judged] = hold_to_budgets(found, {})
    assert (judged.benchmark, judged.budget, judged.outcome) == ("kept", 0.1, Outcome.within)
    assert found.benchmarks["target"].verdict is Verdict.forgotten
    assert 0 < found.benchmarks["kept"].n < 4000
    assert " questions: a loss of 10 points or more is ruled out" in judged.reason
    assert summary(found)[-1] == "Held to what may be lost: kept within 10 points."
    [further] = hold_to_budgets(found, {"kept": 0.05})
    assert (
        "more were not asked; a run with evaluation.until=budget benchmark.kept.max_loss=0.05 asks"
        in further.reason
    )


def test_what_a_budget_ended_is_told_although_the_verdict_is_not_known() -> None:
    before, after = drawn(4000, 0.5, 0.01, 0.025, 0)
    pair = benchmark(before), benchmark(after)
    found = changes_between(*asked_until(Until.budget, kept=pair))
    assert found.benchmarks["kept"].is_stopped
    assert found.benchmarks["kept"].verdict is Verdict.undecided
    assert summary(found)[-1] == "Held to what may be lost: kept within 2 points."
    whole = changes_between(report(kept=pair[0]), report(kept=pair[1]))
    assert "Held to" not in " ".join(summary(whole))


def test_a_change_that_is_shown_is_asked_on_while_it_looks_smaller_than_the_margin() -> None:
    n, after = 10042, [float(i % 66 > 0) for i in range(10042)]  # 1.5 points lost all along
    for margin, still_open in ((0.02, {"a"}), (0.01, set())):
        benchmarks = [benchmark([1.0] * n), benchmark(after)]
        pair = [replace(one, benchmark=replace(one.benchmark, margin=margin)) for one in benchmarks]
        early = [report(a=stopped(one, 2592)) for one in pair]
        assert changes_between(*early).benchmarks["a"].verdict is Verdict.forgotten
        assert open_benchmarks(*early, Until.decided) == still_open
    whole = changes_between(
        *asked_until(Until.decided, a=(benchmark([1.0] * n), benchmark(after)))
    ).benchmarks["a"]
    assert whole.verdict is Verdict.retained
    assert 2592 < whole.n < n


def test_what_was_known_beside_a_small_change_is_asked_on_if_that_turns() -> None:
    """Holm lets the one be shown with all of the error because the other is; that one goes on and is `retained`."""
    before = [float(i >= 2592) for i in range(10042)]
    after = [
        float(i % 66 == 0 if i < 2592 else i % 26 > 0) for i in range(10042)
    ]  # 40 gained, then as many lost
    turned = [benchmark(scores) for scores in (before, after)]
    for seed in range(300):
        pair = [stopped(benchmark(scores), 88) for scores in drawn(400, 0.5, 0.2, 0.05, seed)]
        if 0.025 < changes_between(*(report(a=one) for one in pair)).benchmarks["a"].p_value < 0.05:
            break
    for n_asked, still_open in ((2592, {"b"}), (3629, {"a"})):
        both = (
            report(a=one, b=stopped(other, n_asked))
            for one, other in zip(pair, turned, strict=True)
        )
        assert open_benchmarks(*both, Until.decided) == still_open


def test_what_is_asked_to_its_end_counts_as_unknown_until_then() -> None:
    """It would be shown by now, if this were its end, and leave the other to be shown by the whole of the error."""
    perplexity = benchmark([20.0, 30.0] * 50), benchmark([25.0, 35.5] * 50)
    assert (
        changes_between(*(report(p=one) for one in perplexity)).benchmarks["p"].verdict
        is not Verdict.undecided
    )
    for seed in range(300):
        pair = [stopped(benchmark(scores), 88) for scores in drawn(400, 0.5, 0.2, 0.05, seed)]
        alone = [report(a=one) for one in pair]
        if 0.025 < changes_between(*alone).benchmarks["a"].p_value < 0.05:
            break
    beside = [report(a=one, p=other) for one, other in zip(pair, perplexity, strict=True)]
    assert open_benchmarks(*alone, Until.decided) == set()
    assert open_benchmarks(*beside, Until.decided) == {"a"}
    whole = [report(a=replace(one, stages=(), n_available=None)) for one in pair]
    assert open_benchmarks(*whole, Until.budget) == set()


def test_nothing_that_holds_of_one_look_alone_is_said_of_several() -> None:
    rate = PaperMetric.forgetting_rate
    before, after = drawn(1000, 0.6, 0.2, 0.02, 1)
    base, tuned = (report(a=stopped(benchmark(scores, rate), 88)) for scores in (before, after))
    found = changes_between(base, tuned).benchmarks["a"]
    d, whole = found.primary.difference, difference(before[:88], after[:88])
    assert (
        d.p_value
        == sequential_difference(before[:88], after[:88], None, (32, 45, 63, 88), 1000).p_value
    )
    assert d.p_value > whole.p_value
    assert d.low < whole.low < whole.high < d.high
    for none in (d.standard_error, d.t_test_p_value, found.primary.base.standard_error):
        assert isnan(none)
    assert found.primary.base.low < 0.6 < found.primary.base.high
    assert found.paper_value is not None
    assert isnan(found.paper_value.standard_error)
    assert -1 < found.paper_value.low < 0.3 < found.paper_value.high <= 1
    mean = changes_between(base, tuned).mean_retained_change
    assert (mean.value, isnan(mean.standard_error)) == (d.value, True)
    assert (mean.low, mean.high) == pytest.approx((d.low, d.high), abs=1e-4)


def test_a_mean_of_stopped_benchmarks_holds_each_to_its_part_of_the_error() -> None:
    before, after = drawn(1000, 0.6, 0.2, 0.02, 1)
    one, two = ({name: stopped(benchmark(s), 88) for name in "ab"} for s in (before, after))
    changes = changes_between(report(**one), report(**two))
    d, mean = changes.benchmarks["a"].primary.difference, changes.mean_retained_change
    assert mean.low < d.low < d.high < mean.high


@pytest.mark.parametrize(
    ("before", "after", "subjects", "verdict"),
    [
        ([1.0] * 500, [0.0] * 500, None, Verdict.forgotten),
        ([0.0] * 500, [1.0] * 500, None, Verdict.improved),
        ([1.0, 0.0] * 250, [1.0, 0.0] * 250, None, Verdict.retained),
        ([1.0], [0.0], None, Verdict.undecided),
        ([1.0], [1.0], None, Verdict.undecided),
        ([1.0] * 570, [0.0] * 570, [f"s{i % 57}" for i in range(570)], Verdict.forgotten),
        ([0.5, 0.7, 0.3] * 200, [0.1, 0.2, 0.1] * 200, None, Verdict.forgotten),
        ([0.5] * 300, [0.5] * 300, None, None),
    ],
)  # fmt: skip
def test_whatever_is_asked_in_stages_ends_and_is_judged(
    before: list[float], after: list[float], subjects: list[str] | None, verdict: Verdict | None
) -> None:
    pair = tuple(
        benchmark(scores, PaperMetric.forgetting_rate, subjects=subjects)
        for scores in (before, after)
    )
    for until in (Until.decided, Until.budget):
        base, tuned = asked_until(until, a=pair)  # type: ignore[arg-type]
        found = changes_between(base, tuned).benchmarks["a"]
        assert until is Until.budget or found.verdict is verdict or verdict is None
        assert -1 <= found.primary.difference.low <= found.primary.difference.high <= 1
        assert found.n == len(before) or found.n_available == len(before)


def test_the_rates_that_are_told_hold_at_the_worst_look() -> None:
    missed, repeats = 0, 25
    for seed in range(repeats):
        before, after = drawn(400, 0.6, 0.3, 0.06, seed)  # 0.24 of 0.6 are gone: 0.4
        asked = (stopped(benchmark(before), n) for n in stages_of(400))
        rates = [
            rate_of(one, before[: len(one.samples)], after[: len(one.samples)], 0.0)
            for one in asked
        ]
        missed += any(rate is not None and not rate.low <= 0.4 <= rate.high for rate in rates)
    assert missed <= 0.05 * repeats + 3


def test_two_that_stopped_apart_are_paired_on_what_both_were_asked_as_it_was_looked_at() -> None:
    before, after = drawn(1000, 0.6, 0.2, 0.02, 1)
    short, long, whole = (
        stopped(benchmark(before), 63),
        stopped(benchmark(after), 245),
        benchmark(after),
    )
    for other in (
        long,
        replace(whole, samples=whole.samples[::-1]),
    ):  # all at once: in an order of its own
        for pair in ((short, other), (other, short)):
            one, two = common_part(*(report(a=side) for side in pair))
            found = changes_between(one, two).benchmarks["a"]
            assert (found.n, found.n_available) == (63, 1000)
            assert one.benchmarks["a"].stages == (32, 45, 63)
            assert (
                abs(found.primary.difference.value) == abs(sum(after[:63]) - sum(before[:63])) / 63
            )
    with pytest.raises(SlimdownError, match="n differs: 63 and 245"):
        changes_between(report(a=short), report(a=long))
    limited = replace(whole, samples=whole.samples[:100])
    with pytest.raises(SlimdownError, match="n_available differs: 1000 and 100"):
        changes_between(*common_part(report(a=short), report(a=limited)))
    same = report(a=whole)
    assert common_part(same, same) == (same, same)
