"""Rows of a JSON, JSONL, CSV or Parquet file: the texts of the columns that are trained on.

A file is read once a command, however many runs of a sweep train on it. Nothing here imports torch or `datasets`: a bad
row answers in well under a second, with its number.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from functools import lru_cache
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

from slimdown.settings.schema import DatasetConfig

_MOST_CHARACTERS = 1_000_000  # of one value: ten times the longest window's text, so a whole file in a field by mistake
_TWICE = object()  # stands where a row has two values of one name


class Row(NamedTuple):
    """What is trained on of one row."""

    instruction: str
    input: str
    output: str


class RowError(ValueError):
    """A file or a row that cannot be trained on; the message says which row, and what would be right."""


def read_rows(config: DatasetConfig) -> tuple[list[Row], str]:
    """The rows of the local file behind a dataset, and a digest of the file.

    Numbers, true and false are taken as JSON writes them; null and not-a-number are empty. Columns that are not used
    may hold anything.

    Raises:
        RowError: no such file, not what its name says, fewer than two rows; or a row that lacks a column, whose
            instruction or output is empty, or that holds what is no text.
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
    read = _read(file, (state.st_mtime_ns, state.st_size), config.instruction, config.input, config.output)
    if isinstance(read, str):
        raise RowError(f"{config.path} {' '.join(read.split())}")  # a column's name may hold a line break
    return read


@lru_cache(maxsize=8)
def _read(
    file: Path, state: tuple[int, int], instruction: str, further: str | None, output: str
) -> tuple[list[Row], str] | str:
    """Rows and digest, or what is wrong with them: either is remembered while the file's time and size stay."""
    columns = [c for c in (instruction, further, output) if c is not None]
    rows: list[Row] = []
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()[:16]
        for number, record in _records(file, columns):
            try:
                rows.append(to_row(record, instruction, further, output))
                if empty := [c for c in (instruction, output) if not text_of(record[c]).strip()]:
                    raise RowError(f"{', '.join(empty)} is empty; fill it or take the row out")
            except RowError as error:
                raise RowError(f"row {number}: {error}") from None
    except RowError as error:
        return str(error)
    except (OSError, MemoryError) as error:
        return f"cannot be read: {error or type(error).__name__}"
    if len(rows) < 2:
        return f"has {len(rows)} row(s); at least 2 are needed, one to train on and one held out"
    return rows, digest


def to_row(record: Mapping[str, Any], instruction: str, further: str | None, output: str) -> Row:
    """The texts of the used columns of one row.

    Raises:
        RowError: a column that is not there, or a value that is no text.
    """
    wanted = [c for c in (instruction, further, output) if c is not None]
    if lacking := [column for column in wanted if column not in record]:
        raise RowError(
            f"there is no column {', '.join(lacking)}; there are {', '.join(list(record)[:20])}; name yours with "
            "instruction=, input= and output="
        )
    texts = {}
    for column in wanted:
        try:
            texts[column] = text_of(record[column])
        except RowError as error:
            raise RowError(f"{column} {error}") from None
    return Row(texts[instruction], texts[further] if further is not None else "", texts[output])


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
    if value is _TWICE:
        raise RowError("is there twice; keep one")
    if isinstance(value, (bytes, bytearray)):
        raise RowError("holds bytes, not text; decode them, or name another column")
    if not isinstance(value, (str, int, float, Decimal, date, time, timedelta)):
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
        raise RowError("holds half a character (a lone surrogate such as \\ud800); mend or remove it") from None
    return text


def _records(file: Path, columns: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each row with its number: from 1, in JSONL the line's."""
    match file.suffix.lower():
        case ".parquet":
            yield from _parquet(file, columns)
        case ".csv":
            yield from _csv(_text(file))
        case ".json":
            rows = _json(_text(file))
            if not isinstance(rows, list):
                raise RowError("cannot be read as rows: a list of objects is expected")
            yield from ((number, _checked(number, row)) for number, row in enumerate(rows, start=1))
        case _:
            for number, line in enumerate(_text(file).split("\n"), start=1):
                if line.strip():
                    try:
                        row = _json(line)
                    except RowError as error:
                        raise RowError(f"row {number}: {error}") from None
                    yield number, _checked(number, row)


def _text(file: Path) -> str:
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")  # spreadsheets begin a file with a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RowError(f"row {line}: this is not UTF-8 text ({error.reason}); save the file as UTF-8") from None


def _json(text: str) -> Any:
    """What the text holds; numbers stay the text that they are, so that 1.50 is trained on as 1.50."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise RowError(f"cannot be read as JSON: {error.msg} ({where})") from None
    except RecursionError:
        raise RowError("cannot be read as JSON: it is nested too deeply") from None


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in pairs:
        record[key] = _TWICE if key in record else value
    return record


def _checked(number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise RowError(f"row {number}: it is not an object with named values")
    return row


def _csv(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # 128 KiB otherwise, which a long document exceeds
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 0
    try:
        header = next(lines, [])
        for fields in lines:
            if not fields:
                continue  # an empty line
            number += 1
            if len(fields) != len(header):
                raise RowError(f"row {number}: it has {len(fields)} fields, and the header has {len(header)}")
            yield number, _object(zip(header, fields, strict=True))
    except csv.Error as error:
        raise RowError(f"row {number + 1}: cannot be read as CSV: {error} (line {lines.line_num})") from None


def _parquet(file: Path, columns: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(file) as content:
            names = content.schema_arrow.names
            twice = {name for name in columns if names.count(name) > 1}
            table = content.read([name for name in columns if name in names and name not in twice])
            for number in range(1, content.metadata.num_rows + 1):
                values = {name: table[name][number - 1].as_py() for name in table.column_names}
                yield number, {name: _TWICE if name in twice else values.get(name) for name in names}
    except (pyarrow.ArrowException, ValueError, ArithmeticError, OSError) as error:
        if isinstance(error, RowError):
            raise
        where = f"row {number}: " if number else ""
        raise RowError(f"{where}cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from None
