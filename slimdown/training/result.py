"""What a training did. Imports no torch."""

from dataclasses import dataclass
from math import nan
from pathlib import Path

TRAINING_VERSION = 1
"""Part of a run's key; raised by hand when the same settings train another model."""


@dataclass(frozen=True)
class StepLog:
    """What the trainer logged after one step: loss, learning_rate, grad_norm, num_tokens, ..."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class TrainingResult:
    """What a training did and what it cost."""

    output_dir: Path  # holds the adapter in PEFT's format, or the whole model
    steps: int  # of the model's weights; fewer than in `history` if a watcher put earlier ones back
    tokens: int  # of all training batches, without padding
    train_loss: float  # mean over all steps, in nats per token
    validation_loss_before: float  # of the base on the held-out rows: mean over tokens
    validation_loss_after: float
    n_trainable: int
    trainable_percent: float
    runtime_seconds: float  # of the steps that this process took, without the validations
    tokens_per_second: float
    history: tuple[StepLog, ...]
    n_truncated: int  # training rows cut at train.max_length tokens, or exactly as long
    n_untrained: int  # training rows left out: none of their tokens is trained on
    peak_bytes: float
    # divergence of the tuned model from the base on the first held-out rows, in nats per token; nan
    # where the base is not available
    base_divergence: float = nan
    stopped: str = ""  # why and where it ended early
    forwards: str = ""  # how each step was taken; empty: as the settings say
