"""The names of the package, each imported when it is first used, since some import torch."""

import sys
from importlib import import_module
from typing import Any

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
    if name not in _PLACES:
        raise AttributeError(f"module 'slimdown' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    from slimdown.utils.extras import explain_missing_packages

    with explain_missing_packages():
        return getattr(import_module(f"slimdown.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*vars(sys.modules["slimdown"]), *_PLACES])
