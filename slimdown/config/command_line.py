"""The runs that a command line asks for, composed and checked before the first one starts.

Hydra alone stops at the first mistake, tells people with a typo to prefix it with `+`, and finds a
bad value of a sweep only when the jobs before it have run.
"""

import argparse
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from slimdown.config.fields import explain_unknown_key, find_problems, nearest, setting_type
from slimdown.config.loader import load_config
from slimdown.config.paths import CONF_DIR, list_group_choices
from slimdown.config.schema import TRAINING, RunConfig
from slimdown.config.search_config import SEARCHED, DimensionConfig
from slimdown.utils.errors import ConfigError
from slimdown.utils.secrets import redact, redact_uri

_MOST_RUNS = 1_000  # of one command
_LISTS = ("dataset", "benchmark")  # groups of which several can be chosen
_LAUNCHERS = {  # the module of each launcher's plugin, and the extra that installs it
    "joblib": ("hydra_joblib_launcher", "joblib"),
    "ray": ("hydra_ray_launcher", "ray"),
    "submitit_local": ("hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
}


@dataclass(frozen=True)
class CommandLine:
    """What the command line asks for.

    Attributes:
        flags: Hydra's own, such as `--config-dir`.
        overrides: The settings.
        folders: Where group files are looked for.
        is_sweep: Whether it asks for several runs.
        is_run: False for `--help`, `--cfg` and the like, which Hydra answers.
    """

    flags: list[str]
    overrides: list[str]
    folders: tuple[Path, ...]
    is_sweep: bool
    is_run: bool


@dataclass(frozen=True)
class ComposedRun:
    """One run of a command line: the settings that it is given, and all that it has."""

    overrides: list[str]
    config: RunConfig


@dataclass(frozen=True)
class CommandPlan:
    """The runs of a command line, and what a search proposes values of."""

    runs: list[ComposedRun]
    swept: tuple[str, ...]  # the keys with several values
    space: dict[str, DimensionConfig]  # empty: nothing is searched


def read_command_line(arguments: list[str]) -> CommandLine:
    """Split a command line into Hydra's flags and settings, which may stand in any order.

    Raises:
        ConfigError: A flag that nothing here supports.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir")
    options, other_flags = parser.parse_known_intermixed_args(arguments)
    if any(flag.startswith("--experimental-rerun") for flag in other_flags):
        raise ConfigError("--experimental-rerun reads a pickled config; repeat the command instead")
    flags = ["--multirun"] if options.multirun else []
    flags += ["--config-dir", options.config_dir] if options.config_dir else []
    own = (Path(options.config_dir).absolute(),) if options.config_dir else ()
    return CommandLine(
        flags=arguments if other_flags else flags,
        overrides=[] if other_flags else options.overrides,
        folders=(CONF_DIR, *own),
        is_sweep=options.multirun or "hydra.mode=MULTIRUN" in options.overrides,
        is_run=not other_flags,
    )


def compose_runs(line: CommandLine) -> CommandPlan:
    """Compose and check every run that a command line asks for.

    Args:
        line: A command line with `is_run`.

    Returns:
        The runs in Hydra's order. Of a search there is one, with the first value of each setting.

    Raises:
        ConfigError: Lists every problem of every run, one a line.
    """
    problems = [p for folder in line.folders[1:] for p in _find_yaml_problems(folder)]
    if problems:
        raise ConfigError("\n".join(problems))
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        composer = _Composer(line)
        problems += composer.parse()
        space = {} if problems else composer.find_space()
        if not problems:
            problems += composer.check_space(space) if space else composer.check_sweep()
        if space and not problems:
            composer.set_values(space)
        runs, found = composer.compose()
    if problems := list(dict.fromkeys([*problems, *found])):
        raise ConfigError("\n".join(problems))
    swept = tuple(key for key, values in composer.values.items() if len(values) > 1)
    return CommandPlan(runs[:1] if space else runs, tuple(space) or swept, space)


def reword(error: Exception) -> str:
    """Return what Hydra or OmegaConf says of a mistake, in one line."""
    cause = error.__cause__  # Hydra hides the reason of `Error merging override` there
    reason = cause if isinstance(cause, OmegaConfBaseException) else error
    known = isinstance(reason, (HydraException, OmegaConfBaseException))
    text = " ".join(str(reason if known else f"{type(reason).__name__}: {reason}").split())
    text = text.partition(" full_key:")[0]
    if file := re.match("In '((?:dataset|benchmark)/[^']*)'", text):
        text += f"; does {file[1]}.yaml begin with `# @package {file[1].replace('/', '.')}`?"
    return redact(text)


class _Composer:
    """Composes the combinations of values; files are composed once for each choice of groups."""

    def __init__(self, line: CommandLine) -> None:
        self.line = line
        self.parser = OverridesParser.create()
        self.overrides: dict[str, Override] = {}  # by key, as parsed
        self.values: dict[str, list[Override]] = {}  # each with one value
        self._composed: dict[tuple[str, ...], tuple[DictConfig, str] | ConfigError] = {}

    def parse(self) -> list[str]:
        """Parse the settings; returns what is wrong with each by itself."""
        problems = []
        for text in self.line.overrides:
            try:
                override = self.parser.parse_override(text)
                if not override.key_or_group:
                    raise ValueError("there is no name before the =")
                key = override.key_or_group
                values = [override]
                if override.is_sweep_override() and not isinstance(override.value(), IntervalSweep):
                    values = self._list_values(override)
            except (HydraException, ValueError, RecursionError, ArithmeticError) as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                problems.append(f"{redact(text)[:80]!r} is not setting=value: {reason}")
                continue
            own = [] if values else [f"{text}: no value is left to try"]
            if key in self.overrides:
                texts = f"{self.overrides[key].input_line} and {text}"
                own.append(f"{key} is given 2 times, {texts}; keep one")
            own += self._find_problems(override, values)
            if not own:
                self.overrides[key], self.values[key] = override, values
            problems += own
        return problems

    def _list_values(self, override: Override) -> list[Override]:
        sweep = override.value()
        if isinstance(sweep, RangeSweep):
            if not sweep.step:
                raise ValueError("a range needs a step other than 0")
            n = ceil((float(sweep.stop or 0) - float(sweep.start or 0)) / sweep.step)
            if n > _MOST_RUNS:
                raise ValueError(
                    f"{n:,} values, and one command starts at most {_MOST_RUNS:,} runs"
                )
        if isinstance(sweep, Glob):
            texts = sweep.filter(list_group_choices(override.key_or_group, self.line.folders))
        else:
            texts = list(override.sweep_string_iterator())
        return [self.parser.parse_override(f"{override.get_key_element()}={t}") for t in texts]

    def _is_choice(self, key: str) -> bool:
        """Whether the key decides which files are composed, or what Hydra does."""
        is_group = any((folder / key).is_dir() for folder in self.line.folders)
        return is_group or re.match(r"hydra\b", key) is not None

    def _find_problems(self, override: Override, values: list[Override]) -> Iterator[str]:
        key, text = override.key_or_group, str(override.input_line)
        if override.is_sweep_override() and not self.line.is_sweep:
            yield f"{text}: several values are a sweep; begin it with -m"
        if redact_uri(text) != text:
            advice = "set MLFLOW_TRACKING_URI, or refer to a variable of your own: ${oc.env:NAME}"
            yield f"{redact(text)}: a password on the command line is seen by others; {advice}"
        if override.is_delete():
            yield f"{text}: every setting is needed; set another value instead of deleting it"
        elif self._is_choice(key):
            loader = GlobalHydra.instance().config_loader()
            group = key.replace(".", "/")
            known = set(loader.get_group_options(group)) if group else set()
            known.update(list_group_choices(group, self.line.folders))
            for one in values if known else []:
                chosen: Any = one.value()
                if key != group and not isinstance(chosen, dict):
                    yield f"{key}={chosen} chooses nothing; choose with {group}={chosen}"
                elif chosen is None and key == "experiment":
                    continue
                for name in chosen if isinstance(chosen, list) and key in _LISTS else [chosen]:
                    if key == group and not isinstance(name, str):
                        names = ", ".join(sorted(known))
                        yield f"{one.input_line}: choose one {key} by its name; known: {names}"
                    elif key == group and name not in known:
                        yield f"{key}={name}: there is no such {key}{nearest(name, sorted(known))}"
        elif problem := explain_unknown_key(tuple(key.split(".")), RunConfig):
            yield problem

    def find_space(self) -> dict[str, DimensionConfig]:
        """Return what is searched: `search.space`, less what has a value, and what is swept."""
        composed, _ = self._compose_files([one[0] for one in self.values.values()])
        for key, values in self.values.items():
            if key.partition(".")[0] == "search":
                _set_value(composed, values[0])
        try:
            preset: Any = OmegaConf.to_object(composed.search)
        except OmegaConfBaseException as error:
            raise ConfigError(f"search: {reword(error)}") from None
        if not preset.space:
            return {}
        space = {k: v for k, v in preset.space.items() if k not in self.values}
        for key, override in self.overrides.items():
            if override.is_sweep_override():
                sweep: Any = override.value()
                if isinstance(sweep, IntervalSweep):
                    is_whole = setting_type(tuple(key.split(".")), RunConfig) is int
                    ends = (sweep.start, sweep.end)
                    low, high = map(int, ends) if is_whole else ends
                    space[key] = DimensionConfig(low, high, "log" in sweep.tags)
                else:
                    space[key] = DimensionConfig(choices=list(override.sweep_iterator()))
        if not space:
            raise ConfigError("search.space: each of its settings has a value; leave one out")
        return space

    def check_space(self, space: dict[str, DimensionConfig]) -> list[str]:
        """Return what cannot be searched."""
        problems = []
        if not self.line.is_sweep:
            problems.append("a search is many runs; begin it with -m")
        if find_spec("optuna") is None:
            problems.append("a search needs Optuna; pip install 'slimdown[search]'")
        if tuned := self.overrides.get("tuned"):
            problem = "is measured as it is, and nothing is trained; leave it out"
            problems.append(f"{tuned.input_line} {problem}")
        for key, one in space.items():
            kind = setting_type(tuple(key.split(".")), RunConfig)
            unknown = explain_unknown_key(tuple(key.split(".")), RunConfig)
            if not self._is_choice(key) and unknown:
                problems.append(f"search.space: {unknown}")
            elif key.partition(".")[0] not in SEARCHED:
                sections = ", ".join(SEARCHED)
                problems.append(f"search.space: {key} is not searched; sections: {sections}")
            elif not one.choices and not re.search(r"\b(int|float)\b", str(kind)):
                problems.append(f"search.space: {key} is no number and has no range; give choices")
            problems += [f"search.space.{key}.{problem}" for problem in find_problems(one)]
        return problems

    def check_sweep(self) -> list[str]:
        """Return what makes no sweep."""
        problems = []
        for key, override in self.overrides.items():
            if isinstance(override.value(), IntervalSweep):
                advice = "give choice(...), range(...) or a list, or search it"
                problems.append(
                    f"{override.input_line}: an interval has no end of values; {advice}"
                )
            if key.startswith("search.") and key not in ("search.study", "search.trial"):
                advice = "name settings and values in search.space"
                problems.append(f"{override.input_line}: nothing is searched; {advice}")
        if (n := prod(map(len, self.values.values()))) > _MOST_RUNS:
            swept = " x ".join(f"{len(v):,} of {k}" for k, v in self.values.items() if len(v) > 1)
            problem = f"this sweep is {n:,} runs ({swept}), and one command starts at most"
            problems.append(f"{problem} {_MOST_RUNS:,}; try fewer values, or several commands")
        return problems

    def set_values(self, space: dict[str, DimensionConfig]) -> None:
        """Have the choices, or the ends of the ranges, of a search checked as those of a sweep."""
        for key, one in space.items():
            texts = [
                Override._get_value_element_as_str(v) for v in one.choices or (one.low, one.high)
            ]
            self.values[key] = [self.parser.parse_override(f"{key}={text}") for text in texts]

    def compose(self) -> tuple[list[ComposedRun], list[str]]:
        """Compose every combination of the values that can be parsed; returns runs and problems."""
        runs: list[ComposedRun] = []
        problems: dict[str, None] = {}
        for overrides in product(*self.values.values()):
            try:
                composed, _ = self._compose_files(list(overrides))
                problems |= dict.fromkeys(self._find_idle(composed, list(overrides)))
                errors = [
                    _set_value(composed, o)
                    for o in overrides
                    if not self._is_choice(o.key_or_group)
                ]
                problems |= dict.fromkeys(error for error in errors if error)
                runs.append(
                    ComposedRun([str(o.input_line) for o in overrides], load_config(composed))
                )
            except ConfigError as error:
                problems |= dict.fromkeys(str(error).splitlines())
        return runs, list(problems)

    def _compose_files(self, overrides: list[Override]) -> tuple[DictConfig, str]:
        """Compose what the choices among these overrides name: the settings, and the launcher."""
        choices = [str(o.input_line) for o in overrides if self._is_choice(o.key_or_group)]
        if tuple(choices) not in self._composed:
            path = [f"hydra.searchpath=[file://{folder}]" for folder in self.line.folders[1:]]
            try:
                composed = compose("config", [*choices, *path], return_hydra_config=True)
                for key in ("run.dir", "sweep.dir"):
                    OmegaConf.select(composed, f"hydra.{key}")  # resolved when a job starts
                launcher = composed.hydra.runtime.choices["hydra/launcher"]
                with open_dict(composed):
                    del composed["hydra"]
                self._composed[tuple(choices)] = composed, launcher
            except Exception as error:  # a file of the user's own: whatever its content may raise
                problem = f"{' '.join(choices)}: {reword(error)}".removeprefix(": ")
                self._composed[tuple(choices)] = ConfigError(problem)
        composed_files = self._composed[tuple(choices)]
        if isinstance(composed_files, ConfigError):
            raise composed_files
        return deepcopy(composed_files[0]), composed_files[1]

    def _find_idle(self, composed: DictConfig, overrides: list[Override]) -> Iterator[str]:
        """Find the settings that would change nothing."""
        _, launcher = self._compose_files(overrides)
        if launcher in _LAUNCHERS:
            plugin, extra = _LAUNCHERS[launcher]
            if not self.line.is_sweep:
                yield f"hydra/launcher={launcher} starts the jobs of a sweep; begin it with -m"
            if not (find_spec("hydra_plugins") and find_spec(f"hydra_plugins.{plugin}")):
                advice = f"pip install 'slimdown[{extra}]'"
                yield f"hydra/launcher={launcher} needs a plugin of Hydra; {advice}"
        sections: dict[str, list[str]] = {}
        values = {o.key_or_group: o.value() for o in overrides}
        for override in overrides:
            section, _, rest = override.key_or_group.partition(".")
            sections.setdefault(section, []).append(str(override.input_line))
            name = rest.partition(".")[0]
            if section in _LISTS and name and name not in composed[section]:
                known = list_group_choices(section, self.line.folders)
                if name not in known:
                    yield f"{section}.{name}: there is no {section} {name}{nearest(name, known)}"
                else:
                    advice = f"add it with {section}=[{','.join([*composed[section], name])}]"
                    yield f"{section}.{name} is not chosen; {advice}"
        tuned = values.get("tuned", composed.get("tuned"))
        idle = [text for section in TRAINING for text in sections.get(section, [])]
        if tuned is not None and idle:
            problem = f"is measured as it is, and nothing is trained: leave out {' '.join(idle)}"
            yield f"tuned={tuned} {problem}"
        method = values.get("method", composed.method.get("name", "lora"))
        if tuned is None and "lora" in sections and method not in ("lora", "rslora", "dora"):
            texts = ", ".join(sections["lora"])
            yield f"{texts}: method={method} reads no settings of lora"


def _set_value(composed: DictConfig, override: Override) -> str | None:
    """Set a value as Hydra does at the end of its composing; returns what is wrong with it."""
    try:
        force = override.is_add() or override.is_force_add()
        OmegaConf.update(
            composed, override.key_or_group, override.value(), merge=True, force_add=force
        )
    except (OmegaConfBaseException, HydraException) as error:
        return f"{override.input_line}: {reword(error)}"
    return None


def _find_yaml_problems(folder: Path) -> Iterator[str]:
    """Find what Hydra would misread in silence, or for ever, in group files of the user's own."""
    if not folder.is_dir():
        yield f"--config-dir: there is no folder {folder}"
    for file in sorted(folder.glob("*/*.yaml")):
        try:
            text = file.read_text(encoding="utf-8")
            events = list(yaml.parse(text, Loader=yaml.SafeLoader))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            yield f"{file} cannot be read: {' '.join(str(error).split())}"
            continue
        if text.startswith("\ufeff"):
            yield f"{file} begins with a byte order mark; save it as plain UTF-8"
        if file.parent.name == "experiment" and "@package _global_" not in text:
            yield f"{file} does not begin with `# @package _global_`, as a preset has to"
        if any(isinstance(event, yaml.AliasEvent) for event in events):
            yield f"{file} holds a YAML alias (*name); refer to another setting as ${{key}}"
        for event in events:
            is_plain = isinstance(event, yaml.ScalarEvent) and event.implicit[0]
            if is_plain and re.fullmatch(r"[-+]?\d+(:[0-5]?\d)+(\.\d*)?", event.value):
                yield f"{file}: YAML reads {event.value} in base 60; write a plain number"
