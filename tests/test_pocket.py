"""The pocket world: the generator makes what is shipped, and trains on nothing held out."""

import json
import re
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
from commands_and_runs import run_command
from record_builders import Capture, Patch

from slimdown.pocket import DATA_DIR, MODEL_DIR, PACKAGE_DIR, TASKS_DIR
from tools.pocket.__main__ import main, score_model
from tools.pocket.corpus import (
    BENCHMARKS,
    generate_benchmark,
    generate_files,
    generate_instructions,
    generate_pretraining,
    generate_replay,
)
from tools.pocket.items import Item, Split
from tools.pocket.word_problems import Step

N_DOCUMENTS = 150_000  # more than the shipped base's training reads
HELD_OUT = (Split.TEST, Split.DEV)


@pytest.fixture(scope="module")
def held_out() -> list[Item]:
    questions: list[Item] = []
    for name, split in product(BENCHMARKS, HELD_OUT):
        questions += generate_benchmark(name, split)
    return questions


@pytest.fixture(scope="module")
def documents() -> list[Item]:
    return list(islice(generate_pretraining(), N_DOCUMENTS))


def test_no_document_of_pretraining_is_a_held_out_question_with_its_answer(
    held_out: list[Item], documents: list[Item]
) -> None:
    trained = {document.text for document in documents}
    assert not trained & {question.text for question in held_out}


def test_no_training_text_answers_a_test(held_out: list[Item], documents: list[Item]) -> None:
    rows = [*generate_instructions(), *generate_replay()]
    trained = "\n\n".join(row.text for row in [*documents[:30_000], *rows])
    assert not [question.text for question in held_out if question.text in trained]


def test_facts_are_taught_in_other_words_than_those_of_test_or_dev(documents: list[Item]) -> None:
    taught = [document for document in documents if document.kind == "cs"]
    for split in HELD_OUT:
        questions = generate_benchmark("pocket_cs", split)
        assert not {q.prompt for q in questions} & {document.prompt for document in taught}
    answers = {question.completion for question in generate_benchmark("pocket_cs", Split.TEST)}
    assert answers <= {document.completion for document in taught}


def test_test_dev_and_training_rows_share_no_question(held_out: list[Item]) -> None:
    for name in BENCHMARKS:
        test, dev = ({q.prompt for q in generate_benchmark(name, split)} for split in HELD_OUT)
        assert not test & dev
    trained = {row.prompt for row in [*generate_instructions(), *generate_replay()]}
    assert not trained & {question.prompt for question in held_out}


def test_the_shipped_data_are_what_the_generator_makes_byte_for_byte() -> None:
    made = generate_files()
    assert sorted(made) == sorted(path.name for path in DATA_DIR.iterdir())
    for name, content in made.items():
        assert (DATA_DIR / name).read_bytes() == content.encode(), name


def test_a_choice_has_four_different_options_and_names_the_right_one(held_out: list[Item]) -> None:
    choices = [question for question in held_out if "label" in question.columns]
    assert choices
    for question in choices:
        options: Any = question.columns.get("choices") or question.columns.get("endings")
        assert len(set(options)) == 4
        assert question.completion == f" {options[question.columns['label']]}"


def test_a_worked_answer_ends_in_the_result_of_its_sums(held_out: list[Item]) -> None:
    problems = [question for question in held_out if question.kind == "math"]
    assert problems
    for problem in problems:
        worked, answer = str(problem.columns["answer"]).split("\n#### ")
        sums = re.findall(r"(\d+) ([-+x/]) (\d+) = (\d+)", worked)
        assert sums
        for left, operator, right, result in sums:
            assert Step(int(left), operator, int(right)).result == int(result)
        assert sums[-1][-1] == answer


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("split", HELD_OUT)
def test_a_task_asks_in_the_words_that_the_base_was_trained_on_from_any_folder(
    name: str, split: Split, tmp_path: Path, monkeypatch: Patch
) -> None:
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(tmp_path)

    task_name = name if split is Split.TEST else f"{name}_dev"
    manager = TaskManager(include_path=str(TASKS_DIR), include_defaults=False)
    task = manager.load([task_name])["tasks"][task_name]
    for doc, question in zip(task.eval_docs, generate_benchmark(name, split), strict=True):
        assert task.doc_to_text(doc) == question.prompt
        target = task.doc_to_target(doc)
        answer = task.doc_to_choice(doc)[target] if isinstance(target, int) else target
        assert task.config.target_delimiter + answer == question.completion


def test_a_rebuild_of_few_steps_makes_a_whole_world_in_another_folder(
    tmp_path: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    import tools.pocket.corpus as corpus

    monkeypatch.setattr(corpus, "N_TEST", 8)
    monkeypatch.setattr(corpus, "N_DEV", 4)
    main(["--out", str(tmp_path), "--steps", "3"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "model", "tasks"]
    assert len((tmp_path / "data" / "pocket_cs_test.jsonl").read_text().splitlines()) == 8
    report = capsys.readouterr().out
    assert "3 steps" in report
    assert "pocket_math strict" in report


@pytest.mark.slow
def test_the_plain_harness_command_gives_the_same_scores_from_any_folder(tmp_path: Path) -> None:
    options = ["--tasks", ",".join(BENCHMARKS), "--include_path", str(TASKS_DIR)]
    options += ["--model", "hf", "--model_args", f"pretrained={MODEL_DIR},dtype=float32"]
    options += ["--batch_size", "64", "--device", "cpu", "--output_path", str(tmp_path)]
    done = run_command(tmp_path, "lm_eval", *options, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    scores = score_model(PACKAGE_DIR, quantized=False)
    for name, metric, shown in (
        ("pocket_math", "exact_match,strict-match", "strict"),
        ("pocket_commonsense", "acc_norm,none", "acc_norm"),
        ("pocket_cs", "acc,none", "acc"),
        ("pocket_instructions", "exact_match,strip", "exact_match"),
    ):
        assert results[name][metric] == scores[f"{name} {shown}"]
