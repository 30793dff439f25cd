"""A sweep of LoRA ranks by stock tools (a TRL script, lm_eval's command line) and by slimdown.

    python -m bench.sweep --until all decided

Stock: the 4-bit base is saved once, because lm_eval 0.4.13 cannot quantize on load, and measured
once. A script of TRL's defaults trains each rank, and each benchmark is measured at the batch size
that is fastest for it. By default one rank is timed and counts for all: nothing in its cost depends
on the rank. slimdown runs all ranks from an empty record, with its plots, pages and validations,
which stock has not; once for each `evaluation.until` that is named.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.machine import describe_machine, load_config_of
from bench.training import train_stock
from slimdown.data.training_data import load_training_data
from slimdown.models.base_model import load_base_model

LIMITS = {"hellaswag": 20, "gsm8k": 4, "mmlu_cs": 10}
BATCH_SIZES = {"hellaswag": 16, "gsm8k": 1, "mmlu_cs": 4}  # stock's fastest (bench.evaluation)
Cost = tuple[float, float]  # seconds and CPU seconds


def list_settings(times: int = 1) -> list[str]:
    """Name what both run; `times` as many questions."""
    limits = [f"benchmark.{name}.limit={times * limit}" for name, limit in LIMITS.items()]
    rows = ["dataset.alpaca.max_examples=32", "dataset.alpaca.validation_examples=100"]
    return ["model=smollm2", *rows, *limits]


def prepare_stock(rank: int | None, folder: Path) -> None:
    """Save the 4-bit base as lm_eval can load it, or train one rank by TRL's script."""
    config = load_config_of(*list_settings(), f"lora.r={rank or 8}")
    base = load_base_model(config.model, config.quantization)
    if rank is None:
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
    else:
        data = load_training_data(config.dataset, base.tokenizer, config.seed)
        train_stock(base, data, config, folder)


def run_timed(name: str, *command: str) -> Cost:
    """Run a command that must succeed, and print what it cost."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"| {name} | {seconds:.0f} | {cpu_seconds:.0f} |", flush=True)
    return seconds, cpu_seconds


def evaluate_stock(name: str, model: str, times: int) -> list[Cost]:
    """Run lm_eval on each benchmark, one command each as their shots differ."""
    benchmarks, costs = load_config_of(*list_settings()).benchmark, []
    for benchmark, limit in LIMITS.items():
        arguments = ["--model", "hf", "--model_args", f"{model},dtype=bfloat16"]
        arguments += ["--tasks", benchmarks[benchmark].task, "--limit", str(times * limit)]
        arguments += ["--num_fewshot", str(benchmarks[benchmark].num_fewshot)]
        arguments += ["--batch_size", str(BATCH_SIZES[benchmark])]
        costs.append(run_timed(f"stock: lm_eval {benchmark}, {name}", "lm_eval", *arguments))
    return costs


def main() -> None:
    """Print what each step cost, and how many times as long stock takes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--times", type=int, default=1, help="as many questions as 20, 4 and 10")
    parser.add_argument("--until", nargs="+", default=["all"], choices=["all", "decided"])
    parser.add_argument("--every", action="store_true", help="time stock at every rank")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        return prepare_stock(options.rank, options.prepare)
    print(describe_machine(), "\n| step | seconds | CPU seconds |\n|---|---:|---:|")
    n = len(options.ranks)
    with tempfile.TemporaryDirectory() as folder:
        base = f"{folder}/base"
        once = [run_timed("stock: save the 4-bit base", "bench.sweep", "--prepare", base)]
        once += evaluate_stock("base", f"pretrained={base}", options.times)
        ranks, by_rank = (options.ranks if options.every else options.ranks[:1]), []
        for rank in ranks:
            adapter = f"{folder}/r{rank}"
            command = ["bench.sweep", "--prepare", adapter, "--rank", str(rank)]
            by_rank.append(run_timed(f"stock: train r {rank}", *command))
            model = f"pretrained={base},peft={adapter}"
            by_rank += evaluate_stock(f"r {rank}", model, options.times)
        stock = [sum(x[i] for x in once) + n / len(ranks) * sum(x[i] for x in by_rank)
                 for i in range(2)]  # fmt: skip
        print(f"stock, {n} ranks: {stock[0]:.0f} s, {stock[1]:.0f} CPU seconds")
        overrides = [*list_settings(options.times), f"lora.r={','.join(map(str, options.ranks))}"]
        for until in options.until:
            store = f"tracking.uri=sqlite:///{folder}/{until}/mlflow.db"
            folders = f"hydra.sweep.dir={folder}/outputs-{until}"
            command = ["slimdown.run", "-m", *overrides, f"evaluation.until={until}", store]
            ours = run_timed(f"slimdown: all ranks, until={until}", *command, folders)
            ratios = [stock[i] / ours[i] for i in range(2)]
            print(f"stock takes {ratios[0]:.1f} times as long, {ratios[1]:.1f} in CPU seconds")


if __name__ == "__main__":
    main()
