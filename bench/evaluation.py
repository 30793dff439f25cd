"""Stock HFLM and slimdown's language model on the same questions: time, answers, memory.

    python -m bench.evaluation --task hellaswag:200 --task gsm8k:32:5
    python -m bench.evaluation tuned=FOLDER quantization=nf4       any settings of a model

A task is NAME:QUESTIONS[:SHOTS]; the questions are spread evenly over the task, which may be
sorted. Stock runs at each batch size and its fastest counts. Both are timed on the harness's own
requests, with tokenizing, without loading and building prompts.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from bench.machine import describe_machine, load_config_of
from slimdown.config.schema import RunConfig
from slimdown.evaluation.backend import choose_backend, open_lm
from slimdown.models.base_model import LoadedModel, load_base_model
from slimdown.models.device_memory import measure_peak_memory
from slimdown.models.external import open_tuned_model
from slimdown.pocket import TASKS_DIR

DEFAULT_TASKS = ["hellaswag:200", "mmlu_college_computer_science:100:5", "gsm8k:32:5"]


class Timing(NamedTuple):
    """One language model on one task: its answers in request order, and its cost."""

    answers: list[Any]
    seconds: float
    cpu_seconds: float  # summed over threads; on a busy machine it says more than the clock
    peak_bytes: float


@cache
def index_tasks() -> TaskManager:
    """Read the harness's thousands of task files, once."""
    return TaskManager(include_path=str(TASKS_DIR))


def build_requests(task: str) -> list[Instance]:
    """Build the harness's requests for NAME:QUESTIONS[:SHOTS]."""
    name, limit, *shots = task.split(":")
    (loaded,) = index_tasks().load(name)["tasks"].values()
    if shots:
        loaded.set_config(key="num_fewshot", value=int(shots[0]))
    loaded.set_fewshot_seed(seed=1234)
    n = len(loaded.eval_docs)
    spread = [i * n // int(limit) for i in range(int(limit))] if int(limit) < n else None
    loaded.build_all_requests(samples=spread, rank=0, world_size=1)
    return list(loaded.instances)


def measure(lm: HFLM, requests: list[Instance], device: str) -> Timing:
    """Run requests through a language model."""
    run: Callable[..., list[Any]] = getattr(lm, requests[0].request_type)
    with measure_peak_memory(device) as peak:
        started, cpu_started = time.perf_counter(), time.process_time()
        answers = run(requests, disable_tqdm=True)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        return Timing(answers, seconds, cpu_seconds, peak())


def compare(requests: Sequence[Instance], stock: list[Any], ours: list[Any]) -> tuple[int, float]:
    """Count questions that are answered differently; the largest change of a log-likelihood."""
    answers = list(zip(stock, ours, strict=True))
    if isinstance(stock[0], str):
        return sum(first != second for first, second in answers), 0.0
    questions: dict[int, list[int]] = {}
    for i, request in enumerate(requests):
        questions.setdefault(request.doc_id, []).append(i)
    n_differing = 0
    for choices in questions.values():
        first = max(choices, key=lambda i: stock[i][0])
        second = max(choices, key=lambda i: ours[i][0])
        n_differing += first != second
    return n_differing, max(abs(first[0] - second[0]) for first, second in answers)


def show_task(task: str, model: LoadedModel, config: RunConfig, batch_sizes: Sequence[int]) -> None:
    """Print the rows of one task: stock at each batch size, and slimdown."""
    requests = build_requests(task)
    stock = {}
    for size in batch_sizes:
        lm = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=size)
        stock[size] = measure(lm, requests, model.device)
    best = min(stock.values(), key=lambda timing: timing.seconds)
    backend = choose_backend(model, config.evaluation, share_prefixes=True)
    lm = open_lm(model, config.evaluation, backend)
    if requests[0].request_type == "generate_until":
        lm.batch_size_per_gpu = backend.generation_batch_size
    rows = {f"HFLM, batch {size}": timing for size, timing in stock.items()}
    rows[f"slimdown ({backend.name})"] = measure(lm, requests, model.device)
    for name, timing in rows.items():
        differing, change = compare(requests, best.answers, timing.answers)
        cells = [task, name, f"{timing.seconds:.1f}", f"{best.seconds / timing.seconds:.2f}"]
        cells += [f"{timing.cpu_seconds:.1f}", f"{best.cpu_seconds / timing.cpu_seconds:.2f}"]
        cells += [str(differing), f"{change:.2g}", f"{timing.peak_bytes / 1e6:.0f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print a table of all tasks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", action="append", help=f"default: {' '.join(DEFAULT_TASKS)}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("overrides", nargs="*", help="settings, e.g. model.dtype=float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = load_config_of("model=smollm2", "quantization=none", *options.overrides)
    model = load_base_model(config.model, config.quantization)
    if config.tuned:
        model = open_tuned_model(config, model).load()
    settings = f"{config.tuned or model.id}, {model.quantization}, {model.dtype}, {model.device}"
    print(describe_machine(), settings, sep="\n")
    columns = "task | language model | seconds | times as fast | CPU seconds | times as fast"
    print(f"| {columns} | answers that differ | max Δ nats | peak MB |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for task in options.task or DEFAULT_TASKS:
        show_task(task, model, config, options.batch_sizes)


if __name__ == "__main__":
    main()
