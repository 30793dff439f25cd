"""Whatever a run's result depends on, changed alone, gives another key; what may share a key says why."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from huggingface_hub import constants
from test_evaluation_key import imported_files

import slimdown
from slimdown.config.schema import RunConfig
from slimdown.evaluation.measure import MEASURING
from slimdown.pocket import DATA_DIR, MODEL_DIR
from slimdown.tracking import done
from slimdown.tracking.done import NOT_IN_KEY, run_key

Composed = Callable[..., RunConfig]
ROWS = DATA_DIR / "pocket_instructions_train.jsonl"

# Settings that a result depends on. A new one: does a run come out otherwise? Then it belongs here, else in NOT_IN_KEY
# with the reason, or below it is the way to something whose content is in the key.
IN_KEY = {
    "model": "dtype device attn_implementation",
    "quantization": "load_in_4bit load_in_8bit bnb_4bit_quant_type bnb_4bit_use_double_quant bnb_4bit_compute_dtype"
    " dequantize_for_evaluation dequantize_for_training",
    "dataset.<name>": "name split format template instruction input output max_examples validation_examples weight"
    " skip_bad_rows",
    "method": "name init_lora_weights num_virtual_tokens target_modules feedforward_modules bottleneck_dim lm_head",
    "lora": "r lora_alpha lora_dropout target_modules",
    "train": "engine num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps"
    " per_device_eval_batch_size learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm optim"
    " max_length completion_only_loss assistant_only_loss gradient_checkpointing",
    "benchmark.<name>": "task metric num_fewshot chance role paper_metric numeric_tolerance limit margin max_loss",
    "contamination": "max_share",
    "evaluation": "token_budget batch_size apply_chat_template holdout until",
}
SETTINGS = {f"{section}.{name}" for section, names in IN_KEY.items() for name in names.split()} | {
    "seed"
}
BY_CONTENT = {
    "model.id",
    "model.revision",
    "dataset.<name>.path",
    "dataset.<name>.revision",
    "tuned",
}


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any, str]]:
    """Each setting of a config: its dotted key, the section that holds it, its name there."""
    for f in fields(node):
        value, path = getattr(node, f.name), f"{key}.{f.name}".lstrip(".")
        if is_dataclass(value):
            yield from leaves(value, path)
        elif isinstance(value, dict):
            yield from (
                leaf
                for member in list(value.values())[:1]
                for leaf in leaves(member, f"{path}.<name>")
            )
        else:
            yield path, node, f.name


def another(section: Any, name: str) -> object:
    """Another value than the setting has, of its type."""
    kind: Any = get_type_hints(type(section))[name]
    value = getattr(section, name)
    if value is None:
        kind = next(choice for choice in get_args(kind) if choice is not type(None))
        return (
            next(iter(kind))
            if issubclass(get_origin(kind) or kind, Enum)
            else (get_origin(kind) or kind)(1)
        )
    if isinstance(value, Enum):
        return next(member for member in type(value) if member != value)
    return {
        bool: lambda: not value,
        list: lambda: [*value, "another"],
        str: lambda: f"{value}x",
    }.get(type(value), lambda: value + 1)()


def test_every_setting_is_placed(composed: Composed) -> None:
    assert sorted({path for path, _, _ in leaves(composed())}) == sorted(
        SETTINGS | BY_CONTENT | set(NOT_IN_KEY)
    )
    assert all(NOT_IN_KEY.values())


@pytest.mark.parametrize("path", sorted(SETTINGS | set(NOT_IN_KEY)))
def test_a_setting_is_in_the_key_unless_no_result_depends_on_it(
    path: str, composed: Composed
) -> None:
    config = composed()
    before = run_key(config)
    section, name = next((node, name) for found, node, name in leaves(config) if found == path)
    setattr(
        section,
        name,
        [] if get_type_hints(type(section))[name] == list[str] | None else another(section, name),
    )
    assert (run_key(config) == before) == (path in NOT_IN_KEY)


def test_equal_settings_have_one_key_however_they_are_given(
    composed: Composed, tmp_path: Path
) -> None:
    assert run_key(composed("lora.r=8", "seed=1")) == run_key(composed("seed=1", "lora.r=8"))
    assert run_key(composed("train.learning_rate=4e-3")) == run_key(
        composed("train.learning_rate=0.004")
    )
    preset = composed("experiment=pocket_replay")
    typed = composed("dataset=[pocket_instructions,pocket_replay]")
    assert run_key(preset) == run_key(typed)
    assert run_key(preset) != run_key(
        composed("dataset=[pocket_replay,pocket_instructions]")
    )  # another order of rows


def test_rows_are_known_by_what_the_file_holds(composed: Composed, tmp_path: Path) -> None:
    def key(file: Path) -> str:
        return run_key(composed(f"dataset.pocket_instructions.path='{file}'"))

    mine = Path(shutil.copy(ROWS, tmp_path / "rows.jsonl"))
    before = key(mine)
    assert before == run_key(composed())
    assert key(mine.rename(tmp_path / "moved.jsonl")) == before
    lines = ROWS.read_text().splitlines()
    (tmp_path / "moved.jsonl").write_text(
        "\n".join([lines[1], lines[0], *lines[2:]]) + "\n"
    )  # of the same length
    os.utime(tmp_path / "moved.jsonl", ns=(ROWS.stat().st_atime_ns, ROWS.stat().st_mtime_ns))
    assert key(tmp_path / "moved.jsonl") != before


@pytest.mark.parametrize("setting", ["model.id", "tuned"])
def test_a_model_is_known_by_what_its_folder_holds(
    setting: str, composed: Composed, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(MODEL_DIR, tmp_path / "model"))
    before = run_key(composed(f"{setting}={folder}"))
    assert (before == run_key(composed())) == (setting == "model.id")
    moved = folder.rename(tmp_path / "moved")
    (moved / "README.md").write_text("no answer depends on it")
    assert run_key(composed(f"{setting}={moved}")) == before
    (moved / "chat_template.jinja").write_text("{{ messages }}")
    templated = run_key(composed(f"{setting}={moved}"))
    (moved / "chat_template.jinja").rename(moved / "chat_template_old.jinja")
    assert len({before, templated, run_key(composed(f"{setting}={moved}"))}) == 3
    (moved / "chat_template_old.jinja").unlink()
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    assert run_key(composed(f"{setting}={moved}")) != before


def test_what_lies_on_the_hub_is_known_by_its_commit(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    chosen = ["model=smollm2", "dataset=[alpaca]", "benchmark=[pocket_math,hellaswag]"]
    config = composed(*chosen)
    model, rows = (
        config.model.id.replace("/", "--"),
        config.dataset["alpaca"].path.replace("/", "--"),
    )
    repos = (
        f"models--{model}",
        f"datasets--{rows}",
        "datasets--Rowan--hellaswag",
    )  # the last is asked from
    refs = [tmp_path / repo / "refs" / "main" for repo in repos]
    assert run_key(config) == ""  # nobody knows: such a run is never skipped
    for ref in refs:
        ref.parent.mkdir(parents=True)
        ref.write_text("a" * 40)
    before = run_key(config)
    assert before == run_key(
        composed(*chosen, f"model.revision={'a' * 40}", f"dataset.alpaca.revision={'a' * 40}")
    )
    for ref in refs:
        ref.write_text("b" * 40)
        assert run_key(config) != before
        ref.write_text("a" * 40)


@pytest.mark.parametrize("package", ["torch", "transformers", "trl", "peft", "lm-eval", "numpy"])
def test_another_version_has_another_key(
    package: str, composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, known = run_key(composed()), done._version
    monkeypatch.setattr(done, "_version", lambda name: "other" if name == package else known(name))
    assert run_key(composed()) != before


def test_what_accelerate_takes_from_the_environment_is_in_the_key(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_key(composed())
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert run_key(composed()) != before


def test_all_source_that_a_run_computes_with_is_in_the_key() -> None:
    """Follows the imports as Python reads them, from the page down."""
    root = Path(slimdown.__file__).parent
    waiting, seen = list(done.PAGE), set[str]()
    while waiting:
        if (file := waiting.pop()) not in {*seen, "__init__.py"}:  # the version
            seen.add(file)
            waiting += [
                name
                for name in imported_files(root, file)
                if name.partition("/")[0] not in done.NO_NUMBER
            ]
    assert seen == set(done.sources())
    assert set(MEASURING) <= seen
    assert {
        "training/fine_tune.py",
        "training/adapters.py",
        "preparing/data.py",
        "judging/paired.py",
    } <= seen


def test_a_key_is_made_without_torch_and_without_mlflow(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from hydra import compose, initialize_config_dir\n"
        "from slimdown.tracking.done import finished, run_key\n"
        "from slimdown.config.files import CONF_DIR\n"
        "from slimdown.config.loader import load_config\n"
        "with initialize_config_dir(str(CONF_DIR), version_base='1.3'):\n"
        "    config = load_config(compose('config'))\n"
        "print(finished(config.tracking, run_key(config)), {'torch', 'mlflow', 'transformers'} & set(sys.modules))\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["None", "set()"]
