"""Groups of seeds are tested against each other, and claim nothing that two seeds cannot tell."""

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
from scipy.stats import t, ttest_ind

from slimdown.comparison.group_tests import compare_seeds, describe_groups
from slimdown.comparison.run_comparison import compare_runs
from slimdown.judging.findings import judge


def describe(losts: dict[int, list[int]]) -> str:
    """What is said of runs by rank; each seed lost so many of 400 answers."""
    runs = []
    for rank, of_rank in losts.items():
        for seed, lost in enumerate(of_rank):
            findings = judge_scores(*make_scores(300 - lost, lost, 0, 100))
            runs.append(make_run(findings, len(runs), lora__r=str(rank), seed=str(seed)))
    return "\n".join(describe_groups(compare_runs(runs), "lora.r"))


def test_a_difference_is_shown_or_said_to_be_open() -> None:
    text = describe({2: [4, 6, 5], 8: [8, 7, 10], 32: [60, 66, 57]})
    assert text.startswith("a by lora.r: 32 lies 14.0 points below 2 (p = 0.00")
    assert text.count(" lies ") == 2  # 32 below 2 and below 8
    assert "No other difference between values of lora.r is shown." in text
    assert "Below 5 seeds all values of lora.r are taken to vary alike" in text
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
            runs.append(make_run(judge(*sides), len(runs), lora__r=str(rank), seed=str(seed)))
    [line, *_] = describe_groups(compare_runs(runs), "lora.r")
    assert line.startswith("kept by lora.r: 8 lies 6.2 points below 2 (p = ")


def test_what_stopped_early_is_not_tested_and_that_is_said() -> None:
    early = judge_scores([1.0, 0.0] * 100, stop_early(make_benchmark([1.0, 0.0] * 100), 63))
    places = [(rank, seed) for rank in "28" for seed in "01"]
    runs = [make_run(early, i, lora__r=r, seed=s) for i, (r, s) in enumerate(places)]
    [line] = describe_groups(compare_runs(runs), "lora.r")
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
        texts.append(list(describe_groups(compare_runs(runs), "lora.r")))
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
    lines = list(describe_groups(compare_runs(runs), "keep.name"))
    for share in (".05", ".2"):
        [line] = [
            line for line in lines if line.startswith(f"a by keep.name, keep.share={share}: ")
        ]
        assert "replay lies" in line
        assert "above none (p = " in line
    alone = list(describe_groups(compare_runs(runs[2:]), "keep.name"))
    assert "keep.name is shown: no two have two seeds each and the same keep.share;" in alone[0]


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
        lines = list(describe_groups(compare_runs(order), "lora.r"))
        [shown] = [line for line in lines if line.startswith("a by lora.r, keep.weight=1: ")]
        assert "14.5 points" in shown
        assert not [line for line in lines if line.startswith("a by lora.r, keep.weight=null: ")]


def test_below_five_seeds_all_groups_share_one_spread_and_above_it_is_welchs_test() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(0, 0.02, 5), draw.normal(0.01, 0.05, 8)
    [welch] = compare_seeds({"x": x, "y": y}, 0.001).values()
    assert welch.p_value == pytest.approx(ttest_ind(x, y, equal_var=False).pvalue)
    two = {str(i): np.array([0.0, 0.02]) + (0.06 if i == 5 else 0) for i in range(6)}
    tests = compare_seeds(two)
    assert len(tests) == 15
    # six groups that vary alike lend each other their degrees of freedom: six instead of two
    student = ttest_ind(two["0"], two["5"]).statistic
    assert tests["0", "5"].p_value == pytest.approx(2 * t.sf(abs(student), 6))
    assert compare_seeds({"a": [0.1], "b": [0.2, 0.3]}) == {}


@pytest.mark.parametrize("sizes", [(2, 5), (2, 10), (2, 3, 5), (2, 2, 2, 2, 2, 2)])
def test_equal_groups_of_unequal_size_seldom_differ(sizes: tuple[int, ...]) -> None:
    draw, pair = np.random.default_rng(1), ("0", str(len(sizes) - 1))
    claims = []
    for _ in range(2000):
        groups = {str(i): draw.normal(0, 1, n) for i, n in enumerate(sizes)}
        claims.append(compare_seeds(groups)[pair].p_value < 0.05)
    assert np.mean(claims) < 0.05 + 2 * sqrt(0.05 * 0.95 / 2000)


def test_seeds_that_agree_by_chance_are_not_certain() -> None:
    draw, claims = np.random.default_rng(0), []
    for n_seeds in (2, 3, 5):
        for _ in range(400):
            x, y = draw.binomial(2, 0.5, (2, n_seeds)) / 100
            [test] = compare_seeds({"x": x, "y": y}, 0.01).values()
            claims.append(test.p_value < 0.05)
    assert np.mean(claims) < 0.02  # plain Welch: 5 %, and 12 % of two seeds
