"""Fields of a tree of dataclasses: their ranges and dotted keys, and what is wrong with either."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from math import isfinite
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING

LARGEST_INTEGER = 2**32 - 1  # what a seed can be, and more than anything that is counted
_ALIASES = {  # what other tools call our settings
    "lr": "train.learning_rate",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "steps": "train.max_steps",
    "batch_size": "train.per_device_train_batch_size",
    "warmup_ratio": "train.warmup_steps",
    "optimizer": "train.optim",
    "scheduler": "train.lr_scheduler_type",
    "rank": "lora.r",
    "lora_r": "lora.r",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "tasks": "benchmark",
}


@dataclass(frozen=True)
class Range:
    """What the value of a setting may be.

    Attributes:
        demand: The end of a sentence that begins with the setting: "must be at least 1".
        holds: Whether a value lies in the range.
    """

    demand: str
    holds: Callable[[Any], bool]


HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
COUNT = Range("must be at least 1", lambda n: n >= 1)
POSITIVE = Range("must be above 0", lambda x: x > 0)
NOT_NEGATIVE = Range("must not be negative", lambda x: x >= 0)
SHARE = Range("must be from 0 up to, not including, 1", lambda x: 0 <= x < 1)


def ranged(allowed: Range, default: Any = MISSING, advice: str = "") -> Any:
    """Make a dataclass field whose value is null or lies in a range.

    Args:
        allowed: The range.
        default: The value where nothing sets it.
        advice: What stands behind the value that was found, in the message.
    """
    return field(default=default, metadata={"range": allowed, "advice": advice})


def nearest(word: str, choices: list[str]) -> str:
    """Return "; did you mean ...?" where a choice is close to the word, else all choices."""
    close = get_close_matches(word, choices, n=2)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(choices)}"


@cache
def setting_type(key: tuple[str, ...], schema: type) -> Any:
    """Return the type of a setting or section by the parts of its key; None where there is none."""
    node: Any = schema
    for part in key:
        if get_origin(node) is dict:  # dataset.<name>, benchmark.<name>: any name
            node = get_args(node)[1]
        elif is_dataclass(node):
            node = get_type_hints(node).get(part)
        else:
            return None
    return node


@cache
def list_settings(schema: type, prefix: str = "") -> list[str]:
    """List the dotted keys of all settings, with `<name>` for a dataset or benchmark."""
    keys: list[str] = []
    kind: Any
    for name, kind in get_type_hints(schema).items():
        if get_origin(kind) is dict:
            keys += list_settings(get_args(kind)[1], f"{prefix}{name}.<name>.")
        elif isinstance(kind, type) and is_dataclass(kind):
            keys += list_settings(kind, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


@cache
def explain_unknown_key(key: tuple[str, ...], schema: type) -> str | None:
    """Say why a key names no setting, with the nearest that do; None where it names one."""
    if setting_type(key, schema) is not None:
        return None
    dotted, known = ".".join(key), list_settings(schema)
    close = [_ALIASES[key[-1]]] if key[-1] in _ALIASES else []
    close += [other for other in known if other.endswith(f".{dotted}")]
    close = list(dict.fromkeys(close or get_close_matches(dotted, known, n=2)))
    if close:
        return f"{dotted} is not a setting; did you mean {' or '.join(close)}?"
    section = f"{key[0]}." if len(key) > 1 else ""
    names = [other for other in known if section and other.startswith(section)]
    names = names or list(get_type_hints(schema))
    return f"{dotted} is not a setting; known: {', '.join(names)}"


def find_problems(node: Any, key: str = "") -> Iterator[str]:
    """Find what is wrong with the values of a tree of settings, each by its dotted key.

    A value is impossible (infinite, or a text that cannot be written) or out of its range. What a
    class says in `problems()` of its fields together is added where none of its values is
    impossible. Missing values are passed over.
    """
    if isinstance(node, dict):
        for name, member in node.items():
            if is_dataclass(member):
                yield from find_problems(member, f"{key}.{name}")
        return
    sound = True
    for f in fields(node):
        value, path = getattr(node, f.name), f"{key}.{f.name}".lstrip(".")
        if is_dataclass(value) or isinstance(value, dict):
            yield from find_problems(value, path)
            continue
        impossible = False
        for member in value if isinstance(value, list) else [value]:
            if isinstance(member, float) and not isfinite(member):
                problem = f"must be a finite number, got {member}"
            elif isinstance(member, int) and abs(member) > LARGEST_INTEGER:
                problem = f"must be a whole number of at most {LARGEST_INTEGER}, got {member}"
            elif isinstance(member, str) and re.search("[\0\ud800-\udfff]", member):
                problem = f"holds a character that cannot be written: {member!r}"
            else:
                continue
            sound, impossible = False, True
            yield f"{path} {problem}"
        allowed = f.metadata.get("range")
        if allowed and not impossible and value not in (None, MISSING) and not allowed.holds(value):
            yield f"{path} {allowed.demand}, got {value}{f.metadata['advice']}"
    if sound and hasattr(node, "problems"):
        yield from (f"{key}.{problem}".lstrip(".") for problem in node.problems())
