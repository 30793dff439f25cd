"""Estimate the bytes of a model's weights and of a training step, without loading any."""

from typing import Any

import torch
from torch import nn

from slimdown.config.schema import QuantizationConfig, TrainConfig

# bitsandbytes in 4 bits: so many weights share a scale. If scales are quantized in turn, so many of
# them share one.
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
    n_quantized = n_rows = 0  # weights that are quantized, and the rows of their matrices
    if quantization.name != "none":
        for layer in outline.modules():
            is_linear = isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"  # GPT-2's
            if is_linear and layer is not outline.get_output_embeddings():
                n_quantized += layer.weight.numel()
                n_rows += layer.weight.shape[0]
    n_weights = sum(parameter.numel() for parameter in outline.parameters())
    plain_bytes = (n_weights - n_quantized) * dtype.itemsize
    if quantization.load_in_8bit:  # a byte for each weight, and a float32 scale for each row
        return int(plain_bytes + n_quantized + 4 * n_rows)
    # Half a byte for each weight. A block has a float32 scale; if scales are quantized, a byte, and
    # a share of their own scale. Without quantization, `n_quantized` is 0.
    scale_bytes = 1 + 4 / _SCALES_BLOCK if quantization.bnb_4bit_use_double_quant else 4
    return int(plain_bytes + n_quantized / 2 + scale_bytes * n_quantized / _BLOCK)


def estimate_step_bytes(model: Any, train: TrainConfig, dtype: torch.dtype) -> int:
    """Estimate what a training step needs besides the weights: activations and logits.

    Args:
        model: A model like Llama, with its adapter; the weights need not be in memory.
        train: Sets how many rows a batch has, and how many tokens a row has at most. Each row is
            assumed to have as many, and to be trained on all of them.
        dtype: The dtype in which the model computes.

    Returns:
        Bytes: within 15 % of what a process takes on a CPU (`python -m bench.memory`).
    """
    config = model.config.get_text_config()
    width, n_blocks = config.hidden_size, config.num_hidden_layers
    feed_forward_width = getattr(config, "intermediate_size", None) or 4 * width
    size = dtype.itemsize  # bytes of a number in `dtype`; one in float32 takes 4
    # All bytes from here on are those of one token. `trained_bytes` and `n_dora_outputs` are sums
    # over all blocks. `block_bytes`, further down, are those of one block.
    #
    # First, what the forward pass keeps for the gradients of trained weights. LoRA computes in
    # float32: each linear layer that it adapts keeps its input in float32.
    lora_layers = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
    trained_bytes = sum(4 * layer.in_features for layer in lora_layers)
    # DoRA scales the output of the layer, in `dtype`, and that of its LoRA, in float32. It keeps
    # both.
    dora_layers = [layer for layer in lora_layers if getattr(layer, "lora_magnitude_vector", None)]
    n_dora_outputs = sum(layer.out_features for layer in dora_layers)
    trained_bytes += (size + 4) * n_dora_outputs
    if all(parameter.requires_grad for parameter in model.parameters()):
        # No adapter, but every weight is trained: each linear layer keeps its input. The layers for
        # queries, keys and values share an input, and so do gate and up. The input of down is as
        # wide as the feed-forward layer. The attention's output is among the products below.
        trained_bytes += size * (feed_forward_width + 2 * width) * n_blocks
    # Second, what a block keeps whatever is trained: the inputs of its two norms in float32, and
    # the factors of its products. In the feed-forward layer these are gate before and after its
    # activation, and up; in the attention queries, keys, values, and its output. To this comes the
    # block's share of what is kept for trained weights.
    product_bytes = size * (3 * feed_forward_width + 4 * width)
    block_bytes = 2 * 4 * width + product_bytes + trained_bytes // n_blocks
    if train.gradient_checkpointing:
        # Only the input of each block is kept. One block at a time is computed again, and has its
        # `block_bytes` then. Measurements (`python -m bench.memory`) show an exception: DoRA's
        # outputs in float32 take memory in all blocks even so.
        kept_bytes = size * width * n_blocks + block_bytes + 4 * n_dora_outputs
    else:
        kept_bytes = block_bytes * n_blocks
    kept_bytes += block_bytes  # the gradients of one block, which the backward pass holds as well
    logit_bytes = (size + 4 + 4) * config.vocab_size  # in `dtype`, in float32, and their softmax
    n_tokens = train.per_device_train_batch_size * train.max_length
    return int(n_tokens * (kept_bytes + logit_bytes))
