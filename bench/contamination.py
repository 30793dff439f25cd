"""How long it takes to look for benchmark questions in rows, and how much memory.

    OMP_NUM_THREADS=1 python -m bench.contamination --rows 15000 1000000

The rows are Alpaca's and the questions those of the paper's three benchmarks. Where there are fewer than asked for (of
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

from slimdown.measuring.questions import load_tasks
from slimdown.measuring.wording import worded
from slimdown.preparing.contamination import Question, find_contamination
from slimdown.settings.files import CONF_DIR
from slimdown.settings.load import load_config

N_HELLASWAG = 10_042


def peak_mib() -> float:
    """The most that the process held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reordered(texts: list[str], seed: int = 0) -> Iterator[str]:
    """The texts as they are, then over and over with their words in other orders."""
    draw = random.Random(seed)
    yield from texts
    while True:
        for text in texts:
            words = text.split()
            draw.shuffle(words)
            yield " ".join(words)


def batches(texts: Iterable[str]) -> Iterator[list[tuple[str, int, str]]]:
    """Rows as the search takes them, a thousand at a time."""
    rows = (("alpaca", i, text) for i, text in enumerate(texts, start=1))
    while batch := list(islice(rows, 1000)):
        yield batch


def main() -> None:
    """Print a table of seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[15_000], help="how many rows to look into")
    counts = parser.parse_args().rows
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        chosen = load_config(compose("config", overrides=["model=smollm2"])).benchmark
    tasks = load_tasks(chosen)
    begun = time.process_time()
    asked = worded(tasks, chosen)
    words_seconds = time.process_time() - begun
    contexts = reordered([question.texts[0] for question in asked["hellaswag"]])
    asked["hellaswag"] = [Question(f"hellaswag {i}", (text,)) for i, text in enumerate(islice(contexts, N_HELLASWAG))]
    print(f"questions: { {name: len(questions) for name, questions in asked.items()} }")
    print(f"reading their words from the harness: {words_seconds:.1f} s")
    rows = [" ".join(filter(None, row.values())) for row in load_dataset("tatsu-lab/alpaca", split="train")]
    find_contamination(asked, [])
    print(f"before the rows: {peak_mib():,.0f} MiB at most\n")
    print("| rows | words | questions that overlap | CPU seconds | peak MiB |\n|---|---|---|---|---|")
    for n_rows in counts:
        n_words = sum(len(text.split()) for text in islice(reordered(rows), n_rows))
        begun = time.process_time()
        for _ in batches(islice(reordered(rows), n_rows)):
            pass  # what making the rows takes by itself
        drawn = time.process_time() - begun
        begun = time.process_time()
        contamination = find_contamination(asked, batches(islice(reordered(rows), n_rows)))
        seconds = time.process_time() - begun - drawn
        print(
            f"| {n_rows:,} | {n_words:,} | {len(contamination.overlaps)} | {seconds:.1f} | {peak_mib():,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
