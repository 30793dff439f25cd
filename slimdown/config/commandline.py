"""The command line, checked before Hydra acts on it: every mistake in one answer, with what would be right.

Hydra alone stops at the first mistake, tells people with a typo to prefix it with `+` (which is then accepted and
ignored), and in a sweep finds a bad value only when the jobs before it have run.
"""

import itertools
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from slimdown.config.files import CONF_DIR, group_choices
from slimdown.config.keys import nearest, setting_problem, setting_type
from slimdown.config.launchers import launcher_problems
from slimdown.config.loader import load_config
from slimdown.config.schema import TRAINING, RunConfig
from slimdown.config.search import DimensionConfig, dimension_problem, optuna_problem, searched
from slimdown.config.sweeps import Alternatives, alternatives, combinations, parsed
from slimdown.config.task_files import task_problem
from slimdown.data.row_files import RowError
from slimdown.data.rows import check_file
from slimdown.utils.errors import ConfigError

_MOST_RUNS = 1_000  # of one command
_LISTS = ("dataset", "benchmark")  # groups of which several can be chosen


@dataclass(frozen=True)
class CommandLine:
    """What the command line asks for."""

    flags: list[str]
    overrides: list[str]
    folders: tuple[Path, ...]  # where group files are looked for
    checkable: bool  # false for --help and its like, and for a config that is not ours
    is_sweep: bool

    @property
    def arguments(self) -> list[str]:
        """Flags, then settings: Hydra does not know settings before a flag for its own (`lora.r=4 -m seed=1,2`)."""
        return [*self.flags, *self.overrides]


def read_command_line(arguments: list[str]) -> CommandLine:
    """Flags, overrides and config folders of a command line, split as Hydra splits it."""
    given = get_args_parser().parse_intermixed_args(arguments)
    flags = list(arguments)
    for override in given.overrides:
        flags.remove(override)
    other_job = given.help or given.hydra_help or given.shell_completion or given.info
    other_config = given.config_path or given.config_name
    own = Path(given.config_dir).absolute() if given.config_dir else None
    return CommandLine(
        flags=flags,
        overrides=given.overrides,
        folders=(CONF_DIR, own) if own else (CONF_DIR,),
        checkable=not (other_job or other_config),
        is_sweep=given.multirun or "hydra.mode=MULTIRUN" in given.overrides,
    )


def check_command_line(arguments: list[str]) -> None:
    """Check that every run that the command line asks for can be composed, and that its data can be read.

    Raises:
        ConfigError: listing every problem, one a line.
    """
    _check_flags(arguments)
    line = read_command_line(arguments)
    if not line.checkable:
        return
    for folder in line.folders:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir: there is no folder {folder}")
    problems: list[str] = []
    sound: list[Alternatives] = []
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        for text in line.overrides:
            try:
                given = alternatives(text, line.folders)
            except ConfigError as error:
                problems.append(str(error))
                continue
            if own := list(_override_problems(given, line)):
                problems += own
            else:
                sound.append(given)
        try:
            search = _searched(sound, line.folders)
            together = list(
                _problems_together(sound) if search is None else _search_problems(search, line)
            )
        except ConfigError as error:
            search, together = None, [str(error)]
        if not together:
            tried = [_tried(key, one, line.folders) for key, one in (search or {}).items()]
            kept = [one for one in sound if one.key not in (search or {})]
            together = list(_composed_problems([*kept, *tried], line, search is not None))
        problems += [problem for problem in together if problem not in problems]
    if problems:
        raise ConfigError("\n".join(problems))


def composed_runs(arguments: list[str]) -> list[tuple[list[str], RunConfig]]:
    """Each run that a sound command line asks for, as a sweep would start them: what is its own, and its settings.

    Raises:
        ConfigError: listing every problem, one a line; see `check_command_line`.
    """
    line = read_command_line(arguments)
    check_command_line(arguments if line.is_sweep else [*arguments, "--multirun"])
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        given = [alternatives(text, line.folders) for text in line.overrides]
        values = [
            [parsed(f"{o.get_key_element()}={value}") for value in o.sweep_string_iterator()]
            if (o := one.override).is_range_sweep()
            else one.each
            for one in given
        ]
        runs = []
        for together in itertools.product(*values):
            choices = [o for o in together if _is_choice(o.key_or_group, line.folders)]
            composed, _ = _composed([o.input_line or "" for o in choices], line.folders)
            ConfigLoaderImpl._apply_overrides_to_config(
                [o for o in together if o not in choices], composed
            )
            own = [o.input_line or "" for one, o in zip(given, together, strict=True) if one.n > 1]
            runs.append((own, load_config(composed)))
        return runs


