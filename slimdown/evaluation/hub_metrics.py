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

_LOAD = "evaluation_module_factory"  # the function of `evaluate` that finds a metric's Python
_RUNS = "which runs Python from the hub or from the working folder; choose another task"


@contextmanager
def forbid_hub_metrics(context: str = "") -> Iterator[None]:
    """Make a context in which `evaluate.load` raises an error that says why.

    If the package `evaluate` is imported already, the function that `_LOAD` names is replaced,
    because `load`, `combine` and suites call it. To replace `load` would not be enough: another
    module may hold it under its own name. If the package is not imported, a stand-in takes its
    place and refuses every attribute, because importing the package takes seconds.

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
        # Libraries look at such names in all modules. But `__path__` is asked for by an import of
        # `evaluate.loading` and the like.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        refuse()

    stand_in: Any = ModuleType("evaluate")
    stand_in.__spec__ = ModuleSpec("evaluate", None)
    stand_in.__getattr__ = refuse_attribute
    # Both modules hold the function under their own name.
    names = [name for name in ("evaluate.loading", "evaluate.evaluation_suite") if name in modules]
    with ExitStack() as undo:
        for name in names:
            module: Any = modules[name]
            undo.callback(setattr, module, _LOAD, getattr(module, _LOAD))
            setattr(module, _LOAD, refuse)
        if "evaluate" not in modules:
            undo.callback(modules.pop, "evaluate")
            modules["evaluate"] = stand_in
        try:
            yield
        except Exception:
            if refusals:
                raise refusals[0] from None
            raise
    if refusals:
        raise refusals[0]
