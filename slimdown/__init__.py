"""Fine-tune a small language model with QLoRA and measure what it learned and what it lost."""

import os

# Read when mlflow is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody was asked
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar a file would tear ours

__version__ = "0.1.0"
