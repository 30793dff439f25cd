"""Fine-tune a small language model with QLoRA and measure what it learned and what it lost.

`measure` asks a model that anybody loaded, `judge` says what changed between two measurements, `ForgettingCallback`
does both while a `transformers.Trainer` trains. Loaded when used: they bring torch along. `read_lm_eval` reads a
measurement from the harness's own logs, without torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slimdown.callback import ForgettingCallback as ForgettingCallback
    from slimdown.measuring.logs import read_lm_eval as read_lm_eval
    from slimdown.notebook import Findings as Findings, judge as judge, measure as measure

# Read when mlflow is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody was asked
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar a file would tear ours

__version__ = "0.1.0"

_FACE = {
    "measure": "notebook",
    "judge": "notebook",
    "Findings": "notebook",
    "ForgettingCallback": "callback",
    "read_lm_eval": "measuring.logs",
}


def __getattr__(name: str) -> Any:
    if name in _FACE:
        return getattr(import_module(f"slimdown.{_FACE[name]}"), name)
    raise AttributeError(f"module 'slimdown' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE])
