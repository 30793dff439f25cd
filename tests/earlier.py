"""Stores that earlier versions left, as small as they can be kept, put into a store of today's MLflow.

Made at the commit that a file is named after, in an empty folder, and packed without what nothing here reads (plots,
pages, adapters), each by

    python -m slimdown.run -m lora.r=4,8 train.max_steps=6 train.learning_rate=0.3 train.max_grad_norm=100 \
        train.warmup_steps=0 'benchmark=[pocket_math,pocket_cs]' benchmark.pocket_math.limit=20 \
        benchmark.pocket_cs.limit=20 dataset.pocket_instructions.max_examples=48 \
        dataset.pocket_instructions.validation_examples=8
    python tests/earlier.py mlruns tests/records/COMMIT.tar.xz
"""

import io
import json
import re
import sqlite3
import sys
import tarfile
from contextlib import closing
from pathlib import Path

HERE = "/HERE"  # in the place of the folder, which MLflow names absolutely
TABLES = ("experiments", "runs", "params", "tags", "metrics", "latest_metrics")


def pack(folder: Path, archive: Path) -> None:
    """Keep the rows of a store as they are, and its runs' small artifacts."""
    with (
        closing(sqlite3.connect(folder / "mlflow.db")) as store,
        tarfile.open(archive, "w:xz") as packed,
    ):
        store.row_factory = sqlite3.Row
        tables = {
            table: [dict(row) for row in store.execute(f"SELECT * FROM {table}")]
            for table in TABLES
        }
        text = json.dumps(tables).replace(str(folder.absolute()), HERE)
        text = re.sub(
            r'("mlflow.user", "value": |"user_id": )"[^"]*"', r'\1"somebody"', text
        ).encode()
        about = tarfile.TarInfo("rows.json")
        about.size = len(text)
        packed.addfile(about, io.BytesIO(text))
        for file in sorted(folder.rglob("samples/*.parquet")):
            packed.add(file, file.relative_to(folder), filter=_nobodys)


def unpack(archive: Path, folder: Path) -> None:
    """Add what `pack` kept to the empty store in a folder, by columns: MLflow's tables grow from version to version."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    tables = json.loads((folder / "rows.json").read_text().replace(HERE, str(folder.absolute())))
    with closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
        for table, rows in tables.items():
            there = {column for _, column, *_ in store.execute(f"PRAGMA table_info({table})")}
            for row in rows:
                kept = {key: value for key, value in row.items() if key in there}
                marks = ",".join("?" * len(kept))
                names = ",".join(kept)
                store.execute(
                    f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})",
                    list(kept.values()),
                )


def _nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
