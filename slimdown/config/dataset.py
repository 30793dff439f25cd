"""The settings of one dataset: where its rows lie, of which format they are, and how many are taken."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from omegaconf import MISSING

from slimdown import pocket
from slimdown.config.keys import COUNT, HUB_ID, NOT_NEGATIVE, nearest, ranged


class RowFormat(StrEnum):
    """What a row holds, in TRL's words; `auto` goes by the columns."""

    auto = "auto"
    instruction = "instruction"  # columns of any name, put into `template`
    prompt_completion = "prompt_completion"  # texts, or lists of messages
    messages = "messages"  # role and content; or conversations, from and value
    text = "text"


COLUMNS = {
    RowFormat.prompt_completion: ("prompt", "completion"),
    RowFormat.messages: ("messages",),
    RowFormat.text: ("text",),
}
"""The columns of each format that names its own; the first that a dataset has all of is its format, as in TRL."""
CONVERSATIONS = "conversations"  # what ShareGPT calls messages


@dataclass
class DatasetConfig:
    """Rows to fine-tune on: where they lie and how a row becomes what is trained on."""

    path: str = (
        MISSING  # a hub id, a JSON/JSONL/CSV/Parquet file, or pocket:<name> (the embedded world)
    )
    name: str | None = None  # the dataset's config on the hub, e.g. main
    split: str = "train"
    revision: str = "main"
    format: RowFormat = RowFormat.auto
    template: str = "alpaca"  # or chat, or a text with {instruction} and {input} in it
    instruction: str = "instruction"  # the column with the question or task
    input: str | None = None  # the column with further input, if there is one
    output: str = "output"  # the column with the answer
    max_examples: int | None = ranged(
        COUNT, None
    )  # rows to train on, chosen with the seed; null: all
    # rows held out, never trained on
    validation_examples: int = ranged(
        COUNT, advice=": the validation loss is what says that something was learned"
    )
    # share of the training rows, against the other datasets' weights; null: every row of each
    weight: float | None = ranged(NOT_NEGATIVE, None)
    skip_bad_rows: bool = (
        False  # leave out and count rows that cannot be trained on, instead of ending at the first
    )

    def problems(self) -> Iterator[str]:
        if self.format not in (RowFormat.auto, RowFormat.instruction) and self._names_columns:
            settings = "template, instruction, input and output"
            yield f"format={self.format.value} reads no {settings}; leave them out, or set format=instruction"
        if self.template not in ("alpaca", "chat"):
            if "{instruction}" not in self.template:
                yield f"template must be alpaca, chat, or a text that holds {{instruction}}, got {self.template!r}"
            elif self.input is not None and "{input}" not in self.template:
                yield f"input={self.input}: the template {self.template!r} has no {{input}}; add it, or set input=null"
            elif self.input is None and "{input}" in self.template:
                yield f"template {self.template!r} has a place for {{input}}; name the column with input="
        yield from self._path_problems()

    def _path_problems(self) -> Iterator[str]:
        if self.file:
            # What names a part of a dataset on the hub would be ignored.
            for setting, unset in (("name", None), ("split", "train"), ("revision", "main")):
                if (value := getattr(self, setting)) != unset:
                    yield f"{setting}={value}: {self.path} is a file and has no {setting}; leave it out"
        elif self.path.startswith("pocket:"):
            known = [f"pocket:{name}" for name in pocket.data_names()]
            yield f"path={self.path}: the embedded world has no such data{nearest(self.path, known)}"
        elif (
            os.path.isfile(self.path)
            or not HUB_ID.fullmatch(self.path)
            or self.path.startswith(".")
        ):
            yield f"path={self.path} is neither a hub id nor a .json, .jsonl, .csv or .parquet file"

    @property
    def file(self) -> Path | None:
        """The local file behind `path`, or None where it names a dataset of the hub."""
        if self.path.startswith("pocket:"):
            name = self.path.removeprefix("pocket:")
            return pocket.DATA_DIR / f"{name}.jsonl" if name in pocket.data_names() else None
        local = Path(os.path.expanduser(self.path))
        return local if local.suffix.lower() in (".json", ".jsonl", ".csv", ".parquet") else None

    @property
    def _names_columns(self) -> bool:
        plain = ("alpaca", "instruction", None, "output")
        return (self.template, self.instruction, self.input, self.output) != plain

    def format_of(self, columns: Iterable[str]) -> RowFormat:
        """The format of rows with these columns.

        Whoever names a template or a column means it, whatever else is there; and a file with `instruction` and
        `output` is one of instructions.

        >>> DatasetConfig().format_of(["conversations", "id"])
        <RowFormat.messages: 'messages'>
        >>> DatasetConfig(template="chat").format_of(["messages"])
        <RowFormat.instruction: 'instruction'>
        """
        if self.format != RowFormat.auto:
            return self.format
        there = {"messages" if column == CONVERSATIONS else column for column in columns}
        if not self._names_columns and not {self.instruction, self.output} <= there:
            for format_, needed in COLUMNS.items():
                if there.issuperset(needed):
                    return format_
        return RowFormat.instruction


def mixture_problem(chosen: dict[str, DatasetConfig]) -> str | None:
    """Say why datasets cannot be mixed by their weights; None where they can, or where none has one."""
    weights = {name: config.weight for name, config in chosen.items()}
    given = [weight for weight in weights.values() if weight is not None]
    if not given:
        return None
    if without := [name for name, weight in weights.items() if weight is None]:
        return f"dataset.{without[0]}.weight is not set, and others have one; give every dataset a weight, or none"
    if sum(given) == 0:
        zeros = ", ".join(f"dataset.{name}.weight=0" for name in weights)
        return f"{zeros}: a mixture of nothing; give one of them a weight above 0"
    return None