def _check_flags(arguments: list[str]) -> None:
    """Refuse the flags that Hydra answers with a traceback."""
    given = get_args_parser().parse_intermixed_args(arguments)
    if given.experimental_rerun:
        raise ConfigError(
            "--experimental-rerun takes a pickled config, which nothing here checks; repeat the command"
        )
    if given.help:
        return
    if given.resolve and not given.cfg:
        raise ConfigError(
            "--resolve goes with --cfg or --help; add --cfg job to see the settings of a run"
        )
    if given.hydra_help:
        return
    if given.cfg and given.multirun:
        raise ConfigError("--cfg shows one run; leave out -m and give one value each")
    flags = ("--run", "--multirun", "--cfg", "--shell-completion", "--info")
    if len(modes := [flag for flag in flags if getattr(given, flag[2:].replace("-", "_"))]) > 1:
        raise ConfigError(f"{' and '.join(modes)} do not go together; give one of them")


def _override_problems(given: Alternatives, line: CommandLine) -> Iterator[str]:
    key, override = given.key, given.override
    is_choice = _is_choice(key, line.folders)
    if override.is_sweep_override() and not line.is_sweep:
        yield f"{override.input_line}: several values are a sweep; begin it with -m"
    if _is_hydras(key):
        yield from _hydra_problems(key, [one.value() for one in given.each])
    elif not is_choice and (problem := setting_problem(key, RunConfig)):
        yield problem
    elif override.is_delete():
        yield f"{override.input_line}: every setting is needed; give it another value instead of deleting it"
    elif not override.is_interval_sweep():  # which is for a search to try the ends of
        for one in given.each:
            yield from (
                _choice_problems(one, line.folders)
                if is_choice
                else _type_problems(key, one.value())
            )


def _choice_problems(override: Override, folders: tuple[Path, ...]) -> Iterator[str]:
    group, value = override.key_or_group, override.value()
    choices = group_choices(group, folders)
    if value is None and group == "experiment":
        return
    for name in value if isinstance(value, list) and group in _LISTS else [value]:
        if not isinstance(name, str):
            yield f"{override.input_line}: choose one {group} by its name; known: {', '.join(choices)}"
        elif name not in choices:
            yield f"{group}={name}: there is no such {group}{nearest(name, choices)}"


def _hydra_problems(key: str, values: list[Any]) -> Iterator[str]:
    """A plugin is chosen with a slash; with a dot, Hydra takes its name for a setting of the plugin and goes on."""
    group = key.replace(".", "/")
    sections = [f.name for f in fields(HydraConf)]
    if (
        "/" not in key
        and (section := key.partition(".")[2].partition(".")[0])
        and section not in sections
    ):
        yield f"{key} is not a setting of Hydra{nearest(section, sections)}"
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoader)
    if known := sorted(loader.get_group_options(group)):
        for value in values:
            if "." in key and not isinstance(value, dict):
                yield f"{key}={value} chooses nothing; choose with {group}=..., known: {', '.join(known)}"
            elif "/" in key and value not in known:
                yield f"{key}={value}: there is no such {group}{nearest(str(value), known)}"


def _problems_together(given: list[Alternatives]) -> Iterator[str]:
    by_key: dict[str, list[Override]] = {}
    for one in given:
        by_key.setdefault(one.override.get_key_element().lstrip("+~"), []).append(one.override)
    for key, overrides in by_key.items():
        texts = [override.input_line or "" for override in overrides]
        if len(texts) > 1:
            yield f"{key} is given {len(texts)} times, {' and '.join(texts)}; keep one"
        if all(override.is_interval_sweep() for override in overrides):
            yield f"{texts[0]}: an interval has no end of values; give choice(...), range(...) or a list, or search it"
        if key.startswith("search."):
            yield f"{texts[0]}: nothing is searched; name settings and values in search.space"
    if (n := prod(one.n for one in given)) > _MOST_RUNS:
        swept = " x ".join(f"{one.n:,} of {one.key}" for one in given if one.n > 1)
        yield (
            f"this sweep is {n:,} runs ({swept}), and one command starts at most {_MOST_RUNS:,}; try fewer values, or "
            "give parts of it to several commands"
        )


