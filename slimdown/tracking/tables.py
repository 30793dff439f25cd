"""A local store by its tables: MLflow builds an object for each of 170 entries a run, and takes 30 times as long."""

import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from slimdown.stats.runs import RecordedRun
from slimdown.tracking.names import parsed, time_of
from slimdown.tracking.tags import Tag

TUNED: dict[str, str] = {Tag.kind: "tuned"}
_AT_ONCE = 500  # runs in one statement: old SQLites take 999 variables


def has_tables(file: Path) -> bool:
    """Whether the file is a store, or may be one."""
    try:
        with reading(file) as rows:
            return rows.are_mlflows()
    except sqlite3.OperationalError:
        return True  # in use, or not ours to read: whoever reads it will say so
    except sqlite3.DatabaseError:
        return False  # no database at all


@contextmanager
def reading(file: Path) -> "Iterator[Rows]":
    """The rows of a store's file; raises sqlite3.Error where it is none, or not as MLflow makes them today."""
    # Read-only: what compares runs can harm none, and a store in a folder that nobody may write is read too.
    with closing(
        sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode=ro", uri=True, timeout=30)
    ) as database:
        yield Rows(database)


class Rows:
    """The rows of MLflow's tables, which have been these since 2019."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._ask = database.execute

    def are_mlflows(self) -> bool:
        """Whether the file is a store at all."""
        return bool(
            self._ask("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
        )

    def experiments(self) -> dict[str, str]:
        """Names by id, of those that are not deleted."""
        found = self._ask(
            "SELECT experiment_id, name FROM experiments WHERE lifecycle_stage = 'active'"
        )
        return {str(key): name for key, name in found}

    def runs(
        self, experiments: dict[str, str], tags: Mapping[str, str], most: int, entries: bool = True
    ) -> list[RecordedRun]:
        """The runs that have these tags, newest first; without params, tags and metrics where not `entries`."""
        tagged = " ".join(
            "AND EXISTS (SELECT 1 FROM tags t WHERE t.run_uuid = r.run_uuid AND t.key = ? AND t.value = ?)"
            for _ in tags
        )
        values = [text for pair in tags.items() for text in pair]
        found = self._select(tagged, values, experiments)[:most]
        return self._with_entries(found) if entries else found

    def called(self, text: str, experiments: dict[str, str]) -> list[RecordedRun]:
        """The runs of any kind with this id; else the tuned ones of this name, else those whose id begins so."""
        tuned = "AND EXISTS (SELECT 1 FROM tags t WHERE t.run_uuid = r.run_uuid AND t.key = ? AND t.value = ?)"
        kind = next(iter(TUNED.items()))
        found = (
            self._select("AND r.run_uuid = ?", [text], experiments)
            or self._select(f"{tuned} AND r.name = ?", [*kind, text], experiments)
            or self._select(
                f"{tuned} AND substr(r.run_uuid, 1, ?) = ?", [*kind, len(text), text], experiments
            )
        )
        return self._with_entries(found)

    def _select(
        self, condition: str, values: Sequence[str | int], experiments: dict[str, str]
    ) -> list[RecordedRun]:
        found = self._ask(
            "SELECT r.run_uuid, r.name, r.experiment_id, r.status, r.start_time FROM runs r "
            f"WHERE r.lifecycle_stage = 'active' {condition} ORDER BY r.start_time DESC, r.run_uuid",
            values,
        )
        return [
            RecordedRun(key, name or key, experiments[str(experiment)], status, time_of(started))
            for key, name, experiment, status, started in found
            if str(experiment) in experiments
        ]

    def _with_entries(self, runs: list[RecordedRun]) -> list[RecordedRun]:
        params = self._entries("params", "value", runs)
        tags = self._entries("tags", "value", runs)
        # SQL has no word for what is no number: MLflow keeps a flag beside it.
        numbers = self._entries("latest_metrics", "CASE WHEN is_nan THEN NULL ELSE value END", runs)
        metrics = {
            key: {k: math.nan if v is None else v for k, v in values.items()}
            for key, values in numbers.items()
        }
        return [
            parsed(
                replace(
                    run,
                    params=params[run.run_id],
                    tags=tags[run.run_id],
                    metrics=metrics[run.run_id],
                )
            )
            for run in runs
        ]

    def _entries(
        self, table: str, value: str, runs: list[RecordedRun]
    ) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {run.run_id: {} for run in runs}
        ids = list(found)
        for i in range(0, len(ids), _AT_ONCE):
            some = ids[i : i + _AT_ONCE]
            marks = ",".join("?" * len(some))
            for run_id, key, content in self._ask(
                f"SELECT run_uuid, key, {value} FROM {table} WHERE run_uuid IN ({marks})", some
            ):
                found[run_id][key] = content
        return found
