"""The interval of a ratio of sums over documents, and the condition on which it rests."""

from math import inf, isnan

import numpy as np
import pytest

from slimdown.stats.bootstrap import FEWEST, find_ratio_interval


def draw_texts(
    n: int, draw: np.random.Generator, worse: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The bits of texts of unequal lengths, after and before."""
    base = np.exp(draw.normal(6, 0.7, n))
    return base * (1 + worse + draw.normal(0, 0.04, n)), base


def test_it_holds_the_true_ratio_and_excludes_what_is_clearly_another() -> None:
    draw, misses, shown = np.random.default_rng(0), 0, 0
    for _ in range(100):
        after, before = draw_texts(60, draw)
        low, high = find_ratio_interval(after, before)
        misses += not low <= 1 <= high
        after, before = draw_texts(60, draw, worse=0.08)
        low, high = find_ratio_interval(after, before)
        shown += low > 1
        assert low < after.sum() / before.sum() < high
    assert misses <= 5
    assert shown == 100


def test_it_is_the_same_each_time_and_for_texts_in_another_unit() -> None:
    after, before = draw_texts(80, np.random.default_rng(1))
    low, high = find_ratio_interval(after, before)
    assert find_ratio_interval(after, before) == (low, high)
    assert find_ratio_interval(after / 8, before / 8) == pytest.approx((low, high))
    assert find_ratio_interval(2 * after, before) == pytest.approx((2 * low, 2 * high))


AFTER, BEFORE = draw_texts(FEWEST, np.random.default_rng(2))


@pytest.mark.parametrize(
    ("after", "before"),
    [(AFTER[1:], BEFORE[1:]), ([*AFTER[1:], inf], BEFORE), (2 * BEFORE, BEFORE), (0 * BEFORE,) * 2],
    ids=["few", "infinite", "alike", "nothing"],
)
def test_it_is_not_given_where_nothing_can_be_said(after: np.ndarray, before: np.ndarray) -> None:
    assert all(map(isnan, find_ratio_interval(np.array(after), before)))
