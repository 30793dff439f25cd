"""Tables of scores, as CSV, JSON Lines or Parquet: `id`, `score`, and optional columns.

Optional are `prompt`, `answer`, `target`, `benchmark` and `category` (or `subject`). Without
`benchmark`, a file in a folder is the benchmark of its name. A file that is given by itself is
called `scores`, so that base.csv and tuned.csv are of one benchmark.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slimdown.evaluation.harness_results import parse_score
from slimdown.evaluation.logs.logged_task import (
    LoggedAnswer,
    LoggedTask,
    name_benchmark,
    read_table_rows,
)
from slimdown.utils.errors import DataError

# By field of `Sample`, the column that holds it.
_TEXTS = {"prompt": "prompt", "target": "target", "response": "answer"}


FILES = "table, .csv, .jsonl or .parquet"


def find_files(path: Path) -> list[Path]:
    """Find the tables that a path stands for."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    endings = (".csv", ".jsonl", ".parquet")
    return [file for file in files if file.suffix.lower() in endings and file.is_file()]


def _read_score(row: Mapping[str, Any], place: str) -> float:
    """Return the score of a row, and check that the row also has an id.

    Raises:
        DataError: The row has no id, or no score from 0 to 1. The message begins with `place`.
    """
    if missing := [name for name in ("id", "score") if row.get(name) in (None, "")]:
        columns = ", ".join(map(str, row))
        advice = "; a comma must stand between columns" if ";" in columns else ""
        problem = f"no {' and no '.join(missing)}; it has {columns or 'nothing'}{advice}"
        raise DataError(f"{place} has {problem}")
    score = parse_score(row["score"])
    if score is None or not 0 <= score <= 1:
        raise DataError(f"{place}: score {row['score']!r:.40} is no number from 0 to 1")
    return score


def open_logs(file: Path, title: str = "") -> Iterator[LoggedTask]:
    """Yield the benchmarks of a table.

    Args:
        file: The table.
        title: The benchmark's name if there is no column `benchmark`; empty: the name of the file.

    Raises:
        DataError: A row has no id, no score from 0 to 1 or no benchmark, or there are no rows.
    """
    tasks: dict[str, list[LoggedAnswer]] = {}  # by benchmark; "" if a row names none
    for number, row in read_table_rows(file):
        score = _read_score(row, f"{file}: row {number}")  # also refuses a row without an id
        fields: dict[str, Any] = {key: str(row.get(name) or "") for key, name in _TEXTS.items()}
        benchmark = str(row.get("benchmark") or "")
        if not fields["prompt"]:
            # Questions of two tables are equal if they have the same id and benchmark.
            question = f"question {row['id']} of {name_benchmark(benchmark or title or file.stem)}"
            fields |= dict.fromkeys(("doc_hash", "prompt_hash"), question)
        fields |= {"scores": {"score": score}, "document": row}
        chance = 0.0  # what guessing scores is not known
        tasks.setdefault(benchmark, []).append((str(row["id"]), chance, fields))
    if tasks.keys() == {""}:  # no row names a benchmark, so the table is one
        tasks = {title or file.stem: tasks[""]}
    has_unnamed = any(not name.strip() for name in tasks)
    if not tasks or has_unnamed:
        problem = "a row names no benchmark" if tasks else "it is empty"
        raise DataError(f"{file}: {problem}; a table has columns, at least id and score, and rows")
    for name, answers in tasks.items():
        conditions = {"kind": "table"}
        if not any(fields["prompt"] for _, _, fields in answers):
            conditions[f"{name_benchmark(name)}.prompts"] = "not logged"
        made_by = {"model": "", "tool": "table", "backend": "table"}
        yield LoggedTask(file, name, made_by, conditions, answers)
