"""Questions that share a passage: what counts as one, wherever changes are judged."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from builders import judge_scores, make_benchmark, make_evaluation, stop_early

from slimdown.comparison.run_comparison import average_seeds
from slimdown.config.schema import Role
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.judging.findings import judge
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
    with pytest.raises(DataError, match="a stopped early, and looks may divide its clusters"):
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

    assert "a: 5 of 20 questions equal an earlier one, and each counts by itself." in describe(15)
    assert "equal an earlier one" not in describe(20)
    assert "equal an earlier one" not in describe(15, "passage")  # each passage counts as one
