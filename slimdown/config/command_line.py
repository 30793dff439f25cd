"""The runs that a command line asks for, composed and checked before the first one starts.

Hydra alone stops at the first mistake, tells people with a typo to prefix it with `+`, and finds a
bad value of a sweep only when the jobs before it have run.
"""

import argparse
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from slimdown.config.fields import explain_unknown_key, nearest, setting_type
from slimdown.config.loader import load_config
from slimdown.config.method_config import LORAS
from slimdown.config.paths import CONF_DIR, list_group_choices
from slimdown.config.schema import TRAINING, RunConfig
from slimdown.config.search_config import SEARCHED, DimensionConfig
from slimdown.utils.errors import ConfigError
from slimdown.utils.secrets import redact, redact_uri

_MOST_RUNS = 1_000  # of one command
_LISTS = ("dataset", "benchmark")  # groups of which several can be chosen


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
    folders: tuple[Path, ...] = (CONF_DIR,)
    is_sweep: bool = True
    is_run: bool = True

    def is_choice(self, key: str) -> bool:
        """Whether a key decides which files are composed, or what Hydra does."""
        is_group = any((folder / key).is_dir() for folder in self.folders)
        return is_group or re.match(r"hydra\b", key) is not None


@dataclass(frozen=True)
class ComposedRun:
    """One run of a command line: the settings that it is given, and all that it has."""

    overrides: list[str]
    config: RunConfig


@dataclass(frozen=True)
class CommandPlan:
    """The runs of a command line; of a search, one of its possible trials.

    Attributes:
        runs: In Hydra's order.
        swept: The keys with several values.
        space: What a search proposes values of, by key; empty: nothing is searched.
    """

    runs: list[ComposedRun]
    swept: tuple[str, ...] = ()
    space: dict[str, DimensionConfig] = field(default_factory=dict)


