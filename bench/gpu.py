"""What a GPU should do with a model of Llama 3.2 1B's shape, by arithmetic, and what one does.

    python -m bench.gpu --expect    tokens a second and memory on a T4, an A100 and an H100; needs no GPU
    python -m bench.gpu             `make gpu-check`: the tests marked gpu, the same work, and a table to paste back

Expected is the least time that work can take: the largest of its operations over what the GPU can do, its bytes over
the GPU's bandwidth, and five microseconds for each operation of torch, which is about what handing one to a GPU takes.
Weights are random, so nothing is downloaded.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

LAUNCH = 5e-6  # seconds
ROWS, BEHIND, NEW = 64, 448, 64  # decoded at once, tokens of each prompt, tokens decoded behind it
BATCH, LENGTH, STEPS = 8, 512, 6  # rows and tokens of a training step, and steps


@dataclass(frozen=True)
class Gpu:
    """What its maker publishes: dense products in 16 bits."""

    name: str
    flops: float
    bandwidth: float  # bytes a second
    memory: float  # bytes
    dtype: str  # that `dtype: auto` takes


GPUS = [
    Gpu("T4", 65e12, 320e9, 16e9, "float16"),  # NVIDIA's data sheets of the T4,
    Gpu("A100", 312e12, 1555e9, 40e9, "bfloat16"),  # of the A100 (40 GB)
    Gpu("H100", 989e12, 3350e9, 80e9, "bfloat16"),  # and of the H100 (SXM, without sparsity)
]


@dataclass(frozen=True)
class Work:
    """What a run does: its tokens, their operations, the bytes that move, torch's operations, bytes at the peak."""

    name: str
    tokens: int
    flops: float
    bytes: float
    calls: int
    held: float

    def tokens_per_second(self, gpu: Gpu) -> tuple[float, str]:
        """The most that `gpu` can do, and what keeps it from more."""
        limits = {
            "operations": self.flops / gpu.flops,
            "bandwidth": self.bytes / gpu.bandwidth,
            "launches": self.calls * LAUNCH,
        }
        by = max(limits, key=limits.__getitem__)
        return self.tokens / limits[by], by


def counted(model: Any, work: Callable[[], object]) -> tuple[float, int, int]:
    """Operations, torch's operations but for views, and the peak of bytes of `work` on torch's meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from slimdown.models.memory import LiveBytes

    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    of_attention = {  # of shapes: two products, and five with the scores made again
        flash: lambda query, key, *_, **__: 4 * prod(query) * key[-2],
        flash_backward: lambda gradient, query, key, *_, **__: 10 * prod(query) * key[-2],
    }

    class Calls(LiveBytes):
        n = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            Calls.n += not func.is_view
            return super().__torch_dispatch__(func, types, args, kwargs)

    with (
        Calls(model) as live,
        FlopCounterMode(display=False, custom_mapping=of_attention) as counter,
    ):
        work()
    return counter.get_total_flops(), Calls.n, live.peak


def works(config: Any, base: Any) -> list[Work]:
    """Scoring, decoding and a step of QLoRA of the model, whose numbers are not needed.

    Args:
        config: a run's.
        base: an `Outline`.
    """
    import torch

    from slimdown.evaluation.engine.forward import measuring
    from slimdown.evaluation.engine.packing import ROW_TOKENS, token_budget
    from slimdown.models.sizes import weight_sizes
    from slimdown.training.footprint import footprint, trained_outline

    model, budget = base.model, token_budget("cuda")
    settings, weights = model.config, weight_sizes(model).held
    meta: dict[str, Any] = {"dtype": torch.long, "device": "meta"}
    rows = torch.zeros(budget // ROW_TOKENS, ROW_TOKENS, **meta)

    def forward(of: Any, ids: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(len(ids), 1, *[ids.shape[1]] * 2, dtype=torch.bool, device="meta")
        logits: torch.Tensor = of(
            input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False
        ).logits
        return logits

    with measuring(model):
        flops, calls, _ = counted(model, lambda: forward(model, rows))
        step_flops, step_calls, _ = counted(
            model, lambda: forward(model, torch.zeros(ROWS, 1, **meta))
        )
    a_token = (
        2 * settings.num_hidden_layers * settings.num_key_value_heads * settings.head_dim * 2
    )  # bytes of the cache
    attended = (
        4
        * settings.num_hidden_layers
        * settings.num_attention_heads
        * settings.head_dim
        * BEHIND
        * ROWS
    )
    plain = replace(config.quantization, load_in_4bit=False)
    tuned = trained_outline(base.loaded(plain), replace(config, quantization=plain)).train()
    batch = torch.zeros(BATCH, LENGTH, **meta)
    train_flops, train_calls, _ = counted(
        tuned, lambda: torch.autograd.backward(forward(tuned, batch).float().sum())
    )
    held = footprint(base.loaded(config.quantization), config, BATCH * LENGTH)
    moved = (
        2 * weights + 2 * BATCH * LENGTH * settings.vocab_size * 2
    )  # forward and backward, and the logits
    return [
        Work("scoring", budget, flops, weights, calls, float(held.evaluation or 0)),
        Work(
            f"decoding {ROWS} rows", ROWS, step_flops + attended, weights + ROWS * BEHIND * a_token, step_calls,
            float(held.evaluation or 0),
        ),
        Work("QLoRA training", BATCH * LENGTH, train_flops, moved, train_calls, float(held.training or 0)),
    ]  # fmt: skip


def settings_of(model: str, device: str, dtype: str = "auto") -> Any:
    """A run's settings, of a model in 4 bits."""
    from hydra import compose, initialize_config_dir

    from slimdown.config.files import CONF_DIR
    from slimdown.config.loader import load_config

    chosen = [f"model.id={model}", f"model.device={device}", f"model.dtype={dtype}"]
    chosen += [f"quantization.bnb_4bit_compute_dtype={dtype}", "evaluation.token_budget=null"]
    chosen += [
        f"train.max_length={LENGTH}",
        f"train.max_steps={STEPS}",
        f"train.per_device_train_batch_size={BATCH}",
    ]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return load_config(compose("config", overrides=chosen))


