"""Merge an adapter into its base: one model that transformers loads without PEFT."""

import shutil
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
        ModelError: PEFT cannot merge this adapter, or the disk has no room.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    dtype = dtype or base.dtype
    target: torch.dtype = getattr(torch, dtype)
    needed, free = base.n_parameters * target.itemsize, shutil.disk_usage(out_dir).free
    if needed > free:
        raise ModelError(
            f"the merged model takes {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free in "
            f"{out_dir.parent}; make room, or name a folder on another disk"
        )
    try:
        with torch.no_grad(), quiet_libraries():
            _dequantize(base.model)
            tuned = load_adapter(base, adapter_dir)
            layers: list[Any] = [m for m in tuned.modules() if isinstance(m, BaseTunerLayer)]
            head, embeddings = tuned.get_output_embeddings(), tuned.get_input_embeddings()
            if head in layers or embeddings in layers:
                _untie(tuned.get_base_model(), head, embeddings)
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


def _untie(model: Any, head: Any, embeddings: Any) -> None:
    """Give a head that shares the embeddings' weights some of its own, for one of them changes."""
    head, embeddings = (getattr(end, "base_layer", end) for end in (head, embeddings))
    if head.weight is embeddings.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False


def _dequantize(model: Any) -> None:
    """Put plain layers in the place of quantized ones, holding the values that these stand for."""
    if getattr(model, "quantization_method", None) is None:
        return
    from transformers.pytorch_utils import Conv1D

    named = list(model.named_modules())
    transposed = [name for name, layer in named if getattr(layer, "source_cls", None) is Conv1D]
    computed = [m.compute_dtype for _, m in named if getattr(m, "compute_dtype", None)]
    model.dequantize(torch.float32 if model.is_loaded_in_8bit else (*computed, model.dtype)[0])
    # transformers 5.24 leaves these, and PEFT looks at them. It also makes linear layers of
    # GPT-2's, which lie transposed in its files. To be deleted when `dequantize` sees to both.
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
    for name in transposed:
        linear = model.get_submodule(name)
        layer = Conv1D(linear.out_features, linear.in_features)
        layer.weight.data, layer.bias = linear.weight.data.T.contiguous(), linear.bias
        model.set_submodule(name, layer)
