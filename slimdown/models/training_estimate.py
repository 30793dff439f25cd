"""Estimate what a run holds in memory, from the model's outline: no weights are loaded."""

from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch

from slimdown.config.schema import RunConfig
from slimdown.models.adapters import attach_adapter
from slimdown.models.base_model import LoadedModel
from slimdown.models.memory_estimates import estimate_step_bytes, estimate_weight_bytes

# Bytes of a parameter that is trained, its gradient and AdamW's two means, each in float32.
_BYTES_PER_TRAINED = 16


@dataclass(frozen=True)
class TrainingSizes:
    """What a training holds.

    Attributes:
        n_trained: Parameters that are trained.
        n_bytes: The model's weights, the parameters that are trained with what the optimizer keeps
            of them, and the activations of a batch of the longest rows.
    """

    n_trained: int
    n_bytes: int


def estimate_quantized_bytes(config: RunConfig, outline: Any, dtype: torch.dtype) -> dict[str, int]:
    """Estimate the bytes of a model's weights with each quantization: none, int8 and nf4.

    Args:
        config: The settings. Of those of quantization, only how scales are stored is read.
        outline: See `load_outline`.
        dtype: The dtype of what is not quantized.

    Returns:
        The bytes, by the quantization's name.
    """
    sizes = {}
    for name in ("none", "int8", "nf4"):
        is_4bit, is_8bit = name == "nf4", name == "int8"
        quantization = replace(config.quantization, load_in_8bit=is_8bit, load_in_4bit=is_4bit)
        sizes[name] = estimate_weight_bytes(outline, quantization, dtype)
    return sizes


def estimate_training(config: RunConfig, outline: Any, dtype: torch.dtype) -> TrainingSizes | None:
    """Estimate what a training holds.

    Args:
        config: The settings.
        outline: See `load_outline`; it is not changed.
        dtype: The dtype of what is not quantized.

    Returns:
        The sizes; None if the method reads weights when it begins, as prompt tuning does: its
        virtual tokens start as embeddings of the vocabulary.
    """
    weights = estimate_weight_bytes(outline, config.quantization, dtype)
    base = LoadedModel(deepcopy(outline), None, config.model.id, str(dtype))
    # Methods that read weights raise here, because the outline has none.
    with suppress(NotImplementedError, RuntimeError, OSError, ValueError):
        adapted = attach_adapter(base, config.method, config.lora, config.seed)
        n_trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        step = estimate_step_bytes(adapted, config.train, dtype)
        # Where weights of the base are trained, `weights` counts the parameter itself already.
        counted_already = dtype.itemsize if config.method.facts.trains_weights else 0
        trained_bytes = (_BYTES_PER_TRAINED - counted_already) * n_trained
        return TrainingSizes(n_trained, weights + trained_bytes + step)
    return None
