"""Merge an adapter into its base: one model that transformers loads without PEFT."""

from pathlib import Path
from typing import Any

import torch

from slimdown.models.adapters import load_adapter
from slimdown.models.base_model import LoadedModel
from slimdown.models.quiet import quiet_libraries
from slimdown.utils.errors import ModelError


def merge_adapter(
    base: LoadedModel, adapter_dir: Path, out_dir: Path, dtype: str | None = None
) -> str:
    """Write the base with an adapter in its weights, and its tokenizer.

    4-bit and 8-bit weights become the values that they stand for, which is what the adapter was
    trained on. Sums are made in float32, layer by layer, and rounded once.

    Args:
        base: The model that the adapter was trained on; it is used up.
        adapter_dir: In PEFT's format.
        out_dir: An empty folder.
        dtype: Of the merged weights; None: that of the base.

    Returns:
        The dtype that was written.

    Raises:
        ModelError: PEFT cannot merge this adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    dtype = dtype or base.dtype
    target: torch.dtype = getattr(torch, dtype)
    try:
        with torch.no_grad(), quiet_libraries():
            _dequantize(base.model)
            tuned = load_adapter(base, adapter_dir)
            layers: list[Any] = [m for m in tuned.modules() if isinstance(m, BaseTunerLayer)]
            for layer in layers:
                weights = list(layer.get_base_layer().parameters())
                for weight in weights:
                    weight.data = weight.data.float()
                layer.merge(safe_merge=True)
                for weight in weights:
                    weight.data = weight.data.to(target)
            merged = tuned.merge_and_unload().to(target)
    except (NotImplementedError, AttributeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"this adapter cannot be merged into {base.id}: {reason}") from error
    merged.save_pretrained(out_dir)
    base.tokenizer.save_pretrained(out_dir)
    return dtype


def _dequantize(model: Any) -> None:
    """Put plain layers in the place of quantized ones, holding the values that these stand for."""
    if getattr(model, "quantization_method", None) is None:
        return
    modules = list(model.modules())
    if any(getattr(getattr(m, "source_cls", None), "__name__", "") == "Conv1D" for m in modules):
        raise ValueError("transformers dequantizes GPT-2's layers transposed; use --onto original")
    computed = [m.compute_dtype for m in modules if getattr(m, "compute_dtype", None)]
    is_8bit = getattr(model, "is_loaded_in_8bit", False)  # whose scales are float32
    model.dequantize(torch.float32 if is_8bit else (*computed, model.dtype)[0])
    # transformers 5.24 leaves these, and PEFT looks at them.
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
