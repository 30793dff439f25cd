"""Many runs: what looking at all of them does, and that the cures cure, by seeded simulation (bench/selection.py)."""

from math import nan

import pytest

from bench.selection import any_false_verdict, best_passes
from slimdown.paired import holm
from slimdown.selection import corrected


@pytest.mark.parametrize("shared", [False, True])
def test_a_table_in_which_nothing_changed_has_few_false_verdicts(shared: bool) -> None:
    alone, together = any_false_verdict(300, shared, repeats=200, seed=1)
    assert alone > 0.15  # the ailment
    assert together <= 0.06  # the cure, with two standard errors of 200 draws at 3 %


@pytest.mark.parametrize("shared", [False, True])
def test_the_best_of_thirty_passes_at_its_budget_only_where_it_was_not_chosen(shared: bool) -> None:
    passes, bias, held_out, held_out_bias = best_passes(300, -0.02, shared, repeats=1000, seed=1)
    assert passes > 0.3  # the ailment
    assert bias > 0.02
    assert held_out <= 0.06
    assert abs(held_out_bias) < 0.004


def test_with_one_claim_a_cell_the_correction_is_holms() -> None:
    p_values = [0.001, 0.2, 0.01, nan, 0.04]
    assert [change for change, _ in corrected([(p, nan) for p in p_values])] == pytest.approx(
        holm(p_values), nan_ok=True
    )


def test_a_cell_whose_claims_are_both_shown_is_counted_no_more() -> None:
    assert corrected([(0.001, 0.002), (0.03, 0.9)]) == [(0.002, 0.004), (0.03, 0.9)]
