"""The settings of one dataset: where its rows lie, their format, and how many are taken."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from slimdown import pocket
from slimdown.config.fields import COUNT, NONNEGATIVE, nearest, setting

# The rule for ids that huggingface_hub checks.
HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))(\b[\w.-]+\b/)?\b[\w.-]{1,96}\b", re.ASCII)
ROW_FILES = (".json", ".jsonl", ".csv", ".parquet")


def is_row_file(path: str) -> bool:
    """Whether a path names a file of rows or questions by its ending."""
    return Path(path).suffix.lower() in ROW_FILES


def name_row_file(path: str) -> str:
    """Return what a file of rows or questions is called in settings and tables.

    >>> name_row_file("data/my rows.v2.jsonl")
    'my_rows_v2'
    """
    return re.sub(r"[^\w-]", "_", Path(path).stem, flags=re.ASCII)


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

    path: str = setting("a hub id, a JSON, JSONL, CSV or Parquet file, or pocket:NAME")
    name: str | None = setting(
        "the config of the dataset on the hub, for example main", default=None
    )
    split: str = setting("the split of the dataset on the hub", default="train")
    revision: str = setting("branch, tag or commit on the hub", default="main")
    format: RowFormat = setting(
        "the format of the rows; auto chooses it by their columns", default=RowFormat.auto
    )
    template: str = setting("alpaca, chat, or a text with {instruction} in it", default="alpaca")
    instruction: str = setting("the column with the question or task", default="instruction")
    input: str | None = setting("the column with further input", default=None)
    output: str = setting("the column with the answer", default="output")
    max_examples: int | None = setting(
        "number of rows, drawn with the seed; null: all rows", COUNT, None
    )
    validation_examples: int = setting(
        "number of rows that are held out to compute the validation loss", COUNT
    )
    weight: float | None = setting(
        "share of the rows, relative to the weights of other datasets; null: use every row",
        NONNEGATIVE,
        None,
    )
    skip_bad_rows: bool = setting("skip rows that cannot be read, and count them", default=False)

    def problems(self) -> Iterator[str]:
        """Say which settings do not fit together, and whether the rows can be found."""
        if self.template not in ("alpaca", "chat"):
            if "{instruction}" not in self.template:
                yield f"template={self.template!r} is not alpaca, chat or text with {{instruction}}"
            elif ("{input}" in self.template) != (self.input is not None):
                yield f"input={self.input} does not fit the template {self.template!r}"
        if file := self.file:
            hub_defaults = {"name": None, "split": "train", "revision": "main"}
            for name, default in hub_defaults.items():
                value = getattr(self, name)
                if value != default:
                    yield f"{name}={value}: {self.path} is a file and has no {name}"
            if not os.path.isfile(file):
                yield f"path: there is no file {file}"
        elif self.path.startswith("pocket:"):  # slimdown ships no rows of this name: no `file`
            paths = [f"pocket:{name}" for name in pocket.data_names()]
            yield f"path={self.path}: there is no such pocket data{nearest(self.path, paths)}"
        elif os.path.exists(self.path) or not HUB_ID.fullmatch(self.path):
            yield f"path={self.path} is neither a hub id nor a {', '.join(ROW_FILES)} file"

    @property
    def has_own_columns(self) -> bool:
        """Whether a template or a column is set; the rows are instructions then."""
        fields = (self.template, self.instruction, self.input, self.output)
        return fields != ("alpaca", "instruction", None, "output")

    @property
    def may_hold_conversations(self) -> bool:
        """Whether rows may be messages, as far as it is known before they are read."""
        if self.format is RowFormat.auto and not self.has_own_columns:
            return True
        lists = (RowFormat.messages, RowFormat.prompt_completion)
        return self.template == "chat" or self.format in lists

    @property
    def file(self) -> Path | None:
        """The local file behind `path`, or None where it names a dataset of the hub."""
        if self.path.startswith("pocket:"):
            name = self.path.removeprefix("pocket:")
            return pocket.DATA_DIR / f"{name}.jsonl" if name in pocket.data_names() else None
        return Path(os.path.expanduser(self.path)) if is_row_file(self.path) else None
