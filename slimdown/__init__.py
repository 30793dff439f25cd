"""Fine-tune a small language model and measure what it learned and what it forgot.

`measure` asks a model that you loaded, `judge` tests what changed between two measurements, and
`ForgettingCallback` does both while a `transformers.Trainer` trains. `read_logs` reads the logs of
other tools, and tables. Errors that you can correct are subclasses of `SlimdownError`. All names
but the errors are imported on first use (`api/names.py`). docs/python.md says what each raises.
"""

from typing import TYPE_CHECKING

from slimdown.api.names import __dir__ as __dir__, __getattr__ as __getattr__
from slimdown.utils.errors import (
    ConfigError as ConfigError,
    DataError as DataError,
    ModelError as ModelError,
    SlimdownError as SlimdownError,
    TrackingError as TrackingError,
)

if TYPE_CHECKING:
    from slimdown.api.callback import ForgettingCallback as ForgettingCallback
    from slimdown.api.measuring import (  # noqa: F401
        NotebookFindings as Findings,
        judge as judge,
        measure as measure,
    )
    from slimdown.evaluation.logs.read_logs import read_logs as read_logs
    from slimdown.evaluation.results import Evaluation as Evaluation
    from slimdown.utils.versions import OWN_VERSION as __version__  # noqa: F401
