"""What a run left of its tuned model -> that model again: on its base as it was trained, or merged into it."""

import logging
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from slimdown.config.naming import section
from slimdown.config.schema import Device, Dtype, ModelConfig, QuantizationConfig
from slimdown.models.model import LoadedModel, explained, load_model
from slimdown.utils.errors import SlimdownError


def recorded_base(
    settings: Mapping[str, object], dtype: str, compute_dtype: str, revision: str
) -> tuple[ModelConfig, QuantizationConfig]:
    """How a run loaded its base, whatever `auto` and a branch stand for by now; on this machine's own device.

    Args:
        settings: of the run, by dotted keys; as text or not.
        dtype: that its model computed in.
        compute_dtype: that its 4-bit weights were unpacked to; empty where it had none.
        revision: the commit that it loaded, or the digest of a local folder.
    """
    model, quantization = (
        section(settings, "model", ModelConfig),
        section(settings, "quantization", QuantizationConfig),
    )
    if compute_dtype:
        quantization = replace(quantization, bnb_4bit_compute_dtype=Dtype(compute_dtype))
    revision = model.revision if revision.startswith("sha256:") else revision
    return replace(model, dtype=Dtype(dtype), device=Device.auto, revision=revision), quantization


def load_base(model: ModelConfig, quantization: QuantizationConfig, revision: str) -> LoadedModel:
    """The base that a run recorded the revision of.

    Raises:
        SlimdownError: it cannot be had any more, or is another by now.
    """
    base = load_model(model, quantization)
    if base.revision != revision:
        kind = "folder" if model.folder else "model of the hub"
        raise SlimdownError(
            f"{model.named} is another base by now: this {kind} is {base.revision}, and the run's was {revision}; an "
            "adapter fits on the weights that it was trained on, so put those back"
        )
    return base


def is_adapter(folder: Path) -> bool:
    """Whether a run left an adapter; else it left a whole model."""
    return (folder / "adapter_config.json").is_file()


def load_tuned(base: LoadedModel, folder: Path) -> Any:
    """The tuned model, in evaluation mode: the adapter in `folder` on the base, which is wrapped in place."""
    import peft

    import slimdown.training.bottleneck  # noqa: F401 - which PEFT does not know by itself

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # PEFT's, of Conv1D's layout and of tied weights: seen to by it and `merged`
        return peft.PeftModel.from_pretrained(base.model, folder).eval()


def export(
    model: ModelConfig,
    quantization: QuantizationConfig,
    revision: str,
    folder: Path,
    dtype: str | None,
    out: Path,
) -> str:
    """Write one model without an adapter, as transformers loads it, with its tokenizer; returns its dtype.

    Args:
        model, quantization, revision: the base that an adapter is merged into.
        folder: what a run left; a whole model is written as it is.
        dtype: of the weights; None: that of the base's files.
        out: an empty folder.

    Raises:
        SlimdownError: the base cannot be had or is another, the adapter cannot be merged, or the disk has no room.
    """
    dtype = dtype or _stored_dtype(model)
    if is_adapter(folder):
        base = load_base(model, quantization, revision)
        _check_room(base, dtype, out)
        tuned = merged(base, folder, getattr(torch, dtype))
    else:
        base = load_model(replace(model, id=str(folder), revision="main"), quantization)
        _check_room(base, dtype, out)
        tuned = base.model.to(getattr(torch, dtype))
    tuned.save_pretrained(out)
    base.tokenizer.save_pretrained(out)
    for file in out.glob("*.safetensors"):
        shutil.copymode(out / "config.json", file)  # safetensors writes for its owner alone
    return dtype


def _stored_dtype(config: ModelConfig) -> str:
    """That of the base's files, as its config says."""
    import transformers

    with explained(config):
        found = transformers.AutoConfig.from_pretrained(
            str(config.folder or config.id), revision=config.revision
        )
    return str(found.dtype or torch.float32).removeprefix("torch.")


def _check_room(base: LoadedModel, dtype: str, out: Path) -> None:
    """Refuse what the disk cannot hold, before any of it is written."""
    needed, free = base.n_parameters * getattr(torch, dtype).itemsize, shutil.disk_usage(out).free
    if needed > free:
        raise SlimdownError(
            f"{needed / 1e6:,.1f} MB are needed for {base.n_parameters:,} parameters in {dtype}, and {free / 1e6:,.1f} "
            f"MB are free in {out.parent}; make room, or name a folder on another disk"
        )


def merged(base: LoadedModel, folder: Path, dtype: torch.dtype) -> Any:
    """The base with the adapter in its weights, each rounded once, to `dtype`; the base is used up.

    4-bit and 8-bit weights become the values that they stand for, which is what the adapter was trained on. Sums are
    made in float32 and layer by layer, so that memory holds one layer twice and not the model.

    Raises:
        SlimdownError: an adapter that PEFT cannot merge.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    _dequantize(base.model)
    tuned = load_tuned(base, folder)
    _untie(tuned)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is nothing left to merge, of the last call
            for layer in [
                module for module in tuned.modules() if isinstance(module, BaseTunerLayer)
            ]:
                weights = list(layer.get_base_layer().parameters())
                for weight in weights:
                    weight.data = weight.data.float()
                layer.merge(safe_merge=True)
                for weight in weights:
                    weight.data = weight.data.to(dtype)
            return tuned.merge_and_unload().to(dtype)
    except (
        NotImplementedError,
        AttributeError,
        ValueError,
        TypeError,
    ) as error:  # each kind has its own
        reason = " ".join(str(error).split())[:300]
        raise SlimdownError(f"this adapter cannot be merged into {base.id}: {reason}") from error


def _dequantize(model: Any) -> None:
    """Put plain layers in the place of quantized ones, holding the values that these compute with."""
    if getattr(model, "quantization_method", None) is None:
        return
    from transformers.pytorch_utils import Conv1D

    transposed = [
        name
        for name, layer in model.named_modules()
        if getattr(layer, "source_cls", None) is Conv1D
    ]
    logging.getLogger("transformers.integrations.bitsandbytes").setLevel(
        logging.ERROR
    )  # says that it does so
    is_8bit = getattr(model, "is_loaded_in_8bit", False)  # whose scales are float32
    computed = next(
        (layer.compute_dtype for layer in model.modules() if hasattr(layer, "compute_dtype")), None
    )
    model.dequantize(torch.float32 if is_8bit else computed or model.dtype)
    # transformers 5.24 leaves these, and PEFT looks at them; to be deleted when `dequantize` takes them back.
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
    for name in (
        transposed
    ):  # and makes linear layers of GPT-2's, whose files hold weights the other way round
        linear = model.get_submodule(name)
        layer = Conv1D(linear.out_features, linear.in_features)
        layer.weight.data, layer.bias = linear.weight.data.T.contiguous(), linear.bias
        model.set_submodule(name, layer)


def _untie(tuned: Any) -> None:
    """Give the head weights of its own where head or embeddings have an adapter, and the two share theirs."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends = tuned.get_output_embeddings(), tuned.get_input_embeddings()
    if not any(isinstance(end, BaseTunerLayer) for end in ends):
        return
    head, embeddings = (
        end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends
    )
    if head.weight is embeddings.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        tuned.config.get_text_config().tie_word_embeddings = tuned.config.tie_word_embeddings = (
            False
        )
