"""CPU seconds of the narrow task of docs/studies/keeping.md, by mitigation.

    python -m bench.mitigation_cost [plain] [alpaca] [own] [own_tenth] [dialogues_64] ...

Needs SmolLM2 and Alpaca. `OMP_NUM_THREADS=1` makes the times of one thread. Preparing includes the
trial batch and, for the base's own rows, writing them, unless they are in the cache.
"""

import argparse
import tempfile
import time
from pathlib import Path

from bench.kept_dialogues import ARMS
from bench.machine import describe_machine, load_config_of
from slimdown.inputs import read_rows
from slimdown.models.base_model import load_base_model
from slimdown.training.fine_tuning import fine_tune, prepare_training

TASK = [
    "model=smollm2",
    "quantization=none",
    "dataset.pocket_instructions.max_examples=400",
    "dataset.pocket_instructions.validation_examples=20",
    "lora=all_linear",
    "train.max_length=512",
    "train.learning_rate=4e-3",
]
ALONE = "dataset=pocket_instructions"
MIXED = ["dataset=[pocket_instructions,alpaca]", "dataset.alpaca.max_examples=40"]
MIXED += ["dataset.alpaca.validation_examples=4", "keep=auto", "keep.dataset=alpaca"]
MITIGATIONS = {"plain": [ALONE], "alpaca": MIXED, "own": [ALONE, *ARMS["rows"]]}
MITIGATIONS["own_tenth"] = [ALONE, *ARMS["rows"], "keep.share=0.1"]
MITIGATIONS |= {arm: [ALONE, *ARMS[arm]] for arm in ARMS if arm.startswith("dialogues")}


def train(mitigation: str) -> None:
    """Train once, and print the CPU seconds of preparing and of the steps."""
    config = load_config_of(*TASK, *MITIGATIONS[mitigation])
    base = load_base_model(config.model, config.quantization)
    began = time.process_time()
    rows = prepare_training(base, read_rows(config, base.tokenizer), config)
    prepared, steps = time.process_time(), []
    with tempfile.TemporaryDirectory() as folder:
        on_step = lambda _: steps.append(time.process_time())  # noqa: E731
        _, result = fine_tune(base, rows, config, Path(folder), on_step, lambda *_: None)
    n_after_first = len(steps) - 1
    seconds = (steps[-1] - steps[0]) * len(steps) / n_after_first  # the first is not seen to begin
    cells = [mitigation, f"{prepared - began:.0f}", len(steps), f"{seconds:.0f}", result.tokens]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mitigations", nargs="*", default=list(MITIGATIONS))
    print(describe_machine())
    print("| mitigation | preparing, CPU seconds | steps | their CPU seconds | tokens |")
    print("|---|---:|---:|---:|---:|")
    for name in parser.parse_args().mitigations:
        train(name)
