"""What people type out of habit is taken, or answered by one line that works when typed."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands_and_runs import run_command
from hydra.core.override_parser.overrides_parser import OverridesParser
from record_builders import Patch

from slimdown.config.loader import open_hydra
from slimdown.config.schema import RunConfig
from slimdown.pocket import MODEL_DIR
from slimdown.sweep.command_line import compose_runs, read_command_line
from slimdown.sweep.shorthands import parse_override
from slimdown.utils.errors import ConfigError

LOGS = Path(__file__).parents[1] / "evaluation/harness_logs/0.4.13/base"
ROWS = '{"instruction": "Add 1 and 2.", "output": "3"}\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: Patch) -> Path:
    monkeypatch.chdir(tmp_path)
    for file in ("rows.jsonl", "more.jsonl", "b/rows.jsonl"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text(ROWS)
    Path("capitals.jsonl").write_text('{"question": "q", "answer": "4"}\n')
    return tmp_path


def compose(line: str) -> list[RunConfig]:
    return [run.config for run in compose_runs(read_command_line(shlex.split(line))).runs]


def refuse(line: str) -> str:
    with pytest.raises(ConfigError) as error:
        compose(line)
    return str(error.value)


NUMERIC = "benchmark.capitals.score=numeric"
CAPITALS = "benchmark=[capitals,pocket_math] benchmark.capitals.path=capitals.jsonl"
SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize(
    ("habit", "meant"),
    [
        ("benchmark=pocket_math,pocket_cs", "benchmark=[pocket_math,pocket_cs]"),
        ("lora.target_modules=q_proj,v_proj", "lora.target_modules=[q_proj,v_proj]"),
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


@pytest.mark.parametrize(
    ("habit", "answer"),
    [
        ("--nope", "--nope is neither a flag nor a setting"),
        ("--model", "--model has no value; type model=VALUE"),
        ("--lr 1e-4", "did you mean train.learning_rate?"),
        ("benchmark=pocket_math,pocket_maths", "benchmark=pocket_maths: the harness has no task"),
        ("-m dataset=nowhere.jsonl", "dataset.nowhere.path: there is no file nowhere.jsonl"),
        ("dataset=rows.jsonl,b/rows.jsonl", "two are called rows; rename one"),
        ("dataset=rows.jsonl dataset.file.max_examples=7", "add it to dataset=[...], or name rows"),
        ("model=a/b/c", "model.id=a/b/c: there is no such folder, and a hub id is OWNER/NAME"),
        ("lora.r=5%", "could not be converted to Integer"),
    ],
)
def test_what_may_mean_several_things_is_answered(habit: str, answer: str) -> None:
    assert answer in refuse(habit)


def test_the_composed_settings_take_habits_too(folder: Path) -> None:
    words = ["--cfg", "job", "--model", SMALL, "dataset=rows.jsonl"]
    done = run_command(folder, "slimdown.run", *words)
    settings = yaml.safe_load(done.stdout)
    assert settings["model"]["id"] == SMALL
    assert settings["dataset"]["rows"]["path"] == "rows.jsonl"


def write_adapter(folder: Path) -> None:
    folder.mkdir(parents=True)
    settings = '{"peft_type": "LORA", "base_model_name_or_path": "me/base"}'
    (folder / "adapter_config.json").write_text(settings)


def test_a_folder_without_an_adapter_is_answered_with_the_one_to_type() -> None:
    for step in (9, 10):
        write_adapter(Path(f"out/checkpoint-{step}"))
    answer = refuse("tuned=out")
    assert "\n" not in answer
    line = answer.partition("; type ")[2]
    assert line == "tuned=out/checkpoint-10"
    [config] = compose(f"{line} model=me/base")
    assert config.tuned == "out/checkpoint-10"


def test_an_empty_folder_is_answered_with_what_writes_an_adapter() -> None:
    Path("empty").mkdir()
    for line in ("tuned=empty", "tuned=empty model=smollm2"):
        assert "trainer.save_model('empty')" in refuse(line)
    Path("empty/adapter_model.safetensors").write_bytes(b"")
    assert "copy adapter_config.json" in refuse("tuned=empty")


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


def test_a_budget_may_be_a_percentage(folder: Path, capsys: Any) -> None:
    from slimdown.commands import verdict

    for name in ("base", "tuned"):
        (folder / f"{name}.csv").write_text("id,score\n" + "".join(f"{i},1\n" for i in range(99)))
    for budget in ("5%", "0.05"):
        for option in (["--max-loss", budget], ["--max-loss", "off", f"base={budget}"]):
            argv = ["base.csv", "tuned.csv", *option, "--format", "json"]
            verdict.main([word.replace("base=", "scores=") for word in argv])
    shown = capsys.readouterr().out
    assert shown.count('"budget": 0.05') == 4


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
    with pytest.raises(ConfigError, match=r"^tuned=nope/\*: no folder"):
        compose_runs(read_command_line(["-m", "tuned=nope/*"]))
