"""Questions that share a passage: what counts as one, wherever changes are judged."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from builders import (
    change_samples,
    judge_pairs,
    judge_scores,
    make_benchmark,
    make_scores,
    stop_early,
)

from slimdown.comparison.run_comparison import average_seeds
from slimdown.config.benchmark_config import Role
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.judging.budgets import Outcome, check_budgets
from slimdown.judging.forgetting_rate import forgetting_rate
from slimdown.judging.pairing import pair_benchmark
from slimdown.report.text import list_caveats
from slimdown.stats.estimates import Sampling, compare_scores
from slimdown.stats.power import minimum_detectable_change, n_to_decide
from slimdown.utils.errors import DataError

Ask = Callable[[Sequence[float], Sequence[object]], BenchmarkEvaluation]
ONCE = [1.0] * 20, [0.0] * 4 + [1.0] * 16  # of 20 passages, of which 4 are lost


def ask_in_clusters(
    scores: Sequence[float],
    names: Sequence[object],
    subjects: Sequence[str] | None = None,
    field: str = "cluster",
) -> BenchmarkEvaluation:
    return change_samples(make_benchmark(scores, subjects), **{field: [f"n{n}" for n in names]})


ask_documents = partial(ask_in_clusters, field="doc_hash")


def test_a_cluster_runs_across_the_tasks_of_a_group() -> None:
    """The same passages in five languages, each a task."""
    passages, tasks = np.repeat(np.arange(20), 5), [*"abcde" * 20]
    sides = [np.repeat(scores, 5) for scores in ONCE]
    clustered = judge_scores(*(ask_in_clusters(scores, passages, tasks) for scores in sides))
    found, alone = clustered.benchmarks["a"], compare_scores(*ONCE)
    assert found.primary.difference.p_value >= alone.p_value  # a group adds a whole answer
    assert found.verdict == "undecided"
    apart = judge_scores(*(make_benchmark(scores, tasks) for scores in sides))
    assert apart.benchmarks["a"].verdict == "forgotten"


def test_two_sides_of_other_clusters_are_not_compared() -> None:
    fours, twos = np.arange(80) // 4, np.arange(80) // 2
    scores = np.repeat(ONCE[0], 4)
    for other in (make_benchmark(scores), ask_in_clusters(scores, twos)):
        with pytest.raises(DataError, match="cluster differs"):
            pair_benchmark("a", ask_in_clusters(scores, fours), other)
    same = [ask_in_clusters(scores, clusters) for clusters in (fours, twos)]
    hashes = {pair_benchmark("a", benchmark, benchmark).question_hash for benchmark in same}
    assert len(hashes) == 2


@pytest.mark.parametrize("ask", [ask_in_clusters, ask_documents])
def test_looks_divide_no_clusters_and_no_copies(ask: Ask) -> None:
    whole = ask([1.0] * 100, np.arange(100) // 4)
    with pytest.raises(DataError, match=r"evaluation\.until=all"):
        pair_benchmark("a", whole, stop_early(whole, 63))


def test_a_mean_of_benchmarks_knows_the_clusters_that_one_of_them_names() -> None:
    sides = [np.repeat(scores, 5) for scores in ONCE]
    clustered = [ask_in_clusters(scores, np.arange(100) // 5) for scores in sides]
    twice, once = (
        judge_pairs(a=clustered, b=second).mean_change(Role.retained)
        for second in (clustered, [make_benchmark(scores) for scores in sides])
    )
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))


def test_sizes_that_vary_are_no_noise() -> None:
    """Each question loses alike, so that nothing is uncertain but the added answer."""
    clusters = np.repeat(np.arange(40.0), [1, 2, 3, 8] * 10)
    lost = compare_scores([0.9] * 140, [0.4] * 140, Sampling(clusters=clusters))
    assert np.ptp(lost.observations) < 1e-12
    assert lost.observations.mean() == pytest.approx(lost.value)


def test_means_over_seeds_take_clusters_as_one() -> None:
    clustered_runs, single_runs = [], []
    for seed in range(3):
        sides = [ONCE[0], np.roll(ONCE[1], seed)]
        single_runs.append(judge_scores(*sides).benchmarks["a"])
        clustered = [ask_in_clusters(np.repeat(x, 4), np.arange(80) // 4) for x in sides]
        clustered_runs.append(judge_scores(*clustered).benchmarks["a"])
    mean, alone = average_seeds(clustered_runs), average_seeds(single_runs)
    assert mean.value == alone.value
    # Those of single answers count with one more that is lost and gained; of 80 it would be half.
    assert 0.7 < mean.standard_error / alone.standard_error < 1.1


def test_clusters_of_which_none_changed_could_show_a_change() -> None:
    sampling = Sampling(clusters=np.repeat(np.arange(60.0), 4))
    same = compare_scores([1.0] * 240, [1.0] * 240, sampling)
    assert 0.05 < minimum_detectable_change(same) < 0.2
    assert (n_to_decide(same, 0.02) or 0) > 240


def test_questions_that_are_asked_twice_are_counted_in_a_line() -> None:
    def describe(n_different: int, clusters: list[str]) -> list[str]:
        names = [f"doc{i % n_different}" for i in range(20)]
        sides = [
            change_samples(make_benchmark(scores), doc_hash=names, cluster=clusters)
            for scores in ONCE
        ]
        return [line for line in list_caveats(judge_scores(*sides)) if "distinct" in line]

    [line] = describe(15, [""] * 20)
    assert re.findall(r"\d+", line)[:2] == ["20", "15"]
    assert describe(20, [""] * 20) == []
    [line] = describe(15, ["even", "odd"] * 10)
    assert re.findall(r"\d+", line)[:2] == ["20", "2"]


@pytest.mark.parametrize("n_copies", [2, 3])
def test_copies_show_what_one_of_each_shows(n_copies: int) -> None:
    """Verdict, interval, means, budgets and p_right's sampling; the sharper test of 0/1 answers."""
    before, after = make_scores(41, 5, 1, 13)
    documents = np.tile(np.arange(60), n_copies)
    copies, once = (
        judge_scores(*(ask_documents(np.tile(x, n), d) for x in (before, after)))
        for n, d in ((n_copies, documents), (1, np.arange(60)))
    )
    found, alone = copies.benchmarks["a"], once.benchmarks["a"]
    assert (found.n, alone.n) == (60 * n_copies, 60)
    assert found.verdict == alone.verdict == "undecided"
    d, expected_d = found.primary.difference, alone.primary.difference
    ends = (expected_d.p_value, expected_d.low, expected_d.high)
    assert (d.p_value, d.low, d.high) == pytest.approx(ends)
    for margin in (0.05, 0.2):
        assert d.equivalence_p_value(margin) == pytest.approx(
            expected_d.equivalence_p_value(margin)
        )
    base, expected_base = found.primary.base, alone.primary.base
    assert (base.low, base.high) == pytest.approx((expected_base.low, expected_base.high))
    assert copies.mean_change(Role.retained) == found.primary.difference.estimate
    rate, expected = found.forgetting_rate, alone.forgetting_rate
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    outcomes = [check_budgets(f, {"a": 0.02})[0].outcome for f in (copies, once)]
    assert outcomes == [Outcome.undecided] * 2


