"""`slimdown verdict` on logs of the harness: its exit code, and what it says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from builders import Capture, Patch, unpack_logs

from slimdown.commands import verdict


@pytest.fixture
def logs(tmp_path: Path) -> tuple[str, str]:
    return unpack_logs(tmp_path)


def test_a_page_whose_name_is_too_long_is_no_loss(logs: tuple[str, str]) -> None:
    assert verdict.main([*logs, "-o", f"{'x' * 300}.md"]) == 3


def test_the_readme_shows_what_is_printed(logs: tuple[str, str], capsys: Capture) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    shown = re.match(r"(?: {4}.*\n|\n)*", readme.partition("logs/base logs/tuned\n")[2])[0]
    assert verdict.main(list(logs)) == 0
    printed, expected = (text.strip().splitlines() for text in (capsys.readouterr().out, shown))
    # Rich puts a blank line before and after the table; a space ends each row.
    assert [line.strip() for line in printed] == [line.strip() for line in expected]
    last_row = next(i for i, line in reversed([*enumerate(printed)]) if "forgotten" in line)
    assert len([line for line in printed[last_row + 1 :] if line.strip()]) <= 4
    assert verdict.main([*logs, "--max-loss", "0.02"]) == 1


def run_action(folder: Path, arguments: str, undecided: str = "fail") -> tuple[int, str]:
    """Run the action's last step as GitHub does; return its exit code and the job's summary."""
    steps = yaml.safe_load((Path(__file__).parents[2] / "action.yml").read_text())["runs"]["steps"]
    summary = folder / "summary.md"
    summary.write_text("")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "GITHUB_STEP_SUMMARY": str(summary),
        "GITHUB_OUTPUT": str(folder / "output.txt"),
        "UNDECIDED": undecided,
        "COMMAND": "verdict",
        "ARGUMENTS": arguments,
    }
    bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", steps[-1]["run"]]
    ended = subprocess.run(bash, env=environment, cwd=folder, capture_output=True, text=True)
    assert "Traceback" not in ended.stderr
    return ended.returncode, summary.read_text()


@pytest.mark.parametrize(
    ("more", "code"),
    [("--max-loss 1e-9", 1), ("--max-loss 0.9; id", 3), ('--metric "pocket_cs=acc', 3), ("*", 3)],
)
def test_the_github_action_fails_as_the_command_does(
    more: str, code: int, logs: tuple[str, str], tmp_path: Path
) -> None:
    ended, summary = run_action(tmp_path, f"{' '.join(logs)} {more}")
    assert ended == code
    assert ("| benchmark |" in summary) is summary.startswith("**FAILED (") is (code == 1)


def test_the_github_action_takes_paths_with_spaces_and_leaves_a_format_that_was_given(
    logs: tuple[str, str], tmp_path: Path
) -> None:
    for side, place in zip(logs, ("the base", "the tuned"), strict=True):
        Path(side).rename(tmp_path / place)
    sides = "'the base' \"the tuned\""
    for output, file, start in (
        ("-o 'the page.html'", "the page.html", "<!doctype html>"),
        ("--output=budgets.xml", "budgets.xml", "<?xml"),
        ("--format junit -o budgets.txt", "budgets.txt", "<?xml"),
    ):
        code, summary = run_action(tmp_path, f"{sides} --max-loss 0.9999\n{output}")
        assert code == 0
        assert (tmp_path / file).read_text().startswith(start)
        assert summary.startswith("```\nPASSED (")
        assert summary.endswith("\n```\n")
    code, summary = run_action(tmp_path, f"{sides} --format json --max-loss 0.9999")
    assert json.loads(summary)["exit_code"] == code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("base tuned --metric x", "give one metric per task"),
        pytest.param("base tuned --track --tracking-uri x", "uri must be", marks=pytest.mark.heavy),
    ],
)
def test_logs_that_cannot_be_judged_exit_with_3(
    arguments: str, message: str, logs: tuple[str, str], monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.chdir(Path(logs[0]).parent)
    assert verdict.main(arguments.split()) == 3
    heading, problem = capsys.readouterr().err.split("\n", 1)
    assert heading.endswith(":")
    assert message in problem


def test_a_page_of_changed_answers_lies_beside_it(logs: tuple[str, str], tmp_path: Path) -> None:
    page = tmp_path / "a page.html"
    assert verdict.main([*logs, "-o", str(page)]) == 0
    assert 'href="a%20page.answers.html"' in page.read_text()
    answers = (tmp_path / "a page.answers.html").read_text()
    assert 'href="a%20page.html"' in answers
    assert answers.count('"lost":true') == 31 + 8 + 14
    assert verdict.main([*logs, "-o", str(tmp_path / "page.md")]) == 0
    assert len(list(tmp_path.glob("*.answers.html"))) == 1


def test_two_logs_of_one_model_show_the_engines_own_noise(
    logs: tuple[str, str], tmp_path: Path, capsys: Capture
) -> None:
    page = tmp_path / "page.html"
    [first], [second] = (list(Path(log).glob("*/results*.json")) for log in logs)
    results, base = (json.loads(file.read_text()) for file in (second, first))
    results["model_name"] = base["model_name"]
    results["config"]["model_args"].pop("peft")
    second.write_text(json.dumps(results))
    assert verdict.main([*logs, "-o", str(page)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    flips = "31 of 40 in pocket_math, 10 of 40 in pocket_commonsense, 14 of 40 in pocket_cs"
    for text in (flips, "the engine alone may"):
        assert text in shown
        assert text.replace("'", "&#39;") in page.read_text()
    results["config"]["model_args"]["revision"] = "step1000"  # another model
    second.write_text(json.dumps(results))
    assert verdict.main([*logs]) == 0
    shown = capsys.readouterr().out
    assert "same model" not in shown
    assert f"→ {base['model_name']}@step1000" in shown


def test_notes_are_shown_without_control_characters(logs: tuple[str, str], capsys: Capture) -> None:
    [results] = Path(logs[0]).glob("*/results*.json")
    text = results.read_text()
    version = json.loads(text)["lm_eval_version"]
    results.write_text(text.replace(f'"{version}"', '"9\\u001b[2J"'))
    assert verdict.main(list(logs)) == 0
    captured = capsys.readouterr()
    assert "made by lm_eval 9" in captured.err
    assert "\x1b" not in captured.err + captured.out


def write_table_of(file: Path, benchmarks: dict[str, range]) -> str:
    """Write a table; of equal questions, half are right."""
    rows = [
        {"benchmark": name, "id": f"q{i}", "score": i % 2, "prompt": f"{name} {i}?"}
        for name, numbers in benchmarks.items()
        for i in numbers
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_what_both_logs_have_is_judged_the_rest_is_named(tmp_path: Path, capsys: Capture) -> None:
    base = write_table_of(tmp_path / "base.jsonl", {"arc": range(40), "gsm": range(40)})
    tuned = write_table_of(tmp_path / "tuned.jsonl", {"arc": range(35, 5, -1)})
    page = tmp_path / "page.json"
    assert verdict.main([base, tuned, "-o", str(page)]) == 0
    shown = capsys.readouterr()
    assert "gsm" in shown.err
    [line] = (line for line in shown.err.splitlines() if "arc: " in line)
    assert re.findall(r"\d+", line.partition("arc: ")[2])[:2] == ["30", "40"]
    content = json.loads(page.read_text())
    assert [(row["benchmark"], row["n"]) for row in content["rows"]] == [("arc", 30)]
    assert any("30 of 40 of arc" in note for note in content["notes"])
    assert verdict.main([base, tuned, "--chain"]) == 0
    assert "30" in capsys.readouterr().out


def test_a_gate_leaves_nothing_out_that_is_not_named(tmp_path: Path, capsys: Capture) -> None:
    """A model whose answers to a benchmark are missing must not pass by that."""
    base = write_table_of(tmp_path / "base.jsonl", {"arc": range(400), "gsm": range(40)})
    tuned = write_table_of(tmp_path / "tuned.jsonl", {"arc": range(400)})
    gate = [base, tuned, "--max-loss", "0.02"]
    assert verdict.main(gate) == 3
    assert "--only arc" in capsys.readouterr().err
    assert verdict.main([*gate, "--only", "arc"]) == 0
    assert verdict.main([*gate, "--only", "gsm"]) == 3


def test_logs_that_seem_to_be_swapped_are_a_warning(logs: tuple[str, str], capsys: Capture) -> None:
    for sides, is_warned in ((logs, False), (logs[::-1], True)):
        assert verdict.main([*sides]) == 0
        assert ("seem to be swapped" in capsys.readouterr().err) is is_warned


def test_the_command_that_asks_lost_questions_again_names_the_model(
    logs: tuple[str, str], tmp_path: Path, capsys: Capture
) -> None:
    assert verdict.main([*logs, "--lost", str(tmp_path / "lost.jsonl")]) == 0
    again = next(line for line in capsys.readouterr().err.splitlines() if "again:" in line)
    assert "tuned=tests/golden/adapters/pocket" in again
    base, tuned = (tmp_path / f"{side}.jsonl" for side in ("base", "tuned"))
    write_table_of(base, {"arc": range(40)})
    tuned.write_text(base.read_text().replace('"score": 1', '"score": 0'))
    verdict.main([str(base), str(tuned), "--lost", str(tmp_path / "more.jsonl")])
    shown = capsys.readouterr().err
    assert "again:" not in shown or "tuned=MODEL" in shown  # a table names no model


def test_the_action_hands_on_the_exit_code_and_warns_where_it_may(tmp_path: Path) -> None:
    sides = [
        write_table_of(tmp_path / f"{side}.jsonl", {"arc": range(20)}) for side in ("base", "tuned")
    ]
    for undecided, code in (("fail", 2), ("warn", 0)):
        ended, summary = run_action(tmp_path, f"{' '.join(sides)} --max-loss 0.01", undecided)
        assert ended == code
        assert "CANNOT TELL" in summary
        assert (tmp_path / "output.txt").read_text().splitlines()[-1] == "exit-code=2"
