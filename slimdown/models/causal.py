"""Any causal language model and its tokenizer, whoever loaded them -> `CausalModel`, ready to be measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from slimdown.utils.errors import SlimdownError


@dataclass(frozen=True)
class CausalModel:
    """A causal language model and its tokenizer."""

    model: Any  # transformers' PreTrainedModel, or PEFT's PeftModel around it
    tokenizer: Any
    id: str  # what messages call it
    dtype: str


def causal_model(model: Any, tokenizer: Any) -> CausalModel:
    """The model that is in what somebody trains, out of what DDP, DataParallel or torch.compile put around it.

    Raises:
        SlimdownError: no causal language model of transformers, none of its tokenizers, or weights that are spread over
            processes.
    """
    from accelerate.utils import extract_model_from_parallel  # type: ignore[import-untyped]
    from transformers import PreTrainedTokenizerBase

    if isinstance(model, nn.Module):
        model = extract_model_from_parallel(model, keep_torch_compile=False)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(inner, "can_generate"):
        raise SlimdownError(
            f"the model is a {type(model).__name__}; give a loaded one, such as "
            "AutoModelForCausalLM.from_pretrained(...) returns, or PEFT's around one"
        )
    if (
        not inner.can_generate()
        or inner.config.is_encoder_decoder
        or inner.get_output_embeddings() is None
    ):
        raise SlimdownError(
            f"{type(inner).__name__} is no causal language model, and the questions are asked of one; load it with "
            "AutoModelForCausalLM"
        )
    if any(hasattr(p, "ds_id") or hasattr(p, "full_tensor") for p in model.parameters()):
        raise SlimdownError(
            "the model's weights are spread over processes (FSDP, DeepSpeed ZeRO-3 or tensor parallelism), and are "
            "measured whole: save the model, and measure it where it is loaded in one process"
        )
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor's
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise SlimdownError(
            f"the tokenizer is a {type(tokenizer).__name__}; give the model's own, such as "
            f"AutoTokenizer.from_pretrained({inner.config._name_or_path!r}) returns"
        )
    name = inner.config._name_or_path or type(inner).__name__
    return CausalModel(model, tokenizer, name, str(model.dtype).removeprefix("torch."))


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """The model computing in its own dtypes: without the autocast that accelerate puts around what it trains.

    A base is measured before that is there, and the model tuned from it afterwards, when it is there to stay.
    """
    around = vars(model).get("forward") if "_original_forward" in vars(model) else None
    inside: Any = getattr(around, "__func__", around)
    while inside is not type(model).forward and hasattr(inside, "__wrapped__"):
        inside = inside.__wrapped__
    if inside is not type(model).forward:
        yield
        return
    del model.forward
    try:
        yield
    finally:
        model.forward = around  # type: ignore[assignment]


def has_untouched_base(model: Any) -> bool:
    """Whether the base is what `model` is without its adapters, however far these are trained.

    Not so where there are none, where what is trained lies outside of them, or where their start is taken out of the
    base's weights (PiSSA and its like).
    """
    adapters = list(getattr(model, "peft_config", {}).values())
    starts = [str(getattr(adapter, "init_lora_weights", "")).lower() for adapter in adapters]
    taken_out = any(
        start.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")) for start in starts
    )
    biases = any(getattr(adapter, "bias", "none") not in (None, "none") for adapter in adapters)
    return bool(adapters) and not taken_out and not biases and hasattr(model, "disable_adapter")


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """The base that PEFT's adapters lie on; on leaving they are back, each to be trained or not as before."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, is_trained in trained:
            parameter.requires_grad_(is_trained)
