"""Code from outside: tasks that would run it are refused, and nothing of it is run meanwhile.

lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness) takes the metrics that
it lacks from `evaluate.load(NAME)`, and the Python of some of its tasks does the same. That runs
`./NAME/NAME.py` of the working folder or, if there is none, a file of the hub.
"""

import ast
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from sys import modules
from types import ModuleType
from typing import Any, NoReturn

from slimdown.utils.errors import ConfigError

RUNS_ANSWERS = "runs code that the model writes, which slimdown does not"
_RUNS = "which runs Python from the hub or from the working folder; choose another task"


@contextmanager
def forbid_hub_metrics() -> Iterator[None]:
    """Inside, `evaluate.load` raises in words, because reading a task cannot show every call.

    Where the package is imported, what `load`, `combine` and suites share is replaced: a module
    that takes `load` by name keeps the true one. Otherwise a module that refuses all stands for
    it, as to import it takes seconds.

    Raises:
        ConfigError: It was called, even if the caller caught that, as the harness does.
    """
    calls: list[ConfigError] = []

    def refuse(*_: object, **__: object) -> NoReturn:
        calls.append(ConfigError(f"a task takes a metric from evaluate.load, {_RUNS}"))
        raise calls[-1]

    def refuse_part(name: str) -> NoReturn:
        if name.startswith("__") and name != "__path__":  # libraries look at all modules
            raise AttributeError(name)
        refuse()

    closed: Any = ModuleType("evaluate")
    closed.__spec__, closed.__getattr__ = ModuleSpec("evaluate", None), refuse_part
    names = [name for name in ("evaluate.loading", "evaluate.evaluation_suite") if name in modules]
    places: list[tuple[dict[str, Any], str, Any]] = [
        (vars(modules[name]), "evaluation_module_factory", refuse) for name in names
    ] or [(modules, "evaluate", closed)]
    originals = [place.get(key) for place, key, _ in places]
    for place, key, replacement in places:
        place[key] = replacement
    try:
        yield
    except Exception:
        if calls:
            raise calls[0] from None
        raise
    finally:
        for (place, key, _), original in zip(places, originals, strict=True):
            place[key] = original
            if original is None:
                del place[key]
    if calls:
        raise calls[0]


def find_outside_code(name: str, index: Mapping[str, Any]) -> Iterator[str]:
    """Say which tasks run code from outside, or code that the model writes; nothing is imported.

    Args:
        name: A task, a group or a tag.
        index: The harness's tasks by name; their settings name functions by files' paths.
    """
    import lm_eval.api.metrics  # noqa: F401 (fills the registry)
    from lm_eval.api.registry import metric_registry

    files: dict[Path, str] = {}  # those that were read, and what is wrong with them
    for task, settings in _find_settings({"task": name}, index):
        texts = list(_find_texts(settings))
        if entry := index.get(task):
            texts += [text for one in _read_yaml(entry.yaml_path) for text in _find_texts(one)]
        sources = {source for text in texts for source in _find_function(text)}
        if settings.get("unsafe_code", False) is not False:
            yield f"{task} {RUNS_ANSWERS}"
        metrics = settings.get("metric_list")
        has_own_code = settings.get("process_results") is not None  # which scores as it likes
        for metric in metrics if isinstance(metrics, list) else ():
            called = metric.get("metric") if isinstance(metric, dict) else None
            is_name = isinstance(called, str) and not any(_find_function(called))
            is_lacking = is_name and not has_own_code and called not in metric_registry
            if is_lacking or (called and metric.get("hf_evaluate") is True):
                yield f"{task} takes its metric {called} from evaluate.load, {_RUNS}"
        for source in sorted(sources):
            if problem := _read_python(source, files):
                yield f"{task} {problem}"


