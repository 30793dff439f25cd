"""Tables of scores, CSV, JSON Lines or Parquet: `id`, `score`, and what else there is.

Of the columns `prompt`, `answer`, `target`, `benchmark` and `category` those are read that a table
has. Without `benchmark`, a file is one benchmark of its name.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimdown.evaluation.harness_results import parse_score
from slimdown.evaluation.logs.logged_task import LoggedTask, name_benchmark, read_rows
from slimdown.utils.errors import DataError

_TEXTS = {"prompt": "prompt", "target": "target", "answer": "response", "category": "category"}


def find_files(path: Path) -> list[Path]:
    """Find the tables that a path stands for."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    endings = (".csv", ".jsonl", ".parquet")
    return [file for file in files if file.suffix.lower() in endings and file.is_file()]


def open_logs(files: list[Path]) -> list[LoggedTask]:
    """Read tables, each benchmark of which stands in one of them."""
    tasks: dict[str, LoggedTask] = {}
    for file in files:
        answers: dict[str, list[dict[str, Any]]] = {}
        for title, answer in _read_answers(file):
            answers.setdefault(title, []).append(answer)
        if not answers:
            raise DataError(f"{file} is empty; it needs the columns id and score, and rows")
        for title, of_title in answers.items():
            if (name := name_benchmark(title)) in tasks or not name:
                place = tasks[name].file.name if name else "a row that names none"
                raise DataError(f"{file}: the benchmark {title!r} stands in {place}, too")
            conditions = {"kind": "table"}
            if not any(answer["prompt"] for answer in of_title):
                conditions[f"{name}.prompts"] = "not logged"
            made_by = {"model": "", "tool": "table", "backend": "table"}
            tasks[name] = LoggedTask(file, title, made_by, conditions, of_title)
    return list(tasks.values())


def _read_answers(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the rows of a table: of each the benchmark, and the answer."""
    for number, row in read_rows(file):
        if missing := [name for name in ("id", "score") if row.get(name) in (None, "")]:
            columns = ", ".join(map(str, row))
            advice = "; a comma must stand between columns" if ";" in columns else ""
            problem = f"no {' and no '.join(missing)}; it has {columns or 'nothing'}{advice}"
            raise DataError(f"{file}: row {number} has {problem}")
        score = parse_score(row["score"])
        if score is None or not 0 <= score <= 1:
            problem = f"score {row['score']!r:.40} is no number from 0 to 1"
            raise DataError(f"{file}: row {number}: {problem}")
        # JSON and Parquet can hold a conversation.
        cells = {key: row.get(key) or "" for key in _TEXTS}
        texts: dict[str, Any] = {
            _TEXTS[key]: cell if isinstance(cell, str) else json.dumps(cell, default=str)
            for key, cell in cells.items()
        }
        if not texts["prompt"]:  # then its name is all that is known of a question
            texts |= dict.fromkeys(("doc_hash", "prompt_hash"), f"question {row['id']}")
        answer = {"question": str(row["id"]), "scores": {"score": score}, **texts}
        yield str(row.get("benchmark", file.stem)), answer
