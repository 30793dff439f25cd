"""Groups of seeds are tested against each other, and claim nothing that two seeds cannot tell."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from builders import (
    judge_scores,
    make_benchmark,
    make_evaluation,
    make_run,
    make_scores,
    stop_early,
)
from scipy.stats import ttest_ind, ttest_rel

from bench import statistics
from bench.statistics import draw_values
from slimdown.comparison.group_tests import find_differences
from slimdown.comparison.run_comparison import compare_runs
from slimdown.judging.findings import judge
from slimdown.report.brief_comparison import describe_claims
from slimdown.stats.estimates import compare_scores
from slimdown.stats.seeds import MeanTest, SeedAnswers, add_seed_noise, build_difference_tests
from slimdown.utils.errors import ConfigError


def describe(losts: dict[int, list[int]]) -> str:
    """What is said of runs by rank; each seed lost so many of 400 answers."""
    runs = []
    for rank, of_rank in losts.items():
        for seed, lost in enumerate(of_rank):
            findings = judge_scores(*make_scores(300 - lost, lost, 0, 100))
            runs.append(make_run(findings, len(runs), lora__r=str(rank), seed=str(seed)))
    return "\n".join(describe_claims(compare_runs(runs), "lora.r", 99))


def test_a_difference_is_shown_or_said_to_be_open() -> None:
    text = describe({2: [4, 6, 5], 8: [8, 7, 10], 32: [60, 66, 57]})
    assert "32 lies 14.0 points below 2 on a (corrected p < 0.001)" in text
    assert text.count(" lies ") == 2  # 32 below 2 and below 8
    assert "The rest is not shown." in text
    assert "Below 5 seeds all values are taken to vary alike" in text
    open_text = describe({2: [4, 8], 8: [20, 9]})
    assert open_text.startswith("No difference between values of lora.r is shown.")
    assert "values of lora.r is shown: no two have two seeds each;" in describe({2: [4], 8: [5]})


def test_the_mean_of_several_benchmarks_is_tested_beside_them() -> None:
    """Seeds that lose the more on one benchmark the less they lose on the other."""
    runs = []
    for rank, least in ((2, 5), (8, 30)):
        for seed, shift in enumerate((-20, 0, 20)):
            pairs = [
                make_scores(300 - n, n, 0, 100) for n in (least + 20 + shift, least + 20 - shift)
            ]
            pairs[1] = tuple(scores[::-1] for scores in pairs[1])
            sides = [make_evaluation(a=a, b=b) for a, b in zip(*pairs, strict=True)]
            runs.append(make_run(judge(*sides), len(runs), lora__r=str(rank), seed=f"{rank}{seed}"))
    [shown] = find_differences(compare_runs(runs), "lora.r").shown
    assert (shown.benchmark, shown.value, shown.points, shown.side) == ("kept", "8", "6.2", "below")


def test_what_stopped_early_is_not_tested_and_that_is_said() -> None:
    early = judge_scores([1.0, 0.0] * 100, stop_early(make_benchmark([1.0, 0.0] * 100), 63))
    places = [(rank, seed) for rank in "28" for seed in "01"]
    runs = [make_run(early, i, lora__r=r, seed=s) for i, (r, s) in enumerate(places)]
    [line] = describe_claims(compare_runs(runs), "lora.r", 99)
    assert "have two seeds each whose evaluations did not stop early; -m seed=0,1,2" in line


def test_copies_make_seeds_that_agree_by_chance_no_surer() -> None:
    texts = []
    for n_copies in (1, 3):
        runs = []
        for rank, lost in ((2, 4), (2, 4), (8, 5), (8, 5)):
            sides = []
            for scores in make_scores(60 - lost, lost, 0, 0):
                plain = make_benchmark(np.tile(scores, n_copies))
                named = [replace(s, doc_hash=f"{i % 60}") for i, s in enumerate(plain.samples)]
                sides.append(make_benchmark(named))
            settings = {"lora__r": str(rank), "seed": str(len(runs) % 2)}
            runs.append(make_run(judge_scores(*sides), len(runs), **settings))
        texts.append(list(describe_claims(compare_runs(runs), "lora.r", 99)))
    assert texts[0][0].startswith("No difference between values of lora.r is shown.")
    assert texts[0] == texts[1]


def test_a_value_without_a_setting_of_the_others_is_compared_with_each_of_them() -> None:
    runs = []
    for name, share, losts in (
        ("none", "", [60, 66]),
        ("replay", ".05", [4, 6]),
        ("replay", ".2", [1, 3]),
    ):
        for seed, lost in enumerate(losts):
            settings = {"keep__name": name, "seed": str(seed)}
            settings |= {"keep__share": share} if share else {}
            findings = judge_scores(*make_scores(300 - lost, lost, 0, 100))
            runs.append(make_run(findings, len(runs), **settings))
    shown = find_differences(compare_runs(runs), "keep.name").shown
    for share in (".05", ".2"):
        [one] = [one for one in shown if one.where == f", keep.share={share}"]
        assert (one.benchmark, one.value, one.side, one.other) == ("a", "replay", "above", "none")
    alone = find_differences(compare_runs(runs[2:]), "keep.name")
    assert "is shown: no two have two seeds each and the same keep.share;" in alone.reason


def test_rows_that_lack_a_setting_replace_no_row_that_has_it() -> None:
    """With no weight both ranks lose as much; with weight 1 rank 16 keeps what rank 8 loses."""
    runs = []
    for weight, rank, losts in (
        ("1", "8", [60, 62]),
        ("1", "16", [2, 4]),
        (None, "8", [100, 102]),
        (None, "16", [100, 102]),
    ):
        for seed, lost in enumerate(losts):
            settings = {"lora__r": rank, "seed": str(seed)}
            settings |= {"keep__weight": weight} if weight else {}
            findings = judge_scores(*make_scores(300 - lost, lost, 0, 100))
            runs.append(make_run(findings, len(runs), **settings))
    for order in (runs, runs[::-1]):
        [shown] = find_differences(compare_runs(order), "lora.r").shown
        assert (shown.where, shown.points) == (", keep.weight=1", "14.5")


def make_answers(
    means: Sequence[float], n: int = 4000, names: Sequence[str] | None = None
) -> SeedAnswers:
    """Graded changes that hardly vary over questions, so that seeds are the noise that counts."""
    draw = np.random.default_rng(len(means))
    by_question = draw.normal(0, 1e-4, n)
    changes = np.array(means)[:, None] + by_question - by_question.mean()
    return SeedAnswers([changes], [1.0], step=0.0, seeds=tuple(names or map(str, means)))


def compare(first: SeedAnswers, second: SeedAnswers, *others: SeedAnswers) -> MeanTest:
    groups = {str(i): one for i, one in enumerate((first, second, *others))}
    return build_difference_tests(groups, [("0", "1")])["0", "1"]


def test_without_noise_of_questions_it_is_students_test_of_the_seeds() -> None:
    draw, zero = np.random.default_rng(0), np.zeros(1)

    def find_p(test: MeanTest) -> float:
        distances = np.array([abs(test.value)])
        assert test.spread
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
    test = compare(*(make_answers(of_value, names="012") for of_value in means))
    left = means - means.mean(axis=0) - means.mean(axis=1)[:, None] + means.mean()
    assert test.spread
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
        for p in (
            [0.08, 0.87, 0.05],
            [0.05, 0.87, 0.08],
        )
    )
    first, second = (SeedAnswers([one], [1.0], 0.01, True, tuple("01234")) for one in (x, y))
    test = compare(first, second)
    expected = compare_scores(np.maximum(0, x[0] - y[0]), np.maximum(0, y[0] - x[0]))
    assert test.value == expected.value > 0.02
    assert min(test.p_value, expected.p_value) > 0.05


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
@pytest.mark.parametrize("shared", [0.0, 0.05])
def test_equally_good_values_seldom_differ(n_seeds: int, shared: float) -> None:
    draw, noise = np.random.default_rng(n_seeds), (0.1, 0.02, 0.02)
    claims = [
        bool(statistics.find_differences(draw_values((n_seeds,) * 2, 300, noise, draw, shared)))
        for _ in range(300)
    ]
    assert np.mean(claims) < 0.05 + 2 * sqrt(0.05 * 0.95 / 300)


def test_a_reference_is_compared_with_each_other_value_and_no_others_are() -> None:
    runs = []
    for rank, losts in (("2", [4, 6, 5]), ("8", [8, 7, 10]), ("32", [60, 66, 57])):
        for seed, lost in enumerate(losts):
            findings = judge_scores(*make_scores(300 - lost, lost, 0, 100))
            runs.append(make_run(findings, len(runs), lora__r=rank, seed=str(seed)))
    comparison = compare_runs(runs)
    against = replace(comparison, reference="8")
    [shown] = find_differences(against, "lora.r").shown
    assert (shown.value, shown.other) == ("32", "8")
    of_all = find_differences(comparison, "lora.r")
    assert (find_differences(against, "lora.r").n_tests, of_all.n_tests) == (2, 3)
    assert shown.p_value < next(one for one in of_all.shown if one.other == "8").p_value
    with pytest.raises(ConfigError, match="--against 9: no run has this value"):
        find_differences(replace(comparison, reference="9"), "lora.r")
