"""Which checkpoint is chosen, and what is said where nothing can choose."""

from dataclasses import replace
from math import isnan

import pytest
from builders import make_benchmark, make_run
from report_builders import judge_pairs

from slimdown.comparison.checkpoints import choose_checkpoint, read_steps
from slimdown.comparison.run_comparison import Comparison, compare_runs
from slimdown.comparison.run_order import sort_rows
from slimdown.config.benchmark_config import Role
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.report.brief_comparison import describe_choice, order_by_settings


def ask(n_right: int, role: Role = Role.retained) -> BenchmarkEvaluation:
    return make_benchmark([1.0] * n_right + [0.0] * (200 - n_right), role=role, margin=0.05)


def compare(
    points: dict[int, tuple[int, int]], has_target: bool = True, holdout: float = 0.0
) -> Comparison:
    """Compare checkpoints by step: right answers of the target, and of what must be kept."""
    runs = []
    for i, (step, (learned, kept)) in enumerate(points.items()):
        pairs = {"math": (ask(150), ask(kept))}
        if has_target:
            pairs["skill"] = (ask(0, Role.target), ask(learned, Role.target))
        tuned = {"tuned": f"out/of my run/checkpoint-{step}"}
        run = make_run(judge_pairs(pairs), i, **tuned)
        runs.append(replace(run, held_out=holdout))
    return order_by_settings(compare_runs(runs))


POINTS = {100: (80, 149), 50: (40, 150), 200: (160, 120), 150: (70, 148)}


def test_the_one_that_learned_most_within_its_budgets_is_chosen_in_order_of_steps() -> None:
    comparison = compare(POINTS, holdout=0.5)
    assert read_steps(comparison) == [50, 100, 150, 200]  # not 100, 150, 200, 50
    chosen = choose_checkpoint(comparison)
    assert (chosen.step, round(chosen.learned, 3)) == (100, 0.4)
    choice, following = describe_choice(comparison)
    assert choice.startswith("Take step 100: ")
    assert "+40.0 points" in choice
    assert following.endswith(" 00000000 --confirm")


@pytest.mark.parametrize(
    ("points", "learned"),
    [({1: (0, 150), 2: (0, 149)}, 0), ({1: (10, 100), 2: (20, 90)}, None)],
    ids=["no target rose", "no loss is within its budget"],
)
def test_no_step_is_advised_that_learned_nothing_or_lost_too_much(
    points: dict[int, tuple[int, int]], learned: int | None
) -> None:
    comparison = compare(points)
    chosen = choose_checkpoint(comparison)
    assert (chosen.learned if chosen else None) == learned
    [sentence] = describe_choice(comparison)
    assert "Take step" not in sentence


def test_without_a_target_the_last_within_is_taken_and_that_is_said() -> None:
    comparison = compare(POINTS, has_target=False)
    chosen = choose_checkpoint(comparison)
    assert chosen.step == 150
    assert isnan(chosen.learned)
    choice, following = describe_choice(comparison)
    assert choice.startswith("Take step 150: ")
    assert "evaluation.holdout=0.5" in following


def test_other_runs_are_no_series() -> None:
    comparison = compare(POINTS)
    rows = list(comparison.rows)
    rows[0] = replace(rows[0], settings={**rows[0].settings, "tuned": "me/other-7"})
    assert not read_steps(replace(comparison, rows=tuple(rows)))
    assert not read_steps(replace(comparison, rows=comparison.rows[:1]))
    assert read_steps(sort_rows(comparison, "-tuned")) == [200, 150, 100, 50]