def test_copies_in_two_tasks_of_a_group_count_as_one_and_so_in_its_subjects() -> None:
    tasks, documents = [*"ab" * 60], np.arange(120) // 2
    before, after = (np.repeat(x, 2) for x in make_scores(40, 8, 0, 12))
    copied = (ask_documents(x, documents, tasks) for x in (before, after))
    found = judge_scores(*copied).benchmarks["a"]
    assert len(found.primary.difference.observations) == 60
    halves = [*"a" * 80, *"b" * 80]  # here each subject asks forty documents twice
    documents = np.arange(160) // 2
    before, after = (np.repeat(x, 2) for x in make_scores(60, 8, 0, 12))
    copied = (ask_documents(x, documents, halves) for x in (before, after))
    subjects = judge_scores(*copied).benchmarks["a"].subjects
    once = (make_benchmark(x[::2], halves[::2]) for x in (before, after))
    alone = judge_scores(*once).benchmarks["a"].subjects
    assert sorted(subjects) == ["a", "b"]
    assert {name: s.p_value for name, s in subjects.items()} == pytest.approx(
        {name: s.p_value for name, s in alone.items()}
    )


def test_the_rate_of_clusters_of_unequal_sizes_is_that_of_single_answers() -> None:
    before, after = make_scores(30, 10, 0, 0)
    sizes = np.resize([1, 1, 1, 3], 40)
    clusters = Sampling(clusters=np.repeat(np.arange(40.0), sizes))
    found = forgetting_rate(np.repeat(before, sizes), np.repeat(after, sizes), clusters)
    alone = forgetting_rate(np.array(before), np.array(after))
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=1e-6)


def test_a_task_of_a_group_keeps_its_weight_where_some_of_its_questions_are_copies() -> None:
    """Two tasks weigh the same; the one question that the first lost is asked five times."""
    before = [1.0] * 64
    after = [0.0] * 5 + [1.0] * 59
    documents = [*[0] * 5, *range(1, 60)]
    tasks = [*"a" * 24, *"b" * 40]
    weights = {"a": 0.5, "b": 0.5}
    sides = (
        replace(ask_documents(scores, documents, tasks), task_weights=weights)
        for scores in (before, after)
    )
    found = judge_scores(*sides).benchmarks["a"]
    change = -1 / 20 / 2  # one of 20 documents of a task that is half of the score
    assert found.primary.difference.value == pytest.approx(change)
    assert found.primary.base.value - found.primary.tuned.value == pytest.approx(-change)
    assert found.primary.difference.observations.mean() == pytest.approx(change)


def test_a_mean_of_benchmarks_counts_a_copied_question_once() -> None:
    before, after = make_scores(40, 9, 5, 46)
    documents = np.append(np.arange(100), [0] * 9)
    copied, once = (
        judge_pairs(
            a=[ask_documents(np.array(scores)[names], names) for scores in (before, after)],
            b=(before, after),
        ).mean_change(Role.retained)
        for names in (documents, np.arange(100))
    )
    expected = (once.value, once.low, once.high)
    assert (copied.value, copied.low, copied.high) == pytest.approx(expected, abs=1e-6)
