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
from commands_and_runs import call_verb, succeed
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
        ([""], 3),
        (["lost", "--max-loss", "pocket_cs=0.9"], 1),  # the others keep their budgets
        (["lost", "--max-loss", "off", "--max-loss", "pocket_cs=0.9"], 0),
        (["lost", "--max-loss", "off", "pocket_cs=90%"], 0),
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
        (["--max-loss", "90%", "lost"], 0),
        (["kept", "--max-loss", "pocket_cs=0.1", "--max-loss", "pocket_cs=0.9"], 3),
        (["kept", "--tracking-uri", ""], 3),
    ],
)
def test_an_exit_code_answers(arguments: list[str], code: int, runs: None) -> None:
    done = call_verb(Path(), "check", *arguments)
    assert done.returncode == code
    assert bool(done.stderr) is (code == 3)
    assert "Traceback" not in done.stderr
    if code == 3:
        return
    outcome, sides, *lines = done.stdout.splitlines()
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
def test_ci_reads_each_budget(name: str, code: int, kind: str, runs: None) -> None:
    budgets = ["--max-loss", "off", "pocket_cs=0.3", "pocket_math=0.3"]
    written = {}
    for format in ("junit", "json", "markdown"):
        done = call_verb(Path(), "check", name, *budgets, "--format", format)
        assert done.returncode == code
        written[format] = done.stdout
    suite = ElementTree.fromstring(written["junit"])
    assert [case[0].tag for case in suite.findall("testcase")] == [kind, kind]
    assert suite.get("tests") == "2"
    assert suite.get("failures") == str(2 * (code == 1))
    assert str(suite[0].get("name")).split()[::4] == ["pocket_cs", "30"]
    answer = json.loads(written["json"])
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
    assert written["markdown"].startswith(f"**{answer['summary']}**\n")


def test_the_outcome_is_in_the_description_of_the_run(runs: None) -> None:
    lines = set()
    for budget in ("0.9", "0", "0.9"):  # each budget has a line of its own
        outcome = call_verb(Path(), "check", "lost", "--max-loss", budget).stdout.splitlines()[0]
        lines.add(f"**{escape_markdown(outcome)}** (check --max-loss {budget})\n\n")
        described = find_run(compose_config().tracking, "lost").tags[DESCRIPTION]
        assert {described.count(line) for line in lines} == {1}
    assert len(lines) == 2


def test_a_read_only_record_is_a_line(runs: None, monkeypatch: Patch) -> None:
    def refuse(*_: object) -> None:
        raise MlflowException("attempt to write a readonly database")

    monkeypatch.setattr(MlflowClient, "set_tag", refuse)
    done = call_verb(Path(), "check", "lost")
    assert done.returncode == 1
    assert done.stdout.startswith("FAILED (")
    [line] = done.stderr.splitlines()
    assert "readonly" in line


def test_checks_of_a_sweep_on_its_held_out_half_are_counted(runs: None) -> None:
    assert "judged" not in succeed(Path(), "check", "held").stdout
    for _ in range(2):  # the same run again is no other run
        assert "judged 2 models" in call_verb(Path(), "check", "held too").stdout


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


def test_the_retained_benchmarks_are_asked_about_together(runs: None) -> None:
    loose = ["--max-loss", "0.99", "--overall"]
    for name in ("kept", "slight"):  # "slight" does not rule out rare gains
        assert read_kept_row(succeed(Path(), "check", name, *loose).stdout)[-1] == "?"
    assert check.main(["lost", *loose, "--max-loss", "pocket_cs=off"]) == 1
    target = ["--max-loss", "off", "pocket_instructions=0.99", "--overall"]
    assert check.main(["lost", *target]) == 3
    done = call_verb(Path(), "check", "lost", *loose)
    assert done.returncode == 1
    row = read_kept_row(done.stdout)
    assert row[1].startswith("−")
    assert row[-1] == "✗"
    written = call_verb(Path(), "check", "lost", *loose, "--format", "junit").stdout
    suite = ElementTree.fromstring(written)
    assert suite.get("failures") == "1"
    assert suite.findall("testcase")[-1][0].tag == "failure"


@pytest.mark.parametrize("verb", ["check", "verdict"])
def test_a_wrong_option_is_not_an_answer(verb: str) -> None:
    done = call_verb(Path(), verb, "--no-such-option")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1


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


def test_logs_are_gated_like_a_run(logs: tuple[str, str], tmp_path: Path) -> None:
    done = call_verb(tmp_path, "verdict", *logs, "--format", "junit")
    assert done.returncode == 1
    assert len(ElementTree.fromstring(done.stdout).findall("testcase")) == 3
    assert done.stderr.startswith("FAILED (")  # for people
    loose = ["--max-loss", "0.999"]
    succeed(tmp_path, "verdict", *logs, *loose)
    done = call_verb(tmp_path, "verdict", *logs, *loose, "--overall")
    assert done.returncode == 1
    assert read_kept_row(done.stdout)[-1] == "✗"
    relative = ["--max-relative-loss=pocket_cs=0.5", "--max-loss=off", "-o", "budgets.xml"]
    assert call_verb(tmp_path, "verdict", *logs, *relative).returncode in (0, 1, 2)
    assert len(ElementTree.parse(tmp_path / "budgets.xml").getroot().findall("testcase")) == 1


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
    runs: None, tmp_path: Path
) -> None:
    file, counts = tmp_path / "lost.jsonl", {}
    loose = ["--lost", str(file), "--max-loss", "off", "pocket_cs=0.9"]
    for name in ("lost", "held too"):
        shown = succeed(Path(), "check", name, *loose).stderr
        findings = find_run(compose_config().tracking, name).findings
        counts[name] = sum(lost.n_lost for lost in findings.lost_answers.values())
        assert len(read_questions(str(file), "exact")) == counts[name]
        assert f"lost: {counts[name]} questions in {file}" in shown
        assert f"benchmark.questions.path={file}" in shown
    assert 0 < counts["held too"] < 0.7 * counts["lost"]
    assert check.main(["kept", "--lost", str(tmp_path / "x.jsonl"), "--max-loss", "off"]) == 3


def test_each_kind_of_lost_question_has_its_own_file(logs: tuple[str, str], tmp_path: Path) -> None:
    shown = succeed(tmp_path, "verdict", *logs, "--lost", "lost.jsonl").stderr
    counts = {}
    for path in tmp_path.glob("lost*.jsonl"):
        assert path.name in shown
        counts[path.name] = len(read_questions(str(path), "exact"))
    assert sum(counts.values()) == 31 + 8 + 14
    assert counts["lost.jsonl"] == 31
    assert call_verb(tmp_path, "verdict", *logs, "--lost", "lost.csv").returncode == 3
