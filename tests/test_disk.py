"""A full disk is called one, whoever ran into it."""

import resource
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slimdown.utils.disk import disk_full


def write_text(folder: Path) -> None:
    with Path("/dev/full").open(
        "w"
    ) as device:  # opened and never replaced: a library that renames would destroy it
        device.write("x" * 100_000)


def write_weights(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        save_file({"weight": torch.zeros(10_000)}, folder / "weights.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_rows(folder: Path) -> None:
    database = sqlite3.connect(folder / "mlflow.db")
    database.execute("CREATE TABLE metrics (value TEXT)")
    database.execute("PRAGMA max_page_count = 3")
    for _ in range(10):
        database.execute("INSERT INTO metrics VALUES (?)", ["x" * 4000])


@pytest.mark.parametrize("write", [write_text, write_weights, write_rows])
def test_a_full_disk_is_known_by_its_error(write: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"full|No space|too large") as raised:
        write(tmp_path)
    wrapped = RuntimeError("something went wrong")
    wrapped.__cause__ = raised.value
    for error in (raised.value, wrapped):
        said = disk_full(error, tmp_path)
        assert said is not None
        assert "the disk takes no more" in str(said)
        assert "MB are free in" in str(said)
        assert "run the same command again" in str(said)


def test_other_errors_are_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as raised:
        (tmp_path / "nothing").read_text()
    assert disk_full(raised.value, tmp_path) is None
