"""Secrets taken out of what Hydra is given and of what it saves."""

import os
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override

from slimdown.utils.redaction import IS_SECRET, public_uri, redact


def without_secrets(arguments: list[str]) -> list[str]:
    """The command line with each secret moved into an environment variable, which the setting then refers to.

    Hydra writes what it is given into `multirun.yaml`, and a folder may be named by it; jobs inherit the environment.
    `tracking.uri=postgresql://me:hunter2@db/mlflow` becomes `tracking.uri=${oc.env:SLIMDOWN_TRACKING_URI}`.
    """
    return [_without_secret(argument) if "=" in argument else argument for argument in arguments]


class HideInSweep(Callback):
    """Hydra's hook before a sweep: what is saved of the whole is only to be read, each job is composed anew."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Blank the secrets that config files brought."""
        for key in config:
            if key != "hydra":
                blank_secrets(config._get_node(key))
        # Of Hydra's own settings the sweep needs the others; these a job takes from where they came from.
        blank_secrets(OmegaConf.select(config, "hydra.job.env_set"))


def blank_secrets(node: Any) -> None:
    """Blank every text in a config that holds a secret; references to the environment are left as they are."""
    if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_missing():
        return
    with flag_override(node, "readonly", False):
        for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
            child: Any = node._get_node(key)
            if OmegaConf.is_config(child):
                blank_secrets(child)
            elif (
                isinstance(text := child._value(), str)
                and "${" not in text
                and IS_SECRET.match(str(key))
            ):
                node[key] = "***"
            elif isinstance(text, str) and (safe := redact(public_uri(text))) != text:
                node[key] = safe


def _without_secret(argument: str) -> str:
    try:
        override = OverridesParser.create().parse_override(argument)
    except (
        HydraException,
        ValueError,
        RecursionError,
        ArithmeticError,
    ):  # a flag, or a mistake that is told elsewhere
        return argument
    key, value = override.get_key_element(), override._value
    if isinstance(value, ChoiceSweep):
        choices = [_referring(key, choice, f"_{i}") for i, choice in enumerate(value.list)]
        if choices == value.list:
            return argument
        return f"{key}={','.join(map(Override._get_value_element_as_str, choices))}"
    reference = _referring(key, value)
    if reference == value:
        return argument
    written = (
        reference if isinstance(reference, str) else Override._get_value_element_as_str(reference)
    )
    return f"{key}={written}"


def _referring(key: str, value: Any, number: str = "") -> Any:
    """The parsed value with each string that holds a secret replaced by a reference to the environment."""
    if isinstance(value, list):
        return [_referring(key, one, f"{number}_{i}") for i, one in enumerate(value)]
    if isinstance(value, dict):
        return {name: _referring(f"{key}.{name}", one, number) for name, one in value.items()}
    text = value.text if isinstance(value, QuotedString) else value
    if not isinstance(text, str) or "${" in text:
        return value
    if not IS_SECRET.match(key) and public_uri(text) == text == redact(text):
        return value
    variable = re.sub(r"\W+", "_", f"slimdown_{key.lstrip('+~')}{number}").upper()
    os.environ[variable] = text
    return f"${{oc.env:{variable}}}"
