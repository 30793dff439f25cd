"""Settings by their dotted keys, for any tree of dataclasses: which there are, and what none of them can hold."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from math import isfinite
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf

_LARGEST = 2**32 - 1  # of whole numbers: what a seed can be, and more than anything that is counted


def nearest(word: str, known: list[str]) -> str:
    """A `; did you mean ...?` where something close is known, else the whole list."""
    close = get_close_matches(word, known, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(known)}"


def setting_problem(key: str, schema: type, parts: Sequence[str] = ()) -> str | None:
    """Say why a dotted key names no setting, with the nearest ones that do; None where it does.

    `parts` are the key's where the names in it hold dots.
    """
    node: Any = schema
    seen: list[str] = []
    for part in parts or key.split("."):
        if get_origin(node) is dict:  # dataset.<name>, benchmark.<name>: any name may come
            node = get_args(node)[1]
        elif is_dataclass(node):
            hints = get_type_hints(node)
            known = {f.name: hints[f.name] for f in fields(node)}
            if part not in known:
                if namesake := [
                    path for path in _setting_paths(schema) if path.endswith(f".{key}")
                ]:
                    return f"{key} is not a setting; did you mean {' or '.join(namesake)}?"
                where = [".".join([*seen, name]) for name in known]
                return f"{key} is not a setting{nearest('.'.join([*seen, part]), where)}"
            node = known[part]
        else:
            return f"{key} is not a setting; {'.'.join(seen)} is one, and holds a plain value"
        seen.append(part)
    return None


def setting_type(parts: Sequence[str], schema: type) -> tuple[Any, ...]:
    """The type of an existing setting or section; of what may be null the others' besides."""
    node: Any = schema
    for part in parts:
        node = get_args(node)[1] if get_origin(node) is dict else get_type_hints(node)[part]
    return (node, *(get_args(node) if get_origin(node) in (Union, UnionType) else ()))


def _setting_paths(schema: Any, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(schema)
    for f in fields(schema):
        kind = hints[f.name]
        if get_origin(kind) is dict:
            yield from _setting_paths(get_args(kind)[1], f"{prefix}{f.name}.<name>.")
        elif is_dataclass(kind):
            yield from _setting_paths(kind, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}"


def unknown_keys(node: Any, schema: type, above: tuple[str, ...] = ()) -> Iterator[str]:
    """What is wrong with each key of a composed config that names no setting.

    Hydra's `+key=value` slips past the schema: it is accepted, ignored, and exits 0.
    """
    for key in node:
        parts = (*above, str(key))
        if problem := setting_problem(".".join(parts), schema, parts):
            yield problem
        elif OmegaConf.is_dict(node) and OmegaConf.is_dict(child := node._get_node(key)):
            yield from unknown_keys(child, schema, parts)


@dataclass(frozen=True)
class Range:
    """What a setting's value may be."""

    demand: str
    holds: Callable[[Any], bool]


HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
COUNT = Range("must be at least 1", lambda n: n >= 1)
POSITIVE = Range("must be above 0", lambda x: x > 0)
NOT_NEGATIVE = Range("must not be negative", lambda x: x >= 0)
SHARE = Range("must be from 0 up to, not including, 1", lambda x: 0 <= x < 1)


def ranged(range_: Range, default: Any = MISSING, advice: str = "") -> Any:
    """A dataclass field whose value must lie in a range or be null; `advice` stands behind the value found."""
    return field(default=default, metadata={"range": range_, "advice": advice})


def problems_of(node: Any, key: str = "") -> Iterator[str]:
    """What is wrong with each value of a tree of settings, by its dotted key: impossible, out of range, or at odds.

    What is missing is not looked at. What a class says in `problems()` of its fields together is added where none of
    its values is impossible.
    """
    if isinstance(node, dict):
        for name, member in node.items():
            yield from problems_of(member, f"{key}.{name}")
        return
    sound = True
    for f in fields(node):
        value, path = getattr(node, f.name), f"{key}.{f.name}".lstrip(".")
        if is_dataclass(value) or isinstance(value, dict):
            yield from problems_of(value, path)
        elif impossible := list(_impossible_values(value, path)):
            sound = False
            yield from impossible
        elif (
            (allowed := f.metadata.get("range"))
            and value not in (None, MISSING)
            and not allowed.holds(value)
        ):
            yield f"{path} {allowed.demand}, got {value}{f.metadata['advice']}"
    if sound and hasattr(node, "problems"):
        yield from (f"{key}.{problem}".lstrip(".") for problem in node.problems())


def _impossible_values(value: Any, key: str) -> Iterator[str]:
    """What no setting can hold: numbers without end, texts that cannot be written."""
    if isinstance(value, list):
        for member in value:
            yield from _impossible_values(member, key)
    elif isinstance(value, float) and not isfinite(value):
        yield f"{key} must be a finite number, got {value}"
    elif isinstance(value, int) and abs(value) > _LARGEST:
        yield f"{key} must be a whole number of at most {_LARGEST}, got {value}"
    elif isinstance(value, str) and (
        "\0" in value or any("\ud800" <= character <= "\udfff" for character in value)
    ):
        # a byte 0, or half a character, as bytes that are not UTF-8 become on the command line
        yield f"{key} holds a character that cannot be written: {value!r}"
