"""CPU seconds of the trainings of docs/studies/keeping.md, by mitigation.

    python -m bench.instruct study XSTEST && cd study     # see bench/instruct.py
    python -m bench.mitigation_cost narrow plain messages     # see bench/kept_dialogues.py

`OMP_NUM_THREADS=1` makes the times of one thread. Preparing includes the trial batch and what the
base writes, unless that is in the cache.
"""

import argparse
import tempfile
import time
from pathlib import Path

from bench.kept_dialogues import ARMS, TASKS, list_settings
from bench.machine import describe_machine, load_config_of
from slimdown.models.base_model import load_base_model
from slimdown.runs.inputs import read_rows
from slimdown.training.fine_tuning import fine_tune, prepare_training


def train(task: str, arm: str) -> None:
    """Train once, and print the CPU seconds of preparing and of the steps."""
    config = load_config_of(*list_settings(task, arm, seed=0))
    base = load_base_model(config.model, config.quantization)
    began = time.process_time()
    rows = prepare_training(base, read_rows(config, base.tokenizer), config)
    prepared, steps = time.process_time(), []
    with tempfile.TemporaryDirectory() as folder:
        on_step = lambda _: steps.append(time.process_time())  # noqa: E731
        _, result = fine_tune(
            base, rows, config, Path(folder), on_step, on_progress=lambda *_: None
        )
    n_after_first = len(steps) - 1
    seconds = (steps[-1] - steps[0]) * len(steps) / n_after_first  # the first is not seen to begin
    cells = [arm, f"{prepared - began:.0f}", len(steps), f"{seconds:.0f}", result.tokens]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("arms", nargs="*", metavar="ARM", default=list(ARMS))
    options = parser.parse_args()
    print(describe_machine())
    print("| mitigation | preparing, CPU seconds | steps | their CPU seconds | tokens |")
    print("|---|---:|---:|---:|---:|")
    for name in options.arms:
        train(options.task, name)
