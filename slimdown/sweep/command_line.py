"""The runs that a command line asks for, composed and checked before the first one starts.

Hydra alone stops at the first mistake, tells people with a typo to prefix it with `+`, and finds a
bad value of a sweep only when the jobs before it have run. So Hydra composes each choice of group
files once, the values of each run are laid over it and checked, and nothing is composed again.
"""

import argparse
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from slimdown.config.benchmarks import check_task_names
from slimdown.config.fields import SPACE_KEY, explain_unknown_key, find_setting, nearest, read_share
from slimdown.config.loader import load_config, open_hydra, reword
from slimdown.config.naming import flatten_tree
from slimdown.config.open_choices import is_open_choice, name_choice
from slimdown.config.paths import CONF_DIR, list_group_choices
from slimdown.config.schema import ModelConfig, RunConfig
from slimdown.config.search_config import SEARCHED, DimensionConfig
from slimdown.models.tuned_base import POCKET, find_base
from slimdown.sweep.shorthands import TEXT_LISTS, parse_override, read_flags
from slimdown.utils.errors import ConfigError, ModelError
from slimdown.utils.extensions import list_added_choices
from slimdown.utils.extras import name_install
from slimdown.utils.secrets import hide_variables, redact, redact_uri

_MOST_RUNS = 1_000  # that one command may start
_MOST_PROBLEMS = 200  # after so many, no further run is checked
_MOST_REPEATS = 20  # after so many repeats, too: most often all runs share one problem
_LISTS = ("dataset", "benchmark")  # groups of which a run may choose several, as in dataset=[a,b]
_NUMBERS = (float, float | None)
_PRESETS = ("experiment", "suite")  # a run needs no choice of these groups
_UNSHOWN_SETTINGS = ("tracking.", "baseline.", "rerun", "search.", "name", "note", *_PRESETS)


@dataclass(frozen=True)
class CommandLine:
    """What the command line asks for.

    Attributes:
        overrides: The settings.
        folders: Where group files are looked for.
        is_sweep: Whether it asks for several runs.
        is_run: False for `--help`, `--cfg` and the like, which Hydra answers.
        plan: `count`: say what the runs will do, and run nothing; `try`: also try one batch of each
            kind of work; empty: run.
    """

    overrides: list[str]
    folders: tuple[Path, ...] = (CONF_DIR,)
    is_sweep: bool = True
    is_run: bool = True
    plan: str = ""

    def is_choice(self, key: str) -> bool:
        """Whether a key decides which files are composed, or what Hydra does."""
        is_group = any((folder / key).is_dir() for folder in self.folders)
        return is_group or re.match(r"hydra\b", key) is not None


@dataclass(frozen=True)
class ComposedRun:
    """One run of a command line: the settings that were given, and all settings."""

    overrides: list[str]
    config: RunConfig
    model: str = ""  # the choice of the group `model`, or the last part of an id
    shown: dict[str, str] = field(default_factory=dict)  # what was set, or differs from the files


@dataclass(frozen=True)
class CommandPlan:
    """The runs of a command line; for a search, one of its possible trials.

    Attributes:
        runs: The runs, in Hydra's order.
        swept: The keys with several values; for a search, the keys of its space.
        space: The settings that a search proposes values for, by key; empty: nothing is searched.
        hydra: Hydra's own settings, below `hydra`.
    """

    runs: list[ComposedRun]
    swept: tuple[str, ...] = ()
    space: dict[str, DimensionConfig] = field(default_factory=dict)
    hydra: DictConfig = field(default_factory=OmegaConf.create)


