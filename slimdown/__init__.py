"""Fine-tune a small language model with QLoRA and measure what it learned and what it lost."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody was asked; read when mlflow is imported

__version__ = "0.1.0"
