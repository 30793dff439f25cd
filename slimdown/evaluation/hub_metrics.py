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

# The function of `evaluate` that finds a metric's Python. `load`, `combine` and suites call it.
_FINDER = "evaluation_module_factory"
_RUNS = "which runs Python from the hub or from the working folder; choose another task"


@contextmanager
def forbid_hub_metrics(context: str = "") -> Iterator[None]:
    """Make a context in which `evaluate.load` raises a ConfigError.

    If the package `evaluate` is imported already, the context replaces the function with which
    `load` finds a metric's Python. Replacing `load` itself would not be enough: another module may
    hold `load` under a name of its own.

    If the package is not imported, a stand-in takes its place, because importing the package takes
    seconds. Reading any attribute of the stand-in is refused.

    On leaving, all is as it was before.

    Args:
        context: What a message begins with, such as `benchmark.NAME: `.

    Raises:
        ConfigError: The code inside took a metric from the package, even if it caught the error, as
            the harness does.
    """
    refusals: list[ConfigError] = []

    def refuse(*_: object, **__: object) -> NoReturn:
        refusals.append(ConfigError(f"{context}a task takes a metric from evaluate.load, {_RUNS}"))
        raise refusals[-1]

    def refuse_attribute(name: str) -> NoReturn:
        # Libraries read names such as `__file__` of all modules, which uses nothing of `evaluate`.
        # But Python reads `__path__` only to import a part of it, such as `evaluate.loading`.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        refuse()

    stand_in: Any = ModuleType("evaluate")
    stand_in.__spec__ = ModuleSpec("evaluate", None)  # without it, `find_spec` raises an error
    stand_in.__getattr__ = refuse_attribute
    # Both modules hold the function under this name: the one defines it, the other imports it.
    names = [name for name in ("evaluate.loading", "evaluate.evaluation_suite") if name in modules]
    with ExitStack() as undo:
        for name in names:
            undo.callback(setattr, modules[name], _FINDER, getattr(modules[name], _FINDER))
            setattr(modules[name], _FINDER, refuse)
        if "evaluate" not in modules:
            undo.callback(modules.pop, "evaluate")
            modules["evaluate"] = stand_in
        try:
            yield
        except Exception:
            if not refusals:
                raise
            # Otherwise this error is a refusal, or follows from one: the first refusal says why.
    if refusals:  # also if the code inside caught them all
        raise refusals[0] from None
