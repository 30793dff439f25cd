"""Prepare any loaded causal language model for measuring: wrap it, and switch its modes."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from slimdown.models.base_model import LoadedModel
from slimdown.utils.errors import ModelError

# PEFT's initializations of a LoRA that subtract what it adds at first from the base's weights.
_TAKING_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def wrap_model(model: Any, tokenizer: Any) -> LoadedModel:
    """Check a model that is in memory, and describe it as a `LoadedModel`.

    It is taken out of what DDP, DataParallel or torch.compile put around it.

    Args:
        model: A causal language model of transformers, with PEFT's adapters or without.
        tokenizer: Its tokenizer, or a processor that holds it.

    Returns:
        The model as it stands; its identity is empty, so no cache knows it.

    Raises:
        ModelError: It is no causal language model, some of its weights are not loaded, or the
            tokenizer is none of transformers.
    """
    from accelerate.utils import extract_model_from_parallel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if isinstance(model, nn.Module):
        model = extract_model_from_parallel(model, keep_torch_compile=False)
    inner = get_inner_model(model)
    can_generate = isinstance(inner, PreTrainedModel) and inner.can_generate()
    # T5 generates, too, but from an encoder; a model without a head gives no logits.
    if not can_generate or inner.config.is_encoder_decoder or inner.get_output_embeddings() is None:
        raise ModelError(
            f"the model is a {type(inner).__name__} and no causal language model; give a loaded "
            "one, such as AutoModelForCausalLM.from_pretrained(...) returns, or PEFT's around one"
        )
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor's, or the tokenizer itself
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(f"the tokenizer is a {type(tokenizer).__name__}; give the model's own")
    # Parts that accelerate offloads are on the meta device until they are used.
    places = set(map(str, getattr(inner, "hf_device_map", {}).values()))
    is_offloaded = bool(places & {"cpu", "disk"})
    if not is_offloaded and any(weight.is_meta for weight in model.parameters()):
        raise ModelError("weights are on the meta device and have no numbers; load the whole model")
    name = inner.config.name_or_path or type(inner).__name__
    dtype = str(model.dtype).removeprefix("torch.")
    n_bytes = inner.get_memory_footprint()
    return LoadedModel(
        model, tokenizer, name, dtype, device=model.device.type, memory_bytes=n_bytes
    )


def get_inner_model(model: Any) -> Any:
    """Return transformers' model inside PEFT's, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def learns_prompt(model: Any) -> bool:
    """Return whether an adapter puts virtual tokens before every row."""
    adapter = getattr(model, "active_peft_config", None)
    return adapter is not None and adapter.is_prompt_learning


def get_own_adapter(model: Any) -> Any:
    """Return the adapter of a method that PEFT does not have, or None."""
    return getattr(model, "own_adapter", None)


def has_untouched_base(model: Any) -> bool:
    """Return whether the model without its adapters is still its base, however far it is trained.

    It is not if it has no adapters, if biases are trained, or if an adapter's start was subtracted
    from the base's weights.
    """
    adapters = list(getattr(model, "peft_config", {}).values())
    if not adapters or not hasattr(model, "disable_adapter"):  # PEFT's model is not around it
        return get_own_adapter(model) is not None
    starts = [str(getattr(adapter, "init_lora_weights", "")).lower() for adapter in adapters]
    trains_biases = any(getattr(a, "bias", None) not in (None, "none") for a in adapters)
    return not trains_biases and not any(start.startswith(_TAKING_WEIGHTS) for start in starts)


def copy_trained_weights(model: Any) -> dict[str, torch.Tensor]:
    """Copy what is trained, by the parameters' names."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def restore_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Put weights back that `copy_trained_weights` copied."""
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_parameter(name).copy_(weight)


@contextmanager
def disabled_adapters(model: Any) -> Iterator[None]:
    """Inside, the model is its base; on leaving, every parameter is trained or frozen as before."""
    with ExitStack() as undo:
        # PEFT freezes an adapter that it disables, and unfreezes it when it enables it again, even
        # if it was frozen before.
        for parameter in model.parameters():
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
        if (own := get_own_adapter(model)) is None:
            undo.enter_context(model.disable_adapter())
        else:
            undo.callback(setattr, own, "is_enabled", True)
            own.is_enabled = False
        yield


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Inside, the model computes with a cache, without gradients, dropout and a trainer's autocast.

    It returns no router logits of experts, though TRL asks for them in the config. On leaving,
    everything that is changed here is as before: each change first says how to undo it.
    """
    with ExitStack() as undo:
        for module in model.modules():
            undo.callback(setattr, module, "training", module.training)
            # Otherwise this forward would repack 4-bit weights, and a later training would silently
            # train nothing, see `load_base_model`.
            if getattr(module, "support_avx512bf16_for_cpu", False):
                undo.callback(setattr, module, "support_avx512bf16_for_cpu", True)
                module.support_avx512bf16_for_cpu = False
        config = get_inner_model(model).config.get_text_config()
        settings = {"use_cache": True}
        if "output_router_logits" in vars(config):
            settings["output_router_logits"] = False
        for setting, value in settings.items():
            undo.callback(setattr, config, setting, getattr(config, setting, None))
            setattr(config, setting, value)
        # torch multiplies a slice of hidden states by a frozen head with `bmm`: on a CPU that takes
        # twice as long for the same numbers, in bfloat16 up to sixty times. So the head is unfrozen
        # inside, where no gradients are computed. To be deleted when bmm is as fast:
        # https://github.com/pytorch/pytorch/issues/151934
        head = getattr(get_inner_model(model).get_output_embeddings(), "weight", None)
        if isinstance(head, nn.Parameter) and head.is_floating_point():
            undo.callback(head.requires_grad_, head.requires_grad)
            head.requires_grad_()
        # accelerate put autocast around `forward`. This takes it off, and the end puts it back.
        attributes = dict(vars(model))
        extract_model_from_parallel(model, keep_fp32_wrapper=False)
        changed = {k: v for k, v in attributes.items() if vars(model).get(k) is not v}
        undo.callback(vars(model).update, changed)
        model.eval()
        with torch.no_grad():
            yield
