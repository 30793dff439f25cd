"""Estimate how long the paper's table and the suites take on three cards; measure nothing.

    python -m bench.gpu_estimate        needs the hub; counts tokens by SmolLM2's tokenizer

The table: a model of Llama 3.2 1B's shape in 4 bits and its fine-tuning on 2,000 rows of Alpaca,
both asked HellaSwag (10,042), GSM8K (1,319, five-shot) and MMLU college computer science (100).
A forward takes two operations a weight and token, a training step four, six with checkpoints. A
batch takes its operations at a share of the card's peak, but at least what Python and the unpacking
of 4-bit weights take; generated answers all go to their limit of tokens. The shares and times of
`CARDS` are assumptions, not measurements. Of `SUITE_TASKS` the lengths marked as assumed are, too.
A suite asks a base and a tuned model; nothing is trained.
"""

import argparse
from collections.abc import Iterable, Sequence
from math import ceil
from typing import NamedTuple

from datasets import load_dataset
from transformers import AutoTokenizer

from bench.evaluation import build_requests
from bench.machine import load_config_of
from slimdown.config.paths import list_group_choices

N_WEIGHTS = 1.236e9  # of Llama 3.2 1B, its output layer once
N_HELLASWAG, N_TOKENS_GENERATED = 10_042, 256


class Card(NamedTuple):
    """What is assumed of a card and its host."""

    name: str
    operations: float  # a second, of dense 16-bit tensors: peak times the share that is reached
    forward_seconds: float  # at least: Python, launches, unpacked 4-bit weights
    question_batch: int  # what `choose_backend` takes
    generation_batch: int
    row_batch: int  # of a forward, with checkpoints
    start_seconds: float = 120.0  # imports, the model, prompts, tokenizing


CARDS = [
    Card("H100, train=h100", 0.35 * 989e12, 0.030, 32, 64, 16),
    Card("RTX 4090", 0.35 * 165e12, 0.030, 8, 32, 4),
    Card("T4", 0.35 * 65e12, 0.045, 4, 16, 2),
]


class SuiteTask(NamedTuple):
    """A benchmark of a suite: all its questions, and the tokens computed of one."""

    n_questions: int  # of one subject, where there are several
    tokens: float | str  # a number is assumed; else the task whose rows are counted
    n_subjects: int = 1
    n_generated: int = 0  # the task's own limit; 0: choices


SUITE_TASKS = {
    "hellaswag": SuiteTask(N_HELLASWAG, "hellaswag:200"),
    "arc_easy": SuiteTask(2376, "arc_easy:200"),
    "arc_challenge": SuiteTask(1172, "arc_challenge:200"),
    "winogrande": SuiteTask(1267, 60.0),
    "truthfulqa_mc2": SuiteTask(817, 400.0),
    # Of 57 subjects one stands for all; their mean number of questions.
    "mmlu": SuiteTask(246, "mmlu_college_computer_science:100:5", 57),
    "gsm8k": SuiteTask(1319, "gsm8k:100:5", 1, N_TOKENS_GENERATED),
    "ifeval": SuiteTask(541, "ifeval:100", 1, 1280),
}


def count_question(task: str) -> float:
    """Count the tokens that slimdown computes of a question, on average."""
    tokenizer = AutoTokenizer.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
    requests = build_requests(task)
    contexts = {request.args[0] for request in requests}
    answers = [answer for r in requests if isinstance(answer := r.args[1], str)]
    n_tokens = sum(len(tokenizer(text).input_ids) for text in (*contexts, *answers))
    shared = len(tokenizer(find_shared_beginning(contexts)).input_ids) if answers else 0
    return n_tokens / len(contexts) - shared * (1 - 1 / len(contexts))


def estimate_suite(card: Card, suite: str, lengths: dict[str, float]) -> dict[str, float]:
    """Estimate the seconds that each benchmark of a suite takes for base and tuned model."""
    seconds = {"start": card.start_seconds}
    for name, benchmark in load_config_of("model=smollm2", f"suite={suite}").benchmark.items():
        task = SUITE_TASKS[name]
        n_questions = min(benchmark.limit or task.n_questions, task.n_questions)
        n_questions *= task.n_subjects
        size = card.generation_batch if task.n_generated else card.question_batch
        n_batches = ceil(n_questions / size)
        reading = time_forwards(card, n_batches, size * lengths[name])
        n_new = (benchmark.max_gen_toks or task.n_generated) if task.n_generated else 0
        writing = n_batches * n_new * time_forwards(card, 1, size)
        seconds[name] = 2 * (reading + writing)  # of the base and of the tuned model
    return seconds


