"""The settings of the group `method`: what is trained, and what each method has of its own."""

from collections.abc import Iterator
from dataclasses import dataclass

from slimdown.config.fields import COUNT, MISSING, Range, check_own_settings, ranged
from slimdown.config.methods import METHODS, Method, MethodFacts

_TOKENS = Range("must be from 1 to 4,096", lambda n: 1 <= n <= 4096)


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
    def facts(self) -> MethodFacts:
        """What is true of the method."""
        return METHODS[self.name]

    @property
    def is_lora(self) -> bool:
        return self.facts.reads_lora

    @property
    def trains_weights(self) -> bool:
        return self.facts.trains_weights

    @property
    def learns_prompt(self) -> bool:
        return self.facts.learns_prompt

    @property
    def own(self) -> tuple[str, ...]:
        return self.facts.settings

    def problems(self) -> Iterator[str]:
        own = {method: facts.settings for method, facts in METHODS.items()}
        return check_own_settings("method", self, own)
