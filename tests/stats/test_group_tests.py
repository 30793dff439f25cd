"""Groups of seeds are tested against each other, and claim nothing that two seeds cannot tell."""

from dataclasses import replace
from math import ceil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import judge_scores, make_run, make_scores
from scipy.stats import ttest_ind

from slimdown.stats.group_tests import compare_seeds, describe_groups, seeds_to_show
from slimdown.stats.run_comparison import compare_runs


def describe(losts: dict[int, list[int]], validation: float = 0.0, **params: str) -> str:
    """What is said of runs by rank, of which each seed lost so many of 400 answers."""
    runs = []
    for rank, of_rank in losts.items():
        for seed, lost in enumerate(of_rank):
            training: Any = SimpleNamespace(
                validation_loss_after=2.0 + validation * rank + 0.01 * seed
            )
            findings = replace(
                judge_scores(*make_scores(300 - lost, lost, 0, 100)), training=training
            )
            settings = {"lora__r": str(rank), "seed": str(seed)} | params
            runs.append(make_run(findings, len(runs), **settings))
    return "\n".join(describe_groups(compare_runs(runs), "lora.r"))


def test_a_difference_is_shown_or_the_seeds_that_would_are_named() -> None:
    text = describe({2: [4, 6, 5], 8: [5, 4, 7], 32: [60, 66, 57]})
    assert "a by lora.r: 3 seeds cannot tell 2 from 8 (about " in text
    assert "32 lies 14.0 points below 2 (p = 0.00" in text
    assert "unequally" not in text
    assert "2 seeds cannot tell 2 from 8" in describe({2: [4, 8], 8: [20, 9]})
    assert describe({2: [4], 8: [5]}).startswith("No two values of lora.r have two seeds each")


def test_groups_that_learned_unequally_are_named() -> None:
    text = describe({2: [4, 6, 5], 8: [5, 4, 7]}, validation=-0.1)
    assert "2 and 8 learned unequally (validation loss by lora.r): so may what they lost" in text


def test_the_p_value_is_welchs_but_where_seeds_agree_by_chance() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(0, 0.02, 3), draw.normal(0.01, 0.05, 5)
    assert compare_seeds(x, y, 0.001).p_value == pytest.approx(
        ttest_ind(x, y, equal_var=False).pvalue
    )
    claims = [
        compare_seeds(*(draw.binomial(2, 0.5, (2, n_seeds)) / 100), 0.01).p_value < 0.05
        for n_seeds in (2, 3, 5)
        for _ in range(400)
    ]
    assert np.mean(claims) < 0.02  # plain Welch: 5 %, and 12 % of two seeds


def test_so_many_seeds_show_a_difference_in_four_of_five_repetitions() -> None:
    draw = np.random.default_rng(1)
    test = replace(compare_seeds([0.0, 0.02], [0.03, 0.04]), difference=0.03, spread=0.02 * 2**0.5)
    n = ceil(seeds_to_show(test))
    x, y = draw.normal(0, 0.02, (2000, n)), draw.normal(0.03, 0.02, (2000, n))
    assert (ttest_ind(x, y, axis=1, equal_var=False).pvalue < 0.05).mean() == pytest.approx(
        0.8, abs=0.06
    )
