"""Read the settings of benchmarks by name: from `conf/benchmark/`, or of any harness task."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache
from importlib.util import find_spec
from os.path import splitext
from pathlib import Path
from statistics import fmean
from typing import Any

from slimdown.config.benchmark_config import BYTE_PROBABILITY, BenchmarkConfig, Role
from slimdown.config.dataset_config import is_row_file, name_row_file
from slimdown.config.fields import build_settings, find_problems, nearest
from slimdown.config.paths import read_group
from slimdown.pocket import TASKS_DIR
from slimdown.scoring.question_files import name_score, read_questions
from slimdown.scoring.score import EXACT
from slimdown.utils.errors import ConfigError, DataError

BenchmarkSpec = str | Mapping[str, Any] | BenchmarkConfig
"""A benchmark: its name, a file of your own questions, or settings.

The `task` of settings is the name, and the others override its own. Settings with a `path` and no
`task` are of a file of questions, which is called after the file.
"""


def read_benchmarks(
    names: BenchmarkSpec | Iterable[BenchmarkSpec], **settings: Any
) -> dict[str, BenchmarkConfig]:
    """Return the checked settings of benchmarks, by the benchmark's name.

    Args:
        names: One or several benchmarks, each by its name or with settings: see `BenchmarkSpec`.
        settings: Values for all of them, such as `limit`. None keeps the value that a benchmark
            has.

    Returns:
        The settings by benchmark, in the order of `names`. Values for all benchmarks override
        those of a single one, and these override its file in `conf/benchmark/`. Settings that are
        null are left to the harness's task file.

    Raises:
        ConfigError: There is no such setting or value, or no benchmark is named, or one twice.
    """
    file_values = read_group("benchmark")  # by benchmark, what its file in `conf/` sets
    benchmarks: dict[str, BenchmarkConfig] = {}
    # What cannot be iterated over is a `BenchmarkConfig`, or a mistake that `_read_spec` refuses.
    is_single = isinstance(names, str | Mapping) or not isinstance(names, Iterable)
    specs: Any = [names] if is_single else names
    for spec in specs:
        name, values = _read_spec(spec)
        if name in benchmarks:
            raise ConfigError(f"{name} is named twice; name it once")
        values |= {key: value for key, value in settings.items() if value is not None}
        if name in file_values:
            # The file in `conf/benchmark/` sets what the caller does not. Its `task` always holds:
            # that is the harness's task, while the caller's `task` is the name of the benchmark.
            values.pop("task", None)
            values = file_values[name] | values
        try:
            benchmark = build_settings(BenchmarkConfig, values)
            if problems := list(find_problems(benchmark)):
                raise ConfigError("\n".join(problems))
            benchmarks[name] = complete_benchmark(name, benchmark)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
    if not benchmarks:
        raise ConfigError(f"no benchmark is named; name one of {', '.join(file_values)}, or a task")
    return benchmarks


def _read_spec(spec: Any) -> tuple[str, dict[str, Any]]:
    """Return the name of a benchmark and its own settings; `spec` may hold anything."""
    values = asdict(spec) if isinstance(spec, BenchmarkConfig) else spec
    if isinstance(values, str):
        values = {"path": values} if is_row_file(values) else {"task": values}
    if isinstance(values, Mapping):
        name, path = values.get("task"), values.get("path")
        if not name and isinstance(path, str):
            name = name_row_file(path)
        if isinstance(name, str):
            return name, dict(values)
    example = "a name, a file such as 'my.jsonl', or settings such as {'task': 'gsm8k'}"
    raise ConfigError(f"{spec!r} names no benchmark; give {example}")


def complete_benchmark(name: str, benchmark: BenchmarkConfig) -> BenchmarkConfig:
    """Return a benchmark's settings, in which its file of questions decides what is not set.

    Args:
        name: The benchmark's name.
        benchmark: Its settings; those with a `path` are of a file of your own questions.

    Returns:
        The settings with a metric, a chance level and so on that fit the file's rows. Values that
        you set stay, but a file of texts gets the role `watched`, also if `retained` was set: no
        verdict about texts is possible. Without a file, the settings are returned as they are.

    Raises:
        ConfigError: The file cannot be read as questions for the benchmark's score, or its rows
            are texts and the benchmark is a target.
    """
    if benchmark.path is None:
        return benchmark
    try:
        rows = read_questions(benchmark.path, benchmark.score)
    except DataError as error:
        raise ConfigError(f"benchmark.{name}.path={benchmark.path}: {error}") from None
    score = name_score(rows)
    # Exact match is a metric of the harness, which names its filter as well. Other scores are
    # metrics by their own name.
    metric = "exact_match.strip" if score == EXACT else score
    defaults: dict[str, Any] = {"task": name, "metric": metric, "chance": 0.0, "num_fewshot": 0}
    defaults["cluster"] = "cluster" if "cluster" in rows[0] else None
    # All rows of a file are of one kind: texts (scored by bits per byte), questions with choices,
    # or questions whose answers are generated.
    if "text" in rows[0]:
        if benchmark.role is Role.target:
            advice = (
                "a text can become less likely without a loss of ability, so it can only be "
                "watched; leave the role out"
            )
            raise ConfigError(f"benchmark.{name}.role=target: {advice}")
        benchmark = replace(benchmark, role=Role.watched)
        defaults["metric"] = BYTE_PROBABILITY
    if "choices" in rows[0]:
        # A limit below 1 is refused by a later check; here it must not leave an empty list.
        asked_rows = rows[: max(1, benchmark.limit or len(rows))]
        defaults["metric"] = "acc"
        defaults["chance"] = fmean(1 / len(row["choices"]) for row in asked_rows)
    unset = [setting for setting in defaults if getattr(benchmark, setting) in (None, "")]
    return replace(benchmark, **{setting: defaults[setting] for setting in unset})


def check_task_names(
    benchmarks: Mapping[str, BenchmarkConfig], include_path: str | None, names: Collection[str] = ()
) -> Iterator[str]:
    """Yield a problem for each task that no task file of the harness names.

    The harness is not imported, because that takes seconds. Its files are searched for the name
    instead, also those without an ending: others include them, and they may hold tags and groups.

    Args:
        benchmarks: The settings by name.
        include_path: A folder with task files of your own.
        names: Further names to suggest for a typo: the benchmarks that slimdown has settings for.
    """
    files = [*_list_task_files(TASKS_DIR), *_list_harness_files()]
    if include_path:
        files += _list_task_files(Path(include_path))
    tasks = {name: b.task for name, b in benchmarks.items() if b.path is None}
    for name, task in tasks.items():
        # Most tasks are in a file of their name, so such files are searched first.
        likely_files = [file for file in files if task in file]
        if any(_names_task(file, task) for file in (*likely_files, *files)):
            continue
        known = {*names, *(splitext(os.path.basename(file))[0] for file in files)}
        # There are thousands of names: only those with the same first letter are compared.
        candidates = sorted(other for other in known - {task} if other[:1] == task[:1])
        # If no name is near, `nearest` lists all: thousands, which are cut off here.
        advice = nearest(task, candidates).partition("; known:")[0]
        own_tasks = "for tasks of your own, set evaluation.include_path to their folder"
        setting = f"benchmark={name}" if task == name else f"benchmark.{name}.task={task}"
        yield f"{setting}: the harness has no task of this name{advice} ({own_tasks})"


@cache
def _list_harness_files() -> tuple[str, ...]:
    """List the 14,000 files of the harness that may name a task."""
    harness = find_spec("lm_eval").origin  # type: ignore[union-attr]
    return tuple(_list_task_files(Path(str(harness)).with_name("tasks")))


def _list_task_files(folder: Path) -> Iterator[str]:
    for top, _, names in os.walk(folder):
        yield from (os.path.join(top, n) for n in names if splitext(n)[1] in ("", ".yaml", ".yml"))


def _names_task(file: str, task: str) -> bool:
    """Whether a file names a task, a group or a tag."""
    with open(file, "rb", buffering=0) as stream:  # unbuffered: twice as fast
        content, name = stream.read(), task.encode()
    whole = rb"""(?m)(\b(task|group|tag)["']?:|^[ \t]*-|[,[])[ \t]*["']?%s(?=["',\]\s#]|$)"""
    return name in content and re.search(whole % re.escape(name), content) is not None