def read_command_line(arguments: list[str]) -> CommandLine:
    """Split a command line into Hydra's flags and settings, which may stand in any order.

    Args:
        arguments: The settings and flags, without the program.

    Returns:
        The settings and the flags that slimdown reads itself: `-m`, `--config-dir` and `--plan`.
        `--plan` without a value is `--plan=count`. With any other flag, such as `--cfg`, Hydra
        answers the command line: it asks for no run.

    Raises:
        ConfigError: A setting has no value, there is no folder of `--config-dir`, or `--plan` has
            another value than `try` and `count`.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("-c", "--cfg")  # otherwise argparse takes -c for -cd
    parser.add_argument("--plan")
    # `--plan` alone gets its value here: otherwise argparse takes the next setting for the value.
    arguments = ["--plan=count" if text == "--plan" else text for text in arguments]
    # `read_flags` turns `--SETTING VALUE` into `SETTING=VALUE`, so that argparse puts it among the
    # overrides. It leaves flags as they are, with `--plan=count` among them.
    options, other_flags = parser.parse_known_intermixed_args(read_flags(arguments))
    if other_flags or options.cfg:
        return CommandLine([], is_run=False)
    if options.plan not in (None, "count", "try"):
        raise ConfigError(f"--plan={options.plan}: write --plan, or --plan=try")
    folders = [CONF_DIR]
    if options.config_dir:
        folders.append(Path(options.config_dir).absolute())
        if not folders[1].is_dir():
            raise ConfigError(f"--config-dir: there is no folder {folders[1]}")
    plan = options.plan or ""
    return CommandLine(options.overrides, tuple(folders), is_sweep=options.multirun, plan=plan)


def compose_runs(line: CommandLine) -> CommandPlan:
    """Compose and check every run that a command line asks for.

    Args:
        line: A command line with `is_run`.

    Returns:
        The runs. A search has one, which stands for its trials; but all choices and both ends of
        each range that it may propose are checked here, too.

    Raises:
        ConfigError: Lists every problem of every run, one a line.
    """
    with open_hydra():
        composer = _Composer(line)
        problems = composer.problems  # the composer adds what it finds
        overrides_by_key = composer.parse_all()
        runs: list[ComposedRun] = []
        # If nothing is set there is one combination, which is empty. So there is always a run. It
        # has a config even if it has problems.
        for combination in product(*overrides_by_key.values()):
            runs.append(composer.compose(combination))
            # A mistake that is in all runs is found again in each: a few of them are enough.
            n_repeats = len(problems) - len({*problems})
            if len(problems) > _MOST_PROBLEMS or n_repeats > _MOST_REPEATS:
                break
        search = runs[0].config.search
        # A setting that the command line fixes, such as lora.r=4, is not searched.
        space = {key: search.space[key] for key in search.space if key not in overrides_by_key}
        # A trial of a search has the search's settings, too, but it searches nothing itself.
        is_search = bool(search.space) and search.trial is None
        if is_search and not problems:
            if not line.is_sweep or len(runs) > 1:
                problems.append("a search is many runs: begin with -m, and give one value each")
            # If a setting has several values, that is a problem by now, and the first one will do.
            composer.check_space(space, [values[0] for values in overrides_by_key.values()])
        if problems:
            text = "\n".join(dict.fromkeys(problems))
            raise ConfigError(hide_variables(text, str(line.overrides)))
    swept = tuple(key for key, values in overrides_by_key.items() if len(values) > 1)
    # Of a search, what varies is what it proposes. If the command line fixes all of that, the
    # search is a single run.
    if is_search and space:
        return CommandPlan(runs, swept=tuple(space), space=space, hydra=composer.hydra)
    return CommandPlan(runs, swept=swept, hydra=composer.hydra)


class ComposedFiles(NamedTuple):
    """What Hydra makes of the chosen files of groups."""

    settings: DictConfig
    values: dict[str, Any]  # of the settings, by dotted key
    model: str  # the choice of the group `model`
    hydra: DictConfig  # Hydra's own settings, below `hydra`


class _Composer:
    """Composes the runs of one command line inside Hydra, and collects what is wrong with them."""

    def __init__(self, line: CommandLine) -> None:
        self.line = line
        self.problems: list[str] = []
        self.hydra = OmegaConf.create()  # Hydra's own settings
        self._loader = GlobalHydra.instance().config_loader()
        self._parser = OverridesParser.create(self._loader)
        self._files: dict[str, ComposedFiles] = {}  # composing takes most of the time
        self._checked: set[str] = set()  # tasks

    def parse_all(self) -> dict[str, list[Override]]:
        """Parse the settings of the command line.

        Returns:
            By key, one of Hydra's overrides for each value. A setting with a problem is left out.
            All are left out if they make too many runs to check. Problems are added to `problems`.
        """
        overrides_by_key: dict[str, list[Override]] = {}
        counts: Counter[str] = Counter()  # how often each key is given
        for text in self.line.overrides:
            if overrides := self.parse(text):
                key = overrides[0].key_or_group
                counts[key] += 1
                overrides_by_key[key] = overrides
        repeated = {key: n for key, n in counts.items() if n > 1}
        self.problems += [f"{k} is given {n} times; keep one of them" for k, n in repeated.items()]
        if prod(map(len, overrides_by_key.values())) > _MOST_RUNS:
            self.problems.append(f"this sweep has more than {_MOST_RUNS:,} runs; try fewer values")
            return {}
        return overrides_by_key

    def parse(self, text: str) -> list[Override]:
        """Return an override for each value of an argument, such as two for `lora.r=4,8`.

        What is wrong with the argument is added to `problems`; then the list is empty.
        """
        try:
            override = parse_override(self._parser, text, self.line.is_sweep)
            override.config_loader = self._loader  # glob(...) needs it
            if not override.key_or_group:
                raise ValueError("there is no name before the =")
            singles = [override]
            if override.is_sweep_override():
                # One more than is allowed shows that there are too many.
                singles = list(islice(_split_sweep(override), _MOST_RUNS + 1))
        except ConfigError as error:
            self.problems.append(str(error))
            return []
        except (HydraException, ValueError, RecursionError, ArithmeticError) as error:
            self.problems.append(_explain_syntax(redact(text)[:80], error))
            return []
        problems = list(self._find_problems(text, override, singles))
        self.problems += problems
        return [] if problems else singles

    def _find_problems(
        self, text: str, override: Override, singles: Sequence[Override]
    ) -> Iterator[str]:
        """Find what is wrong with an argument and its values, whatever the other arguments are.

        Args:
            text: The argument as the user typed it.
            override: The same, parsed.
            singles: An override for each of its values.

        Yields:
            A line for the user for each problem.
        """
        key = override.key_or_group
        if not singles:
            yield f"{text}: no value is left to try"
        if override.is_sweep_override() and not self.line.is_sweep:
            yield f"{text}: several values are a sweep; begin it with -m"
        if redact_uri(text) != text:  # it holds an address with a password
            advice = "set MLFLOW_TRACKING_URI, or ${oc.env:NAME}"
            if key == "tuned":
                advice = "leave it out; a server's key is read from the variable OPENAI_API_KEY"
            yield f"{redact(text)}: others can read a password here; {advice}"
        # The key is that of a setting of Hydra, of a group of files, or of a setting of slimdown.
        if key.startswith("hydra."):
            # Hydra checks its settings when it composes. Only a common mistake is answered here:
            # hydra.launcher=joblib, which must be hydra/launcher=joblib.
            group = key.replace(".", "/")
            for single in singles:
                value = single.value()  # a text can only be meant as the name of a choice
                if type(value) is str and (names := self._loader.get_group_options(group)):
                    yield f"{text}: choose it by {group}=...{nearest(value, names)}"
        elif self.line.is_choice(key):  # a group
            for single in singles:
                yield from self._find_choice_problems(text, key, single.value())
        elif problem := explain_unknown_key(key, RunConfig):
            yield problem

    def _find_choice_problems(self, text: str, group: str, value: Any) -> Iterator[str]:
        """Yield what is wrong with the choice, or the list of choices, that an argument makes.

        Args:
            text: The argument as the user typed it.
            group: Its key.
            value: The name of a choice, or a list of names.
        """
        # Only datasets and benchmarks take a list. In another group, a list counts as one choice,
        # which does not exist.
        choices = value if group in _LISTS and isinstance(value, list) else [value]
        # a/rows.jsonl and b/rows.jsonl would both be called `rows` in settings. To name one file
        # twice is no problem, so it counts once.
        counts = Counter(name_choice(group, choice) for choice in {*map(str, choices)})
        if shared_names := [name for name, n in counts.items() if n > 1]:
            yield f"{text}: two are called {min(shared_names)}; rename one"
        # The files of slimdown and of --config-dir, and what other packages add.
        known = [*list_group_choices(group, self.line.folders), *list_added_choices(group)]
        for choice in choices:
            is_none = choice is None and group in _PRESETS  # `suite=null` chooses no suite
            if is_none or choice in known or is_open_choice(group, choice):
                continue
            # Hydra has choices of its own, such as hydra/launcher=basic. To list them takes 7 ms,
            # so it is done only here. Hydra lists none of a group that only --config-dir has, and
            # refuses a wrong choice of it by itself when it composes.
            in_hydra = self._loader.get_group_options(group)
            if in_hydra and choice not in in_hydra:
                advice = nearest(str(choice), sorted({*known, *in_hydra}))
                yield f"{group}={choice}: there is no such {group}{advice}"

    def check_space(self, space: dict[str, DimensionConfig], given: Sequence[Override]) -> None:
        """Check a search: compose a run with each choice, and with both ends of each range.

        What is wrong with one of these runs is added to `problems`.

        Args:
            space: The settings that the search proposes values for, by dotted key.
            given: The settings of the command line, which every trial has.
        """
        if find_spec("optuna") is None:
            self.problems.append(f"a search needs Optuna; {name_install('search')}")
        for key, dimension in space.items():
            if key.partition(".")[0] not in SEARCHED:
                self.problems.append(f"search.space: {key} is not among {', '.join(SEARCHED)}")
                continue
            for value in dimension.choices or [dimension.low, dimension.high]:
                # Only the problems matter, which both methods add to `problems`.
                self.compose([*given, *self.parse(f"{key}={Transformer.str(value)}")])

    def compose(self, overrides: Sequence[Override]) -> ComposedRun:
        """Compose and check one run.

        Files of groups are composed first, by the overrides that choose some, such as
        `suite=quick`. Then the values of all other overrides are set in these settings.

        Args:
            overrides: What the command line sets for this run, each with one value.

        Returns:
            The run. What is wrong with it is added to `problems`; if it cannot be composed at all,
            its `config` has only defaults.
        """
        arguments = [str(override.input_line) for override in overrides]
        choices = [str(o.input_line) for o in overrides if self.line.is_choice(o.key_or_group)]
        try:
            files = self._compose_files(choices)
            composed = deepcopy(files.settings)  # other runs take the same files
            model = files.model
            self.hydra = files.hydra
            base = self._find_base(composed, overrides)  # None: a model is chosen already
            if base:  # that of the adapter in `tuned`; all is composed again with it as the model
                choices.append("model=any")  # the file of a model that no other file describes
                composed = deepcopy(self._compose_files(choices).settings)
                composed.model.id = base.id
                composed.model.revision = base.revision
                model = Path(base.id).name
        except Exception as error:  # a user's own file may raise anything
            # An error about a model has nothing to do with the chosen files.
            place = "" if isinstance(error, ModelError) else " ".join(choices)
            self.problems.append(f"{place}: {reword(error)}".removeprefix(": "))
            return ComposedRun(arguments, RunConfig())
        set_overrides = [o for o in overrides if not self.line.is_choice(o.key_or_group)]
        for override in set_overrides:
            if problem := _set_value(composed, override):
                self.problems.append(f"{override.input_line}: {problem}")
        # Settings that cannot be read raise here. `load_config` below reports them.
        with suppress(OmegaConfBaseException):
            self._check_tasks(composed)
        values = _list_values(composed)  # before `load_config`, which fills in what is not set
        try:
            config = load_config(composed)
        except ConfigError as error:
            self.problems += str(error).splitlines()
            return ComposedRun(arguments, RunConfig())
        reader = f"tuned={config.tuned} trains nothing and" if config.tuned else "this method"
        for argument in arguments:
            section = re.split("[.=]", argument.lstrip("+"))[0]
            if section in config.idle_sections:  # it would have no effect
                self.problems.append(f"{argument}: leave it out; {reader} does not read it")
        # Settings that the run does not read are not shown, such as the dataset's with `tuned`.
        used = {k: v for k, v in values.items() if k.partition(".")[0] not in config.idle_sections}
        set_keys = [override.key_or_group for override in set_overrides]
        shown = self._choose_shown(composed, used, choices, set_keys)
        return ComposedRun(arguments, config, model, shown)

    def _check_tasks(self, composed: DictConfig) -> None:
        """Check the names of the harness's tasks that no run before had."""
        files = list_group_choices("benchmark", self.line.folders)
        tasks = {n: b for n, b in composed.benchmark.items() if n not in {*files, *self._checked}}
        self._checked |= {*tasks}
        if tasks:
            self.problems += check_task_names(tasks, composed.evaluation.include_path, files)

    def _choose_shown(
        self,
        composed: DictConfig,
        values: dict[str, Any],
        choices: Sequence[str],
        set_keys: Sequence[str],
    ) -> dict[str, str]:
        """Return the settings that MLflow shows: what was set, and what differs from the files.

        MLflow shows the model, the datasets and the benchmarks of every run, so these choices are
        left out. So are Hydra's settings, and those in `_UNSHOWN_SETTINGS`.

        Args:
            composed: All settings of the run.
            values: Those that the run reads by dotted key, before interpolations such as ${lora.r}
                are resolved. So a setting that only follows another one does not differ from the
                files.
            choices: GROUP=CHOICE of each group that was chosen.
            set_keys: The keys of the settings that were set.

        Returns:
            The chosen names by group, such as `lora`, and the texts of values by dotted key, such
            as `lora.r`.
        """
        parsed = [choice.lstrip("+").partition("=") for choice in choices]
        chosen = {group: name for group, _, name in parsed}
        left_out = ("hydra", "model", *_LISTS)  # groups
        shown = {group: name for group, name in chosen.items() if not group.startswith(left_out)}
        file_values = self._compose_files(list(choices)).values
        if chosen.keys() & {*_PRESETS}:
            # What a preset (an experiment or a suite) changes in other groups' files is shown, too.
            # So the values are compared with those that the files have without it. But if the
            # preset itself defines a dataset, the files do not compose without it. Then the values
            # with it stay, and its changes are not shown.
            with suppress(HydraException, OmegaConfBaseException):
                file_values = self._compose_without_presets(composed, chosen)
        # A key is set if it or a section around it is among `set_keys`. With the dot, `lora.r` is
        # no prefix of `lora.rank`.
        set_prefixes = tuple(f"{key}." for key in set_keys)
        for key, value in values.items():
            was_set = f"{key}.".startswith(set_prefixes)
            if (was_set or value != file_values.get(key)) and not key.startswith(_UNSHOWN_SETTINGS):
                resolved = OmegaConf.select(composed, key)
                is_list = isinstance(resolved, ListConfig)
                shown[key] = ",".join(map(str, resolved)) if is_list else str(resolved)
        return shown

    def _compose_without_presets(
        self, composed: DictConfig, chosen: dict[str, str]
    ) -> dict[str, Any]:
        """Return the values by dotted key that a run's files have without an experiment or a suite.

        Args:
            composed: All settings of the run. A preset may have chosen its datasets and benchmarks,
                so the files of all that the run has are composed.
            chosen: The chosen names by group.

        Raises:
            HydraException, OmegaConfBaseException: A dataset or benchmark has no file, because the
                preset itself defines it.
        """
        names = {group: name for group, name in chosen.items() if group not in _PRESETS}
        for group in _LISTS:
            names[group] = f"[{','.join(map(str, composed[group]))}]"
        return self._compose_files([f"{group}={name}" for group, name in names.items()]).values

    def _find_base(self, composed: DictConfig, overrides: Sequence[Override]) -> ModelConfig | None:
        """Return the base of the adapter that `tuned` names, if it must be chosen as the model.

        None if a model is chosen already, if `tuned` names nothing that can be read, or if the base
        is the embedded model, which is the default.
        """
        values = {override.key_or_group: override.value() for override in overrides}
        # As a member of a config, a value such as ${oc.env:ADAPTER} is resolved.
        tuned = OmegaConf.create([values.get("tuned", composed.get("tuned"))])[0]
        is_chosen = "model" in values or "model.id" in values or composed.model.id != POCKET
        if is_chosen or not isinstance(tuned, str) or tuned == POCKET:
            return None
        if RunConfig(tuned=tuned).address:
            advice = "a server does not say what its model was made from; add model=OWNER/NAME"
            raise ModelError(f"tuned={redact_uri(tuned)} needs its base model: {advice}")
        model = RunConfig(tuned=tuned).tuned_model
        base = find_base(model) if model and not any(model.source_problems()) else None
        return base if base and base.id != POCKET else None

    def _compose_files(self, choices: list[str]) -> ComposedFiles:
        """Compose the chosen files of groups, or return what an earlier call made of the same.

        Of a suite's benchmarks, only those that are chosen stay in the settings.

        Args:
            choices: GROUP=CHOICE of each group that is chosen.

        Raises:
            Exception: Whatever Hydra or OmegaConf say of the files: a user's own may hold anything.
        """
        key = " ".join(choices)
        if key not in self._files:
            folders = [f"file://{folder}" for folder in self.line.folders[1:]]  # of --config-dir
            # Hydra's setting replaces the list in its file, so this names slimdown's source, too.
            paths = ",".join([*folders, "slimdown-choices://"])
            search_path = [f"hydra.searchpath=[{paths}]"] if folders else []
            with warnings.catch_warnings():  # our launchers are named as their plugins' own
                warnings.filterwarnings("ignore", r"\s*'hydra/launcher", UserWarning)
                composed = compose("config", [*choices, *search_path], return_hydra_config=True)
            hydra = OmegaConf.masked_copy(composed, ["hydra"])
            with open_dict(composed):
                del composed["hydra"]
                # A suite's file has settings of all its benchmarks, also of those that are not
                # chosen. Their own files are missing here, and with them the task or path.
                for name in list(composed.benchmark) if composed.suite else ():
                    benchmark = composed.benchmark[name]
                    if not (benchmark.task or benchmark.path):
                        del composed.benchmark[name]
            model = Path(hydra.hydra.runtime.choices["model"]).name
            self._files[key] = ComposedFiles(composed, _list_values(composed), model, hydra)
        return self._files[key]


