"""Rows of a dataset, checked: what is trained on of each, by the format of the whole.

Nothing here imports torch or `datasets`: a wrong column or a bad row among the first answers in well under a second,
however long the file is.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import astuple, replace
from datetime import date, time as time_of_day, timedelta
from decimal import Decimal
from functools import lru_cache
from math import isnan
from pathlib import Path
from typing import Any

from slimdown.config.dataset import COLUMNS, CONVERSATIONS, DatasetConfig, RowFormat
from slimdown.data.row_files import TWICE, RowError, column_names, records

_MOST_CHARACTERS = 1_000_000  # of one value: ten times the longest window's text, so a whole file in a field by mistake
_FIRST, _SECONDS = 1000, 0.3  # rows that are looked at before a run begins, and for how long
_SPEAKERS = {"human": "user", "gpt": "assistant"}  # ShareGPT's names, which no chat template knows
# What chat templates write besides a turn's text.
_MORE_THAN_TEXT = ("tool_calls", "function_call", "reasoning_content", "thinking")

Turn = dict[str, str]
"""`role` and `content`."""

Row = dict[str, Any]
"""What is trained on of one row, by the names that its format gives the parts: `instruction`, `input` and `output`,
`prompt` and `completion`, `messages`, or `text`. Each is a text, or in a conversation a list of turns."""


def check_file(config: DatasetConfig) -> None:
    """Check the columns and the first rows of the local file behind a dataset; the rest is checked when it is read.

    Numbers, true and false are taken as JSON writes them; null and not-a-number are empty. Columns that are not used
    may hold anything.

    Raises:
        RowError: no such file, not what its name says, fewer than two rows; or a row that lacks a column, in which
            something is empty, or that holds what is no text.
    """
    if problem := _problem_of(file_state(config), *reading(config)):
        raise RowError(problem)


def file_state(config: DatasetConfig) -> tuple[int, int]:
    """The time and the size of the file behind a dataset: while they stay, so does what is in it.

    Raises:
        RowError: there is no such file.
    """
    file = config.file
    assert file is not None
    try:
        state = file.stat()
        if not file.is_file():
            raise FileNotFoundError
    except FileNotFoundError:
        raise RowError(
            f"there is no file {config.path}; the path counts from the folder you are in, {Path.cwd()}"
        ) from None
    except (OSError, ValueError) as error:
        raise RowError(f"{config.path} cannot be read: {error}") from None
    return state.st_mtime_ns, state.st_size


def reading(config: DatasetConfig) -> tuple[Any, ...]:
    """The values of a `DatasetConfig` that is read as this one: how many rows are taken, and how mixed, left out."""
    return astuple(replace(config, max_examples=None, validation_examples=1, weight=None))


@lru_cache(maxsize=64)
def _problem_of(state: tuple[int, int], *settings: Any) -> str | None:
    """What is wrong with a file's first rows, remembered while its time and size stay."""
    config = DatasetConfig(*settings)
    n_sound, first = 0, None
    began = time.monotonic()
    try:
        for n, (_, row) in enumerate(rows_of(config), start=1):
            if not isinstance(row, RowError):
                n_sound += 1
            elif not config.skip_bad_rows:
                raise row
            else:
                first = first or row
            if n >= _FIRST or time.monotonic() - began > _SECONDS:
                return None
        check_enough(config, n_sound, first)
    except RowError as error:
        return str(error)
    return None


def check_enough(config: DatasetConfig, n_rows: int, first_bad: RowError | None) -> None:
    """Check that a file has a row to train on and one to hold out.

    Raises:
        RowError: it has not.
    """
    if n_rows < 2:
        bad = f"; of those that were skipped the first is {first_bad}" if first_bad else ""
        raise RowError(
            f"{config.path} has {n_rows} row(s); at least 2 are needed, one to train on and one held out{bad}"
        )


def rows_of(config: DatasetConfig) -> Iterator[tuple[int, Row | RowError]]:
    """Each row of the local file behind a dataset with its number, or what is wrong with it.

    Raises:
        RowError: what is wrong with the file, or from here on.
    """
    file = config.file
    assert file is not None
    try:
        format_ = config.format_of(names := column_names(file))
        kind: type | None = None  # of prompts, in the first sound row: texts or lists of messages
        for number, record in records(
            file, [name for name in names if name in columns_of(config, format_)]
        ):
            try:
                if isinstance(record, RowError):
                    raise record
                row = to_row(record, config, format_)
                kind = kind or type(row.get("prompt"))
                if type(row.get("prompt")) is not kind:
                    raise RowError(
                        "prompts are texts in some rows and lists of messages in others; make all the same"
                    )
                yield number, row
            except RowError as error:
                said = str(error) if isinstance(record, RowError) else f"row {number}: {error}"
                yield number, RowError(f"{config.path} {_one_line(said)}")
    except RowError as error:
        raise RowError(f"{config.path} {_one_line(str(error))}") from None
    except (OSError, MemoryError) as error:
        raise RowError(f"{config.path} cannot be read: {error or type(error).__name__}") from None


