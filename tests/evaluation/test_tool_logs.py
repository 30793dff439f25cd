"""The same answers in the logs of several tools: what is read alike, and what is refused."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from builders import Capture
from make_logs import SIDES, list_answers
from pyarrow.parquet import read_table, write_table as write_parquet
from replayed_answers import assert_refused, describe_findings, write_logs, write_table

from slimdown.commands import verdict
from slimdown.config.benchmark_config import Role
from slimdown.evaluation.logs.read_logs import find_logs, read_logs
from slimdown.judging.findings import judge
from slimdown.stats.estimates import compare_scores
from slimdown.utils.errors import ConfigError, DataError

TOOLS = {
    "every_eval_ever": "lm_eval 0.4.13",
    "lighteval": "lighteval of unknown version",
    "csv": "table",
    "jsonl": "table",
    "parquet": "table",
}
Rows = list[dict[str, Any]]
ROWS: Rows = [{"id": i, "score": i % 2, "prompt": f"{i} + 1 ="} for i in range(6)]


def write_sides(folder: Path, base: Rows, tuned: Rows, name: str = "s.csv") -> list[str]:
    """Write a table for each model, in a folder of its own."""
    sides = []
    for side, rows in zip(SIDES, (base, tuned), strict=True):
        (folder / side).mkdir(parents=True, exist_ok=True)
        write_table(folder / side / name, rows)
        sides.append(str(folder / side))
    return sides


@pytest.mark.parametrize(("kind", "tool"), TOOLS.items())
def test_the_same_answers_have_the_same_findings(kind: str, tool: str, tmp_path: Path) -> None:
    for name in ("lm_eval", kind):
        (tmp_path / name).mkdir()
    expected = describe_findings(*write_logs("lm_eval", tmp_path / "lm_eval"))
    shown = {
        name: (found["changes"][0]["counts"], found["verdict"]) for name, found in expected.items()
    }
    assert shown == {
        "sums": ({"still_right": 14, "lost": 21, "gained": 2, "missed": 3}, "forgotten"),
        "words": ({"still_right": 30, "lost": 0, "gained": 1, "missed": 9}, "undecided"),
    }
    base, tuned = write_logs(kind, tmp_path / kind)
    assert describe_findings(base, tuned) == expected
    assert read_logs(base).harness_version == tool


def test_tables_without_prompts_say_so(tmp_path: Path, capsys: Capture) -> None:
    rows = [{"id": f"q{i}", "score": i % 3 / 2, "answer": "<b>"} for i in range(20)]
    page = tmp_path / "page.html"
    assert verdict.main([*write_sides(tmp_path, rows, rows[::-1]), "-o", str(page)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (shown, page.read_text()):
        assert "contain no prompts" in text


def test_a_table_takes_what_spreadsheets_write(tmp_path: Path) -> None:
    file = tmp_path / "s.csv"
    file.write_bytes(b'\xef\xbb\xbfid,score,prompt\r\n"a, b",1.0,"two\r\nlines"\r\nc,0,x\r\n\r\n')
    first, second = read_logs(file).benchmarks["scores"].samples
    assert (first.prompt, first.scores) == ("two\r\nlines", {"score": 1.0})
    assert (second.prompt, second.doc_id) == ("x", 1)


def test_a_table_by_itself_is_one_benchmark_where_its_rows_name_none(tmp_path: Path) -> None:
    nameless = write_table(tmp_path / "s.jsonl", [row | {"benchmark": None} for row in ROWS])
    assert list(read_logs(nameless).benchmarks) == ["scores"]


def test_numbers_of_questions_stay(tmp_path: Path) -> None:
    file = write_table(tmp_path / "s.jsonl", [dict(row, id=10 * row["id"]) for row in ROWS[::-1]])
    samples = read_logs(file).benchmarks["scores"].samples
    assert [sample.doc_id for sample in samples] == list(range(0, 60, 10))


@pytest.mark.parametrize("kind", ["csv", "lighteval"])
def test_another_prompt_or_question_is_refused(kind: str, tmp_path: Path) -> None:
    base, tuned = write_logs(kind, tmp_path)
    if kind == "csv":
        rows = list(list_answers("tuned"))
        write_table(tuned, [row | ({"prompt": "?"} if row["id"] == 7 else {}) for row in rows])
    else:
        edit_details(tuned, lambda rows: rows[7]["model_response"].update(input="?"))
    with pytest.raises(DataError, match=r" 7 of (sums|words)\w*:.*_hash"):
        judge(read_logs(base), read_logs(tuned))


def test_other_questions_of_a_table_without_prompts_are_refused(tmp_path: Path) -> None:
    base, tuned = ([{"id": name, "score": 1} for name in names] for names in ("abcde", "abcdf"))
    with pytest.raises(DataError, match=r"question e.*question f"):
        judge(*map(read_logs, write_sides(tmp_path, base, tuned)))


# --- which tool ---------------------------------------------------------------------------------


def test_logs_of_two_tools_are_not_compared(tmp_path: Path, capsys: Capture) -> None:
    base, _ = write_logs("lm_eval", tmp_path)
    _, tuned = write_logs("csv", tmp_path)
    assert verdict.main([str(base), str(tuned)]) == 3
    err = capsys.readouterr().err
    assert re.search(f"{base} .*lm_eval, {tuned} .*tables", err)
    with pytest.raises(DataError, match="backend differs: replay"):
        judge(read_logs(base), read_logs(tuned))


def test_a_folder_of_two_tools_is_refused_a_table_beside_logs_is_not_read(tmp_path: Path) -> None:
    base, _ = write_logs("lm_eval", tmp_path)
    write_table(base / "notes.csv", ROWS)
    assert find_logs(base)[0] == "lm_eval"
    (base / "2026-01-01T00-00-00+00-00_task_x.eval").touch()
    assert_refused(base, "lm_eval and Inspect")


def test_the_same_logs_are_refused_also_by_another_name(tmp_path: Path, capsys: Capture) -> None:
    base, _ = write_logs("csv", tmp_path)
    (tmp_path / "link.csv").symlink_to(base)
    assert verdict.main([str(base), str(tmp_path / "link.csv")]) == 3
    assert "the same logs" in capsys.readouterr().err


@pytest.mark.skipif(bool(find_spec("inspect_ai")), reason="Inspect's reader is installed")
def test_without_inspect_it_is_said_what_to_install(tmp_path: Path) -> None:
    base, _ = write_logs("inspect", tmp_path)
    with pytest.raises(ConfigError, match=r"pip install '\.\[inspect\]'"):
        read_logs(base)


def test_tables_are_read_without_what_the_light_install_lacks(tmp_path: Path) -> None:
    base, _ = write_logs("csv", tmp_path)
    heavy = "{'torch', 'lm_eval', 'transformers', 'pyarrow', 'mlflow', 'hydra', 'omegaconf'}"
    script = f"import sys, slimdown\nslimdown.read_logs({str(base)!r})\n"
    script += f"print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


# --- lighteval ----------------------------------------------------------------------------------


@pytest.fixture
def lighteval(tmp_path: Path) -> Path:
    """The logs of the base model."""
    return write_logs("lighteval", tmp_path)[0]


def edit_details(folder: Path, edit: Callable[[Rows], object]) -> None:
    [file] = folder.rglob("details_sums*.parquet")
    rows = read_table(file).to_pylist()
    edit(rows)
    write_parquet(pyarrow.Table.from_pylist(rows), file)


def find_results(folder: Path) -> Path:
    [file] = folder.rglob("results_*.json")
    return file


def edit_results(folder: Path, edit: Callable[[Any], object]) -> None:
    file = find_results(folder)
    results = json.loads(file.read_text())
    edit(results)
    file.write_text(json.dumps(results))


@pytest.mark.parametrize("place", [".", "details", "details/made/base", "one file"])
def test_details_are_found_from_any_folder(place: str, lighteval: Path) -> None:
    [file] = lighteval.rglob("details_sums*.parquet")
    path = file if place == "one file" else lighteval / place
    names = {"sums_0"} if place == "one file" else {"sums_0", "words_0"}
    assert set(read_logs(path).benchmarks) == names


def test_choices_are_read_with_their_chance(lighteval: Path) -> None:
    def choose(rows: Rows) -> None:
        for i, row in enumerate(rows):
            row["doc"] |= {"choices": ["a", "bbbb", "c", "d"], "gold_index": [1, 2]}
            likelihoods = [-2.0, -4.0, -3.0, -9.0] if i % 8 == 5 else [-9.0, -4.0, -3.5, -9.0]
            row["model_response"] |= {"text": [], "logprobs": likelihoods}
            row["metric"] = {"em": row["metric"]["em"], "acc_norm": row["metric"]["em"]}

    edit_details(lighteval, choose)
    read = read_logs(lighteval, {"sums_0": "em"}).benchmarks["sums_0"]
    sample = read.samples[0]
    assert (read.benchmark.chance, sample.target) == (0.25, "bbbb | c")
    assert sample.answers == {"em": "c", "acc_norm": "bbbb"}


def set_huge_limit(results: Any) -> None:
    settings = results["config_general"]["model_config"]["generation_parameters"]
    settings["max_new_tokens"] = 10**400


@pytest.mark.parametrize(
    ("edit", "change", "problem"),
    [
        (edit_details, lambda rows: rows.append(rows[3]), "question '3' stands there twice"),
        (edit_details, lambda rows: [row.pop("doc") for row in rows], "row 1 is not logged as"),
        (edit_details, lambda rows: rows.clear(), "no metric that is a mean"),
        (edit_results, set_huge_limit, "is no number of tokens"),
    ],
)
def test_damage_is_told(
    edit: Callable[..., None], change: Callable[[Any], object], problem: str, lighteval: Path
) -> None:
    edit(lighteval, change)
    assert_refused(lighteval, problem)


def test_missing_or_empty_results_of_lighteval_are_refused(lighteval: Path) -> None:
    find_results(lighteval).write_text("")
    assert_refused(lighteval, "is no results file of lighteval")
    find_results(lighteval).unlink()
    assert_refused(lighteval, "there is no results_")


@pytest.mark.parametrize("score", [None, 0])
def test_a_score_that_was_changed_leaves_its_benchmark_out(
    score: float | None, lighteval: Path
) -> None:
    edit_details(lighteval, lambda rows: rows[3].update(metric={"em": score}))
    with pytest.warns(UserWarning, match="sums_0 is left out: no metric is a mean"):
        assert read_logs(lighteval).benchmarks.keys() == {"words_0"}


def report_texts(results: Any) -> None:
    for scores in results["results"].values():
        scores["em"] = "x"


def turn_scores_around(results: Any) -> None:
    for task in results["config_tasks"].values():
        task["metrics"][0]["higher_is_better"] = False


@pytest.mark.parametrize("edit", [report_texts, turn_scores_around])
def test_scores_that_lighteval_does_not_report_as_means_are_left_out(
    edit: Callable[[Any], object], lighteval: Path
) -> None:
    edit_results(lighteval, edit)
    notes: list[str] = []
    with pytest.raises(DataError, match="no benchmark has scores of its questions"):
        read_logs(lighteval, on_note=notes.append)
    assert len(notes) == 2


def test_a_model_of_lighteval_may_have_any_name(lighteval: Path) -> None:
    edit_results(lighteval, lambda results: results["config_general"].update(model_name=["x"]))
    assert read_logs(lighteval).model == "['x']"


# --- hostile tables -----------------------------------------------------------------------------

HEADER = b"id,score\n"
HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "empty": ("csv", b"", "it is empty"),
    "garbage": ("parquet", b"PAR1" + os.urandom(200) + b"PAR1", "cannot be read as parquet"),
    "garbage in lines": ("jsonl", b"\x80\x81\n", "row 1: it is not UTF-8"),
    "Latin-1": ("csv", "id,score,prompt\n1,1,Größe\n".encode("latin-1"), "save it as UTF-8"),
    "semicolons": ("csv", b"id;score\n1;1\n", "a comma must stand between columns"),
    "no score": ("csv", b"id,points\n1,1\n", "no score; it has id, points"),
    "no id": ("jsonl", b'{"score": 1}\n', "no id; it has score"),
    "no value": ("csv", HEADER + b"1,\n", "row 1 has no score"),
    "NaN": ("csv", HEADER + b"1,nan\n", "score 'nan' is no number"),
    "of a hundred": ("csv", HEADER + b"1,87.5\n", "score '87.5' is no number from 0 to 1"),
    "a word": ("csv", HEADER + b"1,good\n", "score 'good' is no number"),
    "400 digits": ("jsonl", b'{"id": 1, "score": 1' + b"0" * 400 + b"}\n", "is no number from 0"),
    "a list": ("jsonl", b"[1, 2]\n", "row 1: it is no object"),
    "twice": ("csv", HEADER + b"1,1\n1,0\n", "question '1' stands there twice"),
    "a torn row": ("csv", HEADER + b"1,1,1\n", "row 1: it has 3 fields"),
    "no name": ("csv", b"id,score,benchmark\n1,1, \n", "a row names no benchmark"),
    "some names": (
        "jsonl",
        b'{"id": 1, "score": 1, "benchmark": "a"}\n{"id": 2, "score": 1, "benchmark": null}\n',
        "a row names no benchmark",
    ),
    "alike names": ("csv", b"id,score,benchmark\n1,1,a b\n1,1,a/b\n", "have one name"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_table_is_refused_in_words(name: str, tmp_path: Path) -> None:
    ending, content, problem = HOSTILE[name]
    file = tmp_path / f"s.{ending}"
    file.write_bytes(content)
    assert_refused(file, f"s.{ending}: .*{problem}")


@pytest.mark.parametrize("name", ["<script>.csv", "a\nb.csv", "$(x);'\".csv", "%s{0}.csv", "ü.csv"])
def test_hostile_names_are_shown_as_text(name: str, tmp_path: Path, capsys: Capture) -> None:
    sides = write_sides(tmp_path, ROWS, ROWS, name)
    assert verdict.main([*sides, "-o", str(tmp_path / "page.html")]) == 0
    [benchmark] = read_logs(sides[0]).benchmarks
    assert re.fullmatch(r"[\w-]+", benchmark)
    assert "<script>.csv" not in (tmp_path / "page.html").read_text()
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    assert_refused(write_table(tmp_path / "rows.txt", ROWS), r"no results .*lm_eval")
    (tmp_path / "other.json").write_text(json.dumps(ROWS))
    with pytest.raises((DataError, ConfigError), match=r"Inspect"):
        read_logs(tmp_path / "other.json")


def write_passages(file: Path, n_lost: int) -> Path:
    """Write a table of 20 passages with 5 questions each, of which some lose all."""
    rows = [
        {"id": n, "score": float(n // 5 >= n_lost), "prompt": f"q {n}", "passage": f"text {n // 5}"}
        for n in range(100)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.parametrize(("n_lost", "expected"), [(5, 2), (9, 1)])
def test_a_table_three_times_over_shows_no_more_than_once(
    n_lost: int, expected: int, tmp_path: Path
) -> None:
    verdicts = []
    for times in (1, 3):
        questions = list(enumerate(list(range(60)) * times))
        base, tuned = (
            [{"id": i, "prompt": f"q {q}", "score": int(q >= n)} for i, q in questions]
            for n in (0, n_lost)
        )
        sides = write_sides(tmp_path / f"{times}", base, tuned)
        assert verdict.main([*sides, "--max-loss", "0.02"]) == expected
        found = judge(*map(read_logs, sides)).benchmarks["s"]
        verdicts.append((found.verdict, round(found.p_value, 9)))
    assert verdicts[0] == verdicts[1]


def test_equal_ids_of_two_tables_without_prompts_are_two_questions(tmp_path: Path) -> None:
    means = []
    for first in (0, 200):  # of the ids of the second table
        for name, begin in (("a.csv", 0), ("b.csv", first)):
            base, tuned = (
                [{"id": begin + n, "score": int(n >= n_lost)} for n in range(200)]
                for n_lost in (0, 20)
            )
            sides = write_sides(tmp_path / f"{first}", base, tuned, name)
        mean = judge(*map(read_logs, sides)).mean_change(Role.retained)
        means.append((mean.value, mean.low, mean.high))
    assert means[0] == pytest.approx(means[1])


def test_questions_of_one_passage_count_as_one(tmp_path: Path, capsys: Capture) -> None:
    base, tuned = (write_passages(tmp_path / f"{n}.jsonl", n) for n in (0, 4))
    assert verdict.main([str(base), str(tuned)]) == 0
    assert "forgotten" in capsys.readouterr().out
    assert verdict.main([str(base), str(tuned), "--cluster", "scores=passage", "--all"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "undecided" in shown
    assert "100 questions, 20 " in shown
    evaluations = [read_logs(side, clusters={"scores": "passage"}) for side in (base, tuned)]
    found = judge(*evaluations).benchmarks["scores"].primary.difference
    alone = compare_scores([1.0] * 20, [0.0] * 4 + [1.0] * 16)
    assert (found.p_value, found.low) == pytest.approx((alone.p_value, alone.low))


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("other=passage", "other was not asked"),
        ("passage", "--cluster passage: give one cluster per task"),
    ],
)
def test_a_cluster_must_be_there(
    option: str, problem: str, tmp_path: Path, capsys: Capture
) -> None:
    sides = [str(write_passages(tmp_path / f"{n}.jsonl", n)) for n in (0, 4)]
    assert verdict.main([*sides, "--cluster", option]) == 3
    assert problem in " ".join(capsys.readouterr().err.split())
