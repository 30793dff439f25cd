"""What two evaluations say together, and which two may not be compared."""

import json
from dataclasses import replace
from functools import reduce
from math import isfinite, isnan, nan
from operator import getitem

import numpy as np
import pytest
from builders import (
    change_samples,
    draw_scores,
    judge_pairs,
    judge_scores,
    make_benchmark,
    make_evaluation,
    make_sample,
    make_scores,
    stop_early,
)

from slimdown.config.benchmark_config import PaperMetric, Role, Until
from slimdown.evaluation.question_order import order_questions
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation
from slimdown.judging.budgets import Outcome, check_budgets
from slimdown.judging.findings import BenchmarkChange, Counts, Findings, judge
from slimdown.judging.stopping import stopping_rule
from slimdown.judging.verdicts import Verdict
from slimdown.stats.estimates import compare_scores, holm
from slimdown.stats.sequential import block_ends
from slimdown.utils.errors import DataError


def test_a_change_is_tuned_minus_base_and_counts_the_answers() -> None:
    # base 3 of 4: mean .75, variance .25, standard error .25; tuned 1 of 4: the same error
    change = judge_scores([1, 1, 1, 0], [0, 1, 0, 0]).benchmarks["a"].primary
    assert change.difference.value == -0.5
    assert change.unpaired_standard_error == pytest.approx((0.25**2 + 0.25**2) ** 0.5)
    assert change.counts == Counts(still_right=1, lost=2, gained=0, missed=1)


def test_what_neither_model_got_right_is_not_retained() -> None:
    """Nothing can be lost there, so the verdict would say nothing; one right answer is enough."""
    for n_right, verdict in ((0, Verdict.undecided), (1, Verdict.retained)):
        scores = make_scores(n_right, 0, 0, 1000 - n_right)
        [benchmark] = judge_scores(*scores).benchmarks.values()
        assert benchmark.verdict is verdict
        assert benchmark.n_to_decide is None


def test_more_questions_would_not_decide_where_thinking_never_ended() -> None:
    base, tuned = map(make_benchmark, make_scores(50, 3, 3, 44))
    found = judge_scores(base, change_samples(tuned, never_ended=True)).benchmarks["a"]
    assert (found.is_measured, found.verdict) == (False, Verdict.undecided)
    assert found.n_to_decide is None


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("task_version", replace(make_benchmark([1, 0]), task_version="2.0")),
        ("num_fewshot", make_benchmark([1, 0], num_fewshot=5)),
        ("task", make_benchmark([1, 0], task="another")),
        ("number of questions", make_benchmark([1, 0, 1])),
        ("task_weights", make_benchmark([1, 0], task_weights={"task": 1.0})),
        ("prompt_hash", change_samples(make_benchmark([1, 0]), prompt_hash="x")),
        ("doc_hash", change_samples(make_benchmark([1, 0]), doc_hash="x")),
        ("doc_hash", make_benchmark([1, 0], subjects=["other", "task"])),
        ("target", change_samples(make_benchmark([1, 0]), target="x")),
    ],
)
def test_unlike_questions_are_refused_by_field(field: str, other: BenchmarkEvaluation) -> None:
    with pytest.raises(DataError, match=f"^a.* {field} differs"):
        judge_scores([1, 0], other)


