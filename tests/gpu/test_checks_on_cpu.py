"""The checks of `pytest -m gpu` with a tiny model on the CPU: they pass, and tell what differs."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import gpu_checks
import pytest
import torch
from builders import slow
from record_builders import Patch

from slimdown.evaluation.prefix_lm import PrefixLM
from slimdown.training.fine_tuning import fine_tune

TINY = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 2304, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
NAMES = ["nf4: choices", "nf4: training", "texts", "a shared beginning", "scarce memory"]
SLOW = ["fp4: choices", "fp4: training", "int8: choices", "int8: training"]
needs_trl = pytest.mark.skipif(
    find_spec("triton") is not None and not torch.cuda.is_available(),
    reason="where Triton is installed, TRL's own loss needs a GPU",
)


@pytest.fixture(scope="module")
def load() -> Iterator[gpu_checks.Load]:
    with gpu_checks.make_loader("cpu", TINY, n_rows=16) as load:
        yield load


def check_in_scarce_memory(load: gpu_checks.Load, limit: int) -> gpu_checks.Finding:
    limits = [400, 150]  # tokens: the last for the questions, then the first for the rows

    def need_memory(layer: Any, inputs: Any) -> None:
        if limits and inputs[0].numel() > limits[-1]:
            limits.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")

    def load_scarce(*settings: str) -> Any:
        config, base, data = load(*settings)
        base.model.get_input_embeddings().register_forward_pre_hook(need_memory)
        return config, base, data

    return gpu_checks.check_scarce_memory(load_scarce, limit)


@needs_trl
@pytest.mark.parametrize("name", [*NAMES, *slow(*SLOW)])
def test_every_check_passes(name: str, load: gpu_checks.Load) -> None:
    check = check_in_scarce_memory if name == "scarce memory" else gpu_checks.CHECKS[name]
    differs, found = gpu_checks.run_check(check, load, 8)
    assert not differs, found
    if name == "scarce memory":
        assert "batch size 128" in found


def test_all_checks_are_tried_here() -> None:
    assert sorted(gpu_checks.CHECKS) == sorted(NAMES + SLOW)


def test_answers_unlike_the_harnesss_are_told(load: gpu_checks.Load, monkeypatch: Patch) -> None:
    build_masks = PrefixLM._build_masks

    def show_all(lm: Any, positions: Any, segments: Any, n_prefix: int) -> Any:
        return build_masks(lm, positions, segments.clamp(max=1), n_prefix)

    monkeypatch.setattr(PrefixLM, "_build_masks", show_all)
    differs, found = gpu_checks.run_check(gpu_checks.CHECKS["nf4: choices"], load, 8)
    assert "HFLM" in differs
    assert found.startswith("0 of 8 texts, ")
    differs, found = gpu_checks.run_check(gpu_checks.CHECKS["texts"], load, 8)
    assert differs == ""
    assert found.startswith("0 of 8 texts, 0 ")


@needs_trl
def test_losses_that_are_not_trls_are_told(load: gpu_checks.Load, monkeypatch: Patch) -> None:
    def train_at_another_scale(base: Any, rows: Any, config: Any, *others: Any, **more: Any) -> Any:
        config = replace(config, lora=replace(config.lora, lora_alpha=8 * config.lora.lora_alpha))
        return fine_tune(base, rows, config, *others, **more)

    monkeypatch.setattr(gpu_checks, "fine_tune", train_at_another_scale)
    differs, _ = gpu_checks.run_check(gpu_checks.CHECKS["nf4: training"], load, 8)
    assert "TRL" in differs
