"""The atlas: shipped scores judged and recounted, and public files read from made-up clones."""

import json
import re
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from builders import Capture, Patch, slow
from hypothesis import given, strategies as st
from pyarrow.parquet import read_table

import bench.atlas
from bench.atlas import (
    AtlasRow,
    Group,
    Source,
    describe_row,
    fill_page,
    judge_tables,
    name_file,
    name_folder,
    read_family,
)
from bench.atlas_recount import describe_difference, recount
from bench.atlas_sources import (
    CONTAINED,
    FIRST_LETTER,
    LAST_LETTER,
    SOURCES,
    Answer,
    Clone,
    MissingFileError,
    find_last_letter,
    read_answers,
    read_published_mean,
)

ROOT = Path(__file__).parent.parent
SHIPPED, PAGE = ROOT / "docs/examples/atlas", ROOT / "docs/atlas.md"
FAMILY_SOURCES, GROUPS = read_family()
SHIPPED_GROUPS = [group for group in GROUPS if FAMILY_SOURCES[group.source].shipped]
PAIR = ("GPT-3-6B, fine-tuned", "GPT-3-6B, verified")


def find_tables(group: Group) -> dict[str, Path]:
    folder = SHIPPED / name_folder(group.benchmark)
    return {model: folder / f"{name_file(model)}.parquet" for model in group.models}


def read_page_rows() -> list[list[str]]:
    lines = PAGE.read_text().partition("<!-- atlas: rows -->")[2].partition("<!-- end -->")[0]
    cells = [line.strip("| ").split(" | ") for line in lines.splitlines() if line.startswith("|")]
    return [[re.sub(r"\\(.)", r"\1", cell) for cell in row] for row in cells[2:]]


# --- the family and the page --------------------------------------------------------------------


def test_the_family_is_as_large_as_it_must_be() -> None:
    n_rows = sum(3 if group.is_chain else 1 for group in GROUPS)
    assert n_rows >= 25
    assert len({group.source for group in GROUPS}) >= 5
    assert any(group.is_chain for group in GROUPS)
    assert {group.benchmark for group in GROUPS} == SOURCES.keys()
    for source in FAMILY_SOURCES.values():
        assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in source.commits)


def test_the_page_has_every_row_of_the_family() -> None:
    expected = []
    for group in GROUPS:
        pairs = [group.models]
        if group.is_chain:
            first, second, third = group.models
            pairs = [(first, second), (second, third), (first, third)]
        for base, tuned in pairs:
            row = AtlasRow(group, base, tuned, findings=None)  # type: ignore[arg-type]
            expected.append([group.benchmark, row.pair])
    assert [row[:2] for row in read_page_rows()] == expected


def test_the_first_paragraph_quotes_the_table() -> None:
    first = PAGE.read_text().split("\n\n")[1]
    changes = {row[4] for row in read_page_rows() if row[0] == "MMLU-Pro"}
    quoted = re.findall(r"\[[−+.\d]+, [−+.\d]+\]", first)
    assert sorted(quoted) == sorted(change.split(" ", 1)[1] for change in changes)
    assert "12,032" in first


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    page = "a\n<!-- atlas: rows -->\nold\n<!-- end -->\nb"
    filled = fill_page(page, {"rows": "new"})
    assert filled == page.replace("old", "\nnew\n")
    with pytest.raises(ValueError, match="no place for other"):
        fill_page(page, {"other": "new"})


# --- shipped scores -----------------------------------------------------------------------------


def test_shipped_files_are_scores_and_licences_alone() -> None:
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    tables = {file for group in SHIPPED_GROUPS for file in find_tables(group).values()}
    texts = {SHIPPED / f"{name}.txt" for name in ("SOURCES", "LICENSE-MIT", "LICENSE-Apache-2.0")}
    assert set(files) == tables | texts
    assert sum(file.stat().st_size for file in files) <= 300_000
    for file in tables:
        table = read_table(file)
        assert set(table.column_names) <= {"id", "score", "category", "question"}, file
        assert set(table["score"].to_pylist()) <= {0.0, 1.0}, file
        longest = max(
            len(str(value)) for name in table.column_names for value in table[name].to_pylist()
        )
        assert longest < 80, file  # no text of a question or an answer
    for group in SHIPPED_GROUPS:
        commit = FAMILY_SOURCES[group.source].commits[0][:7]
        assert re.search(rf"{group.source} at {commit}", (SHIPPED / "SOURCES.txt").read_text())


