"""A small sweep of ranks the stock way (a TRL script and lm_eval's command line) and slimdown's, timed in one sitting.

    python -m bench.sweep --until all decided

Stock: the 4-bit base is saved once, because lm_eval 0.4.13 cannot quantize on load, and measured once; each rank is
trained by a script of TRL's defaults and measured, every benchmark at the batch size that is fastest for it. By default
one rank is timed and counts for all: nothing in its cost depends on the rank. slimdown runs all of them, from an empty
record, with its plots, pages and validations, which stock has not; once for each `evaluation.until` that is named.
"""

import argparse
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir

from bench.training import stock
from slimdown.config.files import CONF_DIR
from slimdown.config.loader import load_config
from slimdown.config.schema import RunConfig
from slimdown.data.loading import load_data
from slimdown.models.model import load_model
from slimdown.tracking.provenance import environment

ROWS = 32
LIMITS = {"hellaswag": 20, "gsm8k": 4, "mmlu_cs": 10}
BATCH_SIZES = {
    "hellaswag": 16,
    "gsm8k": 1,
    "mmlu_cs": 4,
}  # stock's fastest (docs/studies/evaluation-speed.md)


def settings(times: int = 1) -> list[str]:
    """What both ways run; `times` as many questions."""
    limits = [f"benchmark.{name}.limit={times * limit}" for name, limit in LIMITS.items()]
    return ["model=smollm2", f"dataset.alpaca.max_examples={ROWS}", *limits]


def config_of(rank: int) -> RunConfig:
    """The composed settings of one rank."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return load_config(compose("config", overrides=[*settings(), f"lora.r={rank}"]))


def train_stock(rank: int, folder: Path) -> None:
    """TRL's script: load the base, train on the rows, save the adapter."""
    config = config_of(rank)
    base = load_model(config.model, config.quantization)
    stock(base, load_data(config.dataset, config.seed, base.tokenizer), config, folder)


def save_base(folder: Path) -> None:
    """The 4-bit base as a folder that lm_eval can load."""
    config = config_of(8)
    base = load_model(config.model, config.quantization)
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)


def timed(what: str, *command: str) -> np.ndarray:
    """Seconds and CPU seconds that a command takes; it must succeed. On a busy machine the second say more."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{what} failed:\n{done.stderr[-3000:]}")
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"| {what} | {seconds:.0f} | {cpu_seconds:.0f} |", flush=True)
    return np.array([seconds, cpu_seconds])


def evaluated(what: str, model: str, times: int) -> np.ndarray:
    """What lm_eval takes on all benchmarks, one command each as their shots differ."""
    benchmarks = config_of(8).benchmark
    return np.sum([
        timed(
            f"stock: lm_eval {name}, {what}", "lm_eval", "--model", "hf", "--model_args", f"{model},dtype=bfloat16",
            "--tasks", benchmarks[name].task, "--num_fewshot", str(benchmarks[name].num_fewshot),
            "--limit", str(times * limit), "--batch_size", str(BATCH_SIZES[name]),
        )
        for name, limit in LIMITS.items()
    ], axis=0)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--times", type=int, default=1, help="as many questions as 20, 4 and 10")
    parser.add_argument(
        "--until", nargs="+", default=["all"], choices=["all", "decided"], help="evaluation.until"
    )
    parser.add_argument(
        "--every", action="store_true", help="time stock at every rank instead of at the first"
    )
    parser.add_argument("--train-stock", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--save-base", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.save_base:
        return save_base(args.folder)
    if args.train_stock:
        return train_stock(args.train_stock, args.folder)
    machine = environment()
    print(
        f"{machine['processor']}, {machine['cores']} cores, load {os.getloadavg()[0]:.1f} at the start"
    )
    print("| step | seconds | CPU seconds |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        base = f"{folder}/base"
        once = timed("stock: save the 4-bit base", "bench.sweep", "--save-base", "--folder", base)
        measured = evaluated("base", f"pretrained={base}", args.times)
        each = []
        for rank in args.ranks if args.every else args.ranks[:1]:
            adapter = f"{folder}/r{rank}"
            train = timed(
                f"stock: train r {rank}",
                "bench.sweep",
                "--train-stock",
                str(rank),
                "--folder",
                adapter,
            )
            each.append(
                train + evaluated(f"r {rank}", f"pretrained={base},peft={adapter}", args.times)
            )
        overrides = [*settings(args.times), f"lora.r={','.join(map(str, args.ranks))}"]
        ours = {
            until: timed(
                f"slimdown: all ranks, until={until}", "slimdown.run", "-m", *overrides, f"evaluation.until={until}",
                f"tracking.uri=sqlite:///{folder}/{until}/mlflow.db", f"hydra.sweep.dir={folder}/outputs-{until}",
            )
            for until in args.until
        }  # fmt: skip
    n, per_rank = len(args.ranks), sum(each) / len(each)
    stock_ways = {
        "once": once + measured + n * per_rank,
        "at every rank": once + n * (measured + per_rank),
    }
    for how, (seconds, cpu_seconds) in stock_ways.items():
        print(
            f"stock, {n} ranks, base measured {how}: {seconds:.0f} s, {cpu_seconds:.0f} CPU seconds"
        )
        for until, (of_ours, of_our_cpu) in ours.items():
            cpu = f"{cpu_seconds / of_our_cpu:.1f} times in CPU seconds"
            print(f"  {seconds / of_ours:.1f} times slimdown's with until={until}, {cpu}")


if __name__ == "__main__":
    main()
