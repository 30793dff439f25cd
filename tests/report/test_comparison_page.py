"""Many runs side by side: verdicts that fall become undecided, and the page holds all it needs."""

from dataclasses import replace
from typing import Any

import pytest
from builders import add_p_right, make_benchmark, make_choice, make_run
from report_builders import Role, judge_pairs, written

from slimdown.comparison.run_comparison import Comparison, compare_runs
from slimdown.comparison.run_records import RunRecord
from slimdown.comparison.trials import TrialOutcome
from slimdown.report.comparison_figures import _list_seeds
from slimdown.report.comparison_page import comparison_table, render_comparison_page, search_table
from slimdown.report.tables import write_table


def make_ranked_run(rank: int, seed: int, n_lost: int) -> RunRecord:
    target: dict[str, Any] = {"role": Role.target}
    kept = [1.0] * (200 - n_lost - seed)
    findings = judge_pairs(
        {
            "skill": (written([0.0] * 40, **target), written([1.0] * 30 + [0.0] * 10, **target)),
            "maths_of_school": (written([1.0] * 200), written(kept + [0.0] * (200 - len(kept)))),
        }
    )
    params = {"lora__r": str(rank), "seed": str(seed), "model__id": "<b>model</b>"}
    return make_run(findings, 2 * rank + seed, **params)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    runs = [
        make_ranked_run(rank, seed, lost) for rank, lost in ((4, 7), (8, 60)) for seed in (0, 1)
    ]
    return compare_runs(runs + [make_ranked_run(16 + i, 0, 7) for i in range(8)])


def test_a_row_has_its_setting_its_changes_and_corrected_verdict(comparison: Comparison) -> None:
    table = comparison_table(comparison, "runs", max_rows=3)
    first = table.records[0]
    assert (first["lora.r"], first["n_seeds"]) == ("4", 2)
    assert first["maths_of_school.change"] == pytest.approx(-0.0375)
    # The verdict of both seeds' own reports, and the one over both of them.
    assert first["maths_of_school.verdict"] == "forgotten"
    assert first["maths_of_school.verdict_corrected"] == "undecided"
    shown = write_table(table, "markdown")
    low, high = (100 * first[f"maths_of_school.shown_{end}"] for end in ("low", "high"))
    assert low < -3.75 < 0 <= high
    assert rf"| −3.8 \[−{-low:.1f}, +{high:.1f}\] undecided |" in shown
    corrected = {
        r["maths_of_school.verdict"]: r["maths_of_school.verdict_corrected"] for r in table.records
    }
    assert not any(c == "forgotten" != v for v, c in corrected.items())
    assert any(f"all {len(comparison.rows)} rows" in note for note in table.notes)


@pytest.mark.parametrize(
    ("n_seeds", "shown"),
    [(8, "0, 1, 2, 3, 4, 5, 6, 7"), (9, "0 to 8 (9)"), (3000, "0 to 2999 (3,000)")],
)
def test_many_seeds_are_told_as_a_range(n_seeds: int, shown: str) -> None:
    run = make_ranked_run(4, 0, 7)
    runs = tuple(replace(run, params={**run.params, "seed": str(i)}) for i in range(n_seeds))
    row = replace(compare_runs([run]).rows[0], runs=runs)
    table = comparison_table(replace(compare_runs([run]), rows=(row,)))
    assert shown in [cell.text for cell in table.rows[0].cells.values()]


def test_the_page_sorts_and_draws_and_breaks_names_at_underscores(comparison: Comparison) -> None:
    html = render_comparison_page(comparison_table(comparison), comparison, "lora.r")
    assert "maths_<wbr>of_<wbr>school" in html
    assert html.count("<svg") == 4  # two figures, each for a wide screen and for a phone
    assert html.count("<script>") == 1
    assert "<b>model" not in html


def test_what_is_shown_to_differ_stands_above_the_table() -> None:
    runs = [
        make_ranked_run(rank, seed, lost) for rank, lost in ((4, 7), (8, 60)) for seed in (0, 1, 2)
    ]
    comparison = compare_runs(runs)
    html = render_comparison_page(comparison_table(comparison), comparison)
    assert "<h1>lora.r</h1>" in html
    answer, _, rest = html.partition("<table")
    assert "8 is 26.5 points" in answer
    assert "maths_of_school" in answer
    assert "3 seeds" in answer
    assert "<svg" in rest


def test_details_name_the_noise_of_questions_and_of_training(comparison: Comparison) -> None:
    table = comparison_table(comparison)
    first, change = table.records[0], comparison.rows[0].changes["maths_of_school"].change
    assert first["maths_of_school.question_error"] == change.question_error
    assert first["maths_of_school.training_error"] == change.training_error
    assert f"maths_of_school {100 * change.question_error:.1f}" in write_table(table, "markdown")


def test_a_search_is_a_table(comparison: Comparison) -> None:
    single = compare_runs([run for r in comparison.rows[:2] for run in r.runs], group_seeds=False)
    outcomes = {r.runs[0].run_id: TrialOutcome(0.1, {"maths_of_school": 0.02}) for r in single.rows}
    table = search_table(single, outcomes, "study")
    assert "maths_of_school 2.0 points" in write_table(table, "markdown")
    assert table.notes[0].startswith("0 of 4 ")


def test_a_page_of_target_benchmarks_alone_draws_no_figure_of_what_was_kept() -> None:
    target: dict[str, Any] = {"role": Role.target}
    runs = []
    for rank in (4, 8):
        tuned = written([1.0] * rank + [0.0] * (40 - rank), **target)
        pair = (written([0.0] * 40, **target), tuned)
        runs.append(make_run(judge_pairs({"skill": pair}), rank, lora__r=str(rank)))
    comparison = compare_runs(runs)
    html = render_comparison_page(comparison_table(comparison), comparison)
    assert html.count("<svg") == 2  # one figure, for a wide screen and for a phone


def test_the_dots_of_kept_average_the_benchmarks_that_its_mean_averages() -> None:
    runs = []
    for number, seed in enumerate((0, 1)):
        bases = [add_p_right(make_choice(i % 4, i)) for i in range(40)]
        n_lost = 10 + 10 * seed
        wrong = [add_p_right(make_choice((i + (i < n_lost)) % 4, i)) for i in range(40)]
        sides = [make_benchmark(s, metric="p_right") for s in (bases, wrong)]
        pairs = {name: (written([1.0] * 40), written([1.0] * 40)) for name in ("calm", "steady")}
        findings = judge_pairs(pairs | {"colors": (sides[0], sides[1])})
        runs.append(make_run(findings, number, lora__r="4", seed=str(seed)))
    row = compare_runs(runs).rows[0]
    assert row.retained.value == 0
    assert _list_seeds(row, "kept") == [0, 0]
