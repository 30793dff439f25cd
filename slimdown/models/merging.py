"""Merge an adapter into its base: one model that transformers loads without PEFT."""

from pathlib import Path

import torch

from slimdown.models.adapters import load_adapter
from slimdown.models.base_model import LoadedModel
from slimdown.models.quiet import quiet_libraries
from slimdown.utils.errors import ModelError, SlimdownError, describe_error


def merge_adapter(
    base: LoadedModel, adapter_dir: Path, out_dir: Path, dtype: str | None = None
) -> str:
    """Write the base with an adapter in its weights, and its tokenizer.

    4-bit and 8-bit weights become the values that they stand for, which is what the adapter was
    trained on. Sums are made in float32 and rounded once.

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
    dtype = dtype or base.dtype
    model = base.model
    try:
        with torch.no_grad(), quiet_libraries():
            if base.quantization != "none":
                computed = [getattr(module, "compute_dtype", None) for module in model.modules()]
                is_8bit = base.quantization == "int8"  # whose scales are float32
                kind = torch.float32 if is_8bit else next(filter(None, computed), model.dtype)
                model.dequantize(kind)
                # transformers 5.24 leaves these, and PEFT looks at them.
                model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
            model.float()
            merged = load_adapter(base, adapter_dir).merge_and_unload(safe_merge=True)
            merged.to(getattr(torch, dtype))
    except SlimdownError:
        raise
    except Exception as error:  # PEFT's, for settings and models of any kind
        raise ModelError(
            f"this adapter cannot be merged into {base.id}: {describe_error(error)}; try "
            "--onto original, or load the adapter beside the base"
        ) from error
    merged.save_pretrained(out_dir)
    base.tokenizer.save_pretrained(out_dir)
    return dtype
