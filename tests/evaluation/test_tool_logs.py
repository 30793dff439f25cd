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
from make_logs import list_answers
from pyarrow.parquet import read_table, write_table as write_parquet
from replayed_answers import describe_findings, write_logs, write_table

import slimdown
from slimdown.commands import verdict
from slimdown.config.benchmark_config import Role
from slimdown.evaluation.logs.read_logs import find_logs, read_logs
from slimdown.judging.findings import judge
from slimdown.stats.estimates import compare_scores
from slimdown.utils.errors import ConfigError, DataError

KINDS = ["lm_eval", "every_eval_ever", "lighteval", "csv", "jsonl", "parquet"]
ROWS = [{"id": i, "score": i % 2, "prompt": f"{i} + 1 ="} for i in range(6)]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_same_answers_have_the_same_findings(kind: str, tmp_path: Path) -> None:
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
    assert describe_findings(*write_logs(kind, tmp_path / kind)) == expected


@pytest.mark.parametrize(
    ("kind", "version"), [("lm_eval", "0.4.13"), ("lighteval", "lighteval of unknown version")]
)
def test_findings_say_what_made_the_logs(kind: str, version: str, tmp_path: Path) -> None:
    base, tuned = map(read_logs, write_logs(kind, tmp_path))
    assert judge(base, tuned).conditions["harness_version"] == version


def test_tables_without_prompts_say_so(tmp_path: Path, capsys: Capture) -> None:
    for side in ("base", "tuned"):
        (tmp_path / side).mkdir()
        rows = [{"id": f"q{i}", "score": i % 3 / 2, "answer": "<b>"} for i in range(20)]
        write_table(tmp_path / side / "s.csv", rows[:: 1 if side == "base" else -1])
    page = tmp_path / "page.html"
    sides = [str(tmp_path / "base"), str(tmp_path / "tuned")]
    for output in ([], ["-o", str(page)]):
        assert verdict.main([*sides, *output]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (shown, page.read_text()):
        assert "contain no prompts" in text


def test_a_table_takes_what_spreadsheets_write(tmp_path: Path) -> None:
    file = tmp_path / "s.csv"
    file.write_bytes(b'\xef\xbb\xbfid,score,prompt\r\n"a, b",1.0,"two\r\nlines"\r\nc,0,x\r\n\r\n')
    first, second = read_logs(file).benchmarks["scores"].samples
    assert (first.prompt, first.scores) == ("two\r\nlines", {"score": 1.0})
    assert (second.prompt, second.doc_id) == ("x", 1)


def test_two_tables_of_other_names_are_of_one_benchmark(tmp_path: Path, capsys: Capture) -> None:
    base, tuned = (str(write_table(tmp_path / f"{side}.csv", ROWS)) for side in ("base", "tuned"))
    assert verdict.main([base, tuned]) == 0
    assert "scores" in capsys.readouterr().out
    nameless = write_table(tmp_path / "s.jsonl", [row | {"benchmark": None} for row in ROWS])
    assert list(read_logs(nameless).benchmarks) == ["scores"]


def test_a_results_file_of_any_name_is_the_harnesss(tmp_path: Path) -> None:
    base, _ = write_logs("lm_eval", tmp_path)
    [file] = find_logs(base)[1]
    (named := file.with_name(file.name.replace("results_", "base_"))).write_bytes(file.read_bytes())
    assert find_logs(named) == ("lm_eval", [named])


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
    for side, last in (("base", "e"), ("tuned", "f")):
        (tmp_path / side).mkdir()
        rows = [{"id": name, "score": 1} for name in (*"abcd", last)]
        write_table(tmp_path / side / "s.csv", rows)
    with pytest.raises(DataError, match=r"question e.*question f"):
        judge(read_logs(tmp_path / "base"), read_logs(tmp_path / "tuned"))


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
    with pytest.raises(DataError, match="lm_eval and Inspect"):
        read_logs(base)


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


def edit_details(folder: Path, edit: Callable[[list[Any]], object], task: str = "sums") -> None:
    [file] = folder.rglob(f"details_{task}*.parquet")
    rows = read_table(file).to_pylist()
    edit(rows)
    write_parquet(pyarrow.Table.from_pylist(rows), file)


@pytest.mark.parametrize("place", [".", "details", "details/made/base", "one file"])
def test_details_are_found_from_any_folder(place: str, tmp_path: Path) -> None:
    base, _ = write_logs("lighteval", tmp_path)
    [file] = base.rglob("details_sums*.parquet")
    path = file if place == "one file" else base / place
    names = {"sums_0"} if place == "one file" else {"sums_0", "words_0"}
    assert set(read_logs(path).benchmarks) == names


def test_choices_are_read_with_their_chance(tmp_path: Path) -> None:
    base, _ = write_logs("lighteval", tmp_path)

    def choose(rows: list[Any]) -> None:
        for i, row in enumerate(rows):
            row["doc"] |= {"choices": ["a", "bbbb", "c", "d"], "gold_index": [1, 2]}
            likelihoods = [-2.0, -4.0, -3.0, -9.0] if i % 8 == 5 else [-9.0, -4.0, -3.5, -9.0]
            row["model_response"] |= {"text": [], "logprobs": likelihoods}
            row["metric"] = {"em": row["metric"]["em"], "acc_norm": row["metric"]["em"]}

    edit_details(base, choose)
    read = read_logs(base, {"sums_0": "em"}).benchmarks["sums_0"]
    sample = read.samples[0]
    assert (read.benchmark.chance, sample.target) == (0.25, "bbbb | c")
    assert sample.answers == {"em": "c", "acc_norm": "bbbb"}


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda rows: rows.append(rows[3]), "question '3' stands there twice"),
        (lambda rows: [row.pop("doc") for row in rows], "row 1 is not logged as lighteval"),
        (lambda rows: [row.update(metric={"f1": None}) for row in rows], "no metric that is a"),
        (lambda rows: rows.clear(), "no metric that is a mean"),
    ],
)
def test_damage_is_told(edit: Callable[[list[Any]], object], problem: str, tmp_path: Path) -> None:
    base, _ = write_logs("lighteval", tmp_path)
    edit_details(base, edit)
    with pytest.raises(DataError, match=problem) as refused:
        read_logs(base)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("score", [None, 0])
