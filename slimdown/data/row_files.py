"""JSON, JSONL, CSV and Parquet files, read record by record: a file of any length takes the memory of its longest row.

Numbers stay the text that they are, a name that comes twice in a row is marked, and each row has its number: from 1, in
JSONL the line's. Nothing here imports torch or `datasets`.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

TWICE = object()  # stands where a row has two values of one name
_LONGEST = (
    2**26
)  # bytes of a line, characters of a JSON object: more than any model reads of one row
_CHUNK = 2**16
_BATCH = 1000  # rows
_SPACE = re.compile(r"[ \t\n\r]*")


class RowError(ValueError):
    """A file or a row that cannot be trained on; the message says which row, and what would be right."""


Record = Mapping[str, Any] | RowError
"""The values of one row by their names, or what is wrong with it where the rows after it can be read."""


def records(file: Path, columns: Iterable[str] | None = None) -> Iterator[tuple[int, Record]]:
    """Each row with its number.

    Args:
        file: what its ending says it is.
        columns: what is wanted of a Parquet file, where reading all may take long; others have all.

    Raises:
        RowError: what is wrong with the file as a whole, or from here on.
    """
    match file.suffix.lower():
        case ".parquet":
            return _parquet(file, columns)
        case ".csv":
            return _csv(file)
        case ".json":
            return _json_list(file)
        case _:
            return _lines(file)


def column_names(file: Path) -> list[str]:
    """What the first sound row calls its values; nothing where there is none."""
    if file.suffix.lower() == ".parquet":
        with _parquet_file(file) as (content, _):
            return list(content.schema_arrow.names)
    return next(
        (list(record) for _, record in records(file) if not isinstance(record, RowError)), []
    )


def _lines(file: Path) -> Iterator[tuple[int, Record]]:
    number = 0
    with file.open("rb") as content:
        while line := content.readline(_LONGEST):
            number += 1
            if len(line) == _LONGEST and not line.endswith(b"\n"):
                raise RowError(
                    f"row {number}: it has more than {_LONGEST:,} bytes; is this JSON with a row a line?"
                )
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield number, _checked(number, _json(_DECODER.decode, text))
            except UnicodeDecodeError as error:
                yield number, _not_utf8(number, error)
            except json.JSONDecodeError as error:
                yield number, RowError(f"row {number}: {_problem(error)}")
            except RowError as error:
                yield number, RowError(f"row {number}: {error}")


def _not_utf8(number: int, error: UnicodeDecodeError) -> RowError:
    return RowError(
        f"row {number}: this is not UTF-8 text ({error.reason}); save the file as UTF-8"
    )


def _decoded(file: Path, read: Callable[[TextIO], Iterable[str]]) -> Iterator[str]:
    """What `read` takes of a text file, its line ends as they are; spreadsheets begin one with a byte order mark.

    Raises:
        RowError: a line that is not UTF-8.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as content:
            yield from read(content)
    except UnicodeDecodeError:
        with file.open("rb") as content:
            for number, line in enumerate(content, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    raise _not_utf8(number, error) from None


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in pairs:
        record[key] = TWICE if key in record else value
    return record


# Numbers stay the text that they are, so that 1.50 is trained on as 1.50.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=str, parse_float=str)


def _json(decode: Callable[..., Any], *text: Any) -> Any:
    """What `decode` makes of a text.

    Raises:
        json.JSONDecodeError: it is no JSON.
        RowError: one value within another too often.
    """
    try:
        return decode(*text)
    except RecursionError:
        raise RowError("cannot be read as JSON: it is nested too deeply") from None


def _problem(error: json.JSONDecodeError, lines: int = 0, columns: int = 0) -> RowError:
    """What is wrong, and where, `lines` and `columns` further on."""
    column = error.colno + (columns if error.lineno == 1 else 0)
    where = (
        f"column {column}"
        if error.lineno + lines == 1
        else f"line {error.lineno + lines}, column {column}"
    )
    return RowError(f"cannot be read as JSON: {error.msg} ({where})")


def _checked(number: int, row: Any) -> Record:
    return (
        row
        if isinstance(row, dict)
        else RowError(f"row {number}: it is not an object with named values")
    )


def _json_list(file: Path) -> Iterator[tuple[int, Record]]:
    content = _Ahead(_decoded(file, lambda text: iter(lambda: text.read(_CHUNK), "")))
    if content.peek() != "[":
        content.take()  # which says what is wrong where it is no JSON
        raise RowError("cannot be read as rows: a list of objects is expected")
    number, mark = 0, content.skip()
    while mark != "]":
        number += 1
        yield number, _checked(number, content.take())
        if (mark := content.peek()) not in ("]", ","):
            raise content.problem("Expecting ',' delimiter")
        if mark == ",":
            content.skip()
    if content.skip():
        raise content.problem("Extra data")


class _Ahead:
    """A JSON text of any length, read value by value."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks = chunks
        self._text, self._at = "", 0
        self._lines = self._columns = 0  # before the text that is held

    def peek(self) -> str:
        """The next character that is no space; nothing at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def skip(self) -> str:
        """The character after the next."""
        self._at += 1
        return self.peek()

    def take(self) -> Any:
        """The next value.

        Raises:
            RowError: what is wrong with it.
        """
        self.peek()
        while True:
            try:
                value, end = _json(_DECODER.raw_decode, self._text, self._at)
            except json.JSONDecodeError as error:
                problem = _problem(error, self._lines, self._columns)
                if len(self._text) - self._at > _LONGEST or not self._more():
                    raise problem from None
            else:
                if end < len(self._text) or not self._more():  # a number may go on
                    self._at = end
                    return value

    def problem(self, message: str) -> RowError:
        return _problem(
            json.JSONDecodeError(message, self._text, self._at), self._lines, self._columns
        )

    def _more(self) -> bool:
        """Read as much again as is still held, so that a long value is not tried too often."""
        read = self._text[: self._at]
        lines = read.count("\n")
        self._columns = len(read) - read.rfind("\n") - 1 if lines else self._columns + len(read)
        self._lines += lines
        held, wanted = [self._text[self._at :]], max(_CHUNK, len(self._text) - self._at)
        n_held = len(held[0])
        while wanted > 0 and (chunk := next(self._chunks, "")):
            held.append(chunk)
            wanted -= len(chunk)
        self._text, self._at = "".join(held), 0
        return len(self._text) > n_held


def _csv(file: Path) -> Iterator[tuple[int, Record]]:
    csv.field_size_limit(2**31 - 1)  # 128 KiB otherwise, which a long document exceeds
    lines = csv.reader(_decoded(file, iter), strict=True)
    number = 0
    try:
        header = next(lines, [])
        for fields in lines:
            if not fields:
                continue  # an empty line
            number += 1
            if len(fields) == len(header):
                yield number, _object(zip(header, fields, strict=True))
            else:
                yield (
                    number,
                    RowError(
                        f"row {number}: it has {len(fields)} fields, and the header has {len(header)}"
                    ),
                )
    except csv.Error as error:
        raise RowError(
            f"row {number + 1}: cannot be read as CSV: {error} (line {lines.line_num})"
        ) from None


def _parquet(file: Path, columns: Iterable[str] | None) -> Iterator[tuple[int, Record]]:
    with _parquet_file(file) as (content, problem):
        names = content.schema_arrow.names
        wanted = [name for name in names if columns is None or name in columns]
        once = [name for name in wanted if names.count(name) == 1]
        rest = dict.fromkeys(names) | {name: TWICE for name in wanted if name not in once}
        number = 0
        try:
            for batch in content.iter_batches(_BATCH, columns=once) if once else ():
                for i in range(batch.num_rows):
                    number += 1
                    yield number, rest | {name: batch.column(name)[i].as_py() for name in once}
            for untold in range(
                number + 1, content.metadata.num_rows + 1
            ):  # nothing of which is wanted
                yield untold, rest
        except problem as error:
            raise _not_parquet(error, f"row {number}: " if number else "") from None


@contextmanager
def _parquet_file(file: Path) -> Iterator[tuple[Any, tuple[type[Exception], ...]]]:
    """The open file, and what reading it may raise.

    Raises:
        RowError: it is none.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    problem = (pyarrow.ArrowException, ValueError, ArithmeticError, OSError)
    try:
        # page by page: a group of rows may be the whole file
        content = ParquetFile(file, pre_buffer=False, buffer_size=_CHUNK)
    except problem as error:
        raise _not_parquet(error) from None
    with content:
        yield content, problem


def _not_parquet(error: Exception, where: str = "") -> RowError:
    return RowError(f"{where}cannot be read as Parquet: {' '.join(str(error).split())[:200]}")
