"""Rebuilds the pocket world from a seed: `python -m tools.pocket`."""

import argparse
import os
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from slimdown.pocket import PACKAGE_DIR, TASKS_DIR
from tools.pocket.corpus import SEED, save_files

LIBRARIES = ("torch", "transformers", "tokenizers", "bitsandbytes", "lm_eval", "datasets")
TASKS = ("pocket_math", "pocket_commonsense", "pocket_cs", "pocket_instructions")
METRICS = {
    "exact_match,strict-match": "strict",
    "exact_match,flexible-extract": "flexible",
    "acc,none": "acc",
    "acc_norm,none": "acc_norm",
    "exact_match,strip": "exact_match",
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's settings."""
    parser = argparse.ArgumentParser(prog="python -m tools.pocket", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED, help="of data, tokenizer and weights")
    parser.add_argument("--steps", type=int, help="pretraining steps (default: the shipped base's)")
    parser.add_argument(
        "--out", type=Path, default=PACKAGE_DIR, help="folder to write (default: slimdown/pocket)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Writes data, tokenizer and weights, then measures the new base."""
    settings = parse_arguments(arguments)
    console = Console()
    started = time.perf_counter()

    import torch

    from tools.pocket.pretrain import STEPS, pretrain

    # The matrices are too small to share out: a second thread costs more waiting than it saves.
    torch.set_num_threads(1)
    out: Path = settings.out
    console.print(f"Python {platform.python_version()}", *(f"{x} {version(x)}" for x in LIBRARIES))
    save_files(out / "data", settings.seed)
    console.print(f"data: {count_bytes(out / 'data') / 1e6:.2f} MB")
    if out.resolve() != PACKAGE_DIR:
        shutil.copytree(
            TASKS_DIR, out / "tasks", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__*")
        )
    result = pretrain(out / "model", settings.seed, settings.steps or STEPS)
    console.print(
        f"model: {result.parameters:,} parameters, {count_bytes(out / 'model') / 1e6:.2f} MB, "
        f"{result.steps} steps, {result.tokens:,} tokens, loss {result.loss:.3f}, "
        f"{time.perf_counter() - started:.0f} s so far"
    )
    plain, quantized = (score_model(out, quantized=q) for q in (False, True))
    table = Table("test items", "as shipped", "quantized to NF4")
    for name, value in plain.items():
        table.add_row(name, f"{value:.3f}", f"{quantized[name]:.3f}")
    console.print(table)
    console.print(f"done in {time.perf_counter() - started:.0f} s: {out}")


def score_model(world: Path, *, quantized: bool, split: str = "test") -> dict[str, float]:
    """Every metric of the world's model on its four benchmarks, quantized to NF4 or not."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        world / "model", dtype=torch.float32, quantization_config=nf4 if quantized else None
    )
    for module in model.modules():
        # Where a CPU has bfloat16 instructions, bitsandbytes would repack the weights at the first
        # forward and compute in bfloat16, whatever the compute dtype says.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    language_model = HFLM(
        pretrained=model,
        tokenizer=AutoTokenizer.from_pretrained(world / "model"),
        batch_size=64,
        device="cpu",
    )
    suffix = "" if split == "test" else f"_{split}"
    results = simple_evaluate(
        language_model,
        tasks=[task + suffix for task in TASKS],
        task_manager=TaskManager(include_path=str(world / "tasks"), include_defaults=False),
        bootstrap_iters=0,
        log_samples=False,
    )
    return {
        f"{task} {METRICS[metric]}": float(value)
        for task in TASKS
        for metric, value in results["results"][task + suffix].items()
        if metric in METRICS
    }


def count_bytes(folder: Path) -> int:
    """What the folder's files take up."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


if __name__ == "__main__":
    main()
