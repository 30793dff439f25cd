"""Rows on disk, written and read a thousand at a time: a million of them take the memory of a thousand."""

import pickle
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from datasets import Dataset

_BATCH = 1000  # rows
_MAPPED = 20_000  # rows that are read before what was read is let go of


class Folder:
    """A folder for rows, gone when nobody holds this any more, or with the process; TMPDIR says where."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="slimdown-rows-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Shelf:
    """Rows in a file, taken in any order: it is not mapped, so that nothing of it counts as this process's memory."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._folder = Folder()
        self._file = self._folder.path / "rows"
        ends = array("Q", [0])
        with self._file.open("wb") as file:
            for row in rows:
                file.write(pickle.dumps(row))
                ends.append(file.tell())
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def take(self, order: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The rows of these numbers, from 0."""
        with self._file.open("rb") as file:
            for i in order:
                file.seek(self._ends[i])
                yield pickle.loads(file.read(self._ends[i + 1] - self._ends[i]))


def written(rows: Iterable[dict[str, Any]], schema: pa.Schema, file: Path) -> "Dataset":
    """Rows of these columns, kept in an Arrow file and read from there."""
    from datasets import Dataset

    rows = iter(rows)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        while batch := list(islice(rows, _BATCH)):
            stream.write_batch(pa.RecordBatch.from_pylist(batch, schema))
    return Dataset.from_file(str(file))


def batches(rows: "Dataset") -> Iterator[dict[str, list[Any]]]:
    """All rows in their order, a thousand at a time, by column."""
    part = rows
    for start in range(0, len(rows), _BATCH):
        if start % _MAPPED == 0 and len(rows) > _MAPPED:
            # What is read of a mapped file counts as this process's memory until the mapping ends; a copy is one anew.
            part = pickle.loads(pickle.dumps(rows))
        yield part[start : start + _BATCH]


def records(rows: "Dataset") -> Iterator[dict[str, Any]]:
    """All rows in their order, one at a time."""
    for batch in batches(rows):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))
