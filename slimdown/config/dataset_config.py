"""The settings of one dataset: where its rows lie, their format, and how many are taken."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from omegaconf import MISSING

from slimdown import pocket
from slimdown.config.fields import COUNT, HUB_ID, NOT_NEGATIVE, nearest, ranged

ROW_FILES = (".json", ".jsonl", ".csv", ".parquet")


class RowFormat(StrEnum):
    """The formats of rows, as TRL names them; `auto` goes by the columns."""

    auto = "auto"
    instruction = "instruction"  # columns of any name, put into `template`
    prompt_completion = "prompt_completion"  # texts, or lists of messages
    messages = "messages"  # role and content; or conversations, from and value
    text = "text"


@dataclass
class DatasetConfig:
    """Rows to fine-tune on."""

    # a hub id, a JSON/JSONL/CSV/Parquet file, or pocket:<name> (the embedded world)
    path: str = MISSING
    name: str | None = None  # the dataset's config on the hub, e.g. main
    split: str = "train"
    revision: str = "main"
    format: RowFormat = RowFormat.auto
    template: str = "alpaca"  # or chat, or a text with {instruction} and {input} in it
    instruction: str = "instruction"  # the column with the question or task
    input: str | None = None  # the column with further input, if there is one
    output: str = "output"  # the column with the answer
    max_examples: int | None = ranged(COUNT, None)  # drawn with the seed; null: all
    # rows held out, never trained on
    validation_examples: int = ranged(COUNT, advice="; the validation loss shows what was learned")
    # share of the training rows, against the weights of other datasets; null: every row of each
    weight: float | None = ranged(NOT_NEGATIVE, None)
    skip_bad_rows: bool = False  # leave out and count bad rows instead of ending at the first

    def problems(self) -> Iterator[str]:
        if self.format not in (RowFormat.auto, RowFormat.instruction) and self._names_columns:
            settings = "template, instruction, input and output"
            advice = "leave them out, or set format=instruction"
            yield f"format={self.format.value} reads no {settings}; {advice}"
        if self.template not in ("alpaca", "chat"):
            if "{instruction}" not in self.template:
                demand = "must be alpaca, chat, or a text that holds {instruction}"
                yield f"template {demand}, got {self.template!r}"
            elif ("{input}" in self.template) != (self.input is not None):
                problem = f"the template {self.template!r} and {{input}} do not fit"
                yield f"input={self.input}: {problem}; name the column where it has the place"
        if file := self.file:
            for setting, unset in (("name", None), ("split", "train"), ("revision", "main")):
                if (value := getattr(self, setting)) != unset:
                    problem = f"{self.path} is a file and has no {setting}; leave it out"
                    yield f"{setting}={value}: {problem}"
            if not os.path.isfile(file):
                yield f"path: there is no file {file}"
        elif self.path.startswith("pocket:"):
            known = [f"pocket:{name}" for name in pocket.data_names()]
            problem = f"the embedded world has no such data{nearest(self.path, known)}"
            yield f"path={self.path}: {problem}"
        elif os.path.exists(self.path) or not HUB_ID.fullmatch(self.path) or self.path[0] == ".":
            yield f"path={self.path} is neither a hub id nor a {', '.join(ROW_FILES)} file"

    @property
    def file(self) -> Path | None:
        """The local file behind `path`, or None where it names a dataset of the hub."""
        if self.path.startswith("pocket:"):
            name = self.path.removeprefix("pocket:")
            return pocket.DATA_DIR / f"{name}.jsonl" if name in pocket.data_names() else None
        local = Path(os.path.expanduser(self.path))
        return local if local.suffix.lower() in ROW_FILES else None

    @property
    def _names_columns(self) -> bool:
        columns = (self.template, self.instruction, self.input, self.output)
        return columns != ("alpaca", "instruction", None, "output")


def explain_mixture(datasets: dict[str, DatasetConfig]) -> str | None:
    """Say why datasets cannot be mixed by their weights; None where they can, or none has one."""
    weights = {name: config.weight for name, config in datasets.items()}
    unset = [name for name, weight in weights.items() if weight is None]
    if len(unset) == len(weights):
        return None
    if unset:
        problem = f"dataset.{unset[0]}.weight is not set, and others have one"
        return f"{problem}; give every dataset a weight, or none"
    if not any(weights.values()):
        zeros = ", ".join(f"dataset.{name}.weight=0" for name in weights)
        return f"{zeros}: a mixture of nothing; give one of them a weight above 0"
    return None
