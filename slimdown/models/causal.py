"""Any loaded causal language model: wrapped for measuring, without its adapters, in evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from slimdown.models.base_model import LoadedModel
from slimdown.utils.errors import ModelError

# Ways to begin an adapter that take its start out of the base's weights.
_TAKING_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def wrap_model(model: Any, tokenizer: Any) -> LoadedModel:
    """Take the model out of what DDP, DataParallel or torch.compile put around it.

    Args:
        model: A causal language model of transformers, with PEFT's adapters or without.
        tokenizer: Its tokenizer, or a processor that holds it.

    Returns:
        The model as it stands; its identity is empty, so no cache knows it.

    Raises:
        ModelError: No causal language model, no tokenizer of transformers, or weights that are
            spread over processes.
    """
    from accelerate.utils import extract_model_from_parallel
    from transformers import PreTrainedTokenizerBase

    if isinstance(model, nn.Module):
        model = extract_model_from_parallel(model, keep_torch_compile=False)
    inner = get_inner_model(model)
    if not hasattr(inner, "can_generate"):
        raise ModelError(
            f"the model is a {type(model).__name__}; give a loaded one, such as "
            "AutoModelForCausalLM.from_pretrained(...) returns, or PEFT's around one"
        )
    is_decoder = inner.can_generate() and not inner.config.is_encoder_decoder
    if not is_decoder or inner.get_output_embeddings() is None:
        raise ModelError(
            f"{type(inner).__name__} is no causal language model; load it with AutoModelForCausalLM"
        )
    if any(hasattr(p, "ds_id") or hasattr(p, "full_tensor") for p in model.parameters()):
        raise ModelError(
            "the model's weights are spread over processes (FSDP, DeepSpeed ZeRO-3 or tensor "
            "parallelism); save the model, and measure it where one process loads it"
        )
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            f"the tokenizer is a {type(tokenizer).__name__}; give the model's own, such as "
            f"AutoTokenizer.from_pretrained({inner.config._name_or_path!r}) returns"
        )
    name = inner.config._name_or_path or type(inner).__name__
    dtype = str(model.dtype).removeprefix("torch.")
    return LoadedModel(model, tokenizer, name, dtype, device=model.device.type)


def get_inner_model(model: Any) -> Any:
    """Return transformers' model inside PEFT's, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def has_untouched_base(model: Any) -> bool:
    """Return whether the base is what the model is without its adapters, however far trained.

    It is not where there are none, where biases are trained, or where an adapter's start was taken
    out of the base's weights.
    """
    if hasattr(model, "bottleneck_adapter"):
        return True
    adapters = getattr(model, "peft_config", {}).values()
    for adapter in adapters:
        start = str(getattr(adapter, "init_lora_weights", "")).lower()
        if start.startswith(_TAKING_WEIGHTS) or getattr(adapter, "bias", "none") != "none":
            return False
    return bool(adapters) and hasattr(model, "disable_adapter")


@contextmanager
def disabled_adapters(model: Any) -> Iterator[None]:
    """Inside, the model is its base; on leaving, every parameter is trained or frozen as before."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    bottleneck = getattr(model, "bottleneck_adapter", None)
    try:
        if bottleneck is not None:
            bottleneck.enabled = False
            yield
        else:
            with model.disable_adapter():
                yield
    finally:
        if bottleneck is not None:
            bottleneck.enabled = True
        for parameter, is_trained in trained:
            parameter.requires_grad_(is_trained)


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Inside, the model computes without gradients, dropout and a trainer's autocast, with its cache.

    On leaving, every module's mode and 4-bit layout, the cache flag and the forward are as before.
    """
    modes = [(module, module.training) for module in model.modules()]
    # Of a model that was loaded elsewhere: see `load_base_model`.
    packing = [m for m, _ in modes if getattr(m, "support_avx512bf16_for_cpu", False)]
    config = get_inner_model(model).config.get_text_config()
    use_cache = getattr(config, "use_cache", None)
    wrapped = vars(model).get("forward") if "_original_forward" in vars(model) else None
    inside: Any = getattr(wrapped, "__func__", wrapped)
    while inside is not type(model).forward and hasattr(inside, "__wrapped__"):
        inside = inside.__wrapped__
    is_autocast = wrapped is not None and inside is type(model).forward  # accelerate's
    try:
        model.eval()
        config.use_cache = True
        for module in packing:
            module.support_avx512bf16_for_cpu = False
        if is_autocast:
            del model.forward
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module in packing:
            module.support_avx512bf16_for_cpu = True
        config.use_cache = use_cache
        if is_autocast:
            model.forward = wrapped
