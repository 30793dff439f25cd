"""What people type out of habit is taken, or answered by one line that works when typed."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from record_builders import Patch
from test_command_line import compose_line, refuse

from slimdown.config.loader import open_hydra
from slimdown.config.schema import RunConfig
from slimdown.pocket import MODEL_DIR
from slimdown.sweep.shorthands import parse_override

LOGS = Path(__file__).parents[1] / "evaluation/harness_logs/0.4.13/base"
ROWS = '{"instruction": "Add 1 and 2.", "output": "3"}\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: Patch) -> Path:
    monkeypatch.chdir(tmp_path)
    for file in ("rows.jsonl", "more.jsonl"):
        Path(file).write_text(ROWS)
    Path("capitals.jsonl").write_text('{"question": "q", "answer": "4"}\n')
    return tmp_path


def compose(line: str) -> list[RunConfig]:
    return [run.config for run in compose_line(*shlex.split(line)).runs]


NUMERIC = "benchmark.capitals.score=numeric"
CAPITALS = "benchmark=[capitals,pocket_math] benchmark.capitals.path=capitals.jsonl"
SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize(
    ("habit", "meant"),
    [
        ("benchmark=pocket_math,pocket_cs", "benchmark=[pocket_math,pocket_cs]"),
        ("lora.target_modules=q_proj,v_proj", "lora.target_modules=[q_proj,v_proj]"),
        ("lora.target_modules=q_proj", "lora.target_modules=[q_proj]"),
        ("benchmark.pocket_math.stop=END", "benchmark.pocket_math.stop=[END]"),
        (f"model={SMALL}", f"model=any model.id={SMALL}"),
        (f"model={SMALL} model.revision=v1", f"model=any model.id={SMALL} model.revision=v1"),
        (f"model={MODEL_DIR}", f"model=any model.id={MODEL_DIR}"),
        ("-m model=a/b,c/d seed=1,2", "-m model=any model.id=a/b,c/d seed=1,2"),
        ("--model smollm2", "model=smollm2"),
        ("--model=smollm2 --rerun --lora.r 4", "model=smollm2 rerun=true lora.r=4"),
        ("-m --model smollm2,pocket --seed 3", "-m model=smollm2,pocket seed=3"),
        ("benchmark.pocket_math.max_loss=5%", "benchmark.pocket_math.max_loss=0.05"),
        ("-m evaluation.holdout=2.3%,50%", "-m evaluation.holdout=0.023,0.5"),
        (f"benchmark=capitals.jsonl,pocket_math {NUMERIC}", f"{CAPITALS} {NUMERIC}"),
    ],
)
def test_a_habit_is_taken_where_it_can_only_mean_one_thing(habit: str, meant: str) -> None:
    assert compose(habit) == compose(meant)


def test_a_file_of_rows_is_a_dataset_and_bears_its_name() -> None:
    [config] = compose("dataset=rows.jsonl dataset.rows.max_examples=7")
    [named] = compose("dataset=file dataset.file.path=rows.jsonl dataset.file.max_examples=7")
    assert config.dataset == {"rows": named.dataset["file"]}
    [several] = compose("dataset=rows.jsonl,alpaca,more.jsonl")
    assert list(several.dataset) == ["rows", "alpaca", "more"]
    swept = compose("-m dataset=rows.jsonl,[more.jsonl,alpaca]")
    assert [list(config.dataset) for config in swept] == [["rows"], ["more", "alpaca"]]
    [hub] = compose("dataset=you/your.rows")
    assert hub.dataset["your_rows"].path == "you/your.rows"


def write_adapter(folder: Path) -> None:
    folder.mkdir(parents=True)
    settings = '{"peft_type": "LORA", "base_model_name_or_path": "me/base"}'
    (folder / "adapter_config.json").write_text(settings)


def test_a_folder_without_an_adapter_is_answered_with_the_one_to_type() -> None:
    for step in (9, 10):
        write_adapter(Path(f"out/checkpoint-{step}"))
    [answer] = refuse("tuned=out")
    line = answer.partition("; type ")[2]
    assert line == "tuned=out/checkpoint-10"
    [config] = compose(f"{line} model=me/base")
    assert config.tuned == "out/checkpoint-10"


def test_an_empty_folder_is_answered_with_what_writes_an_adapter() -> None:
    Path("empty").mkdir()
    for model in ([], ["model=smollm2"]):
        assert "trainer.save_model('empty')" in refuse("tuned=empty", *model)[0]
    Path("empty/adapter_model.safetensors").write_bytes(b"")
    assert "copy adapter_config.json" in refuse("tuned=empty")[0]


@pytest.mark.parametrize("inner", ["", "me__model"])
def test_verdict_one_level_up_names_two_folders(inner: str, folder: Path, capsys: Any) -> None:
    from slimdown.commands import verdict

    for name in ("a tuned", "base"):
        place = folder / "lm" / name / inner
        place.mkdir(parents=True)
        for file in LOGS.iterdir():  # the command below must read two models, and not one twice
            (place / file.name).write_bytes(file.read_bytes())
    assert verdict.main(["lm", "lm"]) == 3
    answer = capsys.readouterr().err.splitlines()[1]
    command = re.search("slimdown verdict (.*)", answer)
    assert shlex.split(command[1]) == ["lm/base", "lm/a tuned"]
    assert verdict.main(shlex.split(command[1])) == 0


def test_a_pattern_names_folders_in_order_of_numbers(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    for step in (100, 50):
        Path(f"it's/checkpoint-{step}").mkdir(parents=True)
        Path(f"it's/checkpoint-{step}/adapter_config.json").touch()
    Path("it's/checkpoint-logs").mkdir()  # holds no model
    Path("it's/checkpoint-7.txt").touch()
    with open_hydra():
        override = parse_override(OverridesParser.create(), "tuned=it's/checkpoint-*", True)
    folders = [getattr(value, "text", value) for value in override.sweep_iterator()]
    assert folders == ["it's/checkpoint-50", "it's/checkpoint-100"]
