"""Local files of rows: JSON, JSON Lines, CSV and Parquet, each row with its number.

`datasets.load_dataset` reads these files, too, but it stops at the first torn line without its
number, adds missing keys to messages as None, and takes a second to import. One reader serves the
look at the first rows before torch is imported and the training itself, so both agree on every
row.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unicodedata import category

from slimdown.utils.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")  # Unicode's controls, format characters and spaces


def iter_records(file: Path) -> Iterator[tuple[int, Any]]:
    """Read the rows of a file one after the other.

    Values of CSV files are texts. Missing values of Parquet files are left out.

    Args:
        file: A file whose ending says what it is; `.json` holds a list of objects or one object a
            line.

    Yields:
        The number of each row, and its values by column. Rows are counted from 1; in JSON Lines,
        the number is that of the line. If a row is wrong but the rows after it can still be read,
        a `DataError` stands in the place of its values.

    Raises:
        DataError: The file cannot be read, or cannot be read any further.
    """
    if not file.is_file():
        raise DataError(f"there is no such file; a relative path starts at {Path.cwd()}")
    kind = file.suffix.lower()
    read = {".parquet": _read_parquet, ".csv": _read_csv}.get(kind, _read_json)
    number = 0  # of the last row that was read, for the message below
    try:
        for number, record in read(file):
            yield number, record
    except UnicodeDecodeError as error:
        raise DataError(f"it is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    # What the csv, json and pyarrow modules raise for files that are damaged.
    except (OSError, ValueError, LookupError, ArithmeticError, RuntimeError, csv.Error) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"row {number + 1}: it cannot be read as {kind[1:]}: {reason}") from None


def is_visible(text: str) -> bool:
    """Return whether a text has a character that shows."""
    return any(category(char) not in _INVISIBLE for char in text)


def drop_missing(value: Any) -> Any:
    """Remove the keys whose value is None at every depth: Arrow adds keys that a row lacks."""
    if isinstance(value, dict):
        return {key: drop_missing(part) for key, part in value.items() if part is not None}
    return list(map(drop_missing, value)) if isinstance(value, list) else value


def _read_json(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the values of each row, or its error; see `iter_records`."""
    with file.open("rb") as content:
        start = content.read(100).removeprefix(_BYTE_ORDER_MARK).lstrip()
        content.seek(0)
        if file.suffix.lower() == ".json" and start.startswith(b"["):
            yield from enumerate(json.loads(content.read()), start=1)
            return
        for number, line in enumerate(content, start=1):  # one object per line
            if line.strip():  # an empty line is no row
                try:
                    yield number, json.loads(line.decode("utf-8-sig").strip())
                except UnicodeDecodeError as error:
                    yield number, DataError(f"it is not UTF-8 text ({error.reason}); save it so")
                except (ValueError, RecursionError) as error:
                    yield number, DataError(f"it cannot be read as JSON: {error}")


def _read_csv(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the texts of each row below the header; see `iter_records`."""
    with file.open(encoding="utf-8-sig", newline="") as content:
        lines = (fields for fields in csv.reader(content, strict=True) if fields)  # no empty ones
        header = next(lines, [])
        if twice := [name for name in header if header.count(name) > 1]:
            raise DataError(f"the column {twice[0]} stands there twice; keep one")
        for number, fields in enumerate(lines, start=1):
            if len(fields) == len(header):
                yield number, dict(zip(header, fields, strict=True))
            else:
                lengths = f"{len(fields)} fields, and the header has {len(header)}"
                yield number, DataError(f"it has {lengths}")


def _read_parquet(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the values of each row; see `iter_records`."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as content:
        records = (record for batch in content.iter_batches(100) for record in batch.to_pylist())
        yield from enumerate(map(drop_missing, records), start=1)