@pytest.mark.parametrize(
    "group",
    [*SHIPPED_GROUPS[:2], *slow(*SHIPPED_GROUPS[2:])],
    ids=lambda group: f"{group.benchmark}, {group.models[-1]}",
)
def test_a_shipped_pair_is_judged_as_on_the_page_and_recounted(group: Group) -> None:
    tables = find_tables(group)
    [row] = judge_tables(group, tables)
    assert [*describe_row(row).values()] in [cells[:-1] for cells in read_page_rows()]
    found = recount(tables[row.base], tables[row.tuned], group.cluster)
    scores = [row.change.primary.base.value, row.change.primary.tuned.value]
    assert found.matches([row.change.n, *scores, *row.n_moved])
    assert describe_difference(found, str(row.change.verdict), row.change.margin, 1) == ""


def test_a_recount_sees_another_count_and_another_side(tmp_path: Path) -> None:
    for name, n_right in (("base", 50), ("tuned", 20)):
        rows = [f"{i},{int(i < n_right)}" for i in range(60)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,score", *rows]))
    found = recount(tmp_path / "base.csv", tmp_path / "tuned.csv")
    assert (found.n, found.fell, found.rose, found.is_simple) == (60, 30, 0, True)
    assert found.mcnemar_p == pytest.approx(2 * 0.5**30)
    assert not found.matches([60, 50 / 60, 20 / 60, 29, 0])
    assert describe_difference(found, "forgotten", 0.02, 1) == ""
    assert "p-value is 1.9e-09" in describe_difference(found, "improved", 0.02, 1)
    assert "90 % interval is" in describe_difference(found, "retained", 0.02, 1)


# --- reading public files -----------------------------------------------------------------------


@given(st.text(st.sampled_from("ABKa answer:A.\n nswer is(C)"), max_size=40))
def test_the_last_letter_is_that_of_the_repositorys_patterns(text: str) -> None:
    """The script's own patterns take quadratic time, so the reader does without them."""
    patterns = (r"answer is \(?([A-J])\)?", r".*[aA]nswer:\s*([A-J])")
    found = next(filter(None, (re.search(pattern, text) for pattern in patterns)), None)
    last = re.search(r"\b([A-J])\b(?!.*\b[A-J]\b)", text, re.DOTALL)
    expected = found or last
    assert find_last_letter(text) == (expected[1] if expected else None)


def make_clone(folder: Path, files: dict[str, Any]) -> tuple[Clone, str]:
    """Make a repository of one commit, with nothing checked out; what is no text becomes JSON."""
    folder.mkdir(parents=True)

    def run_git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
        command = ["git", *who, "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    run_git("init", "-q")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content) if isinstance(content, list | dict) else content
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    run_git("add", "-A")
    run_git("commit", "-qm", "answers")
    for name in files:
        (folder / name).unlink()
    return Clone(folder, "owner/name"), run_git("rev-parse", "HEAD")


def write_solutions() -> dict[str, str]:
    """Write 40 questions, of which the fine-tuned model solves 10 and the verified one 30."""
    lines = []
    for number in range(40):
        solutions = {
            key: {"is_correct": number < n_right, "solution": f"A: {number}"}
            for key, n_right in (("6b_finetuning", 10), ("6b_verification", 30))
        }
        lines.append(json.dumps({"question": f"q {number}", "ground_truth": "A: 1", **solutions}))
    return {"grade_school_math/data/example_model_solutions.jsonl": "\n".join(lines)}


def read_made(
    tmp_path: Path, name: str, files: dict[str, Any], *models: str
) -> dict[str, list[Answer]]:
    clone, commit = make_clone(tmp_path / "clone", files)
    return read_answers(name, clone, (commit, commit), models)


def list_scores(answers: list[Answer]) -> dict[str, float]:
    return {answer.id: answer.value for answer in answers}


def test_letters_of_mmlu_pro_are_read_from_the_text(tmp_path: Path) -> None:
    texts = ["The answer is (B).", "So A, or rather B", "It is B. No, A", "none", "Answer: B"]
    alike = {"options": ["x", "y"], "answer": "B", "category": "law", "pred": "B"}
    questions = ["q 0", "same", "q 2", "same", "q 4"]
    entries = [
        {"question_id": 70 + i, "question": questions[i], "generated_text": text, **alike}
        for i, text in enumerate(texts)
    ]
    packed = BytesIO()
    with ZipFile(packed, "w") as archive:
        archive.writestr("model_outputs_Yi-6B_5shots.json", json.dumps(entries))
    files = {"eval_results/model_outputs_Yi-6B_5shots.zip": packed.getvalue()}
    answers = read_made(tmp_path, "MMLU-Pro", files, "Yi-6B")["Yi-6B"]
    assert [answer.value for answer in answers] == [1, 0, 0, 0, 0]
    assert [answer.is_readable for answer in answers] == [True, False, False, False, False]
    assert [answer.other_scores[LAST_LETTER] for answer in answers] == [1, 1, 0, 0, 1]
    assert [answer.other_scores[FIRST_LETTER] for answer in answers] == [1, 0, 1, 0, 1]
    assert [answer.cluster for answer in answers] == ["70", "71", "72", "71", "74"]
    assert (answers[0].category, answers[0].prompt) == ("law", "q 0\nA. x\nB. y")


def test_answers_of_zero_eval_are_read_from_json(tmp_path: Path) -> None:
    outputs = ['{"answer": "$1,200"}', '{"reasoning": "a "b"", "answer": "7"}', "1200"]
    outputs.append('{"answer": "8"}')
    targets = ["# 1200", "7", "# 1200", "7"]
    entries = [
        {"id": i, "output": [text], "answer": target, "chat_history": ["q"]}
        for i, (text, target) in enumerate(zip(outputs, targets, strict=True))
    ]
    files = {
        "result_dirs/gsm/Athene-70B.json": entries,
        "result_dirs/gsm.summary.json": [{"Model": "Athene-70B", "Acc": "50.00"}],
    }
    name = "GSM8K, zero-shot"
    answers = read_made(tmp_path, name, files, "Athene-70B")["Athene-70B"]
    assert list_scores(answers) == {"0": 1, "1": 1, "2": 0, "3": 0}
    assert [answer.is_readable for answer in answers] == [True, True, False, True]
    clone = Clone(tmp_path / "clone", "owner/name")
    assert read_published_mean(name, clone, ("HEAD",), "Athene-70B") == 50


def test_failures_of_bfcl_are_counted_against_the_file(tmp_path: Path) -> None:
    place = "2024-08-11/score/firefunction-v2-FC/relevance_score.json"
    lines = [json.dumps({"total_count": 4, "correct_count": 3}), '{"id": 2}', '{"id": 3}']
    name, model = "BFCL, no call fits", "firefunction-v2"
    [answers] = read_made(tmp_path, name, {place: "\n".join(lines[:2])}, model).values()
    assert [answer.value for answer in answers] == [1, 0, 1, 1]
    with pytest.raises(MissingFileError, match=r"\b2 .*\b4 "):
        read_made(tmp_path / "other", name, {place: "\n".join(lines)}, model)


def test_what_the_judge_left_open_is_left_out_of_the_whole_chain(tmp_path: Path) -> None:
    preferences = {"phi-2": [1, 2, 1.5, None], "phi-2-sft": [2, 2, 0, 1]}
    alike = {"dataset": "koala", "output_2": "x"}
    files = {
        f"results/{model}/alpaca_eval_gpt4/annotations.json": [
            {"instruction": f"i {n}", "preference": preference, **alike}
            for n, preference in enumerate(given_by_judge)
        ]
        for model, given_by_judge in preferences.items()
    }
    answers = read_made(tmp_path, "AlpacaEval", files, *preferences)
    assert list_scores(answers["phi-2"]) == {"1": 0, "2": 1, "3": 0.5}
    assert list_scores(answers["phi-2-sft"]) == {"1": 1, "2": 1, "3": 0.5}


def test_what_live_code_bench_did_not_ask_is_left_out(tmp_path: Path) -> None:
    performances = [
        {"model": model, "sample_id": f"s{i}", "question_id": i // 2, "Pass@1-COT": value}
        for model, values in (("DSCoder-33b-Base", [-1, 70, 0]), ("DSCoder-33b-Ins", [10, 20, 30]))
        for i, value in enumerate(values)
    ]
    files = {"src/mocks/performances_execution.json": {"performances": performances}}
    models = "DeepSeek-Coder-33B-Base", "DeepSeek-Coder-33B-Instruct"
    name = "LiveCodeBench, execution with reasoning"
    base, tuned = read_made(tmp_path, name, files, models[0], models[1]).values()
    assert list_scores(base) == {"s1": 0.7, "s2": 0}
    assert list_scores(tuned) == {"s1": 0.2, "s2": 0.3}
    assert [answer.cluster for answer in base] == ["0", "1"]


def test_samples_of_instruct_gpt_are_read_by_passage(tmp_path: Path) -> None:
    rows = ["model_type,prompt_type,context,ref_text,sample"]
    for kind in ("fewshot", "zeroshot"):
        for context, sample in (("P\n\nQ: a", "The Danes."), ("P\n\nQ: b", "of Danes, yes")):
            rows.append(f'gpt-175b,{kind},"{context}",Danes|a Dane,"{sample}"')
    files = {"automatic-eval-samples/squadv2_samples.csv": "\n".join(rows)}
    [answers] = read_made(tmp_path, "SQuADv2, few-shot", files, "GPT-3-175B").values()
    assert [answer.value for answer in answers] == [1, 0]
    assert [answer.other_scores[CONTAINED] for answer in answers] == [1, 1]
    assert {answer.cluster for answer in answers} == {"passage 1"}


def test_answers_of_llm_drift_are_scored_as_its_script_does(tmp_path: Path) -> None:
    rows = ["model,id,query,ref_answer,answer,dataset"]
    answers = ("[Yes], it is", "no. Yes", "[No]", "maybe")
    rows += [f'openaichat/gpt-4-0314,{i},q,yes,"{text}",prime' for i, text in enumerate(answers)]
    files = {"generation/PRIME_FULL_EVAL.csv": "\n".join(rows)}
    [read] = read_made(tmp_path, "prime numbers", files, "GPT-4-0314").values()
    assert list_scores(read) == {"0": 1, "1": 1, "2": 0, "3": 0}
    assert {answer.category for answer in read} == {"prime"}


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def clones(tmp_path: Path, monkeypatch: Patch) -> Path:
    """Clones of a family of two pairs, one of which has no clone."""
    _, commit = make_clone(tmp_path / "clones" / "grade-school-math", write_solutions())
    sources = {
        "grade-school-math": Source("openai/grade-school-math", (commit,), "MIT", True),
        "ZeroEval": Source("yuchenlin/ZeroEval", (commit,), "Apache-2.0", True),
    }
    groups = [
        Group("GSM8K, fine-tuned in 2021", "grade-school-math", "", PAIR),
        Group("CRUX", "ZeroEval", "", ("Llama-3-70B-Instruct", "Athene-70B")),
    ]
    monkeypatch.setattr(bench.atlas, "read_family", lambda: (sources, groups))
    return tmp_path / "clones"


def test_a_missing_clone_is_named_the_others_are_judged(clones: Path, capsys: Capture) -> None:
    assert bench.atlas.main([str(clones), "--texts"]) == 1
    out, err = capsys.readouterr()
    assert "--no-checkout https://github.com/yuchenlin/ZeroEval" in err
    assert "CRUX" in err
    assert {"40", "25.0 → 75.0"} <= set(out.split(" | "))
    table = clones / "tables/gsm8k_fine-tuned_in_2021/GPT-3-6B_verified.csv"
    lines = table.read_text().splitlines()
    assert lines[:2] == ["id,score,category,prompt,answer,target", "1,1,,q 0,A: 0,A: 1"]


def test_rows_are_recounted_and_shipped(clones: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = [str(clones), "--recount", "--ship", str(tmp_path / "shipped")]
    assert bench.atlas.main(arguments) == 1  # a clone is missing
    out = capsys.readouterr().out
    assert {"40", "25.0", "75.0", "0, 20"} <= set(out.split(" | "))
    [first, second] = sorted((tmp_path / "shipped").rglob("*.parquet"))
    assert read_table(first)["score"].to_pylist() == [1.0] * 10 + [0.0] * 30
    assert read_table(second).column_names == ["id", "score"]


def test_a_commit_or_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    clone, commit = make_clone(tmp_path / "clone", write_solutions())
    with pytest.raises(MissingFileError, match=f"other.json at {commit[:7]}"):
        clone.read(commit, "other.json")
    with pytest.raises(MissingFileError, match="at 1234567"):
        clone.read("1234567" + "0" * 33, "other.json")
    with pytest.raises(MissingFileError, match="other to prime numbers"):
        files = {"generation/PRIME_FULL_EVAL.csv": "model,id,query,ref_answer,answer,dataset\n"}
        read_made(tmp_path / "empty", "prime numbers", files, "other")
