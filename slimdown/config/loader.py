"""What Hydra composed -> a checked `RunConfig`."""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slimdown.config.fields import explain_unknown_key, find_problems
from slimdown.config.schema import RunConfig
from slimdown.utils.errors import ConfigError


def load_config(composed: DictConfig) -> RunConfig:
    """Turn the config that Hydra composed into a checked `RunConfig`.

    Args:
        composed: All sections of the config, without Hydra's own.

    Returns:
        The settings, each of its type and in its range.

    Raises:
        ConfigError: Lists every problem, one a line.
    """
    if composed.get("tuned") is not None:  # what the model's own file would train on is idle
        composed = composed.copy()
        composed.dataset = {}
    try:
        if problems := [*_find_unknown_keys(composed), *_find_missing_keys(composed)]:
            raise ConfigError("\n".join(problems))
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    assert isinstance(config, RunConfig)
    if problems := list(find_problems(config)):
        raise ConfigError("\n".join(problems))
    return config


def _find_unknown_keys(node: Any, above: tuple[str, ...] = ()) -> Iterator[str]:
    """A key that `+key=value` or a file added names no setting, and would be ignored."""
    for key in node:
        parts = (*above, str(key))
        if problem := explain_unknown_key(parts, RunConfig):
            yield problem
        elif isinstance(child := node._get_node(key), DictConfig) and not child._is_none():
            yield from _find_unknown_keys(child, parts)


def _find_missing_keys(composed: DictConfig) -> Iterator[str]:
    missing = OmegaConf.missing_keys(composed)
    # A group's file always sets these: without them the file was not chosen.
    unchosen = [
        f"{group}.{name}"
        for group, always_set in (("dataset", "validation_examples"), ("benchmark", "metric"))
        for name in composed[group]
        if f"{group}.{name}.{always_set}" in missing
    ]
    for name in unchosen:
        group = name.partition(".")[0]
        yield f"{name} has settings but is not chosen; add it to {group}=[...]"
    for key in sorted(missing):
        if not key.startswith(tuple(f"{name}." for name in unchosen)):
            yield f"{key} must be set"
