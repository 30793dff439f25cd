"""Fine-tune a small language model with QLoRA and measure what it learned and what it lost.

`measure` asks a model that you loaded, `judge` tests what changed between two measurements, and
`ForgettingCallback` does both while a `transformers.Trainer` trains. `read_logs` reads the logs of
other tools, and tables. An error that you can mend is a `SlimdownError`. All names but the errors
are imported on first use, since some import torch.
docs/python.md says what each raises.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slimdown.utils.errors import (
    ConfigError as ConfigError,
    DataError as DataError,
    ModelError as ModelError,
    SlimdownError as SlimdownError,
    TrackingError as TrackingError,
)

if TYPE_CHECKING:
    from slimdown.callback import ForgettingCallback as ForgettingCallback
    from slimdown.evaluation.logs.read_logs import read_logs as read_logs
    from slimdown.evaluation.results import Evaluation as Evaluation
    from slimdown.notebook import NotebookFindings as Findings, judge as judge, measure as measure  # noqa: F401

    read_lm_eval = read_logs

__version__ = "0.1.0"

_EXPORTS = {
    "measure": ("notebook", "measure"),
    "judge": ("notebook", "judge"),
    "Findings": ("notebook", "NotebookFindings"),
    "ForgettingCallback": ("callback", "ForgettingCallback"),
    "Evaluation": ("evaluation.results", "Evaluation"),
    **dict.fromkeys(["read_logs", "read_lm_eval"], ("evaluation.logs.read_logs", "read_logs")),
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'slimdown' has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    from slimdown.utils.extras import explain_missing_packages

    with explain_missing_packages():
        return getattr(import_module(f"slimdown.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
