"""What two reports say together, and which two may not be compared."""

from dataclasses import replace
from math import isfinite, isnan, nan
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from slimdown.guarding.errors import UserError
from slimdown.judging.changes import BenchmarkChange, Counts, Verdict, changes_between
from slimdown.judging.paired import difference, mean_difference
from slimdown.measuring.answers import BenchmarkEvaluation, Evaluation, Sample, Score
from slimdown.settings.schema import BenchmarkConfig, PaperMetric, Role


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
        changes_between(report(a=benchmark([1, 1, 1, 0])), report(a=benchmark([0, 1, 0, 0]))).benchmarks["a"].primary
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
def test_each_of_the_papers_metrics_has_its_own_sign_and_unit(metric: PaperMetric, value: float) -> None:
    changed = changes_between(report(a=benchmark([1, 1, 1, 0], metric)), report(a=benchmark([0, 1, 0, 0], metric)))
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
    assert [b.primary.difference.value for b in changes_between(same, same).benchmarks.values()] == [0.0, 0.0]
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
        ("prompt_hash", {"samples": tuple(replace(s, prompt_hash="x") for s in benchmark([1, 0]).samples)}),
        ("doc_hash", {"samples": tuple(reversed(benchmark([1, 0]).samples))}),
    ],
)
def test_reports_of_unlike_evaluations_are_refused_by_field(field: str, changes: dict[str, object]) -> None:
    base = benchmark([1, 0])
    with pytest.raises(UserError, match=f"a: base and tuned cannot be compared, {field} differs"):
        changes_between(report(a=base), report(a=replace(base, **changes)))  # type: ignore[arg-type]


def test_another_harness_or_another_choice_of_benchmarks_is_refused() -> None:
    one = report(a=benchmark([1, 0]))
    with pytest.raises(UserError, match="harness_version differs"):
        changes_between(one, replace(one, harness_version="0.5"))
    with pytest.raises(UserError, match="benchmarks differ"):
        changes_between(one, report(b=benchmark([1, 0])))
    with pytest.raises(UserError, match="scoring_path differs: shared and stock"):
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
def test_a_verdict_needs_evidence_for_what_it_says(counts: tuple[int, int, int, int], expected: Verdict) -> None:
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
    together = changes_between(report(a=benchmark(before), **quiet), report(a=benchmark(after), **quiet))
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
    with pytest.raises(UserError, match="a: 1 of 3 scores are not numbers"):
        changes_between(report(a=benchmark([1, 0, 1])), report(a=benchmark([1, float("nan"), 1])))


def test_no_question_at_all_is_refused() -> None:
    empty = replace(benchmark([1, 0]), samples=())
    with pytest.raises(UserError, match="a: there is no question to compare"):
        changes_between(report(a=empty), report(a=empty))


def test_a_metric_without_a_score_for_each_question_is_refused() -> None:
    whole = replace(benchmark([1, 0]), scores={"f1": Score(0.5, 0.1), "acc": Score(0.5, 0.5)})
    config = replace(whole.benchmark, metric="f1")
    with pytest.raises(UserError, match=r"f1 has no score for each question.*choose one that has: acc"):
        changes_between(report(a=replace(whole, benchmark=config)), report(a=replace(whole, benchmark=config)))


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=40), st.randoms()
)
@settings(max_examples=60, deadline=None)
def test_the_order_of_questions_does_not_matter(pairs: list[tuple[float, float]], random: Random) -> None:
    def compared(rows: list[tuple[float, float]]) -> BenchmarkChange:
        before, after = ([row[i] for row in rows] for i in (0, 1))
        return changes_between(report(a=benchmark(before)), report(a=benchmark(after))).benchmarks["a"]

    shuffled = random.sample(pairs, len(pairs))
    one, other = compared(pairs), compared(shuffled)
    assert replace(other.primary.difference, t_test_p_value=0) == replace(one.primary.difference, t_test_p_value=0)
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
            differences.append(difference(lost.astype(float), gained.astype(float), [str(i) for i in at]))
        mean = mean_difference(differences)
        covered.append(mean.low <= 0 <= mean.high)
    assert 0.93 <= np.mean(covered) <= 0.975


def test_a_rate_that_is_bounded_on_one_side_reaches_the_paper_value_without_a_finite_lie() -> None:
    before, after = answers(kept=1, lost=1, gained=0, missed=98)
    metric = PaperMetric.forgetting_rate
    found = changes_between(report(a=benchmark(before, metric)), report(a=benchmark(after, metric))).benchmarks["a"]
    assert found.paper_value is not None
    assert found.paper_value.value == pytest.approx(0.5)
    assert not isfinite(found.paper_value.low)
