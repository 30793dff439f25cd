"""Many runs side by side: verdicts that fall become undecided, and the page holds all it needs."""

from dataclasses import replace
from typing import Any

import pytest
from builders import make_run
from report_builders import Role, judge_pairs, written

from slimdown.comparison.run_comparison import Comparison, compare_runs
from slimdown.comparison.run_records import RunRecord
from slimdown.comparison.trials import TrialOutcome
from slimdown.report.comparison_page import (
    comparison_table,
    noise_table,
    render_comparison_page,
    search_table,
)
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


def test_a_row_has_its_setting_its_changes_and_the_corrected_verdict(
    comparison: Comparison,
) -> None:
    table = comparison_table(comparison, "runs", max_rows=3)
    first = table.records[0]
    assert (first["lora.r"], first["n_seeds"]) == ("4", 2)
    assert first["maths_of_school.change"] == pytest.approx(-0.0375)
    # Two seeds with their verdicts, which are corrected one by one.
    assert first["maths_of_school.verdict_corrected"] == "forgotten 1, undecided 1"
    shown = write_table(table, "markdown")
    assert "−3.8 ± 0.4" in shown
    corrected = {
        r["maths_of_school.verdict"]: r["maths_of_school.verdict_corrected"] for r in table.records
    }
    assert not any(c == "forgotten" != v for v, c in corrected.items())
    assert f"--rows 0 shows all {len(comparison.rows)} rows." in table.notes


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
    html = render_comparison_page(comparison_table(comparison), comparison, "lora.r", "--by lora.r")
    assert "maths_<wbr>of_<wbr>school" in html
    assert html.count("<svg") == 2
    assert html.count("<script>") == 1
    assert "<b>model" not in html


def test_noise_and_search_are_tables(comparison: Comparison) -> None:
    noise = noise_table(comparison)
    assert noise.records[1]["seeds"] == 2
    assert [cell.text for cell in noise.rows[1].cells.values() if "n" in cell.values] == ["200"]
    single = compare_runs([run for r in comparison.rows[:2] for run in r.runs], group_seeds=False)
    outcomes = {r.runs[0].run_id: TrialOutcome(0.1, {"maths_of_school": 0.02}) for r in single.rows}
    table = search_table(single, outcomes, "study")
    assert "beyond by maths_of_school 2.0" in write_table(table, "markdown")
    assert table.notes[0].startswith("0 of 4 finished trials are within the budget")
