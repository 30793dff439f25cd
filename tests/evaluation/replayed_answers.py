"""The answers of make_logs.py as logs of a tool, and what is found in them."""

import csv
import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from make_logs import SIDES, TOOL_LOGS, list_answers

import slimdown
from slimdown.judging.findings import judge
from slimdown.judging.serialization import to_plain
from slimdown.utils.errors import DataError


def write_logs(tool: str, folder: Path) -> tuple[Path, Path]:
    """Unpack the logs of a tool, or write tables of a kind: the paths of base and tuned model."""
    if tool in ("csv", "jsonl", "parquet"):
        for side in SIDES:
            write_table(folder / f"{side}.{tool}", list(list_answers(side)))
        return folder / f"base.{tool}", folder / f"tuned.{tool}"
    with ZipFile(TOOL_LOGS / f"{tool}.zip") as packed:
        packed.extractall(folder)
    return folder / "base", folder / "tuned"


def write_table(file: Path, rows: list[dict[str, Any]]) -> Path:
    if file.suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8") as content:
            writer = csv.DictWriter(content, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif file.suffix == ".parquet":
        import pyarrow
        from pyarrow.parquet import write_table as write_parquet

        write_parquet(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def assert_refused(path: Path, problem: str) -> None:
    """Read logs that are to be refused, with a line that matches `problem`."""
    with pytest.raises(DataError, match=problem) as refused:
        slimdown.read_logs(path)
    assert "\n" not in str(refused.value)


def describe_findings(base: Path, tuned: Path) -> dict[str, Any]:
    """All numbers and verdicts by benchmark, without what each tool calls the metric."""
    found = judge(slimdown.read_logs(base), slimdown.read_logs(tuned))
    described = {}
    for name, benchmark in found.benchmarks.items():
        plain: Any = to_plain(benchmark)
        plain["changes"] = [*plain["changes"].values()]
        for key in ("metric", "question_hash"):
            plain.pop(key, None)
        described[name.removesuffix("_0")] = plain
    return described