def expected(shape: dict[str, Any]) -> list[Work]:
    """What a model of that shape has to do on a GPU."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from slimdown.models.model import Outline

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(
            LlamaConfig(**shape), dtype=torch.bfloat16
        ).eval()
    outline = Outline("random", skeleton, torch.device("cuda"), torch.bfloat16, "")
    return works(settings_of("pocket:model", "auto", "bfloat16"), outline)


def print_expected(todo: list[Work]) -> None:
    """One row a GPU and work."""
    print(
        "| GPU | dtype | work | tokens/s at most | kept from more by | memory | of |\n|---|---|---|---:|---|---:|---:|"
    )
    for gpu in GPUS:
        for work in todo:
            most, by = work.tokens_per_second(gpu)
            print(
                f"| {gpu.name} | {gpu.dtype} | {work.name} | {most:,.0f} | {by} | {work.held / 1e9:.1f} GB "
                f"| {gpu.memory / 1e9:.0f} GB |"
            )


def measured(folder: Path, device: str) -> dict[str, tuple[float, float]]:
    """Tokens a second and peak bytes of each work, on random weights in `folder`."""
    import torch

    from slimdown.evaluation.engine.decoding import GreedyDecoder
    from slimdown.evaluation.engine.forward import logits_at, measuring
    from slimdown.evaluation.engine.packing import ROW_TOKENS, token_budget
    from slimdown.models.dequantize import dequantized
    from slimdown.models.memory import peak_memory
    from slimdown.models.model import load_model

    config = settings_of(str(folder), device)
    base = load_model(config.model, config.quantization)
    vocabulary, budget = base.model.config.vocab_size, token_budget(device)
    found: dict[str, tuple[float, float]] = {}
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (budget // ROW_TOKENS, ROW_TOKENS), generator=generator).to(
        device
    )
    kept = torch.arange(budget * 2 // 3, device=device)
    prompts = [
        tuple(row)
        for row in torch.randint(vocabulary, (ROWS, BEHIND), generator=generator).tolist()
    ]

    def decode(n_new: int) -> None:
        nobody = (lambda rows: [False] * len(rows)), (lambda index, new: None)
        GreedyDecoder(base.model, budget, n_new, [], *nobody).run(prompts)

    with measuring(base.model), dequantized(base.model), peak_memory(device) as peak:
        seconds = timed(
            lambda: logits_at(base.model, kept, input_ids=ids, use_cache=False)[0, 0].item()
        )
        found["scoring"] = budget / seconds, peak()
    with measuring(base.model), dequantized(base.model), peak_memory(device) as peak:
        decode(1)
        seconds = timed(lambda: decode(NEW + 1)) - timed(lambda: decode(1))
        found[f"decoding {ROWS} rows"] = ROWS * NEW / seconds, peak()
    found["QLoRA training"] = trained(base, config, folder)
    return found


def trained(base: Any, config: Any, folder: Path) -> tuple[float, float]:
    """Tokens a second and peak bytes of a few steps."""
    import datasets
    import torch

    from slimdown.training.adapters import adapter_config, attach
    from slimdown.training.lean import padding_free_collator, trainer_class
    from slimdown.training.steps import take_steps, trainer_for

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(
        base.model.config.vocab_size, (BATCH * STEPS, LENGTH), generator=generator
    ).tolist()
    rows = datasets.Dataset.from_dict({"input_ids": ids, "labels": ids})
    model = attach(base, adapter_config(config.method, config.lora, base), rows)
    kind, collator = trainer_class(base, model), padding_free_collator(base, model)
    trainer = trainer_for(
        model, base.tokenizer, rows, config.train, 0, folder, base.device, kind, collator
    )
    ends: list[float] = []
    done = take_steps(
        trainer, config.train, 0, base.device, lambda *_: ends.append(time.perf_counter())
    )
    return BATCH * LENGTH * (len(ends) - 1) / (
        ends[-1] - ends[0]
    ), done.peak_bytes  # the first step starts kernels


def timed(work: Callable[[], object]) -> float:
    """Seconds of the second time; `work` ends by looking at a number."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run_tests() -> tuple[list[str], bool]:
    """A row for each test marked gpu, and whether none failed."""
    import pytest

    rows: list[str] = []

    class Reports:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.outcome != "passed":
                why = (
                    report.longrepr[2]
                    if report.skipped
                    else str(report.longrepr or "").strip().splitlines()[-1:]
                )
                rows.append(
                    f"| {report.nodeid.partition('::')[2]} | {report.outcome} | {why or ''} |"
                )

    code = pytest.main(
        ["-m", "gpu", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py"], plugins=[Reports()]
    )
    return rows, code == 0


def check(shape: dict[str, Any], device: str) -> bool:
    """Run all, print the table to paste back; whether every test passed."""
    import torch

    from bench.sizes import random_model

    rows, is_good = run_tests() if device == "cuda" else ([], True)
    with tempfile.TemporaryDirectory() as name:
        todo = {work.name: work for work in expected(shape)}
        random_model(Path(name), shape)
        found = measured(Path(name), device)
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    names = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "lm-eval")
    print(
        f"\n{card}, CUDA {torch.version.cuda}, "
        + ", ".join(f"{name} {version(name)}" for name in names)
    )
    print("\n| check | outcome | |\n|---|---|---|", *rows, sep="\n")
    gpu = next((gpu for gpu in GPUS if gpu.name in card), None)
    print("\n| work | tokens/s | at most | peak | expected |\n|---|---:|---:|---:|---:|")
    for name, (speed, peak) in found.items():
        most = f"{todo[name].tokens_per_second(gpu)[0]:,.0f}" if gpu else ""
        print(
            f"| {name} | {speed:,.0f} | {most} | {peak / 1e9:.2f} GB | {todo[name].held / 1e9:.2f} GB |"
        )
    return is_good


def main(arguments: list[str] | None = None) -> None:
    """Print what is expected, or check this machine's GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--expect", action="store_true", help="the arithmetic alone")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not chosen.expect:
        import torch

        if not torch.cuda.is_available():
            sys.exit(
                "no GPU: torch sees no CUDA device here; `python -m bench.gpu --expect` is what needs none"
            )
    from bench.sizes import SHAPE

    if chosen.expect:
        print_expected(expected(SHAPE))
    elif not check(SHAPE, "cuda"):
        sys.exit(1)


if __name__ == "__main__":
    main()