def _explain_syntax(text: str, error: Exception) -> str:
    """Say why an argument is no setting and value."""
    reason = redact((str(error) or type(error).__name__).splitlines()[0])[:160]
    setting, _, content = text.partition("=")
    advice = ""
    if "token recognition" in reason and '"' not in content:
        advice = f"""; a text with signs is quoted twice: '{setting}="{content}"'"""
    return f"{text!r} is not setting=value: {reason}{advice}"


def _set_value(composed: DictConfig, override: Override) -> str:
    """Set the value of an override in composed settings.

    Args:
        composed: The settings, which are changed.
        override: The key of a setting, and one value.

    Returns:
        Why it cannot be set; empty if it was set.
    """
    key = override.key_or_group
    section, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    # `benchmark.gsm8k.limit=40` needs the benchmark gsm8k among the chosen ones.
    if section in _LISTS and name not in composed[section]:
        chosen = " or ".join(map(str, composed[section]))
        advice = f", or name {chosen}" if chosen else ""
        return f"{name} is not chosen; add it to {section}=[...]{advice}"
    is_new = override.is_add() or override.is_force_add()
    try:
        value = override.value()
        setting = find_setting(key, RunConfig)
        if isinstance(value, str) and setting and setting.type in TEXT_LISTS:
            value = [value]  # a list of one
        if isinstance(value, str) and setting and setting.type in _NUMBERS:
            value = read_share(value)
        # `update` would take the dots in the searched key of `search.space.lora.r.low=4` for
        # sections. So it gets a dictionary with the key `lora.r` instead.
        if searched := re.match(rf"search\.space\.{SPACE_KEY}", key):
            key, value = "search.space", _make_space(searched[1], searched[2], value)
        OmegaConf.update(composed, key, value, merge=True, force_add=is_new)
    except (OmegaConfBaseException, HydraException, RecursionError, ConfigError) as error:
        return reword(error)
    return ""


