"""Estimate the bytes of a model's weights and of a training step, without loading any."""

from typing import Any

import torch
from torch import nn

from slimdown.config.schema import QuantizationConfig, TrainConfig

# bitsandbytes: the numbers of a block share a scale, and so do quantized scales in turn.
_BLOCK, _SCALES_BLOCK = 64, 256


def estimate_weight_bytes(
    outline: Any, quantization: QuantizationConfig, dtype: torch.dtype
) -> int:
    """Estimate what weights take: parameters times bits (the paper's eq. 1.1), and scales.

    bitsandbytes quantizes all linear layers but the head.

    Args:
        outline: The model, with or without its weights in memory.
        quantization: How the weights are stored.
        dtype: The dtype of what is not quantized.

    Returns:
        Bytes, within 1 % of what the loaded model takes.
    """
    n_quantized = n_rows = 0
    if quantization.name != "none":
        for layer in outline.modules():
            is_linear = isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"  # GPT-2's
            if is_linear and layer is not outline.get_output_embeddings():
                n_quantized += layer.weight.numel()
                n_rows += layer.weight.shape[0]
    total = sum(parameter.numel() for parameter in outline.parameters())
    held = (total - n_quantized) * dtype.itemsize
    if quantization.load_in_8bit:  # a byte for each weight, and a float32 scale for each row
        return int(held + n_quantized + 4 * n_rows)
    # A block has a float32 scale; if scales are quantized, a byte, and a share of their own scale.
    scale_bytes = 1 + 4 / _SCALES_BLOCK if quantization.bnb_4bit_use_double_quant else 4
    return int(held + n_quantized / 2 + scale_bytes * n_quantized / _BLOCK)


def estimate_step_bytes(model: Any, train: TrainConfig, dtype: torch.dtype) -> int:
    """Estimate what a training step needs besides the weights: activations and logits.

    Args:
        model: A model like Llama, with its adapter; the weights need not be in memory.
        train: Sets how large a batch is; all of its tokens are trained on.
        dtype: The dtype in which the model computes.

    Returns:
        Bytes: within 15 % of what a process takes on a CPU (`python -m bench.memory`).
    """
    config = model.config.get_text_config()
    size = dtype.itemsize
    width, n_layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * width
    # Norms and LoRA compute in float32: each adapted layer keeps its input in float32. DoRA scales
    # the results of both, and keeps them.
    layers = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
    adapted = sum(4 * layer.in_features for layer in layers)
    scaled = [layer for layer in layers if getattr(layer, "lora_magnitude_vector", None)]
    results = sum(layer.out_features for layer in scaled)
    adapted += (4 + size) * results
    if all(parameter.requires_grad for parameter in model.parameters()):
        adapted += size * (inner + 2 * width) * n_layers  # the inputs of what is trained itself
    # Bytes of one layer per token: two norms' float32 inputs, then what its products keep.
    layer = 8 * width + size * (3 * inner + 4 * width) + adapted // n_layers
    # Checkpointing keeps the input of each layer, and one layer that is computed again. The
    # backward pass holds the gradients of a layer besides.
    kept = layer * n_layers
    if train.gradient_checkpointing:
        kept = size * width * n_layers + layer + 4 * results  # DoRA's are kept all the same
    kept += layer
    logits = (8 + size) * config.vocab_size  # with their float32 values, and their softmax
    return int(train.per_device_train_batch_size * train.max_length * (kept + logits))