def _searched(
    given: list[Alternatives], folders: tuple[Path, ...]
) -> dict[str, DimensionConfig] | None:
    """The settings that a search proposes values of; None where nothing is searched."""
    first = [one.each[0] for one in given]
    if len(folders) == 1 and not {_section(o) for o in first} & {"experiment", "search"}:
        return None  # no other file of ours asks for one
    choices = [o.input_line or "" for o in first if _is_choice(o.key_or_group, folders)]
    try:
        composed = deepcopy(_composed(choices, folders)[0])
    except ConfigError:
        return None  # it is told of each run
    try:
        ConfigLoaderImpl._apply_overrides_to_config(
            [o for o in first if _section(o) == "search"], composed
        )
        space = OmegaConf.to_object(composed.search).space  # type: ignore[union-attr]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"search: {_one_line(error).partition(' full_key')[0]}") from None
    return searched(space, [one.override for one in given]) if space else None


def _search_problems(search: dict[str, DimensionConfig], line: CommandLine) -> Iterator[str]:
    if problem := optuna_problem():
        yield problem
    if not line.is_sweep and "--cfg" not in line.flags and "-c" not in line.flags:
        yield "a search is many runs; begin it with -m"
    if not search:
        yield "search.space: each of its settings is given on the command line; leave one out"
    if tuned := [
        text for text in line.overrides if text.startswith("tuned=") and text != "tuned=null"
    ]:
        yield f"{tuned[0]} is measured as it is: nothing is trained that could be searched; leave it out"
    for key, one in search.items():
        unknown = None if _is_choice(key, line.folders) else setting_problem(key, RunConfig)
        if problem := unknown or dimension_problem(key, one, RunConfig):
            yield f"search.space: {problem}"
        elif own := list(one.problems()):
            yield from (f"search.space.{key}.{problem}" for problem in own)
        else:
            yield from _override_problems(
                _tried(key, one, line.folders), replace(line, is_sweep=True)
            )


def _tried(key: str, one: DimensionConfig, folders: tuple[Path, ...]) -> Alternatives:
    return alternatives(f"{key}=choice({','.join(one.values())})", folders)


def _type_problems(key: str, value: Any) -> Iterator[str]:
    *parents, leaf = key.split(".")
    node = setting_type(parents, RunConfig)[0]
    if is_dataclass(node) and not isinstance(
        value, dict
    ):  # a whole section is checked by composing
        try:
            OmegaConf.structured(node)[leaf] = value
        except OmegaConfBaseException as error:
            yield f"{key}={value}: {str(error).splitlines()[0]}"


def _composed_problems(
    given: list[Alternatives], line: CommandLine, searching: bool
) -> Iterator[str]:
    """The problems of each run, composed as Hydra will; those of a sweep are mostly the same and named once."""
    folders = line.folders
    groups = [one for one in given if _is_choice(one.key, folders)]
    settings = [one for one in given if one not in groups]
    named: set[str] = set()
    for choices in combinations(groups):
        try:
            chosen, hydra = _composed([o.input_line or "" for o in choices], folders)
            problems = list(
                launcher_problems(
                    hydra.runtime.choices["hydra/launcher"], hydra.launcher, line.is_sweep
                )
            )
            problems += [
                p
                for values in combinations(settings)
                for p in _run_problems(chosen, choices, values, folders, searching)
            ]
        except ConfigError as error:
            problems = [str(error)]
        yield from (problem for problem in dict.fromkeys(problems) if problem not in named)
        named.update(problems)


def _is_choice(key: str, folders: tuple[Path, ...]) -> bool:
    """Whether it decides which files are composed, so that everything must be composed anew for another value."""
    return _is_hydras(key) or any((folder / key).is_dir() for folder in folders)


