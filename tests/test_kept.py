"""Jobs of one base in one process: it is loaded once, and each job finds it as it was published."""

import hashlib
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from hydra import compose, initialize_config_dir

from slimdown.config.files import CONF_DIR
from slimdown.config.loader import load_config
from slimdown.config.method import Method
from slimdown.config.schema import RunConfig
from slimdown.evaluation.harness import evaluate
from slimdown.evaluation.questions import load_tasks, tasks_of
from slimdown.models import kept
from slimdown.models.kept import base_of
from slimdown.models.model import LoadedModel, load_model
from slimdown.pocket import MODEL_DIR
from slimdown.training.fine_tune import Tuned
from slimdown.training.tuning import way_to_tuned

pytestmark = pytest.mark.filterwarnings("ignore:.*past_key_values` is deprecated:FutureWarning")
FEW = [
    *SMALL[:2], "train.max_steps=2", "benchmark=[pocket_math,pocket_cs]", "benchmark.pocket_math.limit=1",
    "benchmark.pocket_cs.limit=4",
]  # fmt: skip


def settings_of(*overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return load_config(compose("config", overrides=[*FEW, *overrides]))


def train(config: RunConfig, base: LoadedModel, folder: Path) -> Tuned:
    return way_to_tuned(base, config).obtain(
        folder, lambda record: None, lambda done, total, note: None
    )


def portrait(loaded: LoadedModel) -> dict[str, Any]:
    """All that a job can see of a base."""

    def of(tensor: torch.Tensor) -> Any:
        content = hashlib.sha256(
            tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        ).hexdigest()
        return (
            type(tensor),
            content,
            str(tensor.dtype),
            tuple(tensor.shape),
            tensor.requires_grad,
            tensor.grad,
        )

    model, states = loaded.model, {}
    for name, parameter in model.named_parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            states[name] = {key: str(value) for key, value in state.as_dict(packed=False).items()}
    return {
        "modules": {name: (type(module), sorted(vars(module))) for name, module in model.named_modules()},
        "hooks": {
            (name, kind): len(held)
            for name, module in model.named_modules()
            for kind, held in vars(module).items()
            if kind.endswith("_hooks")
        },
        "plain": {
            name: {key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str))}
            for name, module in model.named_modules()
        },
        "parameters": {name: of(p) for name, p in model.named_parameters(remove_duplicate=False)},
        "buffers": {name: of(b) for name, b in model.named_buffers(remove_duplicate=False)},
        "quantized": states,
        "config": [model.config.to_dict(), model.generation_config.to_dict(), model.config._attn_implementation],
        "one config": len({id(m.config) for m in model.modules() if hasattr(m, "config")}),
        "tokenizer": (loaded.tokenizer.backend_tokenizer.to_str(), loaded.tokenizer.special_tokens_map,
                      loaded.tokenizer.padding_side, loaded.tokenizer.chat_template),
        "identity": loaded.identity,
        "about": (loaded.revision, loaded.dtype, loaded.n_parameters, loaded.memory_bytes),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_kept() -> Any:
    kept._last.clear()
    yield
    kept._last.clear()


@pytest.mark.parametrize(
    "method", [Method.lora, Method.pissa, Method.prompt, Method.bottleneck, Method.full]
)
def test_after_a_training_the_next_job_finds_the_base_as_it_was_published(
    method: Method, tmp_path: Path
) -> None:
    more = ["quantization=none"] if method in (Method.pissa, Method.full) else []
    more += ["train.gradient_checkpointing=true"] if method is Method.lora else []
    config = settings_of(f"method={method}", *more)
    first = base_of(config.model, config.quantization)
    model = first.model
    train(config, first, tmp_path)
    model.config.use_cache, model.generation_config.max_length, first.tokenizer.padding_side = (
        False,
        3,
        "left",
    )
    again = base_of(config.model, config.quantization)
    assert (again.model is model) == (method is not Method.full)
    assert portrait(again) == portrait(load_model(config.model, config.quantization))


def test_a_second_job_ends_in_the_bytes_and_answers_of_a_process_of_its_own(tmp_path: Path) -> None:
    def job(base: LoadedModel, seed: int, tasks: dict[str, Any]) -> tuple[bytes, Any]:
        config = settings_of(f"seed={seed}")
        before = evaluate(base, tasks, config.benchmark, config.evaluation)
        tuned = train(config, base, tmp_path / str(seed))
        after = evaluate(tuned.model, tasks, config.benchmark, config.evaluation)
        answers = [report.samples for one in (before, after) for report in one.benchmarks.values()]
        return (tuned.training.adapter_dir / "adapter_model.safetensors").read_bytes(), answers

    config = settings_of()
    tasks = tasks_of(config.benchmark)
    job(base := base_of(config.model, config.quantization), 0, tasks)
    second = base_of(config.model, config.quantization)
    assert second.model is base.model
    assert tasks_of(config.benchmark) is tasks
    alone = load_model(config.model, config.quantization)
    assert job(second, 1, tasks) == job(alone, 1, load_tasks(config.benchmark))
    assert tasks_of(settings_of("benchmark.pocket_cs.limit=3").benchmark) is not tasks


@pytest.mark.parametrize("by", [
    lambda model: model.lm_head.weight[0].add_(1),
    lambda model: next(model.buffers()).mul_(2),  # not among the saved ones
    lambda model: setattr(model.model.norm.weight, "data", model.model.norm.weight.data.half()),
    lambda model: model.model.norm.weight.register_hook(lambda gradient: gradient * 2),
], ids=["weight", "buffer", "dtype", "hook"])  # fmt: skip
def test_a_base_that_was_changed_is_loaded_anew(by: Callable[[Any], None]) -> None:
    config = settings_of()
    first = base_of(config.model, config.quantization)
    by_now = portrait(first)
    model = weakref.ref(first.model)
    with torch.no_grad():
        by(first.model)
    del first
    again = base_of(config.model, config.quantization)
    assert model() is None or model() is not again.model
    assert portrait(again) == by_now


def test_other_files_and_other_settings_are_another_base_and_two_are_never_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL_DIR, folder)
    config = settings_of(f"model.id={folder}")
    held = [weakref.ref(base_of(config.model, config.quantization).model)]

    def watched(*settings: Any) -> LoadedModel:
        assert held[-1]() is None
        base = load_model(*settings)
        held.append(weakref.ref(base.model))
        return base

    monkeypatch.setattr(kept, "load_model", watched)
    base_of(config.model, config.quantization)
    assert len(held) == 1
    text = (folder / "generation_config.json").read_text()
    (folder / "generation_config.json").write_text(text.replace("{", '{"top_k": 7,', 1))
    assert base_of(config.model, config.quantization).model.generation_config.top_k == 7
    for override in ("quantization=int8", "quantization=none", "model.attn_implementation=eager"):
        config = settings_of(f"model.id={folder}", override)
        base_of(config.model, config.quantization)
    assert len(held) == 5
