"""Many runs: what looking at all of them does, and that the cures cure, by seeded simulation (bench/selection.py)."""

import pytest

from bench.selection import any_false_verdict, best_passes


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