def _one_line(text: str) -> str:
    return " ".join(text.split())  # a column's name may hold a line break


def columns_of(config: DatasetConfig, format_: RowFormat) -> tuple[str, ...]:
    """The columns that may be read."""
    if format_ == RowFormat.instruction:
        return tuple(c for c in (config.instruction, config.input, config.output) if c is not None)
    return (*COLUMNS[format_], CONVERSATIONS) if format_ == RowFormat.messages else COLUMNS[format_]


def to_row(
    record: Mapping[str, Any], config: DatasetConfig, format_: RowFormat, may_be_empty: bool = False
) -> Row:
    """What is trained on of one row.

    Raises:
        RowError: a column that is not there, one that is empty, or that holds what the format does not.
    """
    wanted = list(columns_of(config, format_))
    if format_ == RowFormat.messages:
        wanted = [
            CONVERSATIONS if "messages" not in record and CONVERSATIONS in record else "messages"
        ]
    if lacking := [column for column in wanted if column not in record]:
        advice = f"format={format_.value} needs it"
        if format_ == RowFormat.instruction:
            advice = "name yours with instruction=, input= and output=, or bring messages, prompt and completion, or text"
        raise RowError(
            f"there is no column {', '.join(lacking)}; there are {', '.join(list(record)[:20])}; {advice}"
        )
    values: list[Any] = []
    for column in wanted:
        value = record[column]
        chat = format_ == RowFormat.messages or (
            format_ == RowFormat.prompt_completion and isinstance(value, list)
        )
        try:
            values.append(_turns(value) if chat else text_of(value))
        except RowError as error:
            raise RowError(f"{column} {error}") from None
    if len({type(value) for value in values}) == 2:
        raise RowError(
            "prompt and completion are a text and a list of messages; make both the same"
        )
    empty = [c for c, value in zip(wanted, values, strict=True) if _is_empty(value)]
    if format_ == RowFormat.instruction:
        empty = [c for c in empty if c in (config.instruction, config.output)]
        values = values if config.input is not None else [values[0], "", values[1]]
    if empty and not may_be_empty:
        raise RowError(f"{', '.join(empty)} is empty; fill it or take the row out")
    names = (
        ("instruction", "input", "output") if format_ == RowFormat.instruction else COLUMNS[format_]
    )
    return dict(zip(names, values, strict=True))


def _is_empty(value: str | list[Turn]) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return not value or any(
        turn["role"] == "assistant" and not turn["content"].strip() for turn in value
    )


def _turns(value: Any) -> list[Turn]:
    """The turns of a conversation; ShareGPT's `from` and `value` under the names that chat templates know.

    Raises:
        RowError: no list of them, or one that holds more than a text.
    """
    if not isinstance(value, list):
        raise RowError("is no list of messages, each with role and content")
    return [_turn(number, turn) for number, turn in enumerate(value, start=1)]


def _turn(number: int, turn: Any) -> Turn:
    names = (
        ("from", "value")
        if isinstance(turn, dict) and "role" not in turn and "from" in turn
        else ("role", "content")
    )
    if not isinstance(turn, dict) or any(name not in turn for name in names):
        raise RowError(f"message {number} has no {' and '.join(names)}")
    if more := [name for name in _MORE_THAN_TEXT if turn.get(name)]:
        raise RowError(f"message {number} has {', '.join(more)}; turns of text are trained on")
    try:
        role, content = (text_of(turn[name]) for name in names)
    except RowError as error:
        raise RowError(f"message {number} {error}") from None
    if not role.strip():
        raise RowError(f"message {number} has no role")
    return {"role": _SPEAKERS.get(role, role), "content": content}


def text_of(value: Any) -> str:
    """The text of a plain value.

    Raises:
        RowError: bytes, lists, objects, half characters, or more text than any model reads.

    >>> text_of(0), text_of(False), text_of(None), text_of(float("nan"))
    ('0', 'false', '', '')
    """
    if value is None or (isinstance(value, float) and isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if value is TWICE:
        raise RowError("is there twice; keep one")
    if isinstance(value, (bytes, bytearray)):
        raise RowError("holds bytes, not text; decode them, or name another column")
    if not isinstance(value, (str, int, float, Decimal, date, time_of_day, timedelta)):
        what = "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise RowError(f"holds {what}; a text or a number is expected")
    text = str(value)
    if len(text) > _MOST_CHARACTERS:
        raise RowError(
            f"has {len(text):,} characters, and at most {_MOST_CHARACTERS:,} can be one example's; split it into rows"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError(
            "holds half a character (a lone surrogate such as \\ud800); mend or remove it"
        ) from None
    return text