def count_tokens() -> dict[str, tuple[float, float]]:
    """Count the tokens computed of a question, or of a row: by slimdown, and by stock.

    Of choices slimdown computes what all questions begin with once, and a context once for all of
    its answers; HFLM computes a context once where the answers are of one token.
    """
    tokenizer = AutoTokenizer.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")

    def count(texts: Iterable[str]) -> int:
        return sum(len(tokenizer(text).input_ids) for text in texts)

    tokens = {}
    for name, task in (
        ("HellaSwag", "hellaswag:1000"),
        ("MMLU-CS", "mmlu_college_computer_science:100:5"),
        ("GSM8K", "gsm8k:1319:5"),
    ):
        requests = build_requests(task)
        contexts = {request.args[0] for request in requests}
        answers = [answer for r in requests if isinstance(answer := r.args[1], str)]
        ours = stock = count(contexts) + count(answers)
        if answers:
            ours -= (len(contexts) - 1) * count([find_shared_beginning(contexts)])
        if name == "HellaSwag":
            stock = count(request.args[0] for request in requests) + count(answers)
        tokens[name] = ours / len(contexts), stock / len(contexts)
    rows = load_dataset("tatsu-lab/alpaca", split="train[:2000]")
    tokens["Alpaca"] = (count(rows["text"]) / len(rows),) * 2
    return tokens


def find_shared_beginning(texts: Iterable[str]) -> str:
    """Return the longest text with which all texts begin."""
    first, last = min(texts), max(texts)
    n_shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return first[:n_shared]


def time_forwards(card: Card, n_batches: float, n_tokens: float, operations: float = 2) -> float:
    """Estimate the seconds that batches of so many tokens take."""
    computing = operations * N_WEIGHTS * n_tokens / card.operations
    return n_batches * max(computing, operations / 2 * card.forward_seconds)


def estimate(card: Card, tokens: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Estimate the seconds of each part of the paper's table on a card."""

    def ask(name: str, n_questions: int, size: int) -> float:
        return 2 * time_forwards(card, ceil(n_questions / size), size * tokens[name][0])

    n_batches = ceil(1319 / card.generation_batch)
    texts = 2 * n_batches * N_TOKENS_GENERATED * time_forwards(card, 1, card.generation_batch)
    return {
        "start": card.start_seconds,
        "HellaSwag": ask("HellaSwag", N_HELLASWAG, card.question_batch),
        "MMLU-CS": ask("MMLU-CS", 100, card.question_batch),
        "GSM8K": ask("GSM8K", 1319, card.generation_batch) + texts,
        "training": time_forwards(
            card, 2000 / card.row_batch, card.row_batch * tokens["Alpaca"][0], 6
        ),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tokens counted and the minutes of each part."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    tokens = count_tokens()
    counts = (f"{name} {ours:.0f} ({stock:.0f})" for name, (ours, stock) in tokens.items())
    print("tokens (stock's):", ", ".join(counts))
    for card in CARDS:
        show(card.name, estimate(card, tokens))
    lengths = {
        name: count_question(task.tokens) if isinstance(task.tokens, str) else task.tokens
        for name, task in SUITE_TASKS.items()
    }
    print("tokens:", ", ".join(f"{name} {length:.0f}" for name, length in lengths.items()))
    for card in CARDS:
        for suite in list_group_choices("suite"):
            show(f"{card.name}, suite={suite}", estimate_suite(card, suite, lengths))


def show(title: str, parts: dict[str, float]) -> None:
    """Print the minutes of each part."""
    minutes = {name: f"{seconds / 60:.1f}" for name, seconds in parts.items()}
    print(f"{title}: {sum(parts.values()) / 60:.1f} minutes:", minutes)


if __name__ == "__main__":
    main()
