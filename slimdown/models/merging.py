"""Merge an adapter into its base: one model that transformers loads without PEFT."""

from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimdown.models.adapters import load_adapter
from slimdown.models.base_model import LoadedModel
from slimdown.models.device_memory import is_out_of_memory, release_weights
from slimdown.models.quiet import quiet_libraries
from slimdown.models.tuned_base import read_adapter_config
from slimdown.utils.errors import ModelError, SlimdownError, describe_error


def merge_adapter(
    base: LoadedModel, adapter_dir: Path, out_dir: Path, dtype: str | None = None
) -> str:
    """Write the base with an adapter merged into its weights, and its tokenizer.

    4-bit and 8-bit weights become the values that they stand for, which is what the adapter was
    trained on. Sums are made in float32 and rounded once. Embeddings and an LM head that share
    one tensor get a tensor each if the adapter changes only one of them. The written model is read
    again, and its logits are compared; two models are never in memory at the same time.

    Args:
        base: The model that the adapter was trained on; it is not usable afterwards.
        adapter_dir: The adapter, in PEFT's format.
        out_dir: An empty folder.
        dtype: The name of the merged weights' dtype, such as bfloat16; None: that of the base.

    Returns:
        The name of the dtype that was written.

    Raises:
        ModelError: PEFT cannot merge this adapter, or the merged model gives other logits.
    """
    from transformers import AutoModelForCausalLM

    dtype = dtype or base.dtype
    try:
        with torch.no_grad(), quiet_libraries():
            merged, tokens = _merge_in_float32(base, adapter_dir)
            # Rounded to the dtype that is written, so that the written model must give the same.
            for weight in merged.parameters():
                weight.data = weight.data.to(getattr(torch, dtype)).float()
            rounded_logits = _compute_logits(merged, tokens)
    except SlimdownError:
        raise  # it already says how to go on
    except Exception as error:  # PEFT's, for settings and models of any kind
        # Options of `slimdown merge`. Original weights may merge where quantized ones do not.
        advice = "--device cpu" if is_out_of_memory(error) else "--onto original"
        raise ModelError(
            f"this adapter cannot be merged into {base.id}: {describe_error(error)}; try "
            f"{advice}, or load the adapter beside the base"
        ) from error
    with torch.no_grad(), quiet_libraries():
        merged.to(getattr(torch, dtype)).save_pretrained(out_dir)
        base.tokenizer.save_pretrained(out_dir)
        release_weights(merged)  # makes room for the written model
        loader: Any = AutoModelForCausalLM
        place = {"": str(rounded_logits.device)}
        written = loader.from_pretrained(
            out_dir, dtype=torch.float32, device_map=place, use_kernels=False
        )
        _compare_logits(base, rounded_logits, _compute_logits(written, tokens))
    return dtype


def _merge_in_float32(base: LoadedModel, adapter_dir: Path) -> tuple[Any, torch.Tensor]:
    """Merge an adapter into a base in memory, and check that the logits stay the same.

    Args:
        base: The base; it is changed in place and becomes the merged model.
        adapter_dir: The adapter.

    Returns:
        The merged model, and the tokens on which logits are compared.
    """
    if base.quantization != "none":
        _dequantize(base)
    base.model.float()
    adapted = load_adapter(base, adapter_dir)
    tokens = _choose_tokens(adapted, adapter_dir)
    expected_logits = _compute_logits(adapted, tokens)
    _untie_embeddings(base.model)
    merged = adapted.merge_and_unload(safe_merge=True)
    # If the settings still tied embeddings and head, loading would make them one tensor again.
    if merged.get_input_embeddings().weight is not merged.get_output_embeddings().weight:
        merged.config.tie_word_embeddings = False
        merged.config.get_text_config().tie_word_embeddings = False
    _compare_logits(base, expected_logits, _compute_logits(merged, tokens))
    return merged, tokens


def _dequantize(base: LoadedModel) -> None:
    """Give a quantized model the values that its weights stand for; it is changed in place."""
    model = base.model
    if base.quantization == "int8":  # its scales are float32
        dtype = torch.float32
    else:  # only layers in 4 bits have a dtype in which they compute
        dtypes = (getattr(module, "compute_dtype", None) for module in model.modules())
        dtype = next(filter(None, dtypes), model.dtype)
    model.dequantize(dtype)
    # transformers 5.24 leaves these flags set, and PEFT reads them.
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False


def _untie_embeddings(model: Any) -> None:
    """Give embeddings and LM head a tensor each, if an adapter changes one of them.

    Args:
        model: The base inside PEFT's model. PEFT has put its own layer around what it changes.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    embeddings_table = getattr(embeddings, "base_layer", embeddings)
    head_table = getattr(head, "base_layer", head)
    is_changed = embeddings_table is not embeddings or head_table is not head
    if is_changed and embeddings_table.weight is head_table.weight:
        head_table.weight = nn.Parameter(head_table.weight.clone())


def _choose_tokens(adapted: Any, adapter_dir: Path) -> torch.Tensor:
    """Choose tokens to compare logits on: those that the adapter trains, and some of all.

    Returns:
        Their ids as a batch of one row.
    """
    trained = read_adapter_config(adapter_dir).get("trainable_token_indices") or []
    if isinstance(trained, dict):  # by the name of a table: embeddings or head
        trained = chain.from_iterable(trained.values())
    last = adapted.get_input_embeddings().weight.shape[0] - 1
    spread = range(0, last, last // 32 + 1)  # at most 32, evenly over the vocabulary
    return torch.tensor([[*islice(trained, 64), *spread, last]])


def _compute_logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=tokens.to(model.device), use_cache=False).logits
    return logits


def _compare_logits(base: LoadedModel, expected: torch.Tensor, logits: torch.Tensor) -> None:
    """Refuse a merged model whose logits are not those of base and adapter, up to rounding."""
    distance = float((logits - expected).abs().max())
    if not distance <= 1e-3 + 1e-5 * float(expected.abs().max()):  # also of NaN
        raise ModelError(
            f"this adapter cannot be merged into {base.id}: the merged model's logits would be "
            f"{distance:.2g} away from those of base and adapter; load the adapter beside the base"
        )