def test_unlike_conditions_are_refused_and_the_order_of_questions_does_not_matter() -> None:
    plain = make_evaluation(a=[1, 0])
    chat = replace(plain, conditions={"a.apply_chat_template": "True"})
    half, seeded = (replace(plain, conditions=c) for c in ({"dtype": "f32"}, {"seed": "1"}))
    yes, no = (replace(plain, conditions={"prompt": "as before " * 20 + x}) for x in ("yes", "no"))
    for first, second, problem in (
        (plain, replace(plain, harness_version="other"), "harness_version differs"),
        (plain, replace(plain, backend="other"), "backend differs"),
        (plain, replace(plain, part="other"), "part differs"),
        (half, seeded, "dtype differs: f32 and not set"),
        (yes, no, r"differs: \.\.\.[a-z ]*before yes and .*before no$"),
        (plain, chat, "apply_chat_template differs"),
        (chat, replace(chat, harness_version="other"), "harness_version differs"),
        (plain, make_evaluation(b=[1, 0]), "benchmarks differ"),
    ):
        with pytest.raises(DataError, match=problem):
            judge(first, second)
    benchmark = plain.benchmarks["a"]
    found = judge_scores(benchmark, replace(benchmark, samples=benchmark.samples[::-1]))
    assert found.benchmarks["a"].primary.counts == Counts(1, 0, 0, 1)


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ((300, 100, 10, 90), Verdict.forgotten),
        ((100, 10, 100, 290), Verdict.improved),
        ((2000, 20, 20, 960), Verdict.retained),
        ((6000, 100, 40, 3900), Verdict.retained),  # shown to change, by less than the margin
        ((50, 3, 3, 44), Verdict.undecided),  # no change seen, and none excluded
        ((50, 0, 0, 0), Verdict.undecided),
    ],
)
def test_a_verdict_needs_evidence(counts: tuple[int, int, int, int], verdict: Verdict) -> None:
    found = judge_scores(*make_scores(*counts)).benchmarks["a"]
    assert found.verdict is verdict
    assert (found.n_to_decide is not None) == (verdict is Verdict.undecided)


@pytest.mark.parametrize("bad", [nan, 55.0, -1.0])
def test_a_primary_metric_that_is_no_share_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match=r"^a: acc .*benchmark\.a\.scale"):
        judge_scores([1, 0, 1], [1, bad, 1])


def test_metrics_that_cannot_be_paired_are_left_out_and_refused_as_the_primary_one() -> None:
    samples = [make_sample({"acc": 1.0, "loss": 7.5}, i) for i in range(3)]
    found = judge_scores(make_benchmark(samples), make_benchmark(samples))
    assert list(found.benchmarks["a"].changes) == ["acc"]
    lossy = make_benchmark(samples, metric="loss")
    empty = replace(make_benchmark([1, 0]), samples=())
    for benchmark, problem in ((lossy, "a: loss .*: acc$"), (empty, "a: there is no")):
        with pytest.raises(DataError, match=problem):
            judge_scores(benchmark, benchmark)


def test_subjects_are_spoken_of_as_these_alone_and_shown_beside() -> None:
    """A loss that few subjects carry is shown for these; the spread over subjects stands beside."""
    before, names = [1.0] * 600, [f"s{i % 6}" for i in range(600)]
    after = [float(i % 6 > 0 or i % 4 > 0) for i in range(600)]
    plain, grouped = (
        judge_scores(before, after, subjects=s).benchmarks["a"] for s in (None, names)
    )
    group_change, plain_change = grouped.primary.difference, plain.primary.difference
    for wide, narrow in (  # its tasks keep one added answer
        (group_change.interval(), plain_change.interval()),
        (group_change.margin_interval(), plain_change.margin_interval()),
    ):
        assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert grouped.primary.difference.sampling.n_subjects == 6
    changes = {name: subject.change for name, subject in grouped.subjects.items()}
    assert changes == {"s0": -0.5, **{f"s{i}": 0.0 for i in range(1, 6)}}
    assert grouped.subjects["s1"].p_value == 1
    assert next(iter(grouped.subjects)) == "s0"
    assert (plain.subjects, plain.primary.difference.sampling.n_subjects) == ({}, 0)


def judge_categories(
    sizes: dict[str, int], lost: dict[str, int], metric: str = "acc"
) -> BenchmarkChange:
    """Judge questions of categories, all of them right before, and so many of each lost."""
    names = [name for name, n in sizes.items() for _ in range(n)]
    after = [float(i >= lost.get(name, 0)) for name, n in sizes.items() for i in range(n)]
    sides = []
    for scores in ([1.0] * len(names), after):
        samples = [make_sample({metric: score}, i) for i, score in enumerate(scores)]
        sides.append(change_samples(make_benchmark(samples), category=names))
    return judge_scores(*sides).benchmarks["a"]


