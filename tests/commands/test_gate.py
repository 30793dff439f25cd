"""`slimdown check` and `slimdown verdict`: the exit code is the answer, whoever reads the rest."""

import json
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from contextlib import chdir
from pathlib import Path

import pytest
from builders import make_scores, unpack_logs
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from record_builders import KEPT, LOST, Capture, Patch, compose_config, record_run

from slimdown.commands import check, compare, verdict
from slimdown.report.formatting import escape_markdown
from slimdown.scoring.question_files import read_questions
from slimdown.tracking.metrics_and_tags import DESCRIPTION, Tag
from slimdown.tracking.run_reader import find_run, find_runs

OTHER_LOGS = Path(__file__).parents[1] / "evaluation" / "harness_logs" / "0.4.13" / "base"


@pytest.fixture(scope="module")
def folder(recorded: Path) -> Path:
    with chdir(recorded):
        for name, scores, share in (
            ("kept", KEPT, 0),
            ("lost", LOST, 0),
            ("few", make_scores(3, 1, 1, 1), 0),
            ("held", KEPT, 0.5),
            ("slight", ([0.5] * 50, [0.492] * 50), 0),
            ("held too", LOST, 0.5),
            ("never checked", KEPT, 0.5),
        ):
            config = compose_config(f"evaluation.holdout={share}")
            record_run(config, name, scores, sweep="s" if share else "")
    return recorded


@pytest.fixture
def runs(folder: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        *(([name], code) for name, code in {"kept": 0, "lost": 1, "few": 2, "held": 0}.items()),
        *(([name], 3) for name in ("nobody", "")),
        (["lost", "--max-loss", "pocket_cs=0.9"], 1),  # the others keep their budgets
        (["lost", "--max-loss", "off", "--max-loss", "pocket_cs=0.9"], 0),
        (["lost", "--max-loss", "off", "pocket_cs=0.9"], 0),
        (["--max-loss", "pocket_cs=0.9", "off", "lost"], 0),
        (["--max-loss=off", "pocket_cs=0.9", "lost"], 0),
        (["lost", "--max-loss", "off", "--max-relative-loss", "pocket_cs=0.99"], 0),
        (["lost", "--max-loss", "off", "pocket_cs=0.9", "pocket_math=0.01"], 1),
        (["lost", "--max-loss", "0.9", "pocket_cs=off"], 0),
        (["kept", "--max-loss", "off"], 3),
        (["kept", "--max-loss", "pocket_cs=off", "pocket_cs=0.9"], 3),
        (["kept", "--max-loss", "=off"], 3),
        (["kept", "--max-relative-loss", "off"], 3),
        (["kept", "--max-loss", "nobody=off"], 3),
        (["kept", "--max-loss", "pocket_cs=2"], 3),
        (["kept", "--max-loss", "pocket=0.1"], 3),
        (["--max-loss", "0.9", "lost"], 0),
        (["kept", "--max-loss", "pocket_cs=0.1", "--max-loss", "pocket_cs=0.9"], 3),
        (["kept", "--tracking-uri", ""], 3),
    ],
)
def test_an_exit_code_answers(arguments: list[str], code: int, runs: None, capsys: Capture) -> None:
    assert check.main(arguments) == code
    captured = capsys.readouterr()
    assert bool(captured.err) is (code == 3)
    assert "Traceback" not in captured.err
    if code == 3:
        return
    if arguments == ["held"]:
        assert "held" in captured.out
    outcome, sides, *lines = captured.out.splitlines()
    assert outcome.startswith(("PASSED", "FAILED", "CANNOT TELL")[code])
    assert sides.startswith("pocket:model → ")
    assert any(line.startswith("Next: ") for line in lines) is (code == 1)
    if "off" in arguments and code == 0:
        n_off = sum(line.startswith("pocket_") and line.endswith(" off") for line in lines)
        assert n_off == 3


