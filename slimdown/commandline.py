"""The command line, checked before Hydra acts on it: every mistake in one answer, with what would be right.

Hydra alone stops at the first mistake, tells people with a typo to prefix it with `+` (which is then accepted and
ignored), and in a sweep finds a bad value only when the jobs before it have run.
"""

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slimdown.config import (
    CONF_DIR,
    ConfigError,
    RunConfig,
    group_choices,
    load_config,
    nearest,
    setting_problem,
)

_MOST_COMBINATIONS = 64  # of a sweep that are composed beforehand, about 60 ms each


@dataclass(frozen=True)
class CommandLine:
    """What the command line asks for."""

    overrides: list[str]
    folders: tuple[Path, ...]  # where group files are looked for
    checkable: bool  # false for --help and its like, and for a config that is not ours


def read_command_line(arguments: list[str]) -> CommandLine:
    """The overrides and config folders in a command line, split as Hydra splits it."""
    given = get_args_parser().parse_args(arguments)
    other_job = given.help or given.hydra_help or given.shell_completion or given.info
    other_config = given.config_path or given.config_name
    own = Path(given.config_dir).absolute() if given.config_dir else None
    folders = (CONF_DIR, own) if own else (CONF_DIR,)
    return CommandLine(given.overrides, folders, not (other_job or other_config))


def swept_keys(arguments: list[str]) -> tuple[str, ...]:
    """The settings of a command line that have several values: what a sweep varies."""
    parsed = OverridesParser.create().parse_overrides(read_command_line(arguments).overrides)
    return tuple(override.get_key_element().lstrip("+~") for override in parsed if override.is_sweep_override())


def check_command_line(arguments: list[str]) -> None:
    """Return in silence where every run that the command line asks for can be composed.

    Raises:
        ConfigError: listing every problem, one a line.
    """
    line = read_command_line(arguments)
    if not line.checkable:
        return
    problems: list[str] = []
    sound: list[Override] = []
    for folder in line.folders:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir: there is no folder {folder}")
    for text in line.overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            problems.append(f"{text!r} is not setting=value: {reason}")
            continue
        found = list(_override_problems(override, line.folders))
        problems += found
        if not found:
            sound.append(override)
    problems += [p for p in _composed_problems(sound, line.folders) if p not in problems]
    if problems:
        raise ConfigError("\n".join(problems))


def _override_problems(override: Override, folders: tuple[Path, ...]) -> Iterator[str]:
    key = override.key_or_group
    if key.split(".")[0].split("/")[0] == "hydra":
        return
    values = _values(override)
    if any((folder / key).is_dir() for folder in folders):
        choices = group_choices(key, folders)
        for name in values:
            if isinstance(name, str) and name not in choices:
                yield f"{key}={name}: there is no such {key}{nearest(name, choices)}"
    elif problem := setting_problem(key):
        yield problem
    else:
        for value in values:
            if problem := _type_problem(key, value):
                yield problem


def _values(override: Override) -> list[Any]:
    """Each value that an override can take: those of a sweep, the members of a list of choices."""
    options = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    options = [o[0] if isinstance(o, tuple) else o for o in options]
    is_group = (CONF_DIR / override.key_or_group).is_dir()
    parsed: list[Any] = []
    for option in options:
        if override.is_sweep_override() and isinstance(option, str):
            option = OverridesParser.create().parse_override(f"x={option}").value()
        parsed += option if isinstance(option, list) and is_group else [option]
    return parsed


def _type_problem(key: str, value: Any) -> str | None:
    *parents, leaf = key.split(".")
    node: Any = RunConfig
    for part in parents:
        node = get_args(node)[1] if get_origin(node) is dict else get_type_hints(node)[part]
    if not is_dataclass(node) or isinstance(value, dict):
        return None  # a whole section: composing checks it
    try:
        OmegaConf.structured(node)[leaf] = value
    except OmegaConfBaseException as error:
        return f"{key}={value}: {str(error).splitlines()[0]}"
    return None


def _composed_problems(overrides: list[Override], folders: tuple[Path, ...]) -> Iterator[str]:
    """The problems of each run, composed as Hydra will; those of a sweep are mostly the same and named once."""
    if any(o.is_sweep_override() for o in overrides):
        batches = BasicSweeper.split_arguments(overrides, max_batch_size=None)
        runs = [list(run) for batch in batches for run in batch][:_MOST_COMBINATIONS]
    else:
        runs = [[o.input_line or "" for o in overrides]]
    named: set[str] = set()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        for run in runs:
            found = list(_run_problems(run, folders))
            yield from (p for p in found if p not in named)
            named.update(found)


def _run_problems(run: list[str], folders: tuple[Path, ...]) -> Iterator[str]:
    search = [f"hydra.searchpath=[file://{folder}]" for folder in folders[1:]]
    plain = {o: o.lstrip("+") for o in run}
    of_one = {o: p.split(".")[:2] for o, p in plain.items() if p.startswith(("dataset.", "benchmark."))}
    try:
        # What is chosen decides which dataset.<name> and benchmark.<name> settings there are.
        chosen = compose("config", overrides=[*(o for o in run if o not in of_one), *search])
        for override, (group, name) in of_one.items():
            choices = group_choices(group, folders)
            if name not in choices:
                yield f"{override.split('=')[0]}: there is no {group} {name}{nearest(name, choices)}"
            elif name not in chosen[group]:
                one_more = ",".join([*chosen[group], name])
                yield (
                    f"{override.split('=')[0]}: {group}.{name} is not chosen; add it with {group}=[{one_more}], "
                    f"or set one of {', '.join(chosen[group])}"
                )
        kept = [o for o in run if o not in of_one or of_one[o][1] in chosen[of_one[o][0]]]
        load_config(compose("config", overrides=[*kept, *search]))
    except ConfigError as error:
        yield from str(error).splitlines()
    except (HydraException, OmegaConfBaseException) as error:
        yield " ".join(str(error).split())