def test_categories_are_compared_where_they_have_forty_questions() -> None:
    found = judge_categories({"sailing": 60, "baking": 40, "shaving": 39}, {"sailing": 9})
    assert list(found.subjects) == ["sailing", "baking"]
    sailing = found.subjects["sailing"]
    assert (sailing.n, sailing.change, sailing.base, sailing.tuned) == (60, -0.15, 1, 0.85)
    alone = compare_scores([1.0] * 60, [0.0] * 9 + [1.0] * 51)
    assert sailing.p_value == pytest.approx(2 * alone.p_value)
    assert found.primary.difference.sampling.n_subjects == 0
    kinds = {"harmful": 9, "harmless": 6, "other": 5}
    refused = judge_categories(kinds, {"harmful": 9}, "refusal")
    assert list(refused.subjects) == ["harmful", "harmless"]
    assert not judge_categories(kinds, {"harmful": 9}).subjects


def test_of_subjects_that_are_marked_one_in_twenty_is_luck() -> None:
    """Benjamini and Hochberg's correction, not Holm's: it marks more of twenty that lost."""
    sizes = {f"s{i}": 60 for i in range(20)}
    lost = {f"s{i}": 6 + i % 2 for i in range(10)}
    subjects = judge_categories(sizes, lost).subjects
    plain = [compare_scores([1.0] * 60, [0.0] * n + [1.0] * (60 - n)).p_value for n in (6, 7)]
    assert subjects["s1"].p_value == pytest.approx(min(plain[1] * 20 / 5, plain[0] * 20 / 10))
    assert subjects["s0"].p_value == pytest.approx(plain[0] * 20 / 10)
    assert all((s.p_value < 0.05) is (name in lost) for name, s in subjects.items())
    assert min(holm([plain[0]] * 20)) > 0.05


# --- findings.json


def test_findings_come_back_from_json_with_all_their_tests() -> None:
    before, after = draw_scores(1000, 0.5, 0.1, 0.05, 0)
    names = ["x"] * 300 + ["y"] * 700
    weighted = [make_benchmark(s * 0.9, names, {"x": 0.5, "y": 0.5}) for s in (before, after)]
    stopped = stop_early(make_benchmark(after), 89)
    found = judge_pairs(a=(before, after), g=weighted, s=(before, stopped))
    text = json.dumps(found.to_dict(), allow_nan=False)  # the errors of what stopped are nan
    again = Findings.from_dict(json.loads(text))
    assert list(again.benchmarks["g"].primary.difference.equivalence) == [0.02]
    assert len(text) < 30_000
    assert json.dumps(again.to_dict()) == text
    assert (again.base, again.tuned) == (None, None)
    for name, benchmark in found.benchmarks.items():
        d, e = benchmark.primary.difference, again.benchmarks[name].primary.difference
        assert e.p_value_above(-0.03) == d.p_value_above(-0.03)
        assert e.equivalence_p_value(0.1) == d.equivalence_p_value(0.1)
        assert e.interval(0.01) == d.interval(0.01)
        assert e.equivalence == d.equivalence  # a comparison of many runs computes none again
    assert repr(again.mean_change(Role.retained)) == repr(found.mean_change(Role.retained))
    assert again.benchmarks["s"].is_stopped
    assert check_budgets(again, {})[0].reason == check_budgets(found, {})[0].reason


@pytest.mark.parametrize("path", ["benchmarks", "benchmarks.a.verdict", "benchmarks.a.changes"])
@pytest.mark.parametrize("bad", [None, "x", 7, [1]])
def test_what_are_no_findings_is_refused(path: str, bad: object) -> None:
    plain = judge_scores([1, 0, 1], [1, 0, 0]).to_dict()
    *places, last = path.split(".")
    place = reduce(getitem, places, plain)
    place[last] = bad
    with pytest.raises(DataError, match="findings"):
        Findings.from_dict(plain)