@pytest.mark.parametrize(
    ("name", "code", "kind"),
    [("kept", 0, "system-out"), ("lost", 1, "failure"), ("few", 2, "error")],
)
def test_ci_reads_each_budget(name: str, code: int, kind: str, runs: None, capsys: Capture) -> None:
    budgets = ["--max-loss", "off", "pocket_cs=0.3", "pocket_math=0.3"]
    assert check.main([name, *budgets, "--format", "junit"]) == code
    suite = ElementTree.fromstring(capsys.readouterr().out)
    assert [case[0].tag for case in suite.findall("testcase")] == [kind, kind]
    assert suite.get("tests") == "2"
    assert suite.get("failures") == str(2 * (code == 1))
    assert str(suite[0].get("name")).split()[::4] == ["pocket_cs", "30"]
    assert check.main([name, *budgets, "--format", "json"]) == code
    answer = json.loads(capsys.readouterr().out)
    row = next(row for row in answer["rows"] if row["benchmark"] == "pocket_cs")
    assert row["budget"] == 0.3
    findings = find_run(compose_config().tracking, name).findings
    d = findings.benchmarks["pocket_cs"].primary.difference
    # of two budgets, each shown to be beyond: the second of Holm's steps, or the first
    bounds = (
        [d.margin_interval(0.1 / n)[1] for n in (1, 2)] if code == 1 else [d.margin_interval()[0]]
    )
    assert row["bound"] in bounds
    assert answer["exit_code"] == code
    assert check.main([name, *budgets, "--format", "markdown"]) == code
    written = capsys.readouterr().out
    assert "| pocket_cs | " in written
    assert written.startswith(f"**{answer['summary']}**\n")


def test_the_outcome_is_in_the_description_of_the_run(runs: None, capsys: Capture) -> None:
    outcomes = []
    for budget, word in (("0.9", "PASSED"), ("0", "FAILED"), ("0.9", "PASSED")):
        check.main(["lost", "--max-loss", budget])
        outcome = capsys.readouterr().out.splitlines()[0]
        assert outcome.startswith(word)
        line = f"**{escape_markdown(outcome)}** (check --max-loss {budget})\n\n"
        outcomes += [line] if line not in outcomes else []
        described = find_run(compose_config().tracking, "lost").tags[DESCRIPTION]
        # Other budgets have a line of their own.
        assert [described.count(line) for line in outcomes] == [1] * len(outcomes)


