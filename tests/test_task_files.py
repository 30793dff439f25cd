"""The harness's 14,000 task files are read one by one once."""

from pathlib import Path

import pytest

from slimdown.config import task_files


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    task_files._task_files.cache_clear()
    return tmp_path / "slimdown"


def fresh() -> dict[str, bytes]:
    task_files._task_files.cache_clear()
    return task_files._task_files()


def test_they_come_from_one_file_the_second_time(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one = fresh()
    assert len(one_by_one) > 10_000
    monkeypatch.setattr(task_files, "_read_one_by_one", None)  # a second reading would fail
    assert fresh() == one_by_one


def test_a_damaged_file_is_made_again(cache: Path) -> None:
    one_by_one = fresh()
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:5_000_000])
    assert fresh() == one_by_one
    assert kept.read_bytes() == whole


def test_a_home_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(fresh()) > 10_000
