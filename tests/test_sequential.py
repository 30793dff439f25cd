"""Stopping early: what is said at a look holds however the looks were chosen."""

import numpy as np
import pytest

from slimdown.judging.paired import difference
from slimdown.judging.sequential import sequential_difference
from slimdown.measuring.order import stages_of


def answers(n: int, lost: float, gained: float, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scores before and after, of which such shares are lost and gained."""
    cells = draw.choice(4, size=n, p=[0.5 - lost, lost, gained, 0.5 - gained])
    return (cells < 2).astype(float), ((cells == 0) | (cells == 2)).astype(float)


def test_a_collapse_is_shown_after_few_questions_with_an_interval_that_holds_it():
    before, after = answers(1000, 0.3, 0.01, np.random.default_rng(0))
    stages = stages_of(1000)[:4]
    d = sequential_difference(before[: stages[-1]], after[: stages[-1]], None, stages, 1000)
    assert d.p_value < 0.001
    assert d.low < -0.29 < d.high < 0
    assert d.n == stages[-1]


def test_at_the_end_the_full_test_is_asked_with_most_of_the_error():
    before, after = answers(500, 0.06, 0.03, np.random.default_rng(1))
    full, found = difference(before, after), sequential_difference(before, after, None, stages_of(500), 500)
    assert 2 * full.p_value_below(0.0) < found.p_value < 1.5 * full.p_value


def test_a_p_value_never_rises_at_a_later_look():
    before, after = answers(1000, 0.08, 0.03, np.random.default_rng(2))
    stages = stages_of(1000)
    found = [
        sequential_difference(before[:n], after[:n], None, stages[: i + 1], 1000).p_value_below(0.02)
        for i, n in enumerate(stages)
    ]
    assert found == sorted(found, reverse=True)


def test_subjects_are_these_only():
    before, after = answers(60, 0.1, 0.1, np.random.default_rng(3))
    d = sequential_difference(before, after, [f"subject {i % 6}" for i in range(60)], (32, 60), 100)
    assert d.population == "these 6 subjects"
    assert d.table


@pytest.mark.parametrize("stages", [(), (32,), (40, 32, 60), (32, 32, 60)])
def test_stages_that_are_not_those_of_the_answers_are_refused(stages: tuple[int, ...]):
    before, after = answers(60, 0.1, 0.1, np.random.default_rng(4))
    with pytest.raises(ValueError, match="do not fit 60 scores"):
        sequential_difference(before, after, None, stages, 100)