def _find_settings(
    given: dict[str, Any], index: Mapping[str, Any], above: frozenset[int] = frozenset()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each task and group that a group's entry stands for, with settings from above it."""
    name = str(given.get("group", given.get("task")))
    entry = index.get(name)
    is_tag = entry is not None and entry.cfg is None
    known = {} if is_tag else entry.cfg if entry else given
    members = sorted(entry.tags) if entry and is_tag else known.get("task")
    if not isinstance(members, list):
        yield name, {**known, **given}
    elif id(members) not in above:  # a group may hold itself
        settings = {**known, **given}
        inherited = {key: value for key, value in settings.items() if key not in ("task", "group")}
        yield name, {**inherited, "metric_list": None}  # its tasks' own code may score it
        for member in members:
            own = member if isinstance(member, dict) else {"task": member}
            yield from _find_settings({**inherited, **own}, index, above | {id(members)})


def _read_yaml(file: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the settings of a task's file and of those that it includes, overridden ones too."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if file is None:  # a tag
        return
    settings = load_yaml(file, resolve_func=False, recursive=False)
    yield settings
    includes = settings.get("include", [])
    for include in includes if isinstance(includes, list) else [includes]:
        yield from _read_yaml(file.resolve().parent / include)


def _find_texts(settings: Any) -> Iterator[str]:
    """Yield every text in nested settings, which YAML's anchors may tie into a ring."""
    seen: dict[int, Any] = {}
    left = [settings]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen[id(value)] = value
            left += [*value, *value.values()] if isinstance(value, dict) else value


def _find_function(text: str) -> Iterator[Path]:
    """Yield the files of a function that the harness names as `FOLDER/MODULE.NAME`."""
    folder, name = os.path.split(text)
    if os.path.isabs(folder) and (module := name.rpartition(".")[0]):
        yield from _find_modules(module, Path(folder))


def _find_modules(module: str, folder: Path) -> Iterator[Path]:
    """Yield a module's file and its packages', if beside a task or among the harness's."""
    import lm_eval.tasks

    roots = [folder]
    if module.startswith("lm_eval.tasks."):
        roots.append(Path(str(lm_eval.tasks.__file__)).parents[2])
    parts = module.split(".")
    for path in (root.joinpath(*parts[: i + 1]) for root in roots for i in range(len(parts))):
        files = (Path(f"{path}.py"), path / "__init__.py")
        yield from (file for file in files if os.path.isfile(file))


def _read_python(file: Path, files: dict[Path, str]) -> str:
    """Say what is wrong with a task's Python file or with those of its folder that it imports."""
    if (file := file.resolve()) in files:
        return files[file]
    files[file] = ""  # files may import each other
    try:
        tree = ast.parse(file.read_bytes(), file.name)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        files[file] = f"has a file that is no Python: {file} ({' '.join(str(error).split())})"
        return files[file]
    if line := _find_evaluate(tree):
        files[file] = f"uses the package evaluate ({file}, line {line}), {_RUNS}"
        return files[file]
    for module, folder in _find_imports(tree, file):
        for source in _find_modules(module, folder):
            files[file] = files[file] or _read_python(source, files)
    return files[file]


def _find_evaluate(tree: ast.Module) -> int:
    """Return the line that uses the package `evaluate` or a part of it; 0 if none does."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases = [alias for alias in node.names if alias.name.split(".")[0] == "evaluate"]
            names |= {alias.asname or "evaluate" for alias in aliases}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            if str(node.module).split(".")[0] == "evaluate":
                names |= {alias.asname or alias.name for alias in node.names}
                if "*" in names:
                    return node.lineno
        elif isinstance(node, ast.Call):
            callee = getattr(node.func, "attr", getattr(node.func, "id", ""))
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            texts = [str(getattr(value, "value", "")).split(".")[0] for value in values]
            if callee in ("import_module", "__import__") and "evaluate" in texts:
                return node.lineno
    used = (n.lineno for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in names)
    return next(used, 0)


def _find_imports(tree: ast.Module, file: Path) -> Iterator[tuple[str, Path]]:
    """Yield the modules that a file imports, each with the folder in which its name starts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, file.parent) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = file.parents[min(max(node.level, 1), len(file.parents)) - 1]
            for alias in node.names:
                yield ".".join(filter(None, (node.module, alias.name))), folder