def _make_space(searched_key: str, field_name: str | None, value: Any) -> dict[str, Any]:
    """Return the part of `search.space` that an override sets, as a dictionary.

    Both `search.space.lora.r.low=4` and `search.space.lora.r={low: 4}` give {"lora.r": {"low": 4}}.

    Args:
        searched_key: The setting that a search varies, `lora.r`.
        field_name: What is set of it, `.low`; None if `value` is a dictionary of such fields.
        value: The value of the override.

    Raises:
        ConfigError: Neither a field is named nor is the value a dictionary.
    """
    if field_name:
        return {searched_key: {field_name.removeprefix("."): value}}
    if not isinstance(value, dict):
        raise ConfigError("set its low and high, or its choices, behind a dot")
    return {searched_key: value}


def _list_values(composed: DictConfig) -> dict[str, Any]:
    """Return every value by its dotted key, with interpolations as they stand; lists are whole."""
    return flatten_tree(OmegaConf.to_container(composed, resolve=False))


def _split_sweep(override: Override) -> Iterator[Override]:
    """Yield an override for each value of an override with several."""
    for value in override.sweep_iterator():
        single: Any = replace(override, value_type=ValueType.ELEMENT, _value=value)
        text = f"{single.get_key_element()}={single.get_value_element_as_str()}"
        yield replace(single, input_line=text)
