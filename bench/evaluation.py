"""Stock HFLM and slimdown's class on the same questions, in one process: time, answers, memory.

    python -m bench.evaluation --task hellaswag:200 --task mmlu_college_computer_science:100:5
    python -m bench.evaluation --family gemma3_text:512   a small random model with that window
    python -m bench.evaluation --task gsm8k:32:5 --tuned FOLDER   and what was tuned from it, drafted from its answers

A task is NAME:QUESTIONS[:SHOTS]; the questions are spread evenly over the task, which may be sorted.
Stock runs at each batch size and its fastest counts. Both are timed on the harness's own requests,
tokenizing included, loading and prompt building not.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.families import tiny
from slimdown.evaluation.engine.scoring import SharedWorkLM

DEFAULT_TASKS = ["hellaswag:200", "mmlu_college_computer_science:100:5", "gsm8k:32:5"]


class Measured(NamedTuple):
    """One class on one task: its answers in request order, its cost.

    `cpu_seconds` sums over threads; on a busy machine it says more than the clock does.
    """

    answers: list[Any]
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def build_requests(task: str) -> list[Instance]:
    """The harness's requests for NAME:QUESTIONS[:SHOTS]."""
    name, limit, *shots = task.split(":")
    (built,) = TaskManager().load(name)["tasks"].values()
    if shots:
        built.set_config(key="num_fewshot", value=int(shots[0]))
    built.set_fewshot_seed(seed=1234)
    n = len(built.eval_docs)
    spread = [i * n // int(limit) for i in range(int(limit))] if int(limit) < n else None
    built.build_all_requests(samples=spread, rank=0, world_size=1)
    return list(built.instances)


def measure(lm: HFLM, requests: list[Instance]) -> Measured:
    """Run `requests` through `lm`."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak that VmHWM reports
    run: Callable[..., list[Any]] = getattr(lm, requests[0].request_type)
    started, cpu_started = time.perf_counter(), time.process_time()
    answers = run(requests, disable_tqdm=True)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return Measured(answers, seconds, cpu_seconds, int(peak.split()[1]) * 1024)


def compare(requests: Sequence[Instance], one: list[Any], other: list[Any]) -> tuple[int, float]:
    """How many questions are answered differently, and the largest change of a log-probability."""
    if isinstance(one[0], str):
        return sum(a != b for a, b in zip(one, other, strict=True)), 0.0
    questions: dict[int, list[int]] = {}
    for i, request in enumerate(requests):
        questions.setdefault(request.doc_id, []).append(i)
    differing = sum(
        max(group, key=lambda i: one[i][0]) != max(group, key=lambda i: other[i][0])
        for group in questions.values()
    )
    return differing, max(abs(a[0] - b[0]) for a, b in zip(one, other, strict=True))


def small(family: str, tokenizer: Any) -> Any:
    """A random model for FAMILY[:WINDOW], larger than those of `bench.families`: matrix products count."""
    name, *window = family.split(":")
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24, "head_dim": 64}
    positions = {
        "max_position_embeddings": 8192,
        "vocab_size": len(tokenizer),
        "initializer_range": 0.05,
    }
    return tiny(
        name, **sizes, **positions, **({"sliding_window": int(window[0])} if window else {})
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument(
        "--family", metavar="FAMILY[:WINDOW]", help="in place of the weights of --model"
    )
    parser.add_argument("--tuned", help="folder of a model tuned from it, to be measured as well")
    parser.add_argument("--task", action="append", help=f"default: {' '.join(DEFAULT_TASKS)}")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--token-budget", type=int)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    load, dtype = AutoModelForCausalLM.from_pretrained, getattr(torch, args.dtype)
    model = small(args.family, tokenizer) if args.family else load(args.model, dtype=dtype)
    model = model.to(args.device, dtype)
    print(f"{args.family or args.model}, {args.dtype}, {args.device}, {args.threads} threads")
    columns = "seconds | ratio | CPU seconds | ratio | answers that differ | max Δ log-prob | drafted | peak MB"
    print(f"| task | class | {columns} |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    tuned = load(args.tuned, dtype=dtype).to(args.device) if args.tuned else None
    for task in args.task or DEFAULT_TASKS:
        requests = build_requests(task)
        answers = show(task, model, tokenizer, requests, args, {})
        if tuned is not None:
            texts = {
                r.args[0]: text
                for r, text in zip(requests, answers, strict=True)
                if isinstance(text, str)
            }
            changed = show(f"{task}, tuned", tuned, tokenizer, requests, args, texts)
            print(
                f"(tuned: {compare(requests, answers, changed)[0]} answers differ from the base's)"
            )


def show(
    task: str,
    model: Any,
    tokenizer: Any,
    requests: list[Instance],
    args: argparse.Namespace,
    known: dict[str, str],
) -> list[Any]:
    """Print the rows of one task and model; the answers. known: what the base answered, by prompt."""
    stock = {}
    for size in args.batch_sizes:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)
        stock[size] = measure(lm, requests)
    best = stock[min(stock, key=lambda size: stock[size].seconds)]
    best_cpu_seconds = min(result.cpu_seconds for result in stock.values())
    shared = SharedWorkLM(model, tokenizer, token_budget=args.token_budget)
    if not shared.scoring.shares:
        raise SystemExit(f"{args.model} takes the stock path: {shared.scoring.reason}")
    shared.answered = known
    rows = {f"HFLM, batch {size}": result for size, result in stock.items()}
    rows["slimdown"] = measure(shared, requests)
    for name, result in rows.items():
        differing, change = compare(requests, best.answers, result.answers)
        drafted = (
            f"{shared.n_guessed / shared.n_decoded:.2f}"
            if name == "slimdown" and shared.n_decoded
            else ""
        )
        print(
            f"| {task} | {name} | {result.seconds:.1f} "
            f"| {best.seconds / result.seconds:.2f} | {result.cpu_seconds:.1f} "
            f"| {best_cpu_seconds / result.cpu_seconds:.2f} | {differing} | {change:.2g} "
            f"| {drafted} | {result.peak_bytes / 1e6:.0f} |",
            flush=True,
        )
    return rows["slimdown"].answers


if __name__ == "__main__":
    main()