def test_a_score_that_was_changed_leaves_its_benchmark_out(
    score: float | None, tmp_path: Path
) -> None:
    base, _ = write_logs("lighteval", tmp_path)
    edit_details(base, lambda rows: rows[3].update(metric={"em": score}))
    with pytest.warns(UserWarning, match="sums_0 is left out: no metric is a mean"):
        assert read_logs(base).benchmarks.keys() == {"words_0"}


def set_values(key: str, value: object) -> Callable[[Path], object]:
    """Replace a setting of generation, or a score, wherever results of lighteval have it."""

    def edit(file: Path) -> None:
        results = json.loads(file.read_text())
        generation = results["config_general"]["model_config"]["generation_parameters"]
        generation["max_new_tokens"] = 10
        for part in (generation, *results["results"].values()):
            part |= {key: value} if key in part else {}
        file.write_text(json.dumps(results))

    return edit


def turn_scores_around(file: Path) -> None:
    text = file.read_text()
    file.write_text(text.replace('"higher_is_better": true', '"higher_is_better": false'))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (Path.unlink, "there is no results_"),
        (lambda file: file.write_text(""), "is no results file of lighteval"),
        (lambda file: file.write_text("[1]"), "is no results file of lighteval"),
        (lambda file: file.write_text('{"config_general": {}}'), "is no results file of lighteval"),
        (set_values("max_new_tokens", "x"), "is no results file of lighteval"),
        (set_values("max_new_tokens", [[1]]), "is no results file of lighteval"),
        (set_values("max_new_tokens", 10**400), "is no number of tokens"),
    ],
)
def test_damaged_or_missing_results_of_lighteval_are_refused(
    spoil: Callable[[Path], object], problem: str, tmp_path: Path
) -> None:
    base, _ = write_logs("lighteval", tmp_path)
    [file] = base.rglob("results_*.json")
    spoil(file)
    with pytest.raises(DataError, match=problem) as refused:
        read_logs(base)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "spoil", [set_values("em", "x"), set_values("em", 10**400), turn_scores_around]
)
def test_scores_that_lighteval_does_not_report_as_means_are_left_out(
    spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    base, _ = write_logs("lighteval", tmp_path)
    [file] = base.rglob("results_*.json")
    spoil(file)
    notes: list[str] = []
    with pytest.raises(DataError, match="no benchmark has scores of its questions"):
        read_logs(base, on_note=notes.append)
    assert len(notes) == 2


@pytest.mark.parametrize("name", [None, 5, ["x"]])
def test_a_model_of_lighteval_may_have_any_name(name: object, tmp_path: Path) -> None:
    base, _ = write_logs("lighteval", tmp_path)
    [file] = base.rglob("results_*.json")
    results = json.loads(file.read_text())
    results["config_general"]["model_name"] = name
    file.write_text(json.dumps(results))
    assert read_logs(base).model == str(name)


# --- hostile tables -----------------------------------------------------------------------------

HEADER = b"id,score\n"
HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "empty": ("csv", b"", "it is empty"),
    "a header alone": ("csv", HEADER, "it is empty"),
    "an empty Parquet": ("parquet", b"", "cannot be read as parquet"),
    "garbage": ("parquet", b"PAR1" + os.urandom(200) + b"PAR1", "cannot be read as parquet"),
    "binary garbage": ("csv", b"\x00\xff\xfe" * 50, "not UTF-8"),
    "zeros": ("csv", b"\x00" * 50, "it is empty"),
    "garbage in lines": ("jsonl", b"\x80\x81\n", "row 1: it is not UTF-8"),
    "Latin-1": ("csv", "id,score,prompt\n1,1,Größe\n".encode("latin-1"), "save it as UTF-8"),
    "UTF-16": ("csv", "id,score\n1,1\n".encode("utf-16"), "save it as UTF-8"),
    "semicolons": ("csv", b"id;score\n1;1\n", "a comma must stand between columns"),
    "no score": ("csv", b"id,points\n1,1\n", "no score; it has id, points"),
    "no id": ("jsonl", b'{"score": 1}\n', "no id; it has score"),
    "no value": ("csv", HEADER + b"1,\n", "row 1 has no score"),
    "NaN": ("csv", HEADER + b"1,nan\n", "score 'nan' is no number"),
    "NaN in JSON": ("jsonl", b'{"id": 1, "score": NaN}\n', "score nan is no number"),
    "infinite": ("jsonl", b'{"id": 1, "score": Infinity}\n', "score inf is no number"),
    "of a hundred": ("csv", HEADER + b"1,87.5\n", "score '87.5' is no number from 0 to 1"),
    "a word": ("csv", HEADER + b"1,good\n", "score 'good' is no number"),
    "huge digits": ("jsonl", b'{"id": 1, "score": 1' + b"0" * 5000 + b"}\n", "row 1"),
    "400 digits": ("jsonl", b'{"id": 1, "score": 1' + b"0" * 400 + b"}\n", "is no number from 0"),
    "deep": ("jsonl", b"[" * 100_000, "row 1"),
    "a list": ("jsonl", b"[1, 2]\n", "row 1: it is no object"),
    "twice": ("csv", HEADER + b"1,1\n1,0\n", "question '1' stands there twice"),
    "a torn row": ("csv", HEADER + b"1,1,1\n", "row 1: it has 3 fields"),
    "two columns of a name": ("csv", b"id,id,score\n1,1,1\n", "stands there twice"),
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
    with pytest.raises(DataError, match=problem) as refused:
        read_logs(file)
    assert "\n" not in str(refused.value)
    assert "s." in str(refused.value)


@pytest.mark.parametrize("name", ["<script>.csv", "a\nb.csv", "$(x);'\".csv", "%s{0}.csv", "ü.csv"])
def test_hostile_names_are_shown_as_text(name: str, tmp_path: Path, capsys: Capture) -> None:
    for side in ("base", "tuned"):
        (tmp_path / side).mkdir()
        write_table(tmp_path / side / name, ROWS)
    sides = [str(tmp_path / side) for side in ("base", "tuned")]
    assert verdict.main([*sides, "-o", str(tmp_path / "page.html")]) == 0
    [benchmark] = read_logs(sides[0]).benchmarks
    assert re.fullmatch(r"[\w-]+", benchmark)
    assert "<script>.csv" not in (tmp_path / "page.html").read_text()
    assert capsys.readouterr().err.count("\n") == 1


def test_what_was_not_asked_is_refused(tmp_path: Path) -> None:
    base, _ = write_logs("csv", tmp_path)
    with pytest.raises(ConfigError, match=r"sum was not.*sums\?"):
        read_logs(base, targets=["sum"])
    with pytest.raises(ConfigError, match=r"sums=scores: no.*score"):
        read_logs(base, {"sums": "scores"})
    with pytest.raises(DataError, match=r"no results .*lm_eval"):
        slimdown.read_logs(write_table(tmp_path / "rows.txt", ROWS))
    (tmp_path / "other.json").write_text(json.dumps(ROWS))
    with pytest.raises((DataError, ConfigError), match=r"Inspect"):
        read_logs(tmp_path / "other.json")


def write_passages(file: Path, n_lost: int, column: str = "passage") -> Path:
    """Write a table of 20 passages with 5 questions each, of which some lose all."""
    rows = [
        {"id": n, "score": float(n // 5 >= n_lost), "prompt": f"q {n}", column: f"text {n // 5}"}
        for n in range(100)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.parametrize(("n_lost", "expected"), [(5, 2), (9, 1)])
def test_a_table_three_times_over_shows_no_more_than_once(
    n_lost: int, expected: int, tmp_path: Path, capsys: Capture
) -> None:
    codes, verdicts = [], []
    for times in (1, 3):
        sides = []
        for side, n in (("base", 0), ("tuned", n_lost)):
            questions = enumerate(list(range(60)) * times)
            rows = [{"id": i, "prompt": f"q {q}", "score": int(q >= n)} for i, q in questions]
            write_table(tmp_path / f"{side} {times}.csv", rows)
            sides.append(str(tmp_path / f"{side} {times}.csv"))
        codes.append(verdict.main([*sides, "--max-loss", "0.02"]))
        found = judge(*map(read_logs, sides)).benchmarks["scores"]
        verdicts.append((found.verdict, round(found.p_value, 9)))
        capsys.readouterr()
    assert codes == [expected] * 2
    assert verdicts[0] == verdicts[1]


def test_equal_ids_of_two_tables_without_prompts_are_two_questions(tmp_path: Path) -> None:
    means = []
    for first in (0, 200):  # of the ids of the second table
        sides = []
        for side, n_lost in (("base", 0), ("tuned", 20)):
            sides.append(tmp_path / f"{side} {first}")
            sides[-1].mkdir()
            for name, begin in (("a", 0), ("b", first)):
                rows = [{"id": begin + n, "score": int(n >= n_lost)} for n in range(200)]
                write_table(sides[-1] / f"{name}.csv", rows)
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
        ("scores=page", "scores has nothing in 'page', by which clusters are told apart"),
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
