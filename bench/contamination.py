"""What looking for benchmark questions in rows finds, how long it takes, and how much memory.

    OMP_NUM_THREADS=1 python -m bench.contamination --rows 15000 1000000
    OMP_NUM_THREADS=1 python -m bench.contamination --found

Timed are Alpaca's rows and the questions of the paper's three benchmarks. Where there are fewer than asked for (of
HellaSwag 10,042), the same ones come again with their words in another order: as long, and made of other phrases.
"""

import argparse
import random
import resource
import time
from collections.abc import Iterable, Iterator
from itertools import islice

from datasets import load_dataset
from hydra import compose, initialize_config_dir
from omegaconf import MISSING

from slimdown.config.files import CONF_DIR
from slimdown.config.loader import load_config
from slimdown.config.schema import BenchmarkConfig
from slimdown.data.contamination import Question, find_contamination
from slimdown.evaluation.questions import load_tasks
from slimdown.evaluation.wording import worded

N_HELLASWAG = 10_042
ROWS = {
    "tatsu-lab/alpaca": None,
    "databricks/databricks-dolly-15k": None,
    "sahil2801/CodeAlpaca-20k": None,
    "openai/gsm8k": "main",
    "allenai/ai2_arc": "ARC-Easy",
}
TASKS = ("gsm8k", "hellaswag", "mmlu", "arc_easy", "arc_challenge", "piqa")


def peak_mib() -> float:
    """The most that the process held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def train_texts(path: str, name: str | None = None) -> list[str]:
    """Every text of each training row; of a choice, the choices too."""
    rows = load_dataset(path, name, split="train")
    lists = [value for row in rows for value in row.values() if isinstance(value, dict)]
    choices = [" ".join(value["text"]) for value in lists] if lists else [""] * len(rows)
    texts = (" ".join(value for value in row.values() if isinstance(value, str)) for row in rows)
    return [f"{text} {choice}" for text, choice in zip(texts, choices, strict=True)]


def reordered(texts: list[str], seed: int = 0) -> Iterator[str]:
    """The texts as they are, then over and over with their words in other orders."""
    draw = random.Random(seed)
    yield from texts
    while True:
        for text in texts:
            words = text.split()
            draw.shuffle(words)
            yield " ".join(words)


def batches(name: str, texts: Iterable[str]) -> Iterator[list[tuple[str, int, str]]]:
    """Rows as the search takes them, a thousand at a time."""
    rows = ((name, i, text) for i, text in enumerate(texts, start=1))
    while batch := list(islice(rows, 1000)):
        yield batch


def time_it(counts: list[int]) -> None:
    """Print seconds and memory by the number of rows."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        chosen = load_config(compose("config", overrides=["model=smollm2"])).benchmark
    tasks = load_tasks(chosen)
    begun = time.process_time()
    asked = worded(tasks, chosen)
    seconds = time.process_time() - begun
    print(
        f"words of {sum(map(len, asked.values())):,} questions read from the harness: {seconds:.1f} s"
    )
    contexts = reordered([question.texts[0] for question in asked["hellaswag"]])
    asked["hellaswag"] = [
        Question(f"hellaswag {i}", (text,)) for i, text in enumerate(islice(contexts, N_HELLASWAG))
    ]
    print(
        f"questions looked for: {', '.join(f'{name} {len(each):,}' for name, each in asked.items())}"
    )
    texts = train_texts("tatsu-lab/alpaca")
    find_contamination(asked, [])
    print(f"before the rows: {peak_mib():,.0f} MiB at most\n")
    print(
        "| rows | words | questions that overlap | CPU seconds | peak MiB |\n|---|---|---|---|---|"
    )
    for n_rows in counts:
        begun = time.process_time()
        n_words = sum(len(text.split()) for text in islice(reordered(texts), n_rows))
        drawn = time.process_time() - begun  # what making the rows takes by itself
        begun = time.process_time()
        contamination = find_contamination(
            asked, batches("alpaca", islice(reordered(texts), n_rows))
        )
        spent = time.process_time() - begun - drawn
        n_found = len(contamination.overlaps)
        print(
            f"| {n_rows:,} | {n_words:,} | {n_found} | {spent:.1f} | {peak_mib():,.0f} |",
            flush=True,
        )


def show_found() -> None:
    """Print how many questions of each benchmark stand in the rows of each dataset, and how many more overlap."""
    chosen = {task: BenchmarkConfig(task, MISSING, 0, 0.0) for task in TASKS}
    asked = worded(load_tasks(chosen), chosen)
    print(
        f"| rows | {' | '.join(f'{name} ({len(questions):,})' for name, questions in asked.items())} |"
    )
    print("|---" * (1 + len(asked)) + "|")
    pairs = []
    for path, name in ROWS.items():
        texts = train_texts(path, name)
        found = find_contamination(asked, batches(path, texts))
        counts = (
            (found.n_standing(task), len(found.of(task)) - found.n_standing(task)) for task in asked
        )
        print(
            f"| {path} ({len(texts):,}) | {' | '.join(f'{n} + {more}' for n, more in counts)} |",
            flush=True,
        )
        pairs += found.told
    print("", *pairs, sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[15_000], help="how many rows to look into"
    )
    parser.add_argument("--found", action="store_true", help="what is found in real datasets")
    arguments = parser.parse_args()
    if arguments.found:
        show_found()
    else:
        time_it(arguments.rows)
