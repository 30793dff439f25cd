"""Finds the benchmarks' rows beside the task files, whatever the current folder is."""

import json
from pathlib import Path
from typing import Any

import datasets

DATA_DIR = Path(__file__).resolve().parent.parent / "data"


def load_split(rows: str, split: str, **_: Any) -> datasets.DatasetDict:
    """Load the questions of one split of a benchmark.

    Args:
        rows: The benchmark's name, with which its files begin.
        split: "test", or "dev" for the questions to develop with.
        **_: The task's metadata, which the harness adds; it is not used here.

    Returns:
        The questions under the name of the split.
    """
    path = DATA_DIR / f"{rows}_{split}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    return datasets.DatasetDict({split: datasets.Dataset.from_list(questions)})
