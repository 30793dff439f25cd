"""Fields of a tree of dataclasses: their ranges and dotted keys, and what is wrong with either."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from decimal import Decimal
from difflib import get_close_matches
from enum import EnumMeta
from functools import cache
from math import isfinite
from os.path import expanduser, isfile
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from slimdown.utils.errors import ConfigError
from slimdown.utils.secrets import redact_uri

_KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}
_KINDS |= {"list": "a list", "dict": "a mapping", "None": "null", "Literal": "one of its names"}

_Schema = TypeVar("_Schema")
MISSING: Any = "???"
"""OmegaConf's mark of a missing value: a file of `conf/` sets this setting."""

SPACE_KEY = r"(.+?)(\.(?:low|high|log|choices))?$"
"""What follows `search.space.`: a setting by its dotted key, and perhaps what is said of it."""

_ALIASES = {  # names in other tools that are spelled too differently to be guessed
    "lr": "train.learning_rate",
    "epochs": "train.num_train_epochs",
    "batch_size": "train.per_device_train_batch_size",
    "rank": "lora.r",
    "r": "lora.r",
    "lora_r": "lora.r",
    "tasks": "benchmark",
    "steps": "train.max_steps",
}


@dataclass(frozen=True)
class Range:
    """The values that a setting may have.

    Attributes:
        demand: The end of a sentence that begins with the setting: "must be at least 1".
        holds: Whether a value lies in the range.
    """

    demand: str
    holds: Callable[[Any], object]


COUNT = Range("must be at least 1", lambda n: n >= 1)
POSITIVE = Range("must be above 0", lambda x: x > 0)
NONNEGATIVE = Range("must not be negative", lambda x: x >= 0)
SHARE = Range("must be from 0 to below 1", lambda x: 0 <= x < 1)
LOSS = Range("must be from 0 to below 1 (0.03 is three points)", SHARE.holds)
FILE = Range("must be a file that exists", lambda path: isfile(expanduser(path)))
TRAINING = ("dataset", "method", "lora", "keep", "train", "seed", "contamination", "search")
"""The sections that a training reads; with `tuned` they are idle."""
FILLED = Range("must not be empty", str.strip)
FILLED_LIST = Range("must name something", lambda texts: texts and all(map(str.strip, texts)))
SEED = Range("must be a whole number from 0 to 4294967295", lambda n: 0 <= n < 2**32)


def setting(help: str, allowed: Range | None = None, default: Any = MISSING) -> Any:
    """Make a dataclass field for a setting, with its text for `--help` and the docs.

    Args:
        help: What it sets, with its unit.
        allowed: The range of its value; null is always allowed.
        default: The value where nothing sets it. Lists and mappings are copied each time.
    """
    metadata = {"help": help, "range": allowed}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def nearest(word: object, choices: list[str]) -> str:
    """Return "; did you mean ...?" where a choice is close to the word, else all choices."""
    close = get_close_matches(str(word), choices, n=2)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(choices)}"


def read_share(text: str) -> Any:
    """Return the share that a text such as 5% means; any other text as it is.

    >>> read_share("2.3%"), read_share("0.1")
    (0.023, '0.1')
    """
    percent = re.fullmatch(r"\s*(\d*\.?\d+) ?%\s*", text)
    return float(Decimal(percent[1]) / 100) if percent else text


@dataclass(frozen=True)
class Setting:
    """A section or setting of a schema: its type, what it sets, its range, its default."""

    type: Any
    help: str = ""
    allowed: Range | None = None
    default: Any = MISSING


