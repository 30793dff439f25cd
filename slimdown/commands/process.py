"""What a command sets for its whole process, and what the library leaves alone."""

import logging
import os
from urllib.parse import urlsplit

from slimdown.report.formatting import VisibleFormatter
from slimdown.utils.hub import explain_hub_errors


def set_up_process() -> None:
    """Set environment variables and logs for the whole process; `import slimdown` sets none.

    Raises:
        ModelError: HF_ENDPOINT is no address.
    """
    with explain_hub_errors("HF_ENDPOINT, an address such as https://huggingface.co,"):
        _ = urlsplit(os.environ.get("HF_ENDPOINT", "")).port  # raises if it is no address
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and does not print and exit
    for name, value in (
        ("TQDM_DISABLE", "1"),  # bars of other libraries would tear ours
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("HF_HUB_VERBOSITY", "error"),  # it warns of each retry, twice
        # Otherwise transformers asks a service of the hub to convert pickled weights, and loads
        # them from the pull request that this service opens.
        ("DISABLE_SAFETENSORS_CONVERSION", "1"),
        # A server that falls silent ends a command within a minute. Seven retries take four.
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "15"),
        ("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false"),  # it may say an hour
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ):
        os.environ.setdefault(name, value)
    # These libraries log a missing package that nobody needs, the tables that they create, the
    # traceback of every exception, and that there is no GPU.
    for name in ("bitsandbytes", "alembic", "mlflow.store.db.utils", "mlflow.system_metrics"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if logging.lastResort:  # it shows warnings if nobody set up a log
        logging.lastResort.setFormatter(VisibleFormatter())
        logging.getLogger("urllib3").addHandler(logging.lastResort)  # says what it waits for
