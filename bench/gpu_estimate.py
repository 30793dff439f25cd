"""How long the paper's table takes on an H100 and a T4, worked out on paper: nothing is measured.

    python -m bench.gpu_estimate        needs the hub; counts tokens by SmolLM2's tokenizer

The table: a model of Llama 3.2 1B's shape in 4 bits and its fine-tuning on 2,000 rows of Alpaca,
both asked HellaSwag (10,042), GSM8K (1,319, five-shot) and MMLU college computer science (100).
A forward takes two operations a weight and token, a training step four, six with checkpoints. A
batch takes its operations at a share of the card's peak, but at least what Python and the unpacking
of 4-bit weights take; GSM8K's answers all go to the harness's limit of 256 tokens. The shares and
times of `CARDS` are assumptions, not measurements.
"""

import argparse
from collections.abc import Iterable, Sequence
from math import ceil
from typing import NamedTuple

from datasets import load_dataset
from transformers import AutoTokenizer

from bench.evaluation import build_requests

N_WEIGHTS = 1.236e9  # of Llama 3.2 1B, its output layer once
N_HELLASWAG, N_TOKENS_GENERATED = 10_042, 256


class Card(NamedTuple):
    """What is assumed of a card and its host."""

    name: str
    operations: float  # a second, of dense 16-bit tensors: peak times the share that is reached
    forward_seconds: float  # at least: Python, launches, unpacked 4-bit weights
    question_batch: int  # what `choose_backend` takes
    generation_batch: int
    row_batch: int  # of the preset, with checkpoints
    start_seconds: float = 120.0  # imports, the model, prompts, tokenizing


CARDS = [
    Card("H100, train=h100", 0.35 * 989e12, 0.030, 32, 64, 16),
    Card("T4, train=t4", 0.35 * 65e12, 0.045, 4, 16, 2),
]


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
    """Return the longest text that all begin with."""
    first, last = min(texts), max(texts)
    n_shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return first[:n_shared]


def estimate(card: Card, tokens: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Estimate the seconds of each part on a card."""

    def forward(n_batches: float, n_tokens: float, operations: float = 2) -> float:
        computing = operations * N_WEIGHTS * n_tokens / card.operations
        return n_batches * max(computing, operations / 2 * card.forward_seconds)

    def ask(name: str, n_questions: int, size: int) -> float:
        return 2 * forward(ceil(n_questions / size), size * tokens[name][0])

    n_batches = ceil(1319 / card.generation_batch)
    texts = 2 * n_batches * N_TOKENS_GENERATED * forward(1, card.generation_batch)
    return {
        "start": card.start_seconds,
        "HellaSwag": ask("HellaSwag", N_HELLASWAG, card.question_batch),
        "MMLU-CS": ask("MMLU-CS", 100, card.question_batch),
        "GSM8K": ask("GSM8K", 1319, card.generation_batch) + texts,
        "training": forward(2000 / card.row_batch, card.row_batch * tokens["Alpaca"][0], 6),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tokens counted and the minutes of each part."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    tokens = count_tokens()
    counts = (f"{name} {ours:.0f} ({stock:.0f})" for name, (ours, stock) in tokens.items())
    print("tokens (stock's):", ", ".join(counts))
    for card in CARDS:
        parts = estimate(card, tokens)
        minutes = {name: f"{seconds / 60:.1f}" for name, seconds in parts.items()}
        print(f"{card.name}: {sum(parts.values()) / 60:.1f} minutes:", minutes)


if __name__ == "__main__":
    main()