def test_findings_that_lack_a_part_or_a_benchmark_are_refused() -> None:
    plain = judge_scores([1, 0, 1], [1, 0, 0]).to_dict()
    with pytest.raises(DataError, match="findings"):
        Findings.from_dict({key: plain[key] for key in plain if key != "part"})
    plain["lost_answers"] = {"other": next(iter(plain["lost_answers"].values()))}
    with pytest.raises(DataError, match="answers of other,"):
        Findings.from_dict(plain)


# --- stopped early


def run_until(
    until: Until, **pairs: tuple[BenchmarkEvaluation, BenchmarkEvaluation]
) -> tuple[Evaluation, Evaluation]:
    """The whole base, and the tuned model's answers when the rule has closed every benchmark."""
    base = make_evaluation(**{name: pair[0] for name, pair in pairs.items()})
    rule = stopping_rule(until, base)
    blocks = {name: list(block_ends(len(pair[0].samples))) for name, pair in pairs.items()}
    n_answered, is_open = dict.fromkeys(pairs, 0), set(pairs)
    while is_open:
        n_answered |= {name: blocks[name].pop(0) for name in is_open}
        tuned = {name: stop_early(pair[1], n_answered[name]) for name, pair in pairs.items()}
        is_open = {name for name in rule(tuned) if blocks[name]}
    return base, make_evaluation(**tuned)


def make_pair(
    before: np.ndarray | list[float], after: np.ndarray | list[float], **settings: object
) -> tuple[BenchmarkEvaluation, BenchmarkEvaluation]:
    base, tuned = (make_benchmark(scores, **settings) for scores in (before, after))  # type: ignore[arg-type]
    return base, tuned


@pytest.mark.parametrize("seed", range(3))
def test_what_stops_the_evaluation_is_the_verdict_that_is_shown(seed: int) -> None:
    pairs = {
        "much": make_pair(*draw_scores(1319, 0.335, 0.31, 0.01, seed)),
        "little": make_pair(*draw_scores(2000, 0.6, 0.02, 0.02, seed + 100)),
        "few": make_pair(*draw_scores(60, 0.4, 0.1, 0.1, seed + 200)),
    }
    found = judge(*run_until(Until.decided, **pairs))
    for name, benchmark in found.benchmarks.items():
        assert benchmark.is_stopped == (benchmark.n < len(pairs[name][0].samples))
        assert benchmark.verdict is not Verdict.undecided or not benchmark.is_stopped
    assert found.benchmarks["much"].verdict is Verdict.forgotten
    assert found.benchmarks["much"].n <= 132
    assert found.benchmarks["little"].verdict is not Verdict.forgotten


def test_a_budget_stops_what_has_one_and_a_verdict_what_has_none() -> None:
    before, after = draw_scores(4000, 0.5, 0.06, 0.01, 0)  # five points lost, of ten that may be
    found = judge(
        *run_until(
            Until.budget,
            kept=make_pair(before, after, max_loss=0.1),
            target=make_pair(before, after, role=Role.target),
        )
    )
    [check] = check_budgets(found, {})
    assert (check.benchmark, check.budget, check.outcome) == ("kept", 0.1, Outcome.within)
    assert found.benchmarks["target"].verdict is Verdict.forgotten
    assert 0 < found.benchmarks["kept"].n < 4000


def test_a_change_that_is_shown_is_asked_on_while_it_looks_smaller_than_the_margin() -> None:
    n, after = 10042, [float(i % 66 > 0) for i in range(10042)]  # 1.5 points lost all along
    base, tuned = make_evaluation(a=[1.0] * n), stop_early(make_benchmark(after), 2592)
    found = judge_scores(base.benchmarks["a"], tuned).benchmarks["a"]
    assert found.verdict is Verdict.forgotten
    rule = stopping_rule(Until.decided, base)
    assert rule({"a": tuned}) == {"a"}
    whole = judge(*run_until(Until.decided, a=make_pair([1.0] * n, after))).benchmarks["a"]
    assert whole.verdict is Verdict.retained
    assert 2592 < whole.n < n


