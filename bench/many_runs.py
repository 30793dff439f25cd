"""Measure what commands cost in a record of many runs: CPU seconds with imports, three times.

    python -m bench.many_runs
    python -m bench.many_runs --runs 300 --from mlruns

It makes one short run of the demo, or takes one of a local record, and copies its rows and files in
a store of its own: the same settings with other seeds.
"""

import argparse
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from bench.machine import describe_machine
from slimdown.tracking.recorded_settings import digest_settings

COMMANDS = ["compare", "status", "check RUN --max-loss 0.5", "compare --no-group-seeds"]


class RecordCopier:
    """Copies a run with its model in a SQLite store, as another seed would have left them."""

    def __init__(self, database: sqlite3.Connection, run_id: str) -> None:
        """Read where rows of runs and models lie."""
        self._database, self._run_id = database, run_id
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        self._columns = {
            name: [row[1] for row in database.execute(f"PRAGMA table_info('{name}')")]
            for (name,) in names
        }
        where = "SELECT artifact_uri FROM runs WHERE run_uuid = ?"
        (uri,) = database.execute(where, (run_id,)).fetchone()
        self._files = Path(uri.removeprefix("file://"))
        where = "SELECT model_id FROM logged_models WHERE source_run_id = ?"
        found = database.execute(where, (run_id,)).fetchone()
        self._model_id = found[0] if found else ""

    def copy(self, number: int) -> None:
        """Add the run of another seed, whose files are hard links."""
        run, model = uuid4().hex, f"m-{uuid4().hex}"
        renamed = {self._run_id: run, self._model_id: model}
        folder = self._files.parents[1] / run / "artifacts"
        shutil.copytree(self._files, folder, copy_function=os.link)
        recorded = json.loads((folder / "settings.json").read_text())
        seed = recorded["settings"]["seed"] = recorded["settings"]["seed"] + number
        text = json.dumps(recorded)
        (folder / "settings.json").unlink()
        (folder / "settings.json").write_text(text)
        for table, columns in self._columns.items():
            self._copy_rows(table, columns, renamed)
        later = "start_time = start_time + ?, end_time = end_time + ?"
        self._database.execute(
            f"UPDATE runs SET artifact_uri = ?, {later} WHERE run_uuid = ?",
            (folder.as_uri(), 1000 * number, 1000 * number, run),
        )
        tag = "UPDATE tags SET value = ? WHERE run_uuid = ? AND key = 'slimdown.settings'"
        self._database.execute(tag, (digest_settings(text), run))
        param = "UPDATE params SET value = ? WHERE run_uuid = ? AND key = 'seed'"
        self._database.execute(param, (str(seed), run))

    def _copy_rows(self, table: str, columns: list[str], renamed: dict[str, str]) -> None:
        """Copy the rows of a run, or of its model, in one table under the new ids."""
        owners = {"run_uuid", "run_id", "model_id", "source_run_id", "source_id", "destination_id"}
        keys = [key for key in columns if key in owners]
        if not keys:
            return
        ids = ", ".join("?" * len(renamed))
        where = " OR ".join(f"{key} IN ({ids})" for key in keys)
        query = f"SELECT * FROM {table} WHERE {where}"
        rows = self._database.execute(query, [*renamed] * len(keys)).fetchall()
        marks = ", ".join("?" * len(columns))
        for row in rows:
            values = dict(zip(columns, row, strict=True))
            values |= {key: renamed.get(values[key], values[key]) for key in keys}
            if "input_uuid" in values:
                values["input_uuid"] = uuid4().hex
            self._database.execute(f"INSERT INTO {table} VALUES ({marks})", [*values.values()])


def copy_run(store: Path, run_id: str, n_copies: int) -> None:
    """Copy a run's rows in every table that has them, and its files as hard links."""
    with closing(sqlite3.connect(store)) as database, database:
        copier = RecordCopier(database, run_id)
        for number in range(1, n_copies + 1):
            copier.copy(number)


def find_run(store: Path) -> str:
    """Return the id of the newest finished fine-tuning."""
    with closing(sqlite3.connect(store)) as database:
        (run_id,) = database.execute(
            "SELECT r.run_uuid FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid WHERE "
            "t.key = 'slimdown.kind' AND t.value = 'tuned' AND r.status = 'FINISHED' "
            "ORDER BY r.start_time DESC"
        ).fetchone()
    return str(run_id)


def time_command(verb: str, *arguments: str) -> float:
    """Return the CPU seconds of a command, with those of Python's start and its imports."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "slimdown", verb, *arguments], capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not done.stdout:  # a check has an answer in its exit code
        sys.exit(f"slimdown {verb} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Fill a store, and time each command in it three times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3000, help="in the store (default: 3000)")
    parser.add_argument("--from", type=Path, dest="record", help="the folder of mlflow.db")
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "mlruns")
        store = folder / "mlflow.db"
        if options.record:
            shutil.copytree(options.record, folder)
        else:
            folder.mkdir()
            command = [sys.executable, "-m", "slimdown.run", "train.max_steps=40"]
            subprocess.run([*command, f"tracking.uri=sqlite:///{store}"], cwd=name, check=True)
        run_id = find_run(store)
        copy_run(store, run_id, options.runs - 1)
        print(f"| CPU seconds at {options.runs:,} runs | first | second | third |")
        print("|---|---:|---:|---:|")
        for line in COMMANDS:
            verb, *arguments = line.replace("RUN", run_id).split()
            place = ["--tracking-uri", f"sqlite:///{store}"]
            times = [time_command(verb, *arguments, *place) for _ in range(3)]
            print(
                f"| {line} | " + " | ".join(f"{seconds:.1f}" for seconds in times) + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
