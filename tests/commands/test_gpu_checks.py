"""`slimdown doctor --gpu`: its table, here of the CPU with a tiny model."""

from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from record_builders import Capture, Patch

from slimdown.commands import doctor, gpu_checks
from slimdown.evaluation.prefix_lm import PrefixLM

TINY = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 2304, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
run_tiny_checks = partial(gpu_checks.run_checks, "cpu", TINY, n_questions=8, n_rows=16)


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


def fail(*arguments: Any) -> Any:
    raise RuntimeError("CUDA error: an illegal\nmemory access")


@pytest.mark.skipif(
    find_spec("triton") is not None and not torch.cuda.is_available(),
    reason="where Triton is installed, TRL's own loss needs a GPU",
)
@pytest.mark.parametrize("names", ["nf4", pytest.param("nf4 fp4 int8", marks=pytest.mark.slow)])
def test_every_path_passes_and_what_fails_stops_no_other(
    names: str, monkeypatch: Patch, capsys: Capture
) -> None:
    checks = {"broken": fail, **gpu_checks.CHECKS, "scarce memory": check_in_scarce_memory}
    for layout in {"nf4", "fp4", "int8"} - set(names.split()):
        del checks[f"{layout}: choices"], checks[f"{layout}: training"]
    monkeypatch.setattr(gpu_checks, "CHECKS", checks)
    assert doctor.show_checks(run_tiny_checks()) == 1
    out = capsys.readouterr().out
    cells = [line.split(" | ") for line in out.splitlines()[2:]]
    results = {cell[0].removeprefix("| "): cell[1] for cell in cells}
    assert results["broken"] == "RuntimeError: CUDA error: an illegal memory access"
    assert {results[name] for name in checks if name != "broken"} == {"pass"}
    assert "GiB free" in out
    assert "now on PrefixLM, batch size 128" in out


def test_answers_that_are_not_the_harnesss_are_told(monkeypatch: Patch, capsys: Capture) -> None:
    build_masks = PrefixLM._build_masks

    def show_all(lm: Any, positions: Any, segments: Any, n_prefix: int) -> Any:
        return build_masks(lm, positions, segments.clamp(max=1), n_prefix)

    monkeypatch.setattr(PrefixLM, "_build_masks", show_all)
    names = ["nf4: choices", "texts"]
    monkeypatch.setattr(gpu_checks, "CHECKS", {n: gpu_checks.CHECKS[n] for n in names})
    assert doctor.show_checks(run_tiny_checks()) == 1
    choices, texts = capsys.readouterr().out.splitlines()[-2:]
    assert choices.startswith("| nf4: choices | answers are not HFLM's; | 0 of 8 texts, ")
    assert texts.startswith("| texts | pass | 0 of 8 texts, 0 nats off; ")


def test_without_a_gpu_it_is_one_line(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert doctor.main(["--gpu"]) == 1
    assert capsys.readouterr().err.startswith("no GPU: torch ")
