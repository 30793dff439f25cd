"""The pocket world: the generator makes what is shipped, and trains on nothing held out."""

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from commands_and_runs import run_command

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
    return [
        item
        for name in BENCHMARKS
        for split in HELD_OUT
        for item in generate_benchmark(name, split)
    ]


@pytest.fixture(scope="module")
def documents() -> list[Item]:
    return list(islice(generate_pretraining(), N_DOCUMENTS))


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA_DIR / f"{name}.jsonl").read_text().splitlines()]


def test_no_document_of_pretraining_is_a_held_out_question_with_its_answer(
    held_out: list[Item], documents: list[Item]
) -> None:
    trained = {item.text for item in documents}
    assert not [item.text for item in held_out if item.text in trained]


def test_no_training_text_contains_a_held_out_question_with_its_answer(
    held_out: list[Item], documents: list[Item]
) -> None:
    rows = [*generate_instructions(), *generate_replay()]
    text = "\n\n".join(item.text for item in [*documents[:30_000], *rows])
    assert not [item.text for item in held_out if item.text in text]


def test_each_fact_is_asked_in_training_but_never_in_the_words_of_test_or_dev(
    documents: list[Item],
) -> None:
    asked = {item.prompt for item in documents if item.kind == "cs"}
    held = {item.prompt for split in HELD_OUT for item in generate_benchmark("pocket_cs", split)}
    assert not asked & held
    taught = {item.completion for item in documents if item.kind == "cs"}
    answers = {item.completion for item in generate_benchmark("pocket_cs", Split.TEST)}
    assert answers <= taught


def test_test_dev_and_training_rows_share_no_question() -> None:
    for name in BENCHMARKS:
        test, dev = ({item.prompt for item in generate_benchmark(name, s)} for s in HELD_OUT)
        assert not test & dev
    trained = {item.prompt for item in [*generate_instructions(), *generate_replay()]}
    held = {
        item.prompt for name in BENCHMARKS for s in HELD_OUT for item in generate_benchmark(name, s)
    }
    assert not trained & held


def test_the_shipped_data_are_what_the_generator_makes_byte_for_byte() -> None:
    made = generate_files()
    assert sorted(made) == sorted(path.name for path in DATA_DIR.iterdir())
    for name, content in made.items():
        assert (DATA_DIR / name).read_bytes() == content.encode(), name


def test_a_choice_has_four_different_options_and_names_the_right_one(held_out: list[Item]) -> None:
    choices = [item for item in held_out if "label" in item.columns]
    assert choices
    for item in choices:
        options: Any = item.columns.get("choices") or item.columns.get("endings")
        assert len(set(options)) == 4
        assert item.completion == f" {options[item.columns['label']]}"


def test_a_worked_answer_ends_in_the_result_of_its_sums(held_out: list[Item]) -> None:
    for item in (item for item in held_out if item.kind == "math"):
        worked, answer = str(item.columns["answer"]).split("\n#### ")
        sums = re.findall(r"(\d+) ([-+x/]) (\d+) = (\d+)", worked)
        assert sums
        for left, operator, right, result in sums:
            assert Step(int(left), operator, int(right)).result == int(result)
        assert sums[-1][-1] == answer


def test_the_shipped_base_is_a_bfloat16_llama_in_safetensors() -> None:
    from safetensors import safe_open

    with safe_open(MODEL_DIR / "model.safetensors", framework="pt") as weights:
        dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert dtypes == {"BF16"}
    assert json.loads((MODEL_DIR / "config.json").read_text())["model_type"] == "llama"
    assert not list(MODEL_DIR.glob("*.bin"))


def test_the_shipped_base_solves_a_held_out_word_problem_in_its_format() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    right = 0
    for item in generate_benchmark("pocket_math", Split.TEST)[:10]:
        inputs = tokenizer(item.prompt, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        right += tokenizer.decode(out[0], skip_special_tokens=True).endswith(item.completion)
    assert right >= 5


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("split", HELD_OUT)
def test_a_task_asks_in_the_words_that_the_base_was_trained_on_from_any_folder(
    name: str, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(tmp_path)

    task_name = name if split is Split.TEST else f"{name}_dev"
    manager = TaskManager(include_path=str(TASKS_DIR), include_defaults=False)
    task = manager.load([task_name])["tasks"][task_name]
    items = generate_benchmark(name, split)
    docs = list(task.eval_docs)
    assert len(docs) == len(items)
    for doc, item in zip(docs, items, strict=True):
        assert task.doc_to_text(doc) == item.prompt
        target = task.doc_to_target(doc)
        answer = task.doc_to_choice(doc)[target] if isinstance(target, int) else target
        assert task.config.target_delimiter + answer == item.completion


def test_a_rebuild_of_few_steps_makes_a_whole_world_in_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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
    asked = ["--tasks", ",".join(BENCHMARKS), "--include_path", str(TASKS_DIR)]
    asked += ["--model", "hf", "--model_args", f"pretrained={MODEL_DIR},dtype=float32"]
    asked += ["--batch_size", "64", "--device", "cpu", "--output_path", str(tmp_path)]
    done = run_command(tmp_path, "lm_eval", *asked, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    scores = score_model(PACKAGE_DIR, quantized=False)
    assert results["pocket_math"]["exact_match,strict-match"] == scores["pocket_math strict"]
    assert results["pocket_commonsense"]["acc_norm,none"] == scores["pocket_commonsense acc_norm"]
    assert results["pocket_cs"]["acc,none"] == scores["pocket_cs acc"]
    assert (
        results["pocket_instructions"]["exact_match,strip"]
        == scores["pocket_instructions exact_match"]
    )
