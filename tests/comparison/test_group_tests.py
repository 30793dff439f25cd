"""Groups of seeds are tested against each other, and claim nothing that two seeds cannot tell."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from builders import (
    change_samples,
    judge_pairs,
    judge_scores,
    make_benchmark,
    make_ranks,
    make_run,
    make_scores,
    stop_early,
)
from scipy.stats import ttest_ind, ttest_rel

from bench import statistics
from bench.statistics import draw_values
from slimdown.comparison.group_tests import find_differences
from slimdown.comparison.run_comparison import compare_runs
from slimdown.comparison.run_records import RunRecord
from slimdown.judging.findings import Findings
from slimdown.stats.estimates import compare_scores
from slimdown.stats.seeds import MeanTest, SeedAnswers, add_seed_noise, build_difference_tests
from slimdown.utils.errors import ConfigError


def lose(*losts: int) -> list[Findings]:
    """Findings of which each lost so many of 400 answers."""
    return [judge_scores(*make_scores(300 - lost, lost, 0, 100)) for lost in losts]


def make_runs(*rows: tuple[dict[str, str], Sequence[int]]) -> list[RunRecord]:
    """Runs with these settings, one for each seed, which lost so many answers."""
    runs = list[RunRecord]()
    for settings, losts in rows:
        for seed, findings in enumerate(lose(*losts)):
            runs.append(make_run(findings, len(runs), seed=str(seed), **settings))
    return runs


THREE_RANKS = make_ranks({2: lose(4, 6, 5), 8: lose(8, 7, 10), 32: lose(60, 66, 57)})


def test_a_difference_is_shown_or_said_to_be_open() -> None:
    found = find_differences(compare_runs(THREE_RANKS), "lora.r")
    shown = [(d.benchmark, d.value, d.side, d.other, d.points) for d in found.shown]
    assert shown == [("a", "32", "below", "2", "14.0"), ("a", "32", "below", "8", "13.2")]
    assert max(difference.p_value for difference in found.shown) < 0.001
    assert (len(found.tested), found.has_few_seeds, found.reason) == (3, True, "")
    two_seeds = make_ranks({2: lose(4, 8), 8: lose(20, 9)})
    still_open = find_differences(compare_runs(two_seeds), "lora.r")
    assert (still_open.shown, len(still_open.tested), still_open.reason) == ((), 1, "")
    untested = find_differences(compare_runs(make_ranks({2: lose(4), 8: lose(5)})), "lora.r")
    assert (len(untested.tested), untested.has_few_seeds) == (0, False)
    assert "lora.r" in untested.reason


def test_the_mean_of_several_benchmarks_is_tested_beside_them() -> None:
    """Seeds that lose the more on one benchmark the less they lose on the other."""
    runs = []
    for rank, least in ((2, 5), (8, 30)):
        for seed, shift in enumerate((-20, 0, 20)):
            pairs = [
                make_scores(300 - n, n, 0, 100) for n in (least + 20 + shift, least + 20 - shift)
            ]
            pairs[1] = tuple(scores[::-1] for scores in pairs[1])
            findings = judge_pairs(a=pairs[0], b=pairs[1])
            runs.append(make_run(findings, len(runs), lora__r=str(rank), seed=f"{rank}{seed}"))
    [shown] = find_differences(compare_runs(runs), "lora.r").shown
    assert (shown.benchmark, shown.value, shown.points, shown.side) == ("kept", "8", "6.2", "below")


def test_what_stopped_early_is_not_tested_and_that_is_said() -> None:
    early = judge_scores([1.0, 0.0] * 100, stop_early(make_benchmark([1.0, 0.0] * 100), 63))
    runs = make_ranks({2: [early] * 2, 8: [early] * 2})
    found = find_differences(compare_runs(runs), "lora.r")
    assert not found.tested
    assert "stop early" in found.reason


def test_copies_make_seeds_that_agree_by_chance_no_surer() -> None:
    found = []
    for n_copies in (1, 3):
        names = [str(i % 60) for i in range(60 * n_copies)]
        by_rank = {}
        for rank, lost in ((2, 4), (8, 5)):
            sides = [
                change_samples(make_benchmark(np.tile(scores, n_copies)), doc_hash=names)
                for scores in make_scores(60 - lost, lost, 0, 0)
            ]
            by_rank[rank] = [judge_scores(*sides)] * 2
        found.append(find_differences(compare_runs(make_ranks(by_rank)), "lora.r"))
    assert found[0].shown == ()
    assert found[0] == found[1]


def test_a_value_without_a_setting_of_the_others_is_compared_with_each_of_them() -> None:
    runs = make_runs(
        ({"keep__name": "none"}, [60, 66]),
        ({"keep__name": "replay", "keep__share": ".05"}, [4, 6]),
        ({"keep__name": "replay", "keep__share": ".2"}, [1, 3]),
    )
    shown = find_differences(compare_runs(runs), "keep.name").shown
    for share in (".05", ".2"):
        [found] = [d for d in shown if d.where == f", keep.share={share}"]
        expected = ("a", "replay", "above", "none")
        assert (found.benchmark, found.value, found.side, found.other) == expected
    alone = find_differences(compare_runs(runs[2:]), "keep.name")
    assert "the same keep.share" in alone.reason


def test_rows_that_lack_a_setting_replace_no_row_that_has_it() -> None:
    """With no weight both ranks lose as much; with weight 1 rank 16 keeps what rank 8 loses."""
    runs = make_runs(
        ({"lora__r": "8", "keep__weight": "1"}, [60, 62]),
        ({"lora__r": "16", "keep__weight": "1"}, [2, 4]),
        ({"lora__r": "8"}, [100, 102]),
        ({"lora__r": "16"}, [100, 102]),
    )
    for order in (runs, runs[::-1]):
        [shown] = find_differences(compare_runs(order), "lora.r").shown
        assert (shown.where, shown.points) == (", keep.weight=1", "14.5")


def test_of_two_rows_that_lack_a_setting_the_one_that_lacks_fewer_is_compared() -> None:
    """Rank 16 is compared with the row of rank 8 that has no weight, but the same share."""
    runs = make_runs(
        ({"lora__r": "16", "keep__share": ".2", "keep__weight": "1"}, [2, 4]),
        ({"lora__r": "8", "keep__share": ".2", "keep__weight": "2"}, [30, 32]),
        ({"lora__r": "8", "keep__share": ".2"}, [60, 62]),
        ({"lora__r": "8"}, [100, 102]),
    )
    for order in (runs, runs[::-1]):
        [shown] = find_differences(compare_runs(order), "lora.r").shown
        assert (shown.where, shown.points) == (", keep.share=.2, keep.weight=1", "14.5")


def make_answers(
    means: Sequence[float], n: int = 4000, names: Sequence[str] | None = None
) -> SeedAnswers:
    """Graded changes that hardly vary over questions, so that seeds are the noise that counts."""
    draw = np.random.default_rng(len(means))
    by_question = draw.normal(0, 1e-4, n)
    changes = np.array(means)[:, None] + by_question - by_question.mean()
    return SeedAnswers([changes], [1.0], step=0.0, seeds=tuple(names or map(str, means)))


def compare(first: SeedAnswers, second: SeedAnswers, *others: SeedAnswers) -> MeanTest:
    groups = {str(i): answers for i, answers in enumerate((first, second, *others))}
    return build_difference_tests(groups, [("0", "1")])["0", "1"]


def test_without_noise_of_questions_it_is_students_test_of_the_seeds() -> None:
    draw, zero = np.random.default_rng(0), np.zeros(1)

    def find_p(test: MeanTest) -> float:
        distances = np.array([abs(test.value)])
        # as if the questions were no noise at all
        p = add_seed_noise(distances, zero + 1e-300, test.spread, test.n_seeds)
        assert test.p_value >= 2 * p[0]  # that of the questions comes on top of it
        return 2 * float(p[0])

    x, y = draw.normal(0, 0.02, 5), draw.normal(0.01, 0.05, 8)
    welch = ttest_ind(x, y, equal_var=False).pvalue
    assert find_p(compare(make_answers(x), make_answers(y))) == pytest.approx(welch, rel=0.02)
    x, y = draw.normal(0, 0.02, (2, 3))
    student = ttest_ind(x, y).pvalue
    assert find_p(compare(make_answers(x), make_answers(y))) == pytest.approx(student, rel=0.02)
    names = ["1", "2", "0"]
    paired = compare(
        make_answers(x, names=names), make_answers(y[[2, 0, 1]], names=["0", "1", "2"])
    )
    assert find_p(paired) == pytest.approx(ttest_rel(x, y).pvalue, rel=0.02)


def test_values_with_the_same_seeds_lend_each_other_their_noise() -> None:
    """Of a two-way analysis of variance: values, seeds, and what is left over."""
    draw = np.random.default_rng(3)
    means = draw.normal(0, 0.02, (4, 3)) + draw.normal(0, 0.2, 3)
    test = compare(*(make_answers(by_seed, names="012") for by_seed in means))
    left = means - means.mean(axis=0) - means.mean(axis=1)[:, None] + means.mean()
    assert test.spread.freedom == 6
    assert test.spread.variance == pytest.approx(2 * (left**2).sum() / 6, rel=0.01)
    assert test.value == pytest.approx(means[1].mean() - means[0].mean())


def test_what_differs_on_these_questions_alone_is_not_shown() -> None:
    """Two values flip other questions, each the same for all its seeds: seeds tell no difference.

    They differ by 7 points on these questions for every seed, and the questions tell as little.
    """
    draw = np.random.default_rng(8)
    x, y = (
        np.repeat(draw.choice([-1.0, 0.0, 1.0], (1, 100), p=p), 5, axis=0)
        for p in ([0.08, 0.87, 0.05], [0.05, 0.87, 0.08])
    )
    first, second = (SeedAnswers([part], [1.0], 0.01, True, tuple("01234")) for part in (x, y))
    test = compare(first, second)
    expected = compare_scores(np.maximum(0, x[0] - y[0]), np.maximum(0, y[0] - x[0]))
    assert test.value == expected.value > 0.02
    assert min(test.p_value, expected.p_value) > 0.05


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
@pytest.mark.parametrize("shared", [0.0, 0.05])
def test_equally_good_values_seldom_differ(n_seeds: int, shared: float) -> None:
    draw, noise = np.random.default_rng(n_seeds), (0.1, 0.02, 0.02)
    claims = []
    for _ in range(300):
        values = draw_values((n_seeds,) * 2, 300, noise, draw, shared=shared)
        claims.append(bool(statistics.find_differences(values)))
    assert np.mean(claims) < 0.05 + 2 * sqrt(0.05 * 0.95 / 300)


def test_a_reference_is_compared_with_each_other_value_and_no_others_are() -> None:
    comparison = compare_runs(THREE_RANKS)
    against = replace(comparison, reference="8")
    [shown] = find_differences(against, "lora.r").shown
    assert (shown.value, shown.other) == ("32", "8")
    unrestricted = find_differences(comparison, "lora.r")
    assert (len(find_differences(against, "lora.r").tested), len(unrestricted.tested)) == (2, 3)
    assert shown.p_value < next(d for d in unrestricted.shown if d.other == "8").p_value
    with pytest.raises(ConfigError, match="--against 9: "):
        find_differences(replace(comparison, reference="9"), "lora.r")
