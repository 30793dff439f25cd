"""What people type out of habit, read as the settings that it can only mean."""

import re
from collections.abc import Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from slimdown.config.fields import find_setting
from slimdown.config.schema import RunConfig
from slimdown.utils.errors import ConfigError

TEXT_LISTS = (list[str], list[str] | None)
_FLAGS = (
    "help", "hydra-help", "version", "cfg", "resolve", "package", "run", "multirun", "info", "plan",
    "shell-completion", "config-path", "config-name", "config-dir", "experimental-rerun",
)  # fmt: skip
_PLAIN_TEXTS = ("name", "note")


def read_flags(arguments: Sequence[str]) -> list[str]:
    """Write `--SETTING VALUE` as `SETTING=VALUE`. Hydra's flags stay, also if they are abbreviated.

    A setting that is true or false needs no value: `--rerun` is `rerun=true`. Words that do not
    begin with `--` stay as they are; `compose_runs` refuses those that are no SETTING=VALUE.

    Args:
        arguments: Settings and flags, as the user typed them.

    Raises:
        ConfigError: `--WORD` needs a value and has none. With a value, `--WORD` is accepted here
            even if there is no such setting; `compose_runs` refuses it.

    >>> read_flags(["-m", "--model", "smollm2", "--rerun", "--lora.r=4,8", "--multi"])
    ['-m', 'model=smollm2', 'rerun=true', 'lora.r=4,8', '--multi']
    """
    settings: list[str] = []
    rest = list(arguments)
    while rest:
        text = rest.pop(0)
        key, equals_sign, value = text.removeprefix("--").partition("=")
        # Hydra takes the beginning of a flag for the flag, as `--multi` for `--multirun`.
        is_flag = any(flag.startswith(key) for flag in _FLAGS)
        if text.startswith("--") and key and not is_flag:  # a setting, or no known word
            # Without a value of its own, `_pop_value` finds the value or refuses the word.
            settings.append(f"{key}={value if equals_sign else _pop_value(key, rest)}")
        else:  # a flag with what belongs to it, `-m`, `--` alone, or SETTING=VALUE
            settings.append(text)
    return settings


def _pop_value(key: str, rest: list[str]) -> str:
    """Return the value of `--KEY`; if it is the first of the other arguments, remove it there."""
    setting = find_setting(key, RunConfig)
    # The next argument is the value, if it is no flag; -1 and -.5 are numbers.
    has_value = bool(rest) and not re.match(r"-(?!\.?\d)", rest[0])
    is_switch = setting is not None and setting.type is bool
    # What follows a switch may be the next setting, so only true and false are its value.
    if is_switch and not (has_value and rest[0] in ("true", "false")):
        return "true"
    if has_value:
        return rest.pop(0)
    if setting:
        raise ConfigError(f"--{key} has no value; type {key}=VALUE")
    raise ConfigError(f"--{key} is neither a flag nor a setting; slimdown run --help lists both")


def parse_override(parser: OverridesParser, text: str, is_sweep: bool) -> Override:
    """Parse an argument by Hydra's grammar, except for three kinds of arguments.

    A name or a note may be any text, which the grammar would want in quotes.
    `tuned=outputs/checkpoint-*` names all such folders, in the order of their numbers. Without a
    sweep, `benchmark=gsm8k,piqa` is a list of two, not two values.

    Args:
        parser: Hydra's.
        text: `SETTING=VALUE`.
        is_sweep: Whether several values are several runs.

    Returns:
        Hydra's form of the argument. It may hold several values, also without a sweep; the caller
        refuses them then.

    Raises:
        HydraException: It is no setting and value.
        ConfigError: No folder has such a name.
    """
    key, equals_sign, content = text.partition("=")
    if equals_sign and key.lstrip("+") in _PLAIN_TEXTS:
        # Hydra parses the key with a value that it understands; the user's text replaces it.
        override = parser.parse_override(f"{key}=placeholder")
        value = None if content == "null" else content
        if quoted := re.fullmatch(r"""(["'])(.*)\1""", content, re.DOTALL):
            value = quoted[2]  # without the quotes
        return replace(override, value_type=ValueType.ELEMENT, _value=value, input_line=text)
    if key == "tuned" and "*" in content:
        return parser.parse_override(f"tuned={','.join(map(_quote, _find_folders(content)))}")
    override = parser.parse_override(text)
    setting = find_setting(override.key_or_group, RunConfig)
    is_list = key in ("benchmark", "dataset") or (setting and setting.type in TEXT_LISTS)
    if not is_sweep and is_list and override.value_type is ValueType.SIMPLE_CHOICE_SWEEP:
        try:
            as_list = parser.parse_override(f"{key}=[{content}]")
        except HydraException:  # the values do not fit into a list
            return override
        values = as_list.value()
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            return as_list
    return override


def _find_folders(pattern: str) -> list[str]:
    """Find folders and GGUF files by a shell's pattern, `checkpoint-50` before `checkpoint-100`."""
    found = glob(pattern.strip("'\""))
    folders = [path for path in found if path.endswith(".gguf") or _holds_model(Path(path))]
    if not folders:
        problem = "no folder of such a name holds an adapter or a model here"
        raise ConfigError(f"tuned={pattern}: {problem}, and no .gguf file is called so")
    return sorted(folders, key=lambda path: re.sub(r"\d+", lambda m: m[0].zfill(12), path))


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("adapter_config.json", "config.json"))


def _quote(path: str) -> str:
    """Write a path as Hydra's grammar takes any text."""
    return "'" + path.replace("\\", "\\\\").replace("'", "\\'") + "'"