def read_command_line(arguments: list[str]) -> CommandLine:
    """Split a command line into Hydra's flags and settings, which may stand in any order.

    Raises:
        ConfigError: It names a pickled config.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir")
    options, other_flags = parser.parse_known_intermixed_args(arguments)
    if any(flag.startswith("--experimental-rerun") for flag in other_flags):
        raise ConfigError("--experimental-rerun reads a pickled config; repeat the command instead")
    if other_flags:
        return CommandLine(arguments, [], is_run=False)
    flags, folders = ["--multirun"] if options.multirun else [], [CONF_DIR]
    if options.config_dir:
        flags += ["--config-dir", options.config_dir]
        folders.append(Path(options.config_dir).absolute())
    is_sweep = options.multirun or "hydra.mode=MULTIRUN" in options.overrides
    return CommandLine(flags, options.overrides, tuple(folders), is_sweep)


def compose_runs(line: CommandLine) -> CommandPlan:
    """Compose and check every run that a command line asks for.

    Args:
        line: A command line with `is_run`.

    Returns:
        The runs. Of a search all choices and both ends of each range are checked.

    Raises:
        ConfigError: Lists every problem of every run, one a line.
    """
    if problems := [p for folder in line.folders[1:] for p in _find_yaml_problems(folder)]:
        raise ConfigError("\n".join(problems))
    is_ready = GlobalHydra.instance().is_initialized()  # a sweeper composes inside Hydra's main
    with nullcontext() if is_ready else initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        values: dict[str, list[Override]] = {}  # by key, each with one value
        for text in line.overrides:
            try:
                key, parsed = _parse(text, line)
                if key in values:
                    problems.append(f"{key} is given 2 times; keep one of them")
                values[key] = parsed
            except ConfigError as error:
                problems += str(error).splitlines()
        if (n := prod(map(len, values.values()))) > _MOST_RUNS:
            factors = " x ".join(f"{len(v):,} of {k}" for k, v in values.items() if len(v) > 1)
            limit = f"one command starts at most {_MOST_RUNS:,}; try fewer values"
            raise ConfigError(
                "\n".join([*problems, f"this sweep is {n:,} runs ({factors}); {limit}"])
            )
        files: dict[str, DictConfig | ConfigError] = {}
        runs = [_compose_run(each, line, files, problems) for each in product(*values.values())]
        space = {}
        if not problems and runs[0].config.search.trial is None:
            whole_space = runs[0].config.search.space
            space = {key: whole_space[key] for key in whole_space if key not in values}
            problems += _find_search_problems(space, runs, line) if whole_space else []
        for key, dimension in {} if problems else space.items():
            for end in dimension.choices or [dimension.low, dimension.high]:
                text = f"{key}={Override._get_value_element_as_str(end)}"
                trial = [each[0] for each in values.values()]
                trial.append(OverridesParser.create().parse_override(text))
                _compose_run(trial, line, files, problems)
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    swept = tuple(key for key, each in values.items() if len(each) > 1)
    return CommandPlan(runs, tuple(space) or swept, space)


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


def _parse(text: str, line: CommandLine) -> tuple[str, list[Override]]:
    """Return the key of an argument of the command line, and an override for each of its values.

    Raises:
        ConfigError: Lists what is wrong with it by itself.
    """
    parser, problems = OverridesParser.create(GlobalHydra.instance().config_loader()), []
    try:
        override = parser.parse_override(text)
        override.config_loader = parser.config_loader  # which glob(...) asks
        key, values = override.key_or_group, [override]
        if not key:
            raise ValueError("there is no name before the =")
        sweep: Any = override.value() if override.is_sweep_override() else None
        if isinstance(sweep, RangeSweep):
            if not sweep.step:
                raise ValueError("a range needs a step other than 0")
            if (n := ceil(((sweep.stop or 0) - (sweep.start or 0)) / sweep.step)) > _MOST_RUNS:
                raise ConfigError(f"{text}: {n:,} runs; one command starts at most {_MOST_RUNS:,}")
        if isinstance(sweep, IntervalSweep):
            advice = "give choice(...), range(...) or a list, or set search.space"
            raise ConfigError(f"{text}: an interval has no end of values; {advice}")
        if sweep is not None:
            texts = override.sweep_string_iterator()
            values = [parser.parse_override(f"{override.get_key_element()}={t}") for t in texts]
    except (HydraException, ValueError, RecursionError, ArithmeticError) as error:
        reason = redact((str(error) or type(error).__name__).splitlines()[0])[:160]
        raise ConfigError(f"{redact(text)[:80]!r} is not setting=value: {reason}") from None
    if not values:
        problems.append(f"{text}: no value is left to try")
    if sweep is not None and not line.is_sweep:
        problems.append(f"{text}: several values are a sweep; begin it with -m")
    if redact_uri(text) != text:
        advice = "set MLFLOW_TRACKING_URI, or refer to a variable of your own: ${oc.env:NAME}"
        problems.append(f"{redact(text)}: others can read a password of a command line; {advice}")
    if override.is_delete():
        problems.append(f"{text}: every setting is needed; set another value instead")
    elif line.is_choice(key):
        problems += [problem for one in values for problem in _find_choice_problems(one, line)]
    elif problem := explain_unknown_key(tuple(key.split(".")), RunConfig):
        problems.append(problem)
    if problems:
        raise ConfigError("\n".join(problems))
    return key, values


def _find_choice_problems(override: Override, line: CommandLine) -> Iterator[str]:
    key, value = override.key_or_group, override.value()
    loader = GlobalHydra.instance().config_loader()
    names = sorted({*loader.get_group_options(key), *list_group_choices(key, line.folders)})
    if key in ("hydra.launcher", "hydra.sweeper"):
        yield f"{key} chooses nothing; choose with {key.replace('.', '/')}=..."
    if not names or (key == "experiment" and value is None):
        return
    for name in value if isinstance(value, list) and key in _LISTS else [value]:
        if not isinstance(name, str):
            text = override.input_line
            yield f"{text}: choose one {key} by its name; known: {', '.join(names)}"
        elif name not in names:
            yield f"{key}={name}: there is no such {key}{nearest(name, names)}"


def _compose_run(
    overrides: Sequence[Override],
    line: CommandLine,
    files: dict[str, DictConfig | ConfigError],
    problems: list[str],
) -> ComposedRun:
    """Compose and check one run.

    Args:
        overrides: Each with one value.
        line: The command line.
        files: What choices of groups were composed to before, which takes most of the time.
        problems: Takes what is wrong with the run.
    """
    texts = [str(override.input_line) for override in overrides]
    choices = [str(o.input_line) for o in overrides if line.is_choice(o.key_or_group)]
    if (choice := " ".join(choices)) not in files:
        path = [f"hydra.searchpath=[file://{folder}]" for folder in line.folders[1:]]
        try:
            with warnings.catch_warnings():  # our launchers have the names of their plugins' own
                warnings.filterwarnings("ignore", r"\s*'hydra/launcher", UserWarning)
                composed = compose("config", [*choices, *path], return_hydra_config=True)
            for key in ("run.dir", "sweep.dir"):
                OmegaConf.select(composed, f"hydra.{key}")  # resolved when a job starts
            with open_dict(composed):
                del composed["hydra"]
            files[choice] = composed
        except Exception as error:  # a file of the user's own: whatever its content may raise
            files[choice] = ConfigError(f"{choice}: {reword(error)}".removeprefix(": "))
    composed_files = files[choice]
    if isinstance(composed_files, ConfigError):
        problems.append(str(composed_files))
        return ComposedRun(texts, RunConfig())
    composed = deepcopy(composed_files)
    values = {override.key_or_group: override.value() for override in overrides}
    idle = [text for text in texts if re.split("[.=]", text.lstrip("+"))[0] in TRAINING]
    own = [text for text in idle if text.lstrip("+").startswith("lora")]
    if (tuned := values.get("tuned", composed.get("tuned"))) is not None and idle:
        problem = f"is measured as it is, and nothing is trained: leave out {' '.join(idle)}"
        problems.append(f"tuned={tuned} {problem}")
    elif own and values.get("method", "lora") not in LORAS:
        problems.append(f"{', '.join(own)}: method={values['method']} reads no settings of lora")
    for override in overrides:
        if not line.is_choice(key := override.key_or_group):  # as Hydra does at its end
            is_new = override.is_add() or override.is_force_add()
            try:
                OmegaConf.update(composed, key, override.value(), merge=True, force_add=is_new)
            except (OmegaConfBaseException, HydraException) as error:
                section, name = (*key.split("."), "")[:2]
                problem = reword(error)
                if section in _LISTS and name not in composed[section]:
                    problem = f"{name} is not chosen; add it to {section}=[...]"
                problems.append(f"{override.input_line}: {problem}")
    try:
        return ComposedRun(texts, load_config(composed))
    except ConfigError as error:
        problems += str(error).splitlines()
        return ComposedRun(texts, RunConfig())


def _find_search_problems(
    space: dict[str, DimensionConfig], runs: list[ComposedRun], line: CommandLine
) -> Iterator[str]:
    if not line.is_sweep or len(runs) > 1:
        yield "a search is many runs of one command; begin it with -m, and give one value each"
    if find_spec("optuna") is None:
        yield "a search needs Optuna; pip install 'slimdown[search]'"
    if not space:
        yield "search.space: each of its settings has a value; leave one out"
    for key, dimension in space.items():
        parts = tuple(key.split("."))
        unknown = None if line.is_choice(key) else explain_unknown_key(parts, RunConfig)
        is_number = re.search("int|float", str(setting_type(parts, RunConfig)))
        if unknown:
            yield f"search.space: {unknown}"
        elif parts[0] not in SEARCHED:
            yield f"search.space: {key} is not searched, only {', '.join(SEARCHED)}"
        elif not dimension.choices and not is_number:
            yield f"search.space: {key} is no number and has no range; give choices"


_MISREAD = {  # in a YAML file, what Hydra reads otherwise than it looks, or for ever
    "^\ufeff": "begins with a byte order mark; save it as plain UTF-8",
    r":\s+\*\w": "holds a YAML alias (*name); refer to another setting as ${key}",
    r":\s+\d+:[0-5]\d\s*$": "holds a number with a colon, which YAML reads in base 60",
}


def _find_yaml_problems(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield f"--config-dir: there is no folder {folder}"
    for file in sorted(folder.glob("*/*.yaml")):
        text = file.read_text(encoding="utf-8", errors="replace")
        for pattern, problem in _MISREAD.items():
            if re.search(pattern, text, re.MULTILINE):
                yield f"{file} {problem}"
