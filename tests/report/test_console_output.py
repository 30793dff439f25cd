"""What a terminal and a log show."""

import io
import logging
import sys
import threading
import time
from logging.config import BaseConfigurator
from types import SimpleNamespace

import pytest
import yaml
from builders import Capture, Compose, Patch
from report_builders import judge_pairs, make_usual

from slimdown.commands.process import set_up_process
from slimdown.config.paths import CONF_DIR
from slimdown.report import console
from slimdown.report.text import describe_run


@pytest.mark.heavy
def test_the_plan_shows_names_as_they_are(composed: Compose, capsys: Capture) -> None:
    plan = describe_run(composed("lora.target_modules=[q_proj]"))
    console.show_facts([("run", "pocket [red] lora.r=4 \x1b[2J"), *plan.items()])
    shown = capsys.readouterr().out
    assert "pocket [red] lora.r=4 ␛[2J" in shown
    assert "lora, r 8, alpha 16, q_proj" in shown
    assert "\x1b" not in shown


def test_addresses_are_shown_as_they_are(capsys: Capture) -> None:
    run = SimpleNamespace(run_id="1", artifact_uri="file:///[red]/artifacts")
    run.store_uri = "postgresql://me:hunter2@host/db"
    console.show_saved(run)
    shown = capsys.readouterr().out
    assert "open file:///[red]/artifacts/report.html" in shown
    assert "hunter2" not in shown


def test_findings_have_a_row_a_benchmark_and_only_the_caveats_that_apply(capsys: Capture) -> None:
    console.show_findings(judge_pairs(make_usual()))
    shown = " ".join(capsys.readouterr().out.split())
    for sentence in (
        "maths 100.0 50.0 −50.0 [−61.1, −37.8] ↓ forgotten",
        "Points [95 % interval; 90 % at retained]; * target task; verdicts corrected for 5 "
        "benchmarks.",
        "Undecided: calm. 20 questions detect a change of 41.8 points in four of five cases, if no "
        "more answers flip than here; if the change is as it looks, about ",
        "Of 40 answers lost in maths: 25 % empty, 25 % stopped early, 50 % wrong result.",
        "Validation loss 2.500 → 1.250, 2 steps, 12,345 parameters trained (0.50 %).",
    ):
        assert sentence in shown
    for absent in ("stopped early:", "subjects", "measured before", "\x1b", "strict", "Improved:"):
        assert absent not in shown


def test_the_first_line_of_a_log_comes_within_ten_seconds(monkeypatch: Patch) -> None:
    waits: list[float] = []

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return len(waits) == 3

    monkeypatch.setattr(console, "Event", Clock)
    monkeypatch.setattr(sys, "stdout", log := io.StringIO())
    with console.progress_bar("reading"):
        pass
    assert waits == [7.5, 30.0, 30.0]
    assert log.getvalue().count("reading: 0.") == 2


def test_a_log_gets_plain_lines_also_while_a_model_is_silent(monkeypatch: Patch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(console, "LOG_SECONDS", 0.01)
    monkeypatch.setattr(sys, "stdout", log)

    def wait_for(line: str) -> None:
        for _ in range(1000):
            if line in log.getvalue():
                return
            time.sleep(0.01)
        pytest.fail(log.getvalue())

    with console.RunProgress(3, 1, 90.0).show("training", "steps") as on_progress:
        on_progress(100, 100, "")
        on_progress(199, 200, "")
        on_progress(200, 200, "")
        wait_for("[2/3] training: 200 of 200 steps, 0.0 s left (run: 1 min 30 s)")
    log.truncate(0)
    log.seek(0)
    with console.RunProgress(2, 1, 90.0).show("training", "steps") as on_progress:
        wait_for("[2/2] training: 0.")
        on_progress(1, 100, "loss 0.6")
        on_progress(100, 100, "loss 0.5")
        wait_for("[2/2] training: loss 0.5, 100 of 100 steps, 0.0 s left")
        on_progress(0, 100, "other")
        wait_for("[2/2] training: other, 0 of 100 steps, 0.")
    lines = log.getvalue().splitlines()
    assert "\x1b" not in log.getvalue()
    assert lines[0] == "[2/2] training ..."
    assert lines[-1].startswith("[2/2] training: done in ")


def test_the_time_left_is_that_of_the_last_steps_and_grows_in_silence(monkeypatch: Patch) -> None:
    now = 1000.0
    monkeypatch.setattr(console, "monotonic", lambda: now)
    pace = console._Pace("questions")
    for n_done in range(1, 21):  # quick at first
        pace.update(n_done, 100, "")
        now += 1
    for n_done in range(24, 61, 4):  # then batches of four that take a minute
        now += 59
        for answered in range(n_done - 3, n_done + 1):
            pace.update(answered, 100, "math")
            now += 0.25
    now -= 0.25
    assert "60 of 100 questions, 10 min 1 s left" in str(pace)
    now += 600
    assert "60 of 100 questions, 24 min 18 s left" in str(pace)
    pace.update(0, 100, "another")
    assert "another, 0 of 100 questions, " in str(pace)
    assert "elapsed" in str(pace)


def test_a_terminal_gets_a_bar_that_leaves_nothing_behind(monkeypatch: Patch) -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("HF_TOKEN", "hunter2 hunter2")
    with console.progress_bar("measuring [x] \x1b[2J hunter2 hunter2") as on_progress:
        on_progress(3, 10, "hellaswag")
    shown = terminal.getvalue()
    assert "measuring [x] ␛[2J ***" in shown
    assert "hunter2" not in shown
    assert "hellaswag, 3 of 10" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # the bar's line is cleared


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_can_show_findings(encoding: str, monkeypatch: Patch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    console.show_findings(judge_pairs(make_usual()))
    console.print_text("−1 → 2 \u65e5")
    assert ("−50.0" if encoding == "utf-8" else "-50.0") in written.getvalue().decode(encoding)


def test_a_warning_has_no_control_characters(capsys: Capture) -> None:
    set_up_process()
    assert logging.lastResort
    record = logging.LogRecord("slimdown", logging.WARNING, "", 0, "gone: %s", ("\x1b[2Jx",), None)
    logging.lastResort.handle(record)
    assert capsys.readouterr().err == "gone: ␛[2Jx\n"
    logs = yaml.safe_load((CONF_DIR / "config.yaml").read_text())["hydra"]["job_logging"]
    formatter = BaseConfigurator(logs).configure_custom(logs["formatters"]["simple"])
    assert formatter.format(record) == "gone: ␛[2Jx"


def test_a_file_gets_plain_lines_where_a_notebook_asks_for_colors(
    monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with console.progress_bar("training", "steps") as report:
        report(1, 2, "")
    console.show_line("done", "bold")
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "training ..."
    assert "\x1b" not in shown