def test_a_read_only_record_is_a_line(runs: None, monkeypatch: Patch, capsys: Capture) -> None:
    def refuse(*_: object) -> None:
        raise MlflowException("attempt to write a readonly database")

    monkeypatch.setattr(MlflowClient, "set_tag", refuse)
    assert check.main(["lost"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("FAILED (")
    [line] = captured.err.splitlines()
    assert "readonly" in line


def test_checks_of_a_sweep_on_its_held_out_half_are_counted(runs: None, capsys: Capture) -> None:
    assert check.main(["held"]) == 0
    assert "judged" not in capsys.readouterr().out
    for _ in range(2):  # the same run again is no other run
        assert check.main(["held too"]) == 1
        assert "judged 2 models" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option", ["--max-loss=x", "--max-relative-loss=pocket_cs=2", "--max-loss=x=off"]
)
def test_a_mistake_is_no_look_at_the_held_out_questions(option: str, runs: None) -> None:
    assert check.main(["never checked", option]) == 3
    assert Tag.checked not in find_run(compose_config().tracking, "never checked").tags


def read_kept_row(shown: str) -> list[str]:
    """The row of all retained benchmarks together."""
    [row] = (line.split() for line in shown.splitlines() if line.strip().startswith("kept "))
    return row


def test_the_retained_benchmarks_are_asked_about_together(runs: None, capsys: Capture) -> None:
    loose = ["--max-loss", "0.99", "--overall"]
    for name in ("kept", "slight"):  # "slight" does not rule out rare gains
        assert check.main([name, *loose]) == 0
        assert read_kept_row(capsys.readouterr().out)[-1] == "?"
    assert check.main(["lost", *loose, "--max-loss", "pocket_cs=off"]) == 1
    target = ["--max-loss", "off", "pocket_instructions=0.99", "--overall"]
    assert check.main(["lost", *target]) == 3
    capsys.readouterr()
    assert check.main(["lost", *loose]) == 1
    row = read_kept_row(capsys.readouterr().out)
    assert row[1].startswith("−")
    assert row[-1] == "✗"
    assert check.main(["lost", *loose, "--format", "junit"]) == 1
    suite = ElementTree.fromstring(capsys.readouterr().out)
    assert suite.get("failures") == "1"
    assert suite.findall("testcase")[-1][0].tag == "failure"


def test_a_wrong_option_is_not_an_answer(capsys: Capture) -> None:
    for main in (check.main, verdict.main):
        with pytest.raises(SystemExit) as ended:
            main(["--no-such-option"])
        assert ended.value.code == 3
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture
def logs(tmp_path: Path) -> tuple[str, str]:
    return unpack_logs(tmp_path)


@pytest.mark.parametrize(
    ("output", "code", "problem"),
    [
        ("--max-loss 0.001 | true", 1, ""),  # a reader that goes
        ("--max-loss 0.001 >&-", 1, ""),
        ("--max-loss off pocket_cs=0.999 > /dev/full", 3, "No space left"),  # no passed gate
    ],
)
def test_what_becomes_of_the_output_passes_no_gate(
    output: str, code: int, problem: str, logs: tuple[str, str]
) -> None:
    judge = shlex.join([sys.executable, "-m", "slimdown", "verdict", *logs])
    command = f"{judge} {output}; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert ended.returncode == code
    assert problem in ended.stderr
    assert bool(problem) is bool(ended.stderr)
    assert "Traceback" not in ended.stderr


def test_logs_are_gated_like_a_run(logs: tuple[str, str], tmp_path: Path, capsys: Capture) -> None:
    assert verdict.main([*logs, "--format", "junit"]) == 1
    captured = capsys.readouterr()
    suite = ElementTree.fromstring(captured.out)
    names = [str(case.get("name")).partition(" ")[0] for case in suite.findall("testcase")]
    assert captured.err.startswith("FAILED (")  # for people
    loose = ["--max-loss", "0.999", "--overall"]
    assert verdict.main([*logs, *loose]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("FAILED: ")
    assert read_kept_row(captured.out)[-1] == "✗"
    assert verdict.main([*logs, *loose[:2]]) == 0
    assert verdict.main([*logs, "--max-loss", "off", "--overall"]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 2  # the heading, and one line
    file = tmp_path / "budgets.xml"
    relative = [f"--max-relative-loss={names[0]}=0.5", "--max-loss=off"]
    assert verdict.main([*logs, *relative, "--format=junit", "-o", str(file)]) in (0, 1, 2)
    assert len(ElementTree.parse(file).getroot().findall("testcase")) == 1


@pytest.mark.parametrize("has_files", [True, False], ids=["known tasks", "other tasks"])
def test_a_recorded_verdict_is_read_by_compare_and_check(
    store: MlflowClient, logs: tuple[str, str], has_files: bool, tmp_path: Path, capsys: Capture
) -> None:
    if not has_files:  # of conf/benchmark/: the harness's own metric is taken
        places = [tmp_path / name for name in ("other base", "other tuned")]
        for place in places:
            shutil.copytree(OTHER_LOGS, place)
        logs = (str(places[0]), str(places[1]))
    assert verdict.main([*logs, "--track"]) in (0, 2)
    (run,) = find_runs(compose_config().tracking)
    assert run.tags["slimdown.origin"] == logs[1]
    assert "| benchmark | " in run.tags[DESCRIPTION]
    assert compare.main([]) == 0
    assert check.main([run.run_id]) in (0, 1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_lost_questions_are_written_as_own_questions_and_those_held_out_stay(
    runs: None, tmp_path: Path, capsys: Capture
) -> None:
    file, counts = tmp_path / "lost.jsonl", {}
    for name in ("lost", "held too"):
        assert check.main([name, "--lost", str(file), "--max-loss", "off", "pocket_cs=0.9"]) == 0
        rows = read_questions(str(file), "exact")
        findings = find_run(compose_config().tracking, name).findings
        counts[name] = sum(lost.n_lost for lost in findings.lost_answers.values())
        assert len(rows) == counts[name]
        shown = capsys.readouterr().err
        assert f"lost: {len(rows)} questions in {file}" in shown
        assert f"benchmark.questions.path={file}" in shown
    assert 0 < counts["held too"] < 0.7 * counts["lost"]
    assert check.main(["kept", "--lost", str(tmp_path / "x.jsonl"), "--max-loss", "off"]) == 3


def test_each_kind_of_lost_question_has_its_own_file(tmp_path: Path, capsys: Capture) -> None:
    logs, file = unpack_logs(tmp_path), tmp_path / "lost.jsonl"
    assert verdict.main([*logs, "--lost", str(file)]) == 0
    shown = capsys.readouterr().err
    counts = {}
    for path in tmp_path.glob("lost*.jsonl"):
        assert str(path) in shown
        counts[path.name] = len(read_questions(str(path), "exact"))
    assert sum(counts.values()) == 31 + 8 + 14
    assert counts["lost.jsonl"] == 31
    with pytest.raises(SystemExit) as stop:
        verdict.main([*logs, "--lost", "lost.csv"])
    assert stop.value.code == 3
