"""Questions that share a passage: what counts as one, wherever changes are judged."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from builders import judge_scores, make_benchmark, make_evaluation, make_scores, stop_early

from slimdown.comparison.run_comparison import average_seeds
from slimdown.config.benchmark_config import Role
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.judging.budgets import Outcome, check_budgets
from slimdown.judging.findings import judge
from slimdown.judging.forgetting_rate import forgetting_rate
from slimdown.judging.holdout import held_part, open_part
from slimdown.judging.pairing import pair_benchmark
from slimdown.report.text import list_caveats
from slimdown.stats.estimates import Sampling, compare_scores
from slimdown.stats.power import minimum_detectable_change, n_to_decide
from slimdown.utils.errors import DataError

ONCE = [1.0] * 20, [0.0] * 4 + [1.0] * 16  # of 20 passages, of which 4 are lost


def ask_in_clusters(
    scores: Sequence[float], clusters: Sequence[object], subjects: Sequence[str] | None = None
) -> BenchmarkEvaluation:
    plain = make_benchmark(scores, subjects)
    named = zip(plain.samples, clusters, strict=True)
    return replace(plain, samples=tuple(replace(one, cluster=str(c)) for one, c in named))


def test_a_cluster_runs_across_the_tasks_of_a_group() -> None:
    """The same passages in five languages, each a task."""
    passages, tasks = np.repeat(np.arange(20), 5), [*"abcde" * 20]
    base, tuned = (
        make_evaluation(a=ask_in_clusters(np.repeat(one, 5), passages, tasks)) for one in ONCE
    )
    found, alone = judge(base, tuned).benchmarks["a"], compare_scores(*ONCE)
    assert found.primary.difference.p_value >= alone.p_value  # a group adds a whole answer
    assert found.verdict == "undecided"
    assert (
        judge(
            make_evaluation(a=make_benchmark(np.repeat(ONCE[0], 5), tasks)),
            make_evaluation(a=make_benchmark(np.repeat(ONCE[1], 5), tasks)),
        )
        .benchmarks["a"]
        .verdict
        == "forgotten"
    )


def test_two_sides_of_other_clusters_are_not_compared() -> None:
    fours, twos = np.arange(80) // 4, np.arange(80) // 2
    scores = np.repeat(ONCE[0], 4)
    for other in (make_benchmark(scores), ask_in_clusters(scores, twos)):
        with pytest.raises(DataError, match="cannot be compared, cluster differs"):
            pair_benchmark("a", ask_in_clusters(scores, fours), other)
    one = judge(*[make_evaluation(a=ask_in_clusters(scores, fours))] * 2).benchmarks["a"]
    other = judge(*[make_evaluation(a=ask_in_clusters(scores, twos))] * 2).benchmarks["a"]
    assert one.question_hash != other.question_hash


def test_looks_divide_no_clusters() -> None:
    clustered = ask_in_clusters([1.0] * 100, np.arange(100) // 4)
    with pytest.raises(DataError, match="a stopped early, which may have divided its clusters"):
        pair_benchmark("a", clustered, stop_early(clustered, 63))


def test_a_mean_of_benchmarks_knows_the_clusters_that_one_of_them_names() -> None:
    before, after = (np.repeat(one, 5) for one in ONCE)
    clusters = np.arange(100) // 5
    both, one = (
        judge(
            make_evaluation(a=ask_in_clusters(before, clusters), b=second(before)),
            make_evaluation(a=ask_in_clusters(after, clusters), b=second(after)),
        ).mean_change(Role.retained)
        for second in (lambda x: ask_in_clusters(x, clusters), make_benchmark)
    )
    assert (both.low, both.high) == pytest.approx((one.low, one.high))


def test_sizes_that_vary_are_no_noise() -> None:
    """Each question loses alike, so that nothing is uncertain but the added answer."""
    clusters = np.repeat(np.arange(40.0), [1, 2, 3, 8] * 10)
    lost = compare_scores([0.9] * 140, [0.4] * 140, Sampling(clusters=clusters))
    assert np.ptp(lost.observations) < 1e-12
    assert lost.observations.mean() == pytest.approx(lost.value)


def test_means_over_seeds_take_clusters_as_one() -> None:
    clusters = np.arange(80) // 4
    runs = [
        judge(
            make_evaluation(a=ask_in_clusters(np.repeat(ONCE[0], 4), clusters)),
            make_evaluation(a=ask_in_clusters(np.repeat(np.roll(ONCE[1], seed), 4), clusters)),
        ).benchmarks["a"]
        for seed in range(3)
    ]
    single = [judge_scores(ONCE[0], np.roll(ONCE[1], seed)).benchmarks["a"] for seed in range(3)]
    clustered, alone = (average_seeds(of_runs) for of_runs in (runs, single))
    assert clustered.value == alone.value
    # Those of single answers count with one more that is lost and gained; of 80 it would be half.
    assert 0.7 < clustered.standard_error / alone.standard_error < 1.1


def test_clusters_of_which_none_changed_could_show_a_change() -> None:
    sampling = Sampling(clusters=np.repeat(np.arange(60.0), 4))
    same = compare_scores([1.0] * 240, [1.0] * 240, sampling)
    assert 0.05 < minimum_detectable_change(same) < 0.2
    assert (n_to_decide(same, 0.02) or 0) > 240


def test_questions_that_are_asked_twice_are_counted_in_a_line() -> None:
    def ask(scores: Sequence[float], n_different: int, cluster: str = "") -> BenchmarkEvaluation:
        plain = make_benchmark(scores)
        samples = [
            replace(one, doc_hash=f"doc{i % n_different}", cluster=cluster and f"{cluster}{i % 2}")
            for i, one in enumerate(plain.samples)
        ]
        return replace(plain, samples=tuple(samples))

    def describe(*how: object) -> str:
        pair = (make_evaluation(a=ask(scores, *how)) for scores in ONCE)  # type: ignore[arg-type]
        return "\n".join(list_caveats(judge(*pair)))

    assert "a: 20 questions, 15 of them distinct" in describe(15)
    assert "distinct" not in describe(20)
    assert "a: 20 questions, 2 of them distinct" in describe(15, "passage")


def ask_documents(
    scores: Sequence[float], documents: Sequence[object], **about: list[str]
) -> BenchmarkEvaluation:
    plain = make_benchmark(scores, **about)
    named = zip(plain.samples, documents, strict=True)
    return replace(plain, samples=tuple(replace(one, doc_hash=f"doc {d}") for one, d in named))


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
    for one in ("p_value", "low", "high"):
        of_both = (getattr(each.primary.difference, one) for each in (found, alone))
        assert next(of_both) == pytest.approx(next(of_both))
    assert copies.mean_change(Role.retained) == found.primary.difference.estimate
    rate, expected = found.forgetting_rate, alone.forgetting_rate
    assert rate
    assert expected
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    outcomes = [check_budgets(f, {"a": 0.02})[0].outcome for f in (copies, once)]
    assert outcomes == [Outcome.undecided] * 2


def test_copies_in_two_tasks_of_a_group_count_as_one_and_so_in_its_subjects() -> None:
    tasks, documents = [*"ab" * 60], np.arange(120) // 2
    before, after = (np.repeat(x, 2) for x in make_scores(40, 8, 0, 12))
    both = (ask_documents(x, documents, subjects=tasks) for x in (before, after))
    found = judge_scores(*both).benchmarks["a"]
    assert len(found.primary.difference.observations) == 60
    halves = [*"a" * 80, *"b" * 80]  # here each subject asks forty documents twice
    documents = np.arange(160) // 2
    before, after = (np.repeat(x, 2) for x in make_scores(60, 8, 0, 12))
    both = (ask_documents(x, documents, subjects=halves) for x in (before, after))
    subjects = judge_scores(*both).benchmarks["a"].subjects
    once = (make_benchmark(x[::2], halves[::2]) for x in (before, after))
    alone = judge_scores(*once).benchmarks["a"].subjects
    assert sorted(subjects) == ["a", "b"]
    assert {name: s.p_value for name, s in subjects.items()} == pytest.approx(
        {name: s.p_value for name, s in alone.items()}
    )


def test_halves_divide_no_copies() -> None:
    tasks, documents = [*"ab" * 200], np.arange(400) // 2
    whole = make_evaluation(a=ask_documents([1.0] * 400, documents, subjects=tasks))
    halves = [half(whole, 0.5).benchmarks["a"].samples for half in (open_part, held_part)]
    opened, held = ({sample.doc_hash for sample in half} for half in halves)
    assert not opened & held


def test_looks_divide_no_copies() -> None:
    copied = ask_documents([1.0] * 100, np.arange(100) // 2)
    with pytest.raises(DataError, match=r"stopped early, which may have divided .* copies"):
        pair_benchmark("a", copied, stop_early(copied, 63))


def test_the_rate_of_clusters_of_unequal_sizes_is_that_of_single_answers() -> None:
    before, after = make_scores(30, 10, 0, 0)
    sizes = np.resize([1, 1, 1, 3], 40)
    clusters = Sampling(clusters=np.repeat(np.arange(40.0), sizes))
    found = forgetting_rate(*(np.repeat(one, sizes) for one in (before, after)), clusters)
    alone = forgetting_rate(np.array(before), np.array(after))
    assert found
    assert alone
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=1e-6)


def test_a_task_of_a_group_keeps_its_weight_where_some_of_its_questions_are_copies() -> None:
    """Two tasks weigh the same; the one question that the first lost is asked five times."""
    before = [1.0] * 64
    after = [0.0] * 5 + [1.0] * 59
    documents = [*[0] * 5, *range(1, 60)]
    tasks = [*"a" * 24, *"b" * 40]
    weights = {"a": 0.5, "b": 0.5}
    sides = (
        replace(ask_documents(scores, documents, subjects=tasks), task_weights=weights)
        for scores in (before, after)
    )
    found = judge(*(make_evaluation(a=side) for side in sides)).benchmarks["a"]
    change = -1 / 20 / 2  # one of 20 documents of a task that is half of the score
    assert found.primary.difference.value == pytest.approx(change)
    assert found.primary.base.value - found.primary.tuned.value == pytest.approx(-change)
    assert found.primary.difference.observations.mean() == pytest.approx(change)


def test_a_mean_of_benchmarks_counts_a_copied_question_once() -> None:
    before, after = make_scores(40, 9, 5, 46)
    documents = np.append(np.arange(100), [0] * 9)
    copied = [np.array(scores)[documents] for scores in (before, after)]
    means = [
        judge(
            make_evaluation(a=ask_documents(first, names), b=make_benchmark(before)),
            make_evaluation(a=ask_documents(second, names), b=make_benchmark(after)),
        ).mean_change(Role.retained)
        for (first, second), names in ((copied, documents), ((before, after), np.arange(100)))
    ]
    for end in ("value", "low", "high"):
        assert getattr(means[0], end) == pytest.approx(getattr(means[1], end), abs=1e-6)
