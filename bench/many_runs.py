"""Measure what commands cost in a record of many runs: CPU seconds with imports, three times.

    python -m bench.many_runs
    python -m bench.many_runs --runs 300 --from mlruns

It makes one short run of the demo, or takes one of a local record, and copies its rows and files in
a store of its own: the same settings with other seeds.
"""

import argparse
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

COMMANDS = ["compare", "status", "check RUN --max-loss 0.5", "compare --no-group-seeds"]


def copy_run(store: Path, run_id: str, n_copies: int) -> None:
    """Copy a run's rows in every table that has them, and its files as hard links."""
    with closing(sqlite3.connect(store)) as database, database:
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        columns = {
            name: [row[1] for row in database.execute(f"PRAGMA table_info('{name}')")]
            for (name,) in names
        }
        tables = {name: keys for name, keys in columns.items() if "run_uuid" in keys}
        (uri,) = database.execute(
            "SELECT artifact_uri FROM runs WHERE run_uuid = ?", (run_id,)
        ).fetchone()
        files = Path(uri.removeprefix("file://"))
        (seed,) = database.execute(
            "SELECT value FROM params WHERE run_uuid = ? AND key = 'seed'", (run_id,)
        ).fetchone()
        for number in range(1, n_copies + 1):
            copy = uuid4().hex
            for name, keys in tables.items():
                other = ", ".join(f'"{key}"' for key in keys if key != "run_uuid")
                database.execute(
                    f"INSERT INTO {name} (run_uuid, {other}) SELECT ?, {other} FROM {name} "
                    "WHERE run_uuid = ?",
                    (copy, run_id),
                )
            folder = files.parents[1] / copy / "artifacts"
            shutil.copytree(files, folder, copy_function=os.link)
            database.execute(
                "UPDATE runs SET artifact_uri = ?, start_time = start_time + ?, "
                "end_time = end_time + ? WHERE run_uuid = ?",
                (folder.as_uri(), 1000 * number, 1000 * number, copy),
            )
            database.execute(
                "UPDATE params SET value = ? WHERE run_uuid = ? AND key = 'seed'",
                (str(int(seed) + number), copy),
            )


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
            print(f"| {line} | " + " | ".join(f"{one:.1f}" for one in times) + " |", flush=True)


if __name__ == "__main__":
    main()