@cache
def list_settings(schema: type, prefix: str = "") -> dict[str, Setting]:
    """Return the sections and settings of a dataclass by dotted key, those inside it included.

    Args:
        schema: The dataclass.
        prefix: What stands before each key: the section and a dot; empty for the whole config.

    Returns:
        Sections (such as `train`) and settings (such as `train.optim`). Datasets and benchmarks
        have names that the user chooses, so their keys contain `<name>`: `dataset.<name>.path`.
    """
    settings: dict[str, Setting] = {}
    hints = get_type_hints(schema)
    for declared in fields(schema):
        key = prefix + declared.name
        kind: Any = hints[declared.name]
        default = declared.default
        if declared.default_factory is not dataclasses.MISSING:
            default = declared.default_factory()
        help_text = declared.metadata.get("help", "")
        settings[key] = Setting(kind, help_text, declared.metadata.get("range"), default)
        if get_origin(kind) is dict and get_args(kind)[1] is not Any:
            # `dataset` and `benchmark` hold a section for each name. A dictionary of any values,
            # such as `train.args`, is a single setting.
            key = f"{key}.<name>"
            kind = get_args(kind)[1]
            settings[key] = Setting(kind)
        if isinstance(kind, type) and is_dataclass(kind):
            settings |= _list_section(key, kind)
    return settings


def _list_section(key: str, section: type) -> dict[str, Setting]:
    """Return the settings of a section by dotted key.

    `method` and `keep` have a class for each choice; the settings of all of them are returned.
    """
    classes: dict[str, type] = section.list_kinds() if hasattr(section, "list_kinds") else {}
    settings: dict[str, Setting] = {}
    for schema in classes.values() or [section]:
        for inner_key, inner in list_settings(schema, f"{key}.").items():
            settings.setdefault(inner_key, inner)  # several classes may have the same setting
    if classes:
        names = Range(f"must be one of {', '.join(classes)}", classes.__contains__)
        settings[f"{key}.name"] = replace(settings[f"{key}.name"], allowed=names)
    return settings


def find_setting(key: str, schema: type) -> Setting | None:
    """Return the setting or section that a dotted key names; None where there is none."""
    named = re.sub(r"^(dataset|benchmark)\.[^.]+", r"\1.<name>", key)
    named = re.sub(rf"^search\.space\.{SPACE_KEY}", r"search.space.<name>\2", named)
    return list_settings(schema).get(named)


@cache
def explain_unknown_key(key: str, schema: type) -> str | None:
    """Say that a key is not a setting, and name the nearest one; None if it is a setting.

    Args:
        key: A dotted key, as it is typed on the command line.
        schema: The dataclass of all settings.
    """
    if find_setting(key, schema) or re.match(r"(model|lora|train|.*chat_template)[._]args\.", key):
        return None  # an option that is handed on to a library
    known_keys = list(list_settings(schema))
    name = key.rpartition(".")[2]  # without its sections
    # First a name of another tool or a key without its section, then typos in key or name.
    close = [_ALIASES[name]] if name in _ALIASES else []
    close += [known for known in known_keys if known.endswith(f".{key}") and known not in close]
    if not close:  # `experiment` is a group, and no setting
        close = get_close_matches(key, [*known_keys, "experiment"], n=1)
    if not close:
        keys_by_name = {known.rpartition(".")[2]: known for known in known_keys}
        close = [keys_by_name[near] for near in get_close_matches(name, keys_by_name, n=1)]
    if close:
        return f"{key} is not a setting; did you mean {' or '.join(close)}?"
    section = f"{key.partition('.')[0]}."
    listed = [known for known in known_keys if known.startswith(section)]
    if not listed:  # there is no such section: all sections are listed
        listed = [known for known in known_keys if "." not in known]
    advice = ""
    if "train" in listed:
        advice = "; options of TRL and PEFT are train.args.NAME and lora.args.NAME"
    return f"{key} is not a setting; known: {', '.join(listed)}{advice}"


def build_settings(schema: type[_Schema], values: Mapping[str, Any]) -> _Schema:
    """Return an instance of a dataclass of settings, with each value converted to its type.

    Types of numbers and texts, and ranges, are not checked here: `find_problems` does that.

    Args:
        schema: A dataclass. Its fields are numbers, texts, lists, dictionaries, enumerations, or
            null.
        values: The values by field. Those that are `MISSING` are left out: the field's default
            holds.

    Raises:
        ConfigError: Lists every unknown field, every name that an enumeration lacks, and every
            null or dictionary where the field takes none, one problem per line.
    """
    hints = get_type_hints(schema)
    declared = _list_fields(schema)
    built: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in values.items():
        if name not in hints:
            problems.append(str(explain_unknown_key(name, schema)))  # type: ignore[arg-type]
        elif value is None or isinstance(value, dict):
            # `find_problems` checks the types of other values. It skips null, and looks only inside
            # dictionaries, so whether the field may be null or a dictionary is checked here.
            built[name] = value
            if demand := explain_type(str(declared[name].type), value):
                problems.append(f"{name} {demand}, got {value!r}"[:200])
        elif value != MISSING:
            kind = _drop_null(hints[name])
            built[name] = _convert(value, kind)
            if isinstance(kind, EnumMeta) and not isinstance(built[name], kind):
                problems.append(f"{name}={built[name]!r} must be one of {', '.join(kind)}"[:200])
    if problems:
        raise ConfigError("\n".join(problems))
    return schema(**built)