def _section(override: Override) -> str:
    return str(override.key_or_group).partition(".")[0]


def _is_hydras(key: str) -> bool:
    return key.split(".")[0].split("/")[0] == "hydra"


def _composed(choices: list[str], folders: tuple[Path, ...]) -> tuple[DictConfig, DictConfig]:
    """What the files say that these choices name, of the run and of Hydra.

    Raises:
        ConfigError: files that do not go together, or are not what Hydra reads.
    """
    search = [f"hydra.searchpath=[file://{folder}]" for folder in folders[1:]]
    try:
        composed = compose("config", overrides=[*choices, *search], return_hydra_config=True)
        for place in ("run", "sweep"):
            OmegaConf.select(
                composed, f"hydra.{place}.dir"
            )  # resolved by Hydra when it starts the job
        with open_dict(composed):
            return composed, composed.pop("hydra")
    except (
        Exception
    ) as error:  # the user's own YAML files: whatever a parser and their content may raise
        raise ConfigError(f"{' '.join(choices)}: {_one_line(error)}".removeprefix(": ")) from None


def _one_line(error: Exception) -> str:
    """What a library says of it; Hydra hides the reason of `Error merging override` in the cause."""
    reason = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    known = isinstance(reason, (HydraException, OmegaConfBaseException))
    text = " ".join(str(reason if known else f"{type(reason).__name__}: {reason}").split())
    if file := re.match("In '((?:dataset|benchmark)/[^']*)'", text):
        text += f"; does {file[1]}.yaml begin with `# @package {file[1].replace('/', '.')}`?"
    return text


def _run_problems(
    chosen: DictConfig,
    choices: tuple[Override, ...],
    values: tuple[Override, ...],
    folders: tuple[Path, ...],
    searching: bool,
) -> Iterator[str]:
    kept: list[Override] = []
    for override in values:
        if problem := _unchosen(chosen, override, folders):
            yield problem
        else:
            kept.append(override)
    composed = deepcopy(chosen)
    try:
        ConfigLoaderImpl._apply_overrides_to_config(
            kept, composed
        )  # what Hydra's own composing ends with
        idle = [str(o.input_line) for o in (*choices, *values) if _section(o) in TRAINING]
        if composed.get("tuned") is not None and idle:
            advice = f"leave out {' '.join(idle)}"
            yield f"tuned={composed.tuned} is measured as it is, and nothing is trained: {advice}"
        config = load_config(composed)
    except ConfigError as error:
        yield from str(error).splitlines()
        return
    except (HydraException, OmegaConfBaseException) as error:
        yield _one_line(error)
        return
    if config.search.space and not searching:
        yield f"{' '.join(str(o.input_line) for o in choices)}: a search is a command of its own; give it alone"
    yield from config.method.idle(
        [f"{o.input_line}" for o in (*choices, *values) if _section(o) == "lora"]
    )
    yield from _data_problems(config)


def _unchosen(chosen: DictConfig, override: Override, folders: tuple[Path, ...]) -> str | None:
    """Say that an override sets something of a dataset or benchmark that this run does not have."""
    group, _, rest = override.key_or_group.partition(".")
    name = rest.partition(".")[0]
    if group not in _LISTS or not name or name in chosen[group]:
        return None
    key, choices = override.get_key_element(), group_choices(group, folders)
    if name not in choices:
        return f"{key}: there is no {group} {name}{nearest(name, choices)}"
    one_more, others = ",".join([*chosen[group], name]), ", ".join(chosen[group])
    return f"{key}: {group}.{name} is not chosen; add it with {group}=[{one_more}], or set one of {others}"


def _data_problems(config: RunConfig) -> Iterator[str]:
    """What is wrong with the rows and tasks that a sound config names."""
    for name, dataset in config.dataset.items():
        if dataset.file:
            try:
                check_file(dataset)
            except RowError as error:
                yield f"dataset.{name}: {error}"
    for name, benchmark in config.benchmark.items():
        if problem := task_problem(benchmark.task):
            yield f"benchmark.{name}.task={benchmark.task}: {problem}"
