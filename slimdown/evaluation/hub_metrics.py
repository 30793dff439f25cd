"""Tasks must not take a metric's Python from the hub: inside a context, that is refused.

lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness) takes the metrics that
it lacks from `evaluate.load(NAME)`, and the Python of some of its tasks does the same. That runs
`./NAME/NAME.py` of the working folder or, if there is none, a file of the hub.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.machinery import ModuleSpec
from sys import modules
from types import ModuleType
from typing import Any, NoReturn

from slimdown.utils.errors import ConfigError

_LOAD = "evaluation_module_factory"
_RUNS = "which runs Python from the hub or from the working folder; choose another task"


@contextmanager
def forbid_hub_metrics(context: str = "") -> Iterator[None]:
    """Inside, `evaluate.load` raises an error that says why.

    If the package is imported already, the function is replaced that `load`, `combine` and suites
    call: a module may have taken `load` itself by name. Otherwise a module takes the package's
    place that refuses everything, because importing the package takes seconds.

    Args:
        context: What a message begins with, such as `benchmark.NAME: `.

    Raises:
        ConfigError: It was called, even if the caller caught that, as the harness does.
    """
    calls: list[ConfigError] = []

    def refuse(*_: object, **__: object) -> NoReturn:
        calls.append(ConfigError(f"{context}a task takes a metric from evaluate.load, {_RUNS}"))
        raise calls[-1]

    def refuse_part(name: str) -> NoReturn:
        if name.startswith("__") and name != "__path__":  # libraries look at all modules
            raise AttributeError(name)
        refuse()

    closed: Any = ModuleType("evaluate")
    closed.__spec__, closed.__getattr__ = ModuleSpec("evaluate", None), refuse_part
    names = [name for name in ("evaluate.loading", "evaluate.evaluation_suite") if name in modules]
    with ExitStack() as undo:
        for name in names:
            place: Any = modules[name]
            undo.callback(setattr, place, _LOAD, getattr(place, _LOAD))
            setattr(place, _LOAD, refuse)
        if "evaluate" not in modules:
            undo.callback(modules.pop, "evaluate")
            modules["evaluate"] = closed
        try:
            yield
        except Exception:
            if calls:
                raise calls[0] from None
            raise
    if calls:
        raise calls[0]
