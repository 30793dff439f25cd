"""How many questions see how much: what is named is what the tests need."""

from math import isnan

import numpy as np
import pytest
from test_paired import simulate

from slimdown.stats.paired import Difference, difference


def counted(lost: int, gained: int, n: int) -> Difference:
    """The difference of n answers, of which so many were lost and gained."""
    before = [1.0] * lost + [0.0] * (n - lost)
    return difference(before, [0.0] * lost + [1.0] * gained + [0.0] * (n - lost - gained))


def decided(pairs: np.ndarray, margin: float) -> float:
    found = [difference(*pair) for pair in pairs]
    return float(np.mean([d.p_value < 0.05 or d.equivalence_p_value(margin) < 0.05 for d in found]))


def test_the_minimum_detectable_change_is_detected_four_times_in_five() -> None:
    smallest = counted(60, 60, 1000).minimum_detectable_change()
    pairs = simulate(1000, 0.5, 0.06 + smallest / 2, 0.06 - smallest / 2, repeats=1000)
    power = np.mean([difference(before, after).p_value < 0.05 for before, after in pairs])
    assert 0.75 <= power <= 0.85


def test_too_few_questions_can_show_no_change_at_all() -> None:
    assert isnan(difference([1.0] * 5, [1.0] * 5).minimum_detectable_change())
    smallest = difference([1.0] * 20, [1.0] * 20).minimum_detectable_change()
    pairs = simulate(20, 0.99, smallest, 0.0, repeats=1000)
    power = np.mean([difference(*pair).p_value < 0.05 for pair in pairs])
    assert 0.75 <= power <= 0.87


def test_subjects_that_could_show_no_change_say_so() -> None:
    names = [f"s{i}" for i, size in enumerate((2, 2, 2, 2, 50)) for _ in range(size)]
    found = difference([1.0, 0.0] * 29, [0.0, 1.0] * 29, names)  # nearly all of one subject
    assert isnan(found.minimum_detectable_change())
    assert found.n_to_decide(0.02) is None


@pytest.mark.parametrize(
    ("lost", "gained", "n"), [(20, 20, 400), (22, 18, 400), (72, 60, 1319), (8, 4, 200)]
)
def test_as_many_questions_as_it_names_decide(lost: int, gained: int, n: int) -> None:
    needed = counted(lost, gained, n).n_to_decide(0.02)
    assert needed is not None
    assert needed > n
    pairs = simulate(needed, 0.5, lost / n, gained / n, repeats=500)
    assert 0.74 <= decided(pairs, 0.02) <= 0.88


def test_one_answer_more_or_less_changes_what_is_needed_by_little() -> None:
    for changed in (132, 133):  # of 1,319; to a change of more than twice the margin
        nets = range(changed % 2, 60, 2)
        needed = [
            counted((changed + net) // 2, (changed - net) // 2, 1319).n_to_decide(0.02)
            for net in nets
        ]
        assert None not in needed
        sizes = np.array(needed, dtype=float)
        assert np.abs(np.diff(sizes) / sizes[:-1]).max() < 0.15
        assert (
            np.diff(np.sign(np.diff(sizes[sizes > 1320]))) != 0
        ).sum() == 1  # most are needed midway, once
    none, one = counted(66, 66, 1319).n_to_decide(0.02), counted(66, 65, 1319).n_to_decide(0.02)
    assert none is not None
    assert one is not None
    assert abs(one / none - 1) < 0.02


def test_a_change_of_exactly_the_margin_can_be_shown_and_is_no_loss_of_its_side() -> None:
    at_margin = counted(56, 30, 1300)
    assert at_margin.value == pytest.approx(-0.02)
    assert at_margin.n_to_decide(0.02) is not None
    assert at_margin.n_to_bound(at_margin.value) is None
    near = at_margin.n_to_bound(-0.03)
    assert near is not None
    pairs = simulate(near, 0.5, 56 / 1300, 30 / 1300, repeats=500)
    assert (
        0.74 <= np.mean([difference(*pair).p_value_above(-0.03) < 0.05 for pair in pairs]) <= 0.87
    )
