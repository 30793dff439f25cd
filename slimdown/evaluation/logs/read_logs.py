"""Finds out which tool wrote a log, and reads it: `read_logs`."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from itertools import chain
from math import fsum
from pathlib import Path
from typing import Any

from slimdown.config.benchmark_config import Role
from slimdown.config.fields import nearest
from slimdown.evaluation.logs import every_eval, inspect, lighteval, lm_eval, score_tables
from slimdown.evaluation.logs.logged_task import LoggedTask, LogReader, name_benchmark, name_models
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation
from slimdown.utils.errors import ConfigError, DataError
from slimdown.utils.extensions import add_extensions
from slimdown.utils.secrets import redact

# The first that takes a file reads it: Inspect gets only a .json that lm_eval does not take. Tables
# always come last, so that one beside the logs of a tool is not read as a log.
_OWN: dict[str, LogReader] = {
    "lm_eval": lm_eval,
    "Every Eval Ever": every_eval,
    "Inspect": inspect,
    "lighteval": lighteval,
    "tables": score_tables,
}


@cache
def list_readers() -> dict[str, LogReader]:
    """Return every reader of logs by its kind; those of other packages are asked first.

    Raises:
        ConfigError: An extension is broken.
    """
    demand = "a module or object with FILES, find_files and open_logs"
    table = add_extensions("slimdown.logs", _OWN, _is_reader, demand)
    # Other packages' readers, then slimdown's own, then tables: False comes before True.
    order = sorted(table, key=lambda kind: (kind in _OWN, kind == "tables"))
    return {kind: table[kind] for kind in order}


def _is_reader(added: Any) -> bool:
    """Whether something that another package adds has what `LogReader` asks for."""
    functions = [getattr(added, name, None) for name in ("find_files", "open_logs")]
    return all(map(callable, functions)) and isinstance(getattr(added, "FILES", None), str)


def find_logs(path: Path) -> tuple[str, list[Path]]:
    """Find the logs that a path stands for.

    Returns:
        Their kind, which is a key of `list_readers`, and the files, oldest first.

    Raises:
        DataError: There are none, or they are of several tools or models.
    """
    files_by_kind = {kind: reader.find_files(path) for kind, reader in list_readers().items()}
    kinds = [kind for kind, files in files_by_kind.items() if files]
    # Files of a tool's logs may look like tables, so tables are no further tool.
    tools = [kind for kind in kinds if kind != "tables"]
    if path.is_dir() and len(tools) > 1:
        raise DataError(f"{path} holds logs of {' and '.join(tools)}; give the place of one")
    if kinds:
        # One file may look like a log of several tools: the first reader has it. Tables are the
        # last kind of all, so they are taken only if there are no other logs.
        return kinds[0], files_by_kind[kinds[0]]
    # The folder holds no logs, but perhaps those of several models in folders of their own.
    if len(folders := _list_models(path)) > 1:
        raise DataError(f"{path} holds {name_models(folders)}")
    if not path.exists():
        problem = "give the folder of lm_eval's --output_path, or the place of other logs"
        raise DataError(f"there is no folder {path}; {problem}")
    *others, last = (f"no {reader.FILES}" for reader in list_readers().values())
    raise DataError(f"{path} holds {', '.join(others)} and {last}")


def _list_models(path: Path) -> list[Path]:
    """List the folders in a folder that hold logs by themselves."""
    if not path.is_dir():
        return []
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    readers = list_readers().values()
    return [folder for folder in folders if any(reader.find_files(folder) for reader in readers)]


def read_logs(
    folder: Path | str,
    metrics: Mapping[str, str] | None = None,
    targets: Collection[str] = (),
    on_note: Callable[[str], object] = warnings.warn,
    clusters: Mapping[str, str] | None = None,
) -> Evaluation:
    """Read what one model answered, from the logs of a tool or from a table.

    In logs of lm_eval, a group that has its own score is one benchmark; any other task is one by
    itself. If a benchmark was asked several times, its newest answers are read.

    Args:
        folder: The one that the tool was told to write to, the model's folder in it, or one file.
        metrics: The primary metric by benchmark: for lm_eval with filters after a dot, for Inspect
            the scorer. The default is the metric of `conf/benchmark/` for benchmarks of lm_eval,
            and otherwise the one that `choose_metric` chooses.
        targets: The benchmarks that the fine-tuning was meant to teach.
        on_note: Called with a line about what is left out.
        clusters: By benchmark, a field of its documents, or a column. Questions that share its
            value, such as those of a passage, count as one.

    Returns:
        The evaluation. Two evaluations can only be compared if their `conditions` are equal.

    Raises:
        ConfigError: `metrics`, `targets` or `clusters` name what was not asked, or the tool that
            reads the logs is not installed.
        DataError: There are no logs, or they hold no questions, or are not as the tool writes them.
        OSError: A file cannot be read.
    """
    metrics, clusters = metrics or {}, clusters or {}
    _check_types(metrics, targets, clusters)
    # The newest log of each benchmark: by name, and in the order in which they were made.
    newest, used = _open_newest(Path(str(folder)), on_note)
    for name in (*metrics, *targets, *clusters):
        if name not in newest:
            raise ConfigError(f"{folder}: {name} was not asked{nearest(name, list(newest))}")
    benchmarks: dict[str, BenchmarkEvaluation] = {}
    for name, log in newest.items():
        role = Role.target if name in targets else None  # None: its usual one
        metric, cluster = metrics.get(name), clusters.get(name)
        if evaluation := log.read_benchmark(name, metric, role, cluster):
            benchmarks[name] = evaluation
        else:
            problem = "no metric is a mean of scores between 0 and 1 of which more is better"
            on_note(f"{name} is left out: {problem}")
    if not benchmarks:
        raise DataError(f"{folder}: no benchmark has scores of its questions that can be compared")
    made_by = used[-1].made_by  # of the newest log; the others were made alike
    return Evaluation(
        benchmarks=benchmarks,
        harness_version=made_by["tool"],
        backend=made_by["backend"],
        seconds=fsum(log.seconds for log in used),
        conditions={key: value for log in used for key, value in log.conditions.items()},
        model=redact(made_by.get("model", "")),
        adapter=redact(made_by.get("adapter", "")),
    )


def _open_newest(
    folder: Path, on_note: Callable[[str], object]
) -> tuple[dict[str, LoggedTask], list[LoggedTask]]:
    """Open the newest log of each benchmark in a folder.

    Args:
        folder: The folder, or one file.
        on_note: Called with a line if older logs are left out.

    Returns:
        The logs by the benchmark's name; and the same logs in the order in which they were made.

    Raises:
        DataError: There are no logs, or they were not made alike. Or two tables are of one
            benchmark: nothing says which of them is newer.
    """
    kind, files = find_logs(folder)
    open_logs = list_readers()[kind].open_logs
    if kind == "tables" and not folder.is_dir():
        # Without this title, a table's benchmark would be named after its file. The tables of two
        # models have different names, and their benchmark must have the same one.
        open_logs = partial(score_tables.open_logs, title="scores")
    logs = [log for file in files for log in open_logs(file)]
    # The oldest come first in `logs`, so a newer log replaces an older one of the same benchmark.
    newest = {name_benchmark(log.title): log for log in logs}
    used = [log for log in logs if newest[name_benchmark(log.title)] is log]
    has_older = len(used) < len(logs)
    if has_older and kind == "tables":  # nothing says which table is newer
        names = ", ".join(newest)
        problem = "two of the tables' benchmarks have one name, in letters, digits, _ and -"
        raise DataError(f"{folder}: {problem} ({names}); rename one, or give one table")
    # lm_eval makes a folder for each model, so its older logs may have had other settings. In the
    # folder of another tool, a log with other settings may be that of another model.
    _check_made_alike(folder, used if kind == "lm_eval" else logs)
    if has_older:
        read = ", ".join(f"{name} from {log.file.name}" for name, log in newest.items())
        on_note(f"{folder} holds {len(logs)} results, of which the newest are read: {read}")
    return newest, used


def _check_types(metrics: object, targets: object, clusters: object) -> None:
    """Refuse what people pass in Python by mistake, such as a text."""
    for setting, given in (("metrics", metrics), ("clusters", clusters)):
        if not isinstance(given, Mapping):
            problem = f"{setting}={given!r:.40} must be a dictionary by benchmark"
            raise ConfigError(f"{problem}, such as {{'gsm8k': ...}}")
    if not isinstance(targets, Collection):
        raise ConfigError(f"targets={targets!r:.40} must be a list of benchmarks")


def _check_made_alike(folder: Path | str, logs: Sequence[LoggedTask]) -> None:
    """Refuse logs of several models, engines or settings in one folder.

    Raises:
        DataError: Names the first setting in which two logs differ.
    """
    settings = [{**log.made_by, **log.conditions} for log in logs]
    # A key with a dot, such as `gsm8k.num_fewshot`, is a setting of one benchmark alone.
    shared_keys = [key for key in chain.from_iterable(settings) if "." not in key]
    for key in shared_keys:
        values = {log_settings.get(key, "") for log_settings in settings}
        if len(values) > 1:
            problem = f"{key} differs: {' and '.join(sorted(values))}"
            raise DataError(f"{folder}: logs were not made alike, {problem}; give one of the files")
