"""Files of your own questions: each row is checked before a model is loaded."""

import json
from dataclasses import replace
from functools import lru_cache
from math import isfinite
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase
from typing import Any

from slimdown.config.schema import BenchmarkConfig
from slimdown.utils.errors import ConfigError, DataError
from slimdown.utils.row_files import is_visible, iter_records

QuestionRows = tuple[dict[str, Any], ...]
"""Rows of question and answer, or of question, choices and answer, the number of the right one."""


def read_questions(path: str) -> QuestionRows:
    """Read a file of questions, JSON, JSONL, CSV or Parquet.

    Args:
        path: A row has `question` and `answer`, a text or a number; or also `choices`, a list, of
            which `answer` is the number from 0, the letter or the text of the right one.

    Returns:
        The rows, without other columns and spaces around answers.

    Raises:
        DataError: Names the first row that is no such question.
    """
    file = Path(path).expanduser().absolute()
    return _read_rows(file, file.stat().st_mtime_ns if file.is_file() else 0)


def complete_benchmark(name: str, benchmark: BenchmarkConfig) -> BenchmarkConfig:
    """Fill in what a benchmark with a file of questions leaves open.

    Args:
        name: The benchmark's name.
        benchmark: One of a task is returned as it is.

    Raises:
        ConfigError: The file holds no such questions.
    """
    if benchmark.path is None:
        return benchmark
    try:
        rows = read_questions(benchmark.path)
    except DataError as error:
        raise ConfigError(f"benchmark.{name}.path={benchmark.path}: {error}") from None
    own: dict[str, Any] = {"task": name, "metric": "exact_match.strip", "chance": 0.0}
    if "choices" in rows[0]:
        first_rows = rows[: max(1, benchmark.limit or len(rows))]
        own["metric"], own["chance"] = "acc", fmean(1 / len(r["choices"]) for r in first_rows)
    own["num_fewshot"] = 0
    return replace(
        benchmark, **{k: v for k, v in own.items() if getattr(benchmark, k) in (None, "")}
    )


@lru_cache(maxsize=16)  # a sweep checks the same file for each of its runs
def _read_rows(file: Path, changed_at: int) -> QuestionRows:
    rows: list[dict[str, Any]] = []
    for number, record in iter_records(file):
        try:
            row = _read_row(record)
            json.dumps(row, ensure_ascii=False).encode()
            if rows and row.keys() != rows[0].keys():
                kind = "choices" if "choices" in row else "no choices"
                raise DataError(f"it has {kind}, unlike the rows before; give each kind a file")
        except (DataError, UnicodeEncodeError) as error:  # half of a surrogate pair
            raise DataError(f"row {number}: {error}") from None
        rows.append(row)
    if not rows:
        raise DataError('it is empty; write rows such as {"question": ..., "answer": ...}')
    return tuple(rows)


def _read_row(record: Any) -> dict[str, Any]:
    if isinstance(record, DataError):
        raise record
    if not isinstance(record, dict):
        raise DataError(f"it is {str(record)[:60]} and no object with question and answer")
    question, answer, choices = map(record.get, ("question", "answer", "choices"))
    if not isinstance(question, str) or not _to_text(question):
        raise DataError(f"it has no text in question; it has {', '.join(record)}"[:200])
    if not (text := _to_text(answer)):
        raise DataError(f"it has no text or number in answer; it has {', '.join(record)}"[:200])
    if choices is None:
        return {"question": question, "answer": text}
    texts = [_to_text(choice) for choice in choices] if isinstance(choices, list) else []
    if len(texts) < 2 or not all(texts) or len(set(texts)) < len(texts):
        wanted = "must be a list of two or more different texts"
        raise DataError(f"choices {wanted}, got {choices!r}"[:200])
    meant = [i for i, t in enumerate(texts) if text in (t, str(i), ascii_uppercase[i : i + 1])]
    if isinstance(answer, str) and text in texts:
        meant = [texts.index(text)]
    if len(meant) != 1:
        problem = "may mean two of the choices" if meant else "is none of the choices"
        advice = "give the number (from 0), the letter or the text of the right one"
        raise DataError(f"answer {text[:60]!r} {problem}; {advice}")
    return {"question": question, "choices": texts, "answer": meant[0]}


def _to_text(value: Any) -> str:
    """Return a text without spaces around it, or a number as text; empty for what shows nothing."""
    # A whole number may be too large for a float.
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    is_number = is_whole or (isinstance(value, float) and isfinite(value))
    text = str(value).strip() if is_number or isinstance(value, str) else ""
    if "\0" in text:
        raise DataError("it holds a NUL character; take it out")
    return text if is_visible(text) else ""
