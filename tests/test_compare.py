"""Runs side by side: what is shown, in every format, and what is said to someone who asks for what is not there."""

import csv
import json
import re
import sqlite3
import subprocess
import sys
import time
from dataclasses import asdict, replace
from io import StringIO
from math import isnan, sqrt
from pathlib import Path

import pytest
from mlflow import MlflowClient
from recorded import here, record, right
from rich.console import Console

from slimdown import check
from slimdown.compare import arguments, main
from slimdown.report.comparison import comparison_table
from slimdown.report.table import show
from slimdown.stats.comparison import compare
from slimdown.stats.sorting import by_dataset, ordered, series_by, typed, value_of
from slimdown.tracking.owner import this_process
from slimdown.tracking.read import find_runs
from slimdown.tracking.tags import Tag
from slimdown.tracking.write import TrackedRun
from slimdown.utils.errors import SlimdownError

BASE = {"math": right(80), "cs": right(50), "task": right(10)}


@pytest.fixture
def said(store: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """What the command says to a list of arguments."""

    def ask(*given: str) -> str:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", here().uri)
        monkeypatch.setattr(sys, "argv", ["compare", *given])
        main()
        return capsys.readouterr().out

    return ask


@pytest.fixture
def fails(said, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """What the command says before it exits with an error."""

    def ask(*given: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            said(*given)
        assert stopped.value.code not in (0, None)
        assert "Traceback" not in capsys.readouterr().err
        return " ".join(str(stopped.value.code).split())

    return ask


def run(name: str, math: int, r: int = 8, seed: int = 0, task: int = 60, **given: object) -> str:
    tuned = {"math": right(math), "cs": right(50), "task": right(task)}
    return record(name, {"lora.r": r, "seed": seed}, BASE, tuned, target="task", **given)  # type: ignore[arg-type]


def line(text: str, start: str) -> str:
    return " ".join(next(one for one in text.splitlines() if one.strip().startswith(start)).split())


def test_a_row_holds_what_differs_changes_intervals_and_verdicts(said) -> None:  # type: ignore[no-untyped-def]
    run("four", 20, r=4)
    run("eight", 78, r=8)
    text = said()
    assert text.splitlines()[0].startswith("2 finished runs of experiment slimdown in sqlite:///")
    assert line(text, "run ") == "run id lora.r task * cs math mean retained"
    assert "4 +50.0 [" in line(text, "four")
    assert "−60.0 [−68.8, −48.9] forgotten" in line(text, "four")
    assert "undecided" in line(text, "eight")
    assert "100 % wrong result" in text  # of 60 answers lost in math
    assert "tracking" not in text


def test_what_was_trained_elsewhere_differs_by_its_origin_alone(said) -> None:  # type: ignore[no-untyped-def]
    """It has no settings of a training, which is no difference in each of them."""
    tuned = {"math": right(50), "cs": right(50), "task": right(50)}
    run("four", 20, r=4)
    record("given", {"tuned": "./mine"}, BASE, tuned, target="task")
    assert compare(find_runs(here())).params == ("tuned",)
    run("eight", 78, r=8)
    assert compare(find_runs(here())).params == ("lora.r", "tuned")
    page = said("--format", "html")
    assert "./mine" in page
    assert "alpaca" not in said("--by", "tuned")


@pytest.mark.parametrize("width", [60, 110, 200])
def test_a_terminal_of_any_width_shows_every_number(store: MlflowClient, width: int) -> None:
    run("four", 20, r=4)
    run("eight", 78, r=8)
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    show(comparison_table(compare(find_runs(here())), "two"), console)
    text = out.getvalue()
    assert max(len(one.rstrip()) for one in text.splitlines()) <= width
    assert "…" not in text
    for shown in (
        "−60.0 [−68.8, −48.9]",
        "forgotten",
        "wrong result",
        "+50.0 [+38.9, +59.1]",
        "improved",
    ):
        assert shown in text


def test_seeds_are_one_row_with_mean_and_deviation(said) -> None:  # type: ignore[no-untyped-def]
    run("pocket", 40, seed=0)
    run("pocket seed=1", 60, seed=1)
    run("pocket lora.r=4", 20, r=4)
    text = said()
    assert line(text, "run ").startswith("run id seeds lora.r")
    both = next(" ".join(one.split()) for one in text.splitlines() if "2 runs" in one)
    assert "pocket 2 runs 0, 1 8 +50.0 ± 0.0 improved" in both
    assert "−30.0 ± 14.1 forgotten" in both
    assert "standard deviation over seeds" in " ".join(text.split())
    apart = said("--no-group-seeds")
    assert "±" not in apart
    assert line(apart, "run ").startswith("run id lora.r seed")


def test_a_mean_over_seeds_keeps_the_noise_of_the_questions(store: MlflowClient) -> None:
    run("a", 40, seed=0)
    run("b", 60, seed=1)
    run("b again", 70, seed=1)
    found = compare(find_runs(here()))
    [row] = found.rows
    assert row.seeds == ["0", "1"]
    errors = [one.metrics["forgetting/math/change_stderr"] for one in row.runs]
    cell = row.changes["math"]
    assert cell.change.value == pytest.approx(-0.25)  # the newer run of seed 1 counts
    assert cell.change.sd_over_seeds == pytest.approx(0.3 / sqrt(2))
    assert cell.change.standard_error == pytest.approx(
        sqrt((errors[0] ** 2 + errors[1] ** 2) / 2 + cell.change.sd_over_seeds**2 / 2)
    )
    assert "1 run is left out of the means over seeds" in found.notes[0]
    assert len(compare(find_runs(here()), group_seeds=False).rows) == 3


def test_rows_are_sorted_and_what_has_no_value_comes_last(said) -> None:  # type: ignore[no-untyped-def]
    run("low", 10, r=4)
    run("high", 70, r=16)
    record("other", {}, {"cs": right(50)}, {"cs": right(20)})
    found = compare(find_runs(here()))
    assert [row.name for row in ordered(found, "math").rows] == ["low", "high", "other"]
    assert [row.name for row in ordered(found, "-math").rows] == ["high", "low", "other"]
    assert [row.name for row in ordered(found, "lora.r").rows] == [
        "low",
        "other",
        "high",
    ]  # numbers, not words
    assert value_of(found.rows[0], "tuned/cs/acc") == pytest.approx(0.2)
    text = said("--sort", "-math", "--rows", "1")
    assert "2 more rows; --rows 0 shows all of 3" in text
    assert line(text, "high")
    assert "low " not in text
    with pytest.raises(
        SlimdownError, match=r"--sort mth: nothing is called so in these runs; did you mean math"
    ):
        ordered(found, "mth")


def test_what_was_not_measured_alike_is_said(said) -> None:  # type: ignore[no-untyped-def]
    run("zero shots", 40)
    run("five shots", 40, num_fewshot=5)
    record("fewer", {}, {"cs": right(50)}, {"cs": right(20)})
    text = " ".join(said().split())
    assert (
        "cs was not measured alike (num_fewshot is 0 in 2 and 5 in 1): compare its changes with care."
        in text
    )
    assert "The means are over different benchmarks" in text


def test_datasets_are_one_column_and_a_heat_map(store: MlflowClient) -> None:
    for seed, math in ((0, 40), (1, 44)):
        run("a", math, dataset="alpaca", seed=seed)
    run("g", 79, dataset="gsm8k")
    found = compare(find_runs(here()))
    assert found.params == ("dataset",)
    cells = {
        dataset: row[found.benchmarks.index("math")] for dataset, row in by_dataset(found).items()
    }
    assert {
        dataset: cell and (round(cell[0].value, 4), cell[1]) for dataset, cell in cells.items()
    } == {
        "alpaca": (-0.38, "forgotten"),
        "gsm8k": (-0.01, "undecided"),
    }


def test_a_file_of_ones_own_has_its_own_name_in_the_heat_map(store: MlflowClient) -> None:
    for file, math in (("mine/a.jsonl", 40), ("mine/b.jsonl", 70)):
        record(
            "f",
            {"dataset.file.path": file},
            {"math": right(80)},
            {"math": right(math)},
            dataset="file",
        )
    assert list(by_dataset(compare(find_runs(here())))) == ["a.jsonl", "b.jsonl"]


def test_a_benchmark_over_a_setting_pools_equal_values(store: MlflowClient) -> None:
    for seed, math in ((0, 40), (1, 60)):
        run("r4", math, r=4, seed=seed)
    run("r16", 70, r=16)
    points = series_by(compare(find_runs(here())), "lora.r")["math"]
    assert [value for value, _ in points] == [4.0, 16.0]
    assert [estimate.value for _, estimate in points] == pytest.approx([-0.3, -0.1])


def test_what_is_not_finished_is_left_out_and_counted(said, fails) -> None:  # type: ignore[no-untyped-def]
    broken = TrackedRun(here(), "broken", kind="tuned", tags={})
    with pytest.raises(RuntimeError), broken:
        raise RuntimeError("the disk is full")
    going = TrackedRun(here(), "going", kind="tuned", tags={})
    assert "no run of experiment slimdown in" in (none := fails())
    assert "can be shown (1 still going, 1 failed)" in none
    done = run("done", 40)
    assert "2 runs are left out: 1 still going, 1 failed." in said()
    assert "(broken) failed: RuntimeError: the disk is full" in fails(done, "broken")
    assert "(going) is still going; it left" in fails(done, going.run_id[:8])
    client = MlflowClient(here().uri)
    client.set_tag(
        going.run_id, Tag.owner, json.dumps(asdict(replace(this_process(), started="1")))
    )
    assert "1 gone without an end" in said()
    assert "(going) was killed outright, and its command goes on in it; it left" in fails(
        done, going.run_id[:8]
    )
    client.delete_tag(going.run_id, Tag.owner)  # as in a record of before, which does not say
    assert "1 still going or killed outright" in said()


def test_programs_get_whole_numbers_under_the_names_of_the_record(said) -> None:  # type: ignore[no-untyped-def]
    run_id = run("one, two", 41, r=4)
    run("other", 40, r=16)
    rows = {row["run_ids"]: row for row in csv.DictReader(StringIO(said("--format", "csv")))}
    metrics = next(one for one in find_runs(here()) if one.run_id == run_id).metrics
    assert rows[run_id]["name"] == "one, two"
    assert rows[run_id]["lora.r"] == "4"
    for key in ("change", "change_low", "p_value"):
        assert float(rows[run_id][f"forgetting/math/{key}"]) == metrics[f"forgetting/math/{key}"]
    assert rows[run_id]["forgetting/math/change_sd_over_seeds"] == ""
    found = json.loads(said("--format", "json"), parse_constant=pytest.fail)
    row = next(row for row in found["rows"] if row["run_ids"] == [run_id])
    assert row["params"] == {"lora.r": 4}
    assert row["benchmarks"]["math"]["verdicts"] == {"forgotten": 1}
    assert row["benchmarks"]["math"]["change_sd_over_seeds"] is None
    assert row["mean_retained_change"]["value"] == metrics["forgetting/mean_retained_change"]


def test_markdown_is_one_table_whatever_a_run_is_called(said) -> None:  # type: ignore[no-untyped-def]
    run("a|b <b>", 40, r=4)
    run("plain", 40, r=16)
    lines = [one for one in said("--format", "markdown").splitlines() if one.startswith("|")]
    assert len({one.replace("\\|", "").count("|") for one in lines}) == 1
    assert "| a\\|b &lt;b> |" in lines[-1]


def test_the_page_holds_table_and_plots_and_loads_nothing(said, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run("<script>", 40, r=4)
    run("g", 70, r=16, dataset="gsm8k")
    said("--by", "lora.r", "--output", "runs.html", "--plots", "plots")
    page = (tmp_path / "runs.html").read_text()
    assert "&lt;script&gt;" in page
    assert page.count("<script") == page.count("<script>\n//") == 1  # ours, and no run's
    assert not re.search(
        r"src=|href=\"(?!#)|https?://(?!www\.w3\.org)|@import|fetch|XMLHttp|innerHTML", page
    )
    assert page.count("<svg") == 3
    assert "Change by lora.r" in page
    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == [
        f"{name}.{kind}"
        for name in ("by-lora.r", "datasets", "learning-forgetting")
        for kind in ("png", "svg")
    ]


def test_a_page_is_sorted_by_numbers_and_filtered_by_what_differs(said) -> None:  # type: ignore[no-untyped-def]
    ids = [run("four", 20, r=4), run("sixteen", 78, r=16)]
    page = said("--format", "html")
    rows = re.findall(r"<tr title=.*?</tr>", page, re.DOTALL)
    assert [re.findall(r'data-order="([^"]+)"', row)[0] for row in rows] == ["16", "4"]  # lora.r
    change = re.search(
        r'data-order="-0\.6[^"]*">−60\.0 <span class="doubt">\[−68\.8, −48\.9\]</span>', rows[1]
    )
    assert change
    assert '<th scope="col" data-choice>lora.r</th>' in page
    assert '<th scope="col" data-choice>task *<small>points [95 %]</small></th>' in page
    assert '<th scope="col">run</th>' in page
    assert "Whoever picks the best of these 2 picks luck too" in page
    assert 'data-note="Whoever takes one for its place takes luck with it' in page
    for row, run_id in zip(rows, reversed(ids), strict=True):
        hint = re.search(r'<tr title="([^"]+)"', row)[1]  # type: ignore[index]
        assert run_id[:8] in hint
        assert f"lora.r = {16 if run_id == ids[1] else 4}\n" in hint
        assert hint in page[page.index("<svg") :]  # pointing at the point says the same
    alone = said(ids[0], ids[1], "--paired", "--format", "html")
    assert "<script" not in alone


def test_a_page_without_a_target_task_says_so(said) -> None:  # type: ignore[no-untyped-def]
    for r in (4, 8):
        record(f"r{r}", {"lora.r": r}, {"math": right(80)}, {"math": right(40)})
    page = said("--format", "html")
    assert "No target task was measured in these runs" in page
    assert "<svg" not in page
    assert isnan(compare(find_runs(here())).rows[0].target.value)


def test_two_tuned_models_are_paired_question_by_question(said) -> None:  # type: ignore[no-untyped-def]
    one, other = run("one", 40), run("other", 70)
    text = said(one, "other", "--paired")
    assert text.splitlines()[0] == f"one ({one[:8]}) → other ({other[:8]})"
    assert line(text, "math").startswith("math acc 100 40.0 ±4.9 70.0 ±4.6 +30.0 [")
    assert line(text, "math").endswith("improved")
    found = {
        b["benchmark"]: b
        for b in json.loads(said(one, other, "--paired", "--format", "json"))["benchmarks"]
    }
    assert (found["math"]["gained"], found["math"]["lost"]) == (30, 0)
    assert found["cs"]["change"] == 0
    assert "wrong result" not in text
    back = said("other", one, "--paired")
    assert "−30.0 [" in back
    assert "100 % wrong result" in back
    assert "| math | acc | 100 | 40.0 ±4.9 | 70.0 ±4.6 |" in said(
        one, other, "--paired", "--format", "markdown"
    )
    assert len(said(one, other, "--paired", "--format", "csv").splitlines()) == 4
    assert '<span class="badge improved"><span aria-hidden="true">↑</span> improved</span>' in said(
        one, other, "--paired", "--format", "html"
    )


def test_runs_that_were_stopped_stand_beside_whole_ones_and_say_so(said, fails) -> None:  # type: ignore[no-untyped-def]
    base, lost = (
        {"math": right(300, 400), "cs": right(20, 40)},
        {"math": right(0, 400), "cs": right(20, 40)},
    )
    early = [
        record(f"early {n}", {"lora.r": n}, base, lost, asked={"math": n, "cs": 40})
        for n in (45, 63)
    ]
    whole = record("whole", {"lora.r": 8}, base, lost)
    text = " ".join(said().split())
    assert "after 45 of 400" in text
    assert (
        "asked until enough was known of each (questions of math 45 to 400): an interval is right for its"
        in text
    )
    assert text.count("Some runs were asked until enough") == 1
    assert (
        "the best looks better than it is, the more so where asking ended as soon as" in text
    )  # not by how much
    assert "evaluation.until=all keep questions to judge the chosen one on" in text
    assert "again with evaluation.holdout=0.5 and evaluation.until=all, choose" in fails(
        early[0], "--confirm"
    )
    rows = {row["name"]: row for row in csv.DictReader(StringIO(said("--format", "csv")))}
    asked = [[row[f"forgetting/math/{n}"] for n in ("n", "n_available")] for row in rows.values()]
    assert sorted(asked) == [["400.0", "400.0"], ["45.0", "400.0"], ["63.0", "400.0"]]
    assert rows["early 45"]["forgetting/math/change_stderr"] == ""
    assert rows["early 45"]["evaluation.until"] == "decided"
    assert rows["whole"]["evaluation.until"] == "all"  # an older record has no such setting
    paired = said(*early, "--paired")
    assert line(paired, "math  ").startswith("math acc 45 of 400 0.0 0.0 +0.0 [")
    assert "both were asked; the first was asked 45 of math, the second 63 of math." in " ".join(
        paired.split()
    )
    assert "the second 400 of math." in " ".join(said(early[0], whole, "--paired").split())
    assert '<td class="num"' in said(early[1], whole, "--paired", "--format", "html")
    fewer = record("fewer", {}, {**base, "math": right(300, 350)}, {**lost, "math": right(0, 350)})
    assert "math: the two runs cannot be paired, n_available differs: 400 and 350" in fails(
        early[0], fewer, "--paired"
    )
    parted = record("parted", {}, base, lost, holdout=0.5)  # of its open part no looks are known
    assert "math was asked until enough was known (evaluation.until), by all of its" in fails(
        early[0], parted, "--paired"
    )


def test_a_run_in_stages_beside_a_whole_one_may_differ_by_rounding(said) -> None:  # type: ignore[no-untyped-def]
    base, lost, told = (
        {"math": right(300, 400)},
        {"math": right(0, 400)},
        "some answers may differ by that alone",
    )
    for dtype, is_told in (("float32", False), ("bfloat16", True)):
        tags = {Tag.dtype: dtype}
        early, other = (
            record(f"{dtype} {n}", {}, base, lost, asked={"math": n}, tags=tags) for n in (45, 63)
        )
        whole = record(f"{dtype} whole", {}, base, lost, tags=tags)
        assert (told in " ".join(said(early, whole, "--paired").split())) is is_told
        assert told not in " ".join(said(early, other, "--paired").split())


def test_seeds_that_were_stopped_have_a_mean_and_a_deviation_and_no_interval(said, fails) -> None:  # type: ignore[no-untyped-def]
    base = {"math": right(300, 400)}
    for seed, n in ((0, 45), (1, 63)):
        record("r8", {"seed": seed}, base, {"math": right(0, 400)}, asked={"math": n})
    [row] = compare(find_runs(here())).rows
    assert isnan(row.changes["math"].change.low)
    assert isnan(row.retained.high)
    assert row.changes["math"].change.sd_over_seeds == 0
    assert "−100.0 ± 0.0" in said()
    assert "after 54 of 400 in the mean" in said()
    assert "math was asked until enough was known" in fails("--noise")


def test_runs_that_cannot_be_paired_are_refused_by_field(fails) -> None:  # type: ignore[no-untyped-def]
    one, shots = run("one", 40), run("shots", 40, num_fewshot=5)
    fewer = record("fewer", {}, {"cs": right(50)}, {"cs": right(20)})
    assert "the two runs cannot be paired, num_fewshot differs: 0 and 5" in fails(
        one, shots, "--paired"
    )
    assert "benchmarks differ: ['cs', 'math', 'task'] and ['cs']" in fails(one, fewer, "--paired")
    assert "--paired compares exactly two runs, got 1" in fails(one, "--paired")
    assert "a comparison needs two runs or more, got the same run more than once" in fails(
        one, one, "--paired"
    )


def test_what_is_not_there_is_answered_with_what_is(fails, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "no experiment slimdown" in fails()
    record("elsewhere", {}, {"cs": right(50)}, {"cs": right(20)}, config=here("ranks"))
    assert "name one with --experiment: Default, ranks" in fails()
    one = run("pocket lora.r=8", 40, tags={"slimdown.sweep": "2025-06-01"})
    assert "there is no experiment rnks" in (answer := fails("--experiment", "rnks"))
    assert "did you mean ranks?" in answer
    assert "there is no sweep 2025-06-02" in (answer := fails("--sweep", "2025-06-02"))
    assert "did you mean 2025-06-01?" in answer
    assert "did you mean pocket lora.r=8?" in fails(one, "pocket lora.r=9")
    assert "no run with the tag slimdown.harness_version=1" in fails(
        "--tag", "slimdown.harness_version=1"
    )
    assert "write KEY=VALUE" in fails("--tag", "sweep")
    assert "is not understood" in fails("--filter", "lora.r is 8")
    assert "none of the 1 runs" in fails("--filter", "params.`lora.r` = '9'")
    assert "no run has this setting; did you mean lora.r?" in fails("--by", "lor.r")
    assert "there is no record" in fails("--tracking-uri", f"sqlite:///{tmp_path}/none.db")
    assert "--tracking-uri must be a database or a server, got 'mlruns'" in fails(
        "--tracking-uri", "mlruns"
    )
    assert "a comparison needs two runs or more, got only" in fails(one)
    assert "leave one of the two out" in fails(one, "pocket lora.r=8", "--sweep", "x")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails("--output", "file/x.csv", "--format", "csv")


def test_a_sweep_is_found_in_any_experiment(said) -> None:  # type: ignore[no-untyped-def]
    record(
        "a",
        {},
        {"cs": right(50)},
        {"cs": right(20)},
        config=here("ranks"),
        tags={"slimdown.sweep": "s1"},
    )
    assert said("--sweep", "s1").startswith("1 finished run of sweep s1, all experiments in")
    assert "1 finished run of filter" in said(
        "--experiment", "ranks", "--filter", "params.`lora.r` = '8'"
    )


@pytest.mark.slow
def test_a_thousand_runs_are_listed_in_three_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {f"benchmark{i}": right(60) for i in range(4)}
    first = record(
        "run",
        {f"train.setting{i}": i for i in range(40)},
        names,
        {name: right(50) for name in names},
    )
    store = sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")
    tables = {
        "runs": "run_uuid",
        "params": "run_uuid",
        "latest_metrics": "run_uuid",
        "tags": "run_uuid",
    }
    for table, key in tables.items():
        columns = [column[1] for column in store.execute(f"PRAGMA table_info({table})")]
        kept = store.execute(f"SELECT * FROM {table} WHERE {key} = ?", (first,)).fetchall()
        at = columns.index(key)
        copies = [(*row[:at], f"{i:032x}", *row[at + 1 :]) for i in range(999) for row in kept]
        store.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(columns))})", copies)
    store.execute(
        "UPDATE params SET value = run_uuid WHERE key = 'train.setting0'"
    )  # or all would be one configuration
    store.commit()
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "slimdown.compare"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=True,
    )
    seconds = time.perf_counter() - started
    assert "1,000 finished runs" in done.stdout
    assert seconds < 3, seconds


def table_of(n_runs: int, lost: int, **given: object) -> list[str]:
    """Runs that each lost so many of 100 answers in one benchmark."""
    return [run(f"run{r}", 80 - lost, r=r, **given) for r in range(1, n_runs + 1)]


def test_a_table_of_many_runs_says_which_verdicts_hold_among_all(said) -> None:  # type: ignore[no-untyped-def]
    table_of(3, lost=7)
    text = " ".join(said("--sort", "-math").split())
    assert "forgotten → undecided †" in text
    assert (
        "† 3 of 6 verdicts other than undecided do not hold when corrected for all 9 in this table (Holm)"
        in text
    )
    assert "improved → " not in text  # +50 points hold among any number
    assert "Whoever picks the best of these 3 picks luck too" in text
    assert "Runs with evaluation.holdout=0.5 keep questions to judge the chosen one on" in text
    assert "forgotten → undecided †" in said("--format", "markdown")
    assert "→ undecided †" in said("--format", "html")
    rows = list(csv.DictReader(StringIO(said("--format", "csv"))))
    assert [row["forgetting/math/verdict"] for row in rows] == ["forgotten"] * 3
    assert [row["forgetting/math/verdict_corrected"] for row in rows] == ["undecided"] * 3
    assert {row["n_candidates"] for row in rows} == {"3"}
    found = json.loads(said("--format", "json"))
    assert found["rows"][0]["benchmarks"]["math"]["verdicts_corrected"] == {"undecided": 1}
    assert any("picks luck too" in note for note in found["notes"])


def test_one_run_alone_is_not_corrected_again_and_strong_verdicts_hold(said) -> None:  # type: ignore[no-untyped-def]
    run("one", 70)
    text = said()
    assert "†" not in text
    assert "picks luck" not in text
    run("other", 20, r=4)
    run("third", 20, r=16)
    assert "forgotten → undecided" not in line(said(), "third")


def test_records_from_before_raw_p_values_are_read_on_the_safe_side(store: MlflowClient) -> None:
    table_of(2, lost=20)
    runs = find_runs(here())
    old = [
        replace(
            one,
            metrics={key: value for key, value in one.metrics.items() if not key.endswith("_raw")},
        )
        for one in runs
    ]
    [row, _] = compare(old).rows
    assert row.changes["math"].verdict_corrected == "forgotten"
    assert "evaluation.holdout" not in compare(old).params


def test_runs_made_by_one_process_and_by_two_are_told_apart(store: MlflowClient) -> None:
    ids = [run("one", 40), run("two", 40)]
    store.set_tag(ids[1], Tag.processes, "2")
    compared = compare(find_runs(here()))
    assert compared.params == ("processes",)
    assert sorted(row.settings["processes"] for row in compared.rows) == ["1", "2"]


def test_what_is_held_out_is_shown_by_confirm_and_by_nothing_else(said, fails) -> None:  # type: ignore[no-untyped-def]
    one, other = run("one", 40, holdout=0.5), run("other", 20, r=4, holdout=0.5)
    text = " ".join(said().split())
    assert "Judge the one you choose on the questions that are held out" in text
    shown = next(found for found in find_runs(here()) if found.run_id == one).metrics[
        "forgetting/math/n"
    ]
    confirmed = json.loads(said(one, "--confirm", "--format", "json"))
    assert confirmed[0]["benchmarks"][0]["n"] == 100 - shown
    assert confirmed[0]["part"].startswith(
        "the held-out part of each benchmark's questions (evaluation.holdout=0.5)"
    )
    both = json.loads(said(one, other, "--confirm", "--format", "json"))
    p_values = [found["benchmarks"][0]["p_value"] for found in (confirmed[0], both[0])]
    assert p_values[1] == pytest.approx(min(1, 2 * p_values[0]))
    console = said(one, other, "--confirm")
    assert f"base → one ({one[:8]})" in console
    assert "About the held-out part" in " ".join(console.split())
    assert len(said(one, other, "--confirm", "--format", "csv").splitlines()) == 1 + 2 * 3
    assert said(one, "--confirm", "--format", "markdown").startswith("### base → one")
    assert "slimdown compare --confirm" in said(one, "--confirm", "--format", "html")
    paired = json.loads(said(one, other, "--paired", "--format", "json"))
    assert paired["benchmarks"][0]["n"] == shown
    assert "open part" in paired["part"]
    whole = run("whole", 40, r=16)
    assert "held no question out (evaluation.holdout is 0)" in (answer := fails(whole, "--confirm"))
    assert "with evaluation.holdout=0.5" in answer
    assert "--confirm judges runs that were chosen; name one or more" in fails("--confirm")
    assert "holdout is 0.5 in 2 and 0 in 1" in " ".join(said().split())


def test_the_noise_of_seeds_is_that_of_the_open_part(said) -> None:  # type: ignore[no-untyped-def]
    for seed in (0, 1):
        run("a", 40, seed=seed, holdout=0.5)
    assert re.search(
        r'<td class="num">−[34]\d\.\d <span class="doubt">\[', said("--noise", "--format", "html")
    )
    assert [
        row["seeds"] for row in csv.DictReader(StringIO(said("--noise", "--format", "csv")))
    ] == ["2"] * 3
    assert "About the open part of each benchmark's questions" in " ".join(said("--noise").split())


@pytest.mark.parametrize(
    ("given", "said_of_it"),
    [
        (
            ["a", "b", "--paired", "--sort", "math"],
            "--paired has rows of its own, which --sort cannot change",
        ),
        (["a", "b", "--paired", "--by", "x", "--rows", "3"], "--by and --rows cannot change"),
        (["a", "b", "--paired", "--plots", "x"], "--plots cannot change"),
        (["a", "--confirm", "--no-group-seeds"], "--no-group-seeds cannot change"),
        (["--noise", "--rows", "3"], "--noise has rows of its own"),
        (["a", "b", "--paired", "--noise"], "--noise: not allowed with argument --paired"),
        (["--sort", "a", "--sort=-b"], "--sort is given more than once"),
        (["-o", "a", "--output", "b"], "--output is given more than once"),
        (["--filter", "nope"], "--filter 'nope' compares nothing with nothing; write e.g."),
        (["--filter", "params.`a = '8'"], "compares nothing with nothing"),
    ],
)
def test_what_cannot_be_asked_together_is_refused(
    given: list[str], said_of_it: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        arguments(given)
    assert stopped.value.code == 2
    assert said_of_it in (answer := capsys.readouterr().err)
    assert len(answer.splitlines()) == 1


HOSTILE = [
    "[/y] [bold",
    "=1+1",
    "@SUM(A1)",
    "-2 sigma",
    "a|b `c` <img src=x onerror=y>",
    "[x](javascript:y)",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_and_never_obeyed(name: str, said) -> None:  # type: ignore[no-untyped-def]
    for r in (4, 8):  # benchmarks and settings cannot be called so, MLflow refuses them
        record(
            name,
            {"lora.r": r, "model.id": f"{name}{r}"},
            BASE,
            {**BASE, "math": right(60)},
            target="task",
        )
    assert name.split()[0] in said()
    assert name.split()[0] in said("--by", "lora.r", "--sort", "name")
    [one, other] = [found.run_id for found in find_runs(here())]
    assert name.split()[0] in said(one, other, "--paired")
    rows = list(csv.reader(StringIO(said("--format", "csv"))))
    cells = [cell for row in rows for cell in row if cell]
    assert not any(
        cell[0] in "=@" or (cell[0] in "+-" and isinstance(typed(cell), str)) for cell in cells
    )
    assert any(name in cell for row in rows for cell in row)
    text = said("--format", "markdown")
    assert "<img" not in text
    assert "[x](" not in text
    assert "`c`" not in text.replace("\\`c\\`", "")
    assert "<img" not in said("--format", "html")


def test_a_file_that_is_no_store_is_left_as_it_is(fails, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for content in (b"", b"no database at all"):
        file = tmp_path / "other.db"
        file.write_bytes(content)
        before = sorted(tmp_path.rglob("*"))
        for given in ([], ["--filter", "params.a = '8'"], ["a", "b"], ["a", "b", "--paired"]):
            fails("--tracking-uri", f"sqlite:///{file}", *given)
        with pytest.raises(SystemExit):
            check.main(["a", "--tracking-uri", f"sqlite:///{file}"])
        assert file.read_bytes() == content
        assert sorted(tmp_path.rglob("*")) == before


def test_reading_a_record_writes_nothing(said, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    one, other = table_of(2, lost=20)
    store = tmp_path / "mlruns" / "mlflow.db"
    before, content = sorted(tmp_path.rglob("*")), store.read_bytes()
    for given in ([], ["--filter", "params.`lora.r` = '1'"], [one, other, "--paired"]):
        said(*given)
    with pytest.raises(SystemExit):
        check.main([one])
    assert store.read_bytes() == content
    assert sorted(tmp_path.rglob("*")) == before
