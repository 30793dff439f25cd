"""A model without its numbers -> what its weights take, by the paper's equations and as they are really held.

Tensors on torch's meta device have shapes and dtypes and no memory. transformers and bitsandbytes make of such a model
what they make of a loaded one, so that nothing here repeats their arithmetic.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class WeightSizes:
    """Bytes of a model's tensors, held in one way."""

    layers: int  # numbers of the quantized layers
    constants: int  # what the quantized numbers are multiplied with, and the tables that they index
    rest: int  # embeddings, norms and head, which stay as they are; of a model that is not quantized all of it

    @property
    def held(self) -> int:
        """All of them."""
        return self.layers + self.constants + self.rest


def predicted_bytes(n_parameters: int, bits: int) -> float:
    """Bytes of a model by the paper's equation 1.1: parameters times bits, by 8.

    >>> predicted_bytes(1_235_814_400, 16), predicted_bytes(1_235_814_400, 4)
    (2471628800.0, 617907200.0)
    """
    return n_parameters * bits / 8


def lora_parameters(r: int, d: int, k: int) -> int:
    """Parameters that LoRA of rank r trains beside a matrix of d x k, by the paper's equation 1.2: r(d + k).

    The paper's example, 2 % of the million that the matrix has:

    >>> lora_parameters(r=10, d=1000, k=1000)
    20000
    """
    return r * (d + k)


def count_parameters(model: nn.Module) -> int:
    """Parameters as published: a 4-bit tensor holds two in a byte."""
    return sum(published_shape(parameter).numel() for parameter in model.parameters())


def count_trainable(model: nn.Module) -> int:
    """Parameters that training moves."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def published_shape(parameter: Any) -> torch.Size:
    """The shape as published, which a 4-bit tensor keeps beside its bytes."""
    return torch.Size(
        getattr(getattr(parameter, "quant_state", None), "shape", None) or parameter.shape
    )


def weight_sizes(model: nn.Module) -> WeightSizes:
    """What the tensors of `model` take, on whatever device, each that is shared once."""
    kinds = {"layers": 0, "constants": 0, "rest": 0}
    seen: set[Any] = set()
    for kind, tensor in tensors_of(model):
        place = tensor.untyped_storage()._cdata, tensor.storage_offset()
        if place not in seen:
            seen.add(place)
            kinds[kind] += tensor.numel() * tensor.itemsize
    return WeightSizes(**kinds)


def tensors_of(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a model, with what it is: a field of `WeightSizes`."""
    for module in model.modules():
        # 8-bit layers hand their numbers and scales from the weight to a state of their own at the first forward.
        held = [
            vars(module).get("state"),
            *module.parameters(recurse=False),
            *module.buffers(recurse=False),
        ]
        for one in held:
            quantized = getattr(one, "quant_state", None)
            scales = getattr(one, "SCB", None)
            if quantized is not None:
                nested = (
                    [quantized.offset, quantized.state2.absmax, quantized.state2.code]
                    if quantized.nested
                    else []
                )
                for constant in (quantized.absmax, quantized.code, *nested):
                    yield "constants", constant
            if scales is not None:
                yield "constants", scales
            if isinstance(one, torch.Tensor):
                yield (
                    "layers" if quantized is not None or one.dtype == torch.int8 else "rest",
                    one.data,
                )


def quantized_outline(outline: Any, bitsandbytes: Any) -> Any:
    """A copy of a model on the meta device, as it is once `from_pretrained` has loaded and quantized it.

    Args:
        outline: the model in the dtype of what is not quantized.
        bitsandbytes: transformers' `BitsAndBytesConfig`; None leaves it as it is.
    """
    model = copy.deepcopy(outline)
    if bitsandbytes is None:
        return model
    from bitsandbytes.functional import int8_vectorwise_quant, quantize_4bit, quantize_blockwise
    from transformers.quantizers import AutoHfQuantizer

    quantize_blockwise(
        torch.zeros(1)
    )  # keeps a table at its first call, for later ones on whatever device
    quantizer = AutoHfQuantizer.from_config(bitsandbytes)
    quantizer.preprocess_model(model, device_map={"": "cpu"})
    for layer in model.modules():
        weight: Any = getattr(layer, "weight", None)
        if hasattr(weight, "quant_type"):
            data = weight.data.to(outline.dtype)
            how = {
                name: getattr(weight, name)
                for name in ("blocksize", "compress_statistics", "quant_type")
            }
            weight.data, weight.quant_state = quantize_4bit(
                data, **how, quant_storage=weight.quant_storage
            )
            weight.bnb_quantized, layer.quant_state = True, weight.quant_state
        elif hasattr(weight, "SCB"):
            weight.data, weight.SCB, _ = int8_vectorwise_quant(weight.data.half())
            weight.CB = weight.data
            layer.state.threshold = 0.0  # which inputs are outliers depends on their numbers
    quantizer.postprocess_model(model)
    return model
