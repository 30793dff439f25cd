"""The names of the package, each imported when it is first used, since some import torch."""

import sys
from importlib import import_module
from typing import Any

# By public name: the module within the package, and the name in that module.
_PLACES = {
    "measure": ("api.measuring", "measure"),
    "judge": ("api.measuring", "judge"),
    "Findings": ("api.measuring", "NotebookFindings"),
    "ForgettingCallback": ("api.callback", "ForgettingCallback"),
    "Evaluation": ("evaluation.results", "Evaluation"),
    "read_logs": ("evaluation.logs.read_logs", "read_logs"),
    "__version__": ("utils.versions", "OWN_VERSION"),
}


def __getattr__(name: str) -> Any:
    """Import and return a name of the package, when it is first used.

    Raises:
        AttributeError: There is no such name.
        ConfigError: It needs a package that the light install lacks.
    """
    if name not in _PLACES:
        raise AttributeError(f"module 'slimdown' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    from slimdown.utils.extras import explain_missing_packages

    with explain_missing_packages():
        return getattr(import_module(f"slimdown.{module}"), attribute)


def __dir__() -> list[str]:
    """List the names of the package, those that are not imported yet among them."""
    return sorted([*vars(sys.modules["slimdown"]), *_PLACES])
