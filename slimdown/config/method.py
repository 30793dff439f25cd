"""How a model is fine-tuned: which method, and the settings that it has of its own."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from slimdown.config.keys import COUNT, ranged


class Method(StrEnum):
    """What is trained; each is a file of `conf/method/`."""

    lora = "lora"  # low-rank matrices beside the base's (Hu et al. 2021)
    rslora = "rslora"  # LoRA scaled by the root of its rank (Kalajdzievski 2023)
    dora = "dora"  # LoRA of the weights' directions, their lengths beside it (Liu et al. 2024)
    pissa = "pissa"  # LoRA that begins as the largest singular vectors of the weights (Meng et al. 2024)
    prefix = "prefix"  # keys and values before every layer's own (Li and Liang 2021)
    prompt = "prompt"  # embeddings before the prompt's own (Lester et al. 2021)
    ia3 = "ia3"  # factors of keys, values and feed-forward activations (Liu et al. 2022)
    bottleneck = "bottleneck"  # small layers after attention and feed-forward (Houlsby et al. 2019)
    last_layer = "last_layer"  # the last block and the norm behind it
    full = "full"  # every weight


WHOLE = frozenset(
    [Method.last_layer, Method.full]
)  # what trains weights of the base, and leaves a whole model
LORAS = frozenset(
    [Method.lora, Method.rslora, Method.dora, Method.pissa]
)  # what reads the settings of `lora`
# The settings that a method has of its own.
_OWN: dict[Method, tuple[str, ...]] = {
    Method.pissa: ("init_lora_weights",),
    Method.prefix: ("num_virtual_tokens",),
    Method.prompt: ("num_virtual_tokens",),
    Method.ia3: ("target_modules", "feedforward_modules"),
    Method.bottleneck: ("bottleneck_dim", "target_modules"),
    Method.last_layer: ("lm_head",),
}


@dataclass
class MethodConfig:
    """The method; its other fields are those of PEFT's config of it, null where it has none such."""

    name: Method = MISSING
    init_lora_weights: str | None = None  # pissa, or pissa_niter_16 for a quick, approximate start
    num_virtual_tokens: int | None = ranged(COUNT, None)  # before every prompt
    target_modules: list[str] | None = (
        None  # the layers that are scaled, or that are followed by a bottleneck
    )
    feedforward_modules: list[str] | None = (
        None  # of these, those whose input is scaled instead of their output
    )
    bottleneck_dim: int | None = ranged(COUNT, None)  # width of the small layers
    lm_head: bool | None = None  # whether the head is trained with the last block

    @property
    def is_lora(self) -> bool:
        """Whether the settings of `lora` are read."""
        return self.name in LORAS

    @property
    def trains_weights(self) -> bool:
        """Whether weights of the base are trained, and a whole model is saved instead of an adapter."""
        return self.name in WHOLE

    @property
    def own(self) -> tuple[str, ...]:
        """The names of the fields that this method has."""
        return _OWN.get(self.name, ())

    @property
    def size(self) -> str | None:
        """The setting that says how much is trained; None of a method that has no size."""
        if self.is_lora:
            return "lora.r"
        sizes = ("num_virtual_tokens", "bottleneck_dim")
        return next((f"method.{name}" for name in self.own if name in sizes), None)

    def problems(self) -> Iterator[str]:
        for name in (f.name for f in fields(self) if f.name != "name"):
            value = getattr(self, name)
            if name in self.own and (
                value is None or (name == "target_modules" and not any(value))
            ):
                yield f"{name} must be set for method={self.name}; choosing method={self.name} sets it"
            elif name not in self.own and value is not None:
                having = ", ".join(method for method, names in _OWN.items() if name in names)
                yield f"{name}={value}: method={self.name} has none such; it is a setting of {having}"

        if self.init_lora_weights and not re.fullmatch(
            r"pissa(_niter_[1-9]\d*)?", self.init_lora_weights
        ):
            yield f"init_lora_weights must be pissa or pissa_niter_16, got {self.init_lora_weights}"
        if stray := set(self.feedforward_modules or []) - set(self.target_modules or []):
            yield f"feedforward_modules={', '.join(sorted(stray))} must be among target_modules as well"

    def at_odds(self, quantization: str, gradient_checkpointing: bool) -> Iterator[str]:
        """What is wrong with training so a base that is quantized so, with activations kept or made again."""
        if quantization != "none" and self.trains_weights:
            yield (
                f"method={self.name} trains the weights themselves, which those of quantization={quantization} cannot "
                "be; set quantization=none"
            )
        if quantization != "none" and self.name is Method.pissa:
            yield (
                f"method=pissa takes its start out of the weights, which quantization={quantization} would round anew: "
                "another base than the one that is measured; set quantization=none"
            )
        if self.name is Method.prefix and gradient_checkpointing:
            yield "method=prefix keeps keys and values, which train.gradient_checkpointing=true drops; set it to false"

    def idle(self, keys: list[str]) -> Iterator[str]:
        """What is wrong with settings of `lora`, by their dotted keys, that are asked for and not read."""
        if keys and not self.is_lora:
            size = f"its size is {self.size}" if self.size else "it has no size"
            yield f"{', '.join(keys)}: method={self.name} reads no settings of lora, and {size}"


def by_method(values: DictConfig, *, _root_: DictConfig) -> Any:
    """Of values by method that of the one that is chosen, or what stands under `else`, or null."""
    return values.get(str(_root_.method.name), values.get("else"))


OmegaConf.register_new_resolver("by_method", by_method, replace=True)  # conf/train/ names it
