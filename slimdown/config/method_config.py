"""The settings of the group `method`: what is trained, and the settings of each method."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from slimdown.config.fields import (
    COUNT,
    Range,
    build_choice,
    check_own_settings,
    read_choice,
    setting,
)
from slimdown.config.methods import MethodFacts, find_method, list_all_methods
from slimdown.config.paths import read_group

_TOKENS = Range("must be from 1 to 4,096", lambda n: 1 <= n <= 4096)


@dataclass
class MethodConfig:
    """The method. The other fields are those of PEFT's config; null: the method lacks it.

    A method of another package may have a subclass with its own fields.
    """

    name: str = setting("what is trained")
    num_virtual_tokens: int | None = setting("learned tokens before every prompt", _TOKENS, None)
    target_modules: list[str] | None = setting("the layers that are changed", default=None)
    feedforward_modules: list[str] | None = setting("layers whose input is scaled", default=None)
    r: int | None = setting("as many values as in a LoRA of this rank", COUNT, None)
    oft_block_size: int | None = setting("inputs that are rotated together", COUNT, None)
    bottleneck_dim: int | None = setting("width of the small layers", COUNT, None)
    lm_head: bool | None = setting("train the head with the last block", default=None)

    @staticmethod
    def list_kinds() -> dict[str, type["MethodConfig"]]:
        """Return the class of each method's settings."""
        methods = list_all_methods().items()
        return {name: facts.settings or MethodConfig for name, facts in methods}

    @staticmethod
    def read_plain(values: Mapping[str, Any]) -> "MethodConfig":
        """Restore recorded settings, also those of a method that is not installed here."""
        method: MethodConfig = read_choice(MethodConfig, MethodConfig.list_kinds(), values)
        return method

    @property
    def facts(self) -> MethodFacts:
        """The properties of the method."""
        return find_method(self.name)

    def problems(self) -> Iterator[str]:
        return check_own_settings("method", self, list_own_settings())


def list_own_settings() -> dict[str, dict[str, Any]]:
    """Return the settings of each method with their first values: of its file, or of its class."""
    own = {}
    for name, kind in MethodConfig.list_kinds().items():
        declared = kind.__annotations__ if kind is not MethodConfig else {}
        own[name] = {key: vars(kind())[key] for key in declared}
    return own | read_group("method")


def build_method(values: Mapping[str, Any]) -> MethodConfig:
    """Build the settings of the method that composed settings choose.

    Raises:
        ConfigError: Lists what is wrong with them, one a line.
    """
    method: MethodConfig = build_choice("method", MethodConfig.list_kinds(), values)
    return method
