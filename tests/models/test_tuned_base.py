"""An adapter names its base: it is found, or the wrong one refused, before anything is loaded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import Patch

from slimdown import pocket
from slimdown.sweep.command_line import ComposedRun, compose_runs, read_command_line
from slimdown.utils.errors import ConfigError

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)


def write_adapter(name: str, **settings: Any) -> None:
    Path(name).mkdir()
    text = json.dumps({"peft_type": "LORA", **settings})
    Path(name, "adapter_config.json").write_text(text)


def compose_line(*arguments: str) -> list[ComposedRun]:
    return compose_runs(read_command_line(list(arguments))).runs


def test_an_adapters_base_is_measured_as_a_real_model_is() -> None:
    write_adapter("mine", base_model_name_or_path=SMOLLM2, revision="abc")
    settings = ["tuned=mine", "benchmark.hellaswag.limit=3", "model.dtype=float32"]
    [run] = compose_line(*settings)
    [named] = compose_line("model=smollm2", "model.revision=abc", *settings)
    assert run.config == named.config
    assert (run.model, run.overrides) == ("SmolLM2-135M-Instruct", settings)
    [newest] = compose_line("tuned=mine", "model.revision=v2")
    assert newest.config.model.revision == "v2"


@pytest.mark.parametrize("name", ["pocket:model", str(pocket.MODEL_DIR)])
def test_an_adapter_of_the_embedded_model_stays_in_its_world(name: str) -> None:
    write_adapter("mine", base_model_name_or_path=name)
    [run], [named] = compose_line("tuned=mine"), compose_line("model=pocket", "tuned=mine")
    assert run.config == named.config


def test_each_adapter_of_a_sweep_gets_its_own_base() -> None:
    write_adapter("hub", base_model_name_or_path=SMOLLM2)
    write_adapter("embedded", base_model_name_or_path="pocket:model")
    write_adapter("local", base_model_name_or_path="./base", revision="main")
    Path("base").mkdir()
    runs = compose_line("-m", "tuned=hub,embedded,local")
    assert [run.config.model.id for run in runs] == [SMOLLM2, "pocket:model", "./base"]
    assert [len(run.config.benchmark) for run in runs] == [3, 4, 3]


def test_a_model_that_is_named_stays() -> None:
    write_adapter("mine", base_model_name_or_path="you/base")
    for named in ("model=llama32", "experiment=paper_llama32"):
        assert compose_line("tuned=mine", named)[0].config.model.id == "meta-llama/Llama-3.2-1B"
    assert compose_line("tuned=mine", "model.id=me/copy")[0].config.model.id == "me/copy"


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"base_model_name_or_path": "/nowhere/base"}, "was made on /nowhere/base, which is not"),
        ({"base_model_name_or_path": None}, "names no base"),
        ({"peft_type": None, "base_model_name_or_path": "x y"}, "was made on x y, which is not"),
    ],
)
def test_a_base_that_is_not_here_has_to_be_named(settings: dict[str, Any], answer: str) -> None:
    write_adapter("mine", **settings)
    with pytest.raises(ConfigError) as error:
        compose_line("tuned=mine", "benchmark.hellaswag.limit=3")
    assert str(error.value).startswith(f"tuned=mine {answer}")
    assert "model=OWNER/NAME" in str(error.value)
    assert compose_line("tuned=mine", "model=any", "model.id=me/base")


def test_a_damaged_adapter_is_no_whole_model() -> None:
    Path("mine").mkdir()
    Path("mine", "adapter_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"adapter_config\.json is damaged"):
        compose_line("tuned=mine")


def test_an_address_needs_its_base_model() -> None:
    with pytest.raises(ConfigError, match=r"tuned=https://api.you.com/v1/ .*model=OWNER/NAME"):
        compose_line("tuned=https://api.you.com/v1/")


@pytest.mark.parametrize(
    ("made_on", "model"),
    [(SMOLLM2, "pocket:model"), ("pocket:model", SMOLLM2), (SMOLLM2, "meta-llama/Llama-3.2-1B")],
)
def test_a_wrong_base_is_refused_without_torch(made_on: str, model: str, tmp_path: Path) -> None:
    write_adapter("mine", base_model_name_or_path=made_on)
    arguments = ("-m", "tuned=mine", f"model.id={model}", "evaluation.batch_size=1,2")
    script = f"import sys; from slimdown.run import main; code = main({[*arguments]})\n"
    script += "sys.exit(9 if 'torch' in sys.modules else code)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"was made on {made_on}, and the base is {model}; leave out model=" in done.stderr
    assert "Traceback" not in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
