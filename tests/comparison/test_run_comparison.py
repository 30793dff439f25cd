"""Runs side by side: means over seeds, what is corrected, and what is not comparable."""

import re
from dataclasses import replace
from math import isnan

import numpy as np
import pytest
from builders import (
    draw_scores,
    judge_pairs,
    judge_scores,
    make_benchmark,
    make_ranks,
    make_run,
    make_scores,
    stop_early,
)

from slimdown.comparison.run_comparison import Comparison, compare_runs
from slimdown.comparison.run_order import parse_setting, sort_by_setting, sort_rows
from slimdown.comparison.trials import summarize_trial
from slimdown.comparison.value_verdicts import judge_configurations
from slimdown.config.benchmark_config import Role
from slimdown.judging.findings import Findings
from slimdown.judging.verdicts import Verdict
from slimdown.report.comparison_page import comparison_table
from slimdown.utils.errors import ConfigError

LOST = judge_scores(*make_scores(300, 60, 10, 230))
SLIGHT = judge_scores(*make_scores(330, 30, 12, 228))
SAME = judge_scores(*make_scores(330, 8, 8, 254))


@pytest.fixture(scope="module")
def sweep() -> Comparison:
    """Two ranks of three seeds each, and another model."""
    runs = make_ranks({8: [SAME, SLIGHT, SAME], 16: [LOST] * 3})
    return compare_runs([*runs, make_run(SAME, 9, model__id="other")])


def test_runs_that_differ_in_their_seed_make_one_row(sweep: Comparison) -> None:
    few, many, single = sweep.rows
    assert [len(row.runs) for row in sweep.rows] == [3, 3, 1]
    assert sweep.params == ("lora.r", "model.id")
    assert few.seeds == ["0", "1", "2"]
    assert "seed" not in few.settings
    assert "seed=" not in few.name
    cell = few.changes["a"]
    assert cell.change.value == pytest.approx(np.mean([0, -18 / 600, 0]))
    assert cell.change.low < cell.change.value < cell.change.high
    assert cell.change.sd_over_seeds == pytest.approx(np.std([0, -0.03, 0], ddof=1))
    assert cell.verdict.split(", ") == ["retained 2", "forgotten 1"]
    assert many.changes["a"].verdict == "forgotten"
    assert many.changes["a"].change.sd_over_seeds == 0
    assert few.retained.value == pytest.approx(cell.change.value)
    assert isnan(few.target.value)
    assert isnan(single.changes["a"].change.sd_over_seeds)
    assert sweep.grouped


def test_what_does_not_hold_in_a_table_becomes_undecided_and_never_worse() -> None:
    """A run that is shown to have lost 1.2 points is retained; corrected for 30 it is neither."""
    barely = judge_scores(*make_scores(6000, 280, 165, 3555))
    assert barely.benchmarks["a"].verdict is Verdict.retained
    assert barely.benchmarks["a"].primary.difference.p_value < 1e-6

    def judge_alike(findings: Findings, n_runs: int = 30) -> tuple[Comparison, set[str]]:
        comparison = compare_runs(make_ranks({rank: [findings] for rank in range(n_runs)}))
        return comparison, {str(row["a"].verdict) for row in judge_configurations(comparison)}

    assert judge_alike(barely)[1] <= {"undecided", "retained"}
    assert judge_alike(barely, 1)[1] == {"retained"}
    assert judge_alike(LOST)[1] == {"forgotten"}
    comparison, verdicts = judge_alike(SLIGHT)
    assert verdicts == {"undecided"}
    table = comparison_table(comparison)
    [note] = table.notes
    assert re.findall(r"\d+", note) == ["30"] * 3  # so many of so many, corrected for so many
    assert {record["a.verdict"] for record in table.records} == {SLIGHT.benchmarks["a"].verdict}
    assert {record["a.verdict_corrected"] for record in table.records} == {"undecided"}


def test_what_was_not_measured_alike_is_said() -> None:
    base, tuned = make_scores(330, 8, 8, 254)
    other = judge_pairs(a=(base[1:], tuned[1:]), b=(base, tuned))
    runs = [
        make_run(SAME, 0),
        make_run(SAME, 1, evaluation__holdout="0.5"),
        make_run(replace(SAME, conditions={"backend": "hf"}), 2),
        make_run(other, 3),
    ]
    text = " ".join(compare_runs(runs).notes)
    for named in ("backend is prefix in 3", "holdout is 0 in 3", "a does not have the same"):
        assert named in text


def test_runs_that_stopped_early_have_no_interval_of_their_mean_and_say_why() -> None:
    before, after = draw_scores(1000, 0.6, 0.2, 0.02, 1)
    early = judge_scores(before, stop_early(make_benchmark(after), 89))
    comparison = compare_runs(make_ranks({8: [early] * 2}))
    cell = comparison.rows[0].changes["a"]
    assert (cell.n, cell.n_available, cell.is_stopped) == (89, 1000, True)
    assert isnan(cell.change.low)
    assert "too large" in " ".join(comparison.notes)


def test_rows_are_sorted_by_what_is_asked_for(sweep: Comparison) -> None:
    def ranks(comparison: Comparison) -> list[str]:
        return [row.settings.get("lora.r", "") for row in comparison.rows]

    assert ranks(sort_rows(sweep, "a")) == ["16", "8", ""]
    assert ranks(sort_rows(sweep, "-kept")) == ["", "8", "16"]
    assert ranks(sort_rows(sweep, "-lora.r")) == ["16", "8", ""]
    assert sort_by_setting(sweep, "model.id").params == ("model.id", "lora.r")
    for key, advice in (("lora.rr", "did you mean.*lora.r"), ("xyzzy", "xyzzy")):
        with pytest.raises(ConfigError, match=advice):
            sort_rows(sweep, key)
    with pytest.raises(ConfigError, match=r"--by train\.lr: "):
        sort_by_setting(sweep, "train.lr")


def test_a_row_without_a_benchmark_is_not_sorted_by_a_setting_of_the_same_name() -> None:
    findings = judge_pairs(seed=make_scores(300, 60, 10, 230))
    runs = [make_run(LOST, seed="7"), make_run(findings, 1, seed="3")]
    comparison = sort_rows(compare_runs(runs), "-seed")
    assert [row.settings["seed"] for row in comparison.rows] == ["3", "7"]


def test_a_number_too_large_is_a_word() -> None:
    assert parse_setting("1e400") == "1e400"


def test_a_trial_learned_its_target_and_is_within_what_it_may_lose() -> None:
    roles = {"kept": Role.retained, "taught": Role.target}
    counts = {"kept": (500, 30, 15, 455), "taught": (300, 10, 110, 580)}
    pairs = {
        name: [make_benchmark(scores, role=roles[name]) for scores in make_scores(*counts[name])]
        for name in counts
    }
    findings = judge_pairs(**pairs)
    outcome, strict = (summarize_trial(findings, most) for most in (None, 0.01))
    assert outcome.learned == pytest.approx(0.1)
    assert outcome.excess == {"kept": pytest.approx(0.015 - 0.02)}
    assert outcome.is_within
    assert not strict.is_within
    assert outcome.order < strict.order
    assert isnan(summarize_trial(SAME, None).learned)