def test_what_would_hold_of_one_look_alone_is_not_said_of_several() -> None:
    before, after = draw_scores(1000, 0.6, 0.2, 0.02, 1)
    base, tuned = make_pair(before, after, paper_metric=PaperMetric.forgetting_rate)
    found = judge_scores(base, stop_early(tuned, 88))
    benchmark = found.benchmarks["a"]
    d, whole = benchmark.primary.difference, judge_scores(before[:88], after[:88]).benchmarks["a"]
    assert d.p_value > whole.primary.difference.p_value
    assert d.low < whole.primary.difference.low < whole.primary.difference.high < d.high
    for none in (d.standard_error, d.mcnemar_p_value, benchmark.primary.base.standard_error):
        assert isnan(none)
    assert benchmark.primary.base.low < 0.6 < benchmark.primary.base.high
    assert isnan(benchmark.paper_value.standard_error)
    assert -1 < benchmark.paper_value.low < 0.3 < benchmark.paper_value.high <= 1
    mean = found.mean_change(Role.retained)
    assert (mean.value, isnan(mean.standard_error)) == (d.value, True)
    assert (mean.low, mean.high) == pytest.approx((d.low, d.high), abs=1e-4)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([1.0] * 500, [0.0] * 500, Verdict.forgotten),
        ([0.0] * 500, [1.0] * 500, Verdict.improved),
        ([1.0, 0.0] * 250, [1.0, 0.0] * 250, Verdict.retained),
        ([1.0], [0.0], Verdict.undecided),
        ([0.5, 0.7, 0.3] * 200, [0.1, 0.2, 0.1] * 200, Verdict.forgotten),
        ([0.5] * 300, [0.5] * 300, Verdict.retained),
    ],
)  # fmt: skip
def test_looks_end_in_a_verdict(before: list[float], after: list[float], verdict: Verdict) -> None:
    for until in (Until.decided, Until.budget):
        pair = make_pair(before, after, paper_metric=PaperMetric.forgetting_rate)
        found = judge(*run_until(until, a=pair)).benchmarks["a"]
        assert until is Until.budget or found.verdict is verdict
        low, high = found.primary.difference.low, found.primary.difference.high
        assert -1 <= low <= high <= 1
        assert isfinite(low)
        assert found.n_available == len(before)


def test_subjects_are_corrected_for_the_looks_at_them() -> None:
    """A loss that one look would show is not shown by the fourth of many."""
    subjects = ["a", "b"] * 500
    after = [float(i % 2 or i % 14 > 0) for i in range(1000)]  # of "a" one in seven is lost
    base = make_benchmark([1.0] * 1000, subjects=subjects)
    early = stop_early(make_benchmark(after, subjects=subjects), 88)
    at_once = replace(early, looks=(), n_available=None)
    whole = judge_scores(replace(base, samples=base.samples[:88]), at_once)
    looked = judge_scores(base, early)
    alone, early_subject = (f.benchmarks["a"].subjects["a"] for f in (whole, looked))
    assert alone.n == early_subject.n == 44
    assert alone.change == pytest.approx(early_subject.change)
    assert alone.p_value < 0.05 < early_subject.p_value


def test_nothing_is_claimed_before_each_task_of_a_weighted_group_has_answers() -> None:
    """Of 992 questions four in ten are gained, of 8 as heavy ones as many lost: no change."""
    order = order_questions(
        {"many": {n: str(n) for n in range(992)}, "few": {n: str(n) for n in range(8)}}
    )
    subjects, weights = [task for task, _ in order], {"many": 0.5, "few": 0.5}
    before = [float(task == "few") for task in subjects]
    after = [float(task == "few" or i % 5 < 2) for i, task in enumerate(subjects)]
    first = subjects.index("few")
    for n in (32, 45, 63, 88, 124, 174):
        base, tuned = (make_benchmark(side, subjects, weights) for side in (before, after))
        benchmark = judge_scores(base, stop_early(tuned, n)).benchmarks["a"]
        assert benchmark.verdict is Verdict.undecided
        if n <= first:
            assert benchmark.p_value == 1
            assert (benchmark.primary.difference.low, benchmark.primary.difference.high) == (-1, 1)
