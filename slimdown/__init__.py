"""Fine-tune a small language model with QLoRA and measure what it learned and what it lost.

`measure` asks a model that anybody loaded, `judge` says what changed between two measurements, `ForgettingCallback`
does both while a `transformers.Trainer` trains. Loaded when used: they bring torch along. `read_lm_eval` reads a
measurement from the harness's own logs, without torch.
"""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

    from slimdown.callback import ForgettingCallback as ForgettingCallback
    from slimdown.evaluation.logs import read_lm_eval as read_lm_eval
    from slimdown.notebook import Findings as Findings, judge as judge, measure as measure

# Read when mlflow is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody was asked
os.environ.setdefault(
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"
)  # a bar a file would tear ours

__version__ = "0.1.0"

_FACE = {
    "measure": "notebook",
    "judge": "notebook",
    "Findings": "notebook",
    "ForgettingCallback": "callback",
    "read_lm_eval": "evaluation.logs",
}


def __getattr__(name: str) -> Any:
    if name in _FACE:
        return getattr(import_module(f"slimdown.{_FACE[name]}"), name)
    raise AttributeError(f"module 'slimdown' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE])


class _OncePeftIsImported:
    """PEFT learns of the bottlenecks that are trained here when it is imported, and not before: it brings torch."""

    def find_spec(self, name: str, *_: Any) -> "ModuleSpec | None":
        if name != "peft":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = find_spec(name)
        if spec and (loader := spec.loader):
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                import_module("slimdown.training.bottleneck")

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "peft" in sys.modules:
    import_module("slimdown.training.bottleneck")
else:
    sys.meta_path.insert(0, _OncePeftIsImported())  # type: ignore[arg-type]
