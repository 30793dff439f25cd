"""The settings of the group `method`: what is trained, and the settings of each method."""

from collections.abc import Iterator
from dataclasses import dataclass

from slimdown.config.fields import COUNT, Range, check_own_settings, setting
from slimdown.config.methods import METHODS, Method, MethodFacts

_TOKENS = Range("must be from 1 to 4,096", lambda n: 1 <= n <= 4096)


@dataclass
class MethodConfig:
    """The method. The other fields are those of PEFT's config; null: the method lacks it."""

    name: Method = setting("what is trained")
    num_virtual_tokens: int | None = setting("learned tokens before every prompt", _TOKENS, None)
    target_modules: list[str] | None = setting("the layers that are changed", default=None)
    feedforward_modules: list[str] | None = setting("layers whose input is scaled", default=None)
    r: int | None = setting("as many values as in a LoRA of this rank", COUNT, None)
    oft_block_size: int | None = setting("inputs that are rotated together", COUNT, None)
    bottleneck_dim: int | None = setting("width of the small layers", COUNT, None)
    lm_head: bool | None = setting("train the head with the last block", default=None)

    @property
    def facts(self) -> MethodFacts:
        """The properties of the method."""
        return METHODS[self.name]

    def problems(self) -> Iterator[str]:
        return check_own_settings("method", self)
