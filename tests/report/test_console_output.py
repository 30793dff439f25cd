"""What a terminal and a log show."""

import io
import logging
import sys
import threading
import time
from dataclasses import replace
from logging.config import BaseConfigurator
from types import SimpleNamespace

import builders
import pytest
import yaml
from builders import TRAINING, Capture, Patch
from report_builders import judge_pairs, make_usual, written

from slimdown.commands.process import set_up_process
from slimdown.config.paths import CONF_DIR
from slimdown.judging.budgets import Gate, check_budgets
from slimdown.report import console, text


def test_facts_are_shown_as_they_are(capsys: Capture) -> None:
    console.show_facts([("run", "[red] \x1b[2J")])
    assert capsys.readouterr().out.split() == ["run", "[red]", "␛[2J"]


def show_addresses(capsys: Capture, **addresses: str) -> dict[str, str]:
    """What a run's places look like on the console, by their names."""
    console.show_saved(SimpleNamespace(run_id="1", **addresses))
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_addresses_are_shown_as_they_are(capsys: Capture) -> None:
    store_uri, folder = "postgresql://me:hunter2@host/db", f"/[red]/{'x' * 90}"
    places = {"artifact_uri": f"file://{folder}/arti%20facts", "model_uri": "file:///runs/m-1"}
    facts = show_addresses(capsys, store_uri=store_uri, **places)
    page = f"{folder}/arti facts/report.html"
    assert facts == {"run": "1", "page": page, "adapter": "/runs/m-1"}
    untrained = show_addresses(capsys, store_uri=store_uri, **{**places, "model_uri": ""})
    assert untrained == {"run": "1", "page": page}
    places = {"artifact_uri": "mlflow-artifacts:/1", "model_uri": "mlflow-artifacts:/m-1"}
    facts = show_addresses(capsys, store_uri=store_uri, **places)
    assert facts["record"].startswith("postgresql")
    assert "hunter2" not in facts["record"]
    assert facts["adapter"].startswith("slimdown export 1 ")


@pytest.mark.parametrize("n_benchmarks", [1, 3, 40])
def test_at_most_four_sentences_follow_the_table(n_benchmarks: int) -> None:
    pairs = {f"{name}_of_a_long_name": pair for name, pair in make_usual().items()}
    for k in range(n_benchmarks):
        n = (8, 24)[k % 2]
        pairs[f"benchmark_{k}"] = written([1.0, 0.0] * n), written([1.0, 0.0, 0.0, 1.0] * (n // 2))
        pairs[f"few_{k}"] = written([1.0] * 7), written([1.0] * 6 + [0.0])
    nothing = written([0.0] * 30)
    findings = judge_pairs(pairs | {"nothing": (nothing, nothing)}, replace(TRAINING, stopped="x"))
    command = "slimdown scale 0123"
    for gate in (Gate(tuple(check_budgets(findings, {}))), None):
        lines = text.summarize_briefly(findings, gate, command)
        assert len(lines) == 4
        assert max(map(len, lines)) <= 500
        assert "maths_of_a_long_name (40 " in lines[0]
        assert lines[1].startswith("Budget " if gate else "Undecided: ")
        assert lines[2].startswith("Too few ")
        assert lines[3] == f"Next: {command}"


def test_each_undecided_benchmark_has_its_own_number_of_questions() -> None:
    far = written([1.0] * 25 + [0.0] * 75), written([1.0] * 16 + [0.0] * 81 + [1.0] * 3)
    near = written([1.0] * 50 + [0.0] * 50), written([1.0] * 46 + [0.0] * 50 + [1.0] * 4)
    findings = judge_pairs({"far": far, "near": near})
    needed = [findings.benchmarks[name].n_to_decide or 0 for name in ("far", "near")]
    assert needed[0] < needed[1]
    [line] = text.name_undecided(findings)
    few, many = (f" {number:,} " for number in needed)
    assert line.rindex(" far ") < line.index(few) < line.rindex(" near ") < line.index(many)
    pairs = {f"near{i}": near for i in range(9)}
    [line] = text.name_undecided(judge_pairs(pairs))
    assert line.count(" about ") == 6
    assert "3 more (--all)" in line


def test_more_questions_are_advised_only_if_these_are_too_few() -> None:
    """The weights of a model behind a server are not here, so nothing can be scaled."""
    for n, advice in ((2_000, text.ADVICE_ON_LOGS), (20, "ask more questions. These are too few")):
        lost = written([1.0] * n), written([0.0] * (n // 2) + [1.0] * (n // 2))
        findings = judge_pairs({"a": lost})
        advised = text.advise("1a2b", findings, can_scale=False, trains=False, keeps=False)
        assert advised.startswith(advice)


def test_what_is_shown_needs_no_line() -> None:
    steady = {"steady": make_usual()["steady"]}
    assert text.summarize_briefly(judge_pairs(steady), None, "keep=auto") == []


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

    with console.RunProgress(3, 1, {"tuned": 90.0}).show("training", "steps") as on_progress:
        on_progress(100, 100, "")
        on_progress(199, 200, "")
        on_progress(200, 200, "")
        wait_for("[2/3] training: 200 of 200 steps, 0.0 s left (run: 1 min 30 s)")
    log.truncate(0)
    log.seek(0)
    with console.RunProgress(2, 1).show("training", "steps") as on_progress:
        wait_for("[2/2] training: 0.")
        on_progress(1, 100, "loss 0.6")
        on_progress(100, 100, "loss 0.5")
        wait_for("[2/2] training: loss 0.5, 100 of 100 steps, 0.0 s left")
    lines = log.getvalue().splitlines()
    assert "\x1b" not in log.getvalue()
    assert lines[0] == "[2/2] training ..."
    assert lines[-1].startswith("[2/2] training: done")


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
    assert "60 of 100 questions" in str(pace)
    assert "10 min 1 s" in str(pace)
    now += 600
    assert "24 min 18 s" in str(pace)
    pace.update(0, 100, "another")
    assert "another, 0 of 100" in str(pace)
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
    with console.progress_bar("[x] \x1b[2J hunter2 hunter2") as on_progress:
        on_progress(3, 10, "hellaswag")
    shown = terminal.getvalue()
    assert "[x] ␛[2J ***" in shown
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


def test_a_file_gets_plain_lines_also_in_a_notebook(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with console.progress_bar("training", "steps") as report:
        report(1, 2, "")
    console.show_line("done", "bold")
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "training ..."
    assert "\x1b" not in shown


def test_a_change_of_zero_says_how_many_answers_were_lost_and_gained() -> None:
    before = [1, 0] * 100
    for after, n_balanced in (([0, 1] * 100, 1), (before, 0)):
        sentences = text.summarize_briefly(builders.judge_pairs(a=(before, after)))
        balanced = [sentence for sentence in sentences if sentence.startswith("As many")]
        assert len(balanced) == n_balanced
        assert all("a (100)" in sentence for sentence in balanced)
