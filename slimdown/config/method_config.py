"""How a model is fine-tuned: the method, and the settings that it has of its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from slimdown.config.fields import COUNT, MISSING, Range, check_own_settings, ranged

_TOKENS = Range("must be from 1 to 4,096", lambda n: 1 <= n <= 4096)


class Method(StrEnum):
    """What is trained; each is a file of `conf/method/`."""

    lora = "lora"  # low-rank matrices beside the base's (Hu et al. 2021)
    rslora = "rslora"  # LoRA scaled by the root of its rank (Kalajdzievski 2023)
    dora = "dora"  # LoRA of the weights' directions, their lengths beside it (Liu et al. 2024)
    prefix = "prefix"  # keys and values before every layer's own (Li and Liang 2021)
    prompt = "prompt"  # embeddings before the prompt's own (Lester et al. 2021)
    ia3 = "ia3"  # factors of keys, values and feed-forward activations (Liu et al. 2022)
    shira = "shira"  # a sparse set of the weights (Bhardwaj et al. 2024)
    oft = "oft"  # rotations of the weights (Qiu et al. 2023)
    bottleneck = "bottleneck"  # small layers after attention and feed-forward (Houlsby et al. 2019)
    last_layer = "last_layer"  # the last block and the norm behind it
    full = "full"  # every weight


_OWN: dict[Method, tuple[str, ...]] = {  # the settings that a method has of its own
    Method.prefix: ("num_virtual_tokens",),
    Method.prompt: ("num_virtual_tokens",),
    Method.ia3: ("target_modules", "feedforward_modules"),
    Method.shira: ("r", "target_modules"),
    Method.oft: ("oft_block_size", "target_modules"),
    Method.bottleneck: ("bottleneck_dim", "target_modules"),
    Method.last_layer: ("lm_head",),
}


@dataclass
class MethodConfig:
    """The method; its other fields are those of PEFT's config, null where the method has none."""

    name: Method = MISSING
    num_virtual_tokens: int | None = ranged(_TOKENS, None)  # before every prompt
    # the layers that are changed, or that a bottleneck follows
    target_modules: list[str] | None = None
    # of these, those whose input is scaled instead of their output
    feedforward_modules: list[str] | None = None
    r: int | None = ranged(COUNT, None)  # values that are trained, as in a LoRA of this rank
    oft_block_size: int | None = ranged(COUNT, None)  # inputs that are rotated together
    bottleneck_dim: int | None = ranged(COUNT, None)  # width of the small layers
    lm_head: bool | None = None  # whether the head is trained with the last block

    @property
    def is_lora(self) -> bool:
        """Whether the settings of `lora` are read."""
        return self.name in (Method.lora, Method.rslora, Method.dora)

    @property
    def trains_weights(self) -> bool:
        """Whether weights of the base are trained, and a whole model is saved."""
        return self.name in (Method.last_layer, Method.full)

    @property
    def learns_prompt(self) -> bool:
        """Whether virtual tokens stand before every prompt."""
        return self.name in (Method.prefix, Method.prompt)

    @property
    def own(self) -> tuple[str, ...]:
        """The names of the fields that this method has."""
        return _OWN.get(self.name, ())

    def problems(self) -> Iterator[str]:
        return check_own_settings("method", self, _OWN)