def _drop_null(kind: Any) -> Any:
    """Return the type `int` for the type `int | None`, and any other type as it is."""
    return get_args(kind)[0] if NoneType in get_args(kind) else kind


def _convert(value: Any, kind: Any) -> Any:
    """Return a value as the type that a setting has, such as 1.0 for 1, or `["a"]` for "a".

    A value that cannot stand for one of the type is returned as it is.
    """
    if isinstance(value, Path):
        value = str(value)
    if hasattr(value, "item"):  # a NumPy number
        value = value.item()
    if isinstance(kind, EnumMeta) and value in list(kind):  # the name of a member
        return kind(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind == list[str] and isinstance(value, str | tuple):
        return [value] if isinstance(value, str) else list(value)
    return value


def _list_fields(schema: Any) -> dict[str, dataclasses.Field[Any]]:
    return {declared.name: declared for declared in fields(schema)}


def build_choice(
    group: str, kinds: Mapping[str, type[_Schema]], values: Mapping[str, Any]
) -> _Schema:
    """Return the settings of a group's choice, where each choice has settings of its own.

    Args:
        group: The name of the group.
        kinds: The dataclass of each choice. A field whose type allows no null must have a value,
            from its default or from `values`.
        values: The `name` of the choice and its settings, as they were composed.

    Returns:
        An instance of the choice's dataclass. Settings that `values` lacks have their defaults.

    Raises:
        ConfigError: Lists what is wrong, one problem per line. Ranges are not checked here:
            `find_problems` does that.
    """
    name = values["name"]
    if name not in kinds:
        raise ConfigError(f"{group}.name={name}: there is no such {group}{nearest(name, [*kinds])}")
    own = _list_fields(kinds[name])
    given: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in values.items():
        if key in own:
            # YAML reads a name such as 1 as a number. A field that may hold a text gets it as one:
            # `explain_type` has no complaint if it is tried with an empty text.
            takes_text = explain_type(str(own[key].type), "") is None
            given[key] = str(value) if takes_text and type(value) in (int, float) else value
        elif value is None:
            continue  # null sets nothing, so it may stand under any name
        elif owners := [choice for choice in kinds if key in _list_fields(kinds[choice])]:
            only = f"only {group}={', '.join(owners)} has it"
            problems.append(f"{key}={value}: {only}, and not {name}")
        else:
            problems.append(f"{key} is no setting of {group}={name}{nearest(key, list(own))}")
    # Each setting of the choice needs a value of its type.
    hints = get_type_hints(kinds[name])
    for key, declared in own.items():
        value = given.get(key, declared.default)
        demand = explain_type(str(declared.type), value)  # "must be a number"; None if it is one
        # A setting has no value if it is "???" (`MISSING`), or a null that its type does not allow.
        if value == MISSING or (value is None and demand):
            problems.append(f"{key} must be set for {group}={name}; choosing it does so")
        elif isinstance(_drop_null(hints[key]), EnumMeta):
            # `explain_type` does not know enumerations, so its demand means nothing here. Below,
            # `build_settings` checks that the value is the name of a member.
            continue
        elif demand and key in given:
            # A default is the class's own, and not checked. That of a `default_factory` would even
            # be missing in `value`.
            problems.append(f"{key} {demand}, got {value!r:.80}")
    if problems:
        raise ConfigError("\n".join(f"{group}.{problem}" for problem in problems))
    return build_settings(kinds[name], given)


def read_choice(
    base: type[_Schema], kinds: Mapping[str, type[_Schema]], values: Mapping[str, Any]
) -> _Schema:
    """Restore the recorded settings of a group's choice, where each choice has its own.

    Args:
        base: The class that the others are subclasses of.
        kinds: The dataclass of each choice that is installed here.
        values: The recorded settings, with the `name` of the choice.

    Returns:
        The settings that the choice has here; recorded settings that it no longer has are left
        out. If an extension's choice is not installed here, all recorded settings are returned.
    """
    kind = kinds.get(str(values.get("name")))
    if kind is None:  # not installed here: a class is made with a field for each value
        inherited = _list_fields(base)
        added = [(name, Any, field(default=None)) for name in values if name not in inherited]
        kind = make_dataclass("NotInstalled", added, bases=(base,))
    own = _list_fields(kind)
    return build_settings(kind, {name: value for name, value in values.items() if name in own})


def explain_type(kind: str, value: Any) -> str | None:
    """Say which type an option must have, as the end of a sentence; None if the value has it.

    Args:
        kind: The type as an annotation spells it, such as `int | None`.
        value: The value to check.

    >>> explain_type("int | list[int] | None", ["a"])
    'must be a whole number, a list, null'
    """
    # `outer` gets the names of the types without what lists and dictionaries contain. For example,
    # "LoraConfig | list[dict[str, int]] | None" first becomes "Lora|dict | list[...] | None",
    # because a config class may be given as a dict.
    outer = kind.replace("Optional[", "None|").replace("NoneType", "None")
    outer = outer.replace("Config", "|dict")
    # Then brackets are removed, the inner ones first, which leaves "Lora|dict | list | None".
    while (shorter := re.sub(r"(list|dict)\[[^][]*\]", r"\1", outer)) != outer:
        outer = shorter
    allowed = {*re.findall(r"\w+", outer)}  # such as {"int", "list", "None"}
    actual = type(value).__name__.replace("NoneType", "None")
    # A whole number may also stand for a float, and a text may be a name of a Literal.
    wider = {"int": "float", "str": "Literal"}.get(actual)
    is_right = not allowed.isdisjoint({"Any", actual, wider})
    # The type of a list's members stands only in `kind`. It is checked if it is a plain one, as in
    # list[int]; members such as those of list[dict[str, int]] are not checked.
    member_kind = "|".join(re.findall(r"list\[([^][]*)\]", kind)) if actual == "list" else ""
    if is_right and member_kind:
        is_right = all(explain_type(member_kind, member) is None for member in value)
    if is_right:
        return None
    return f"must be {', '.join(text for word, text in _KINDS.items() if word in allowed)}"


def find_problems(node: Any, key: str = "") -> Iterator[str]:
    """Find what is wrong with the values of a tree of settings, and name their dotted keys.

    A value may have the wrong type, be out of its range, or not be finite. `problems()` of a class
    says which values do not fit together. Values that are null or missing are skipped.

    Args:
        node: A dataclass of settings or a dictionary; those inside it are searched as well.
        key: The dotted key of `node`; empty for the whole config.

    Yields:
        One line per problem, which begins with the dotted key.
    """
    declared = _list_fields(node) if is_dataclass(node) else {}
    values = vars(node) if declared else node
    for name, value in values.items():
        path = f"{key}.{name}".lstrip(".")
        if is_dataclass(value) or isinstance(value, dict):
            yield from find_problems(value, path)
        elif value not in (None, MISSING) and (demand := _find_demand(declared.get(name), value)):
            yield f"{path} {demand}, got {redact_uri(repr(value))[:80]}"
    if hasattr(node, "problems"):
        yield from (f"{key}.{problem}".lstrip(".") for problem in node.problems())


def _find_demand(declared: Any, value: Any) -> str | None:
    """Return the demand that a value breaks. `declared` is its field, or None in a mapping."""
    allowed = declared.metadata.get("range") if declared else None
    if declared and (reason := explain_type(str(declared.type), value)):
        return reason
    if isinstance(value, float) and not isfinite(value):
        return "must be a finite number"
    return allowed.demand if allowed and not allowed.holds(value) else None
