"""The options that a section hands on to other libraries: their names, types and exceptions.

Names and types are read from the installed source. Nothing is imported, so a mistake is reported
at once. `options.yaml` says why an option is not handed on.
"""

import ast
import re
from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

SECTIONS = ("model", "lora", "train")
"""The sections that hand on options, in `args`."""
_KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}
_KINDS |= {"list": "a list", "dict": "a mapping", "None": "null", "Literal": "one of its names"}


@cache
def read_rules(section: str) -> dict[str, Any]:
    """Return what `options.yaml` says of a section."""
    rules = yaml.safe_load(Path(__file__).with_name("options.yaml").read_text(encoding="utf-8"))
    return dict(rules[section])


@cache
def read_class(package: str, file: str, name: str) -> dict[str, str]:
    """Return what a class declares: the types of its fields, or the values of an enumeration.

    Args:
        package: Its name; it is not imported.
        file: A path in the package's folder.
        name: The class.

    Returns:
        Source text by name; empty where the installed version has no such class.
    """
    spec = find_spec(package)
    source = Path(spec.origin).parent / file if spec and spec.origin else Path()
    classes = ast.parse(source.read_bytes()).body if source.is_file() else []
    body = next((c.body for c in classes if isinstance(c, ast.ClassDef) and c.name == name), [])
    fields = {ast.unparse(s.target): s.annotation for s in body if isinstance(s, ast.AnnAssign)}
    values = {ast.unparse(s.targets[0]): s.value for s in body if isinstance(s, ast.Assign)}
    return {name: ast.unparse(text) for name, text in (fields or values).items()}


def list_options(section: str, own: Collection[str]) -> dict[str, str]:
    """Return the types of the options that a section hands on; `own` are settings of its own."""
    rules, types = read_rules(section), dict[str, str]()
    for place in rules["classes"]:
        types |= read_class(*place)
    types |= rules["types"]
    return {k: t for k, t in types.items() if k not in own and not explain_refused(section, k)}


def explain_refused(section: str, option: str) -> str | None:
    """Say why NAME or NAME=VALUE is not handed on; None where there is no reason."""
    refused = read_rules(section)["refused"].items()
    return next((reason for pattern, reason in refused if re.fullmatch(pattern, option)), None)


def explain_type(kind: str, value: Any) -> str | None:
    """Say which type an option must have, as the end of a sentence; None where the value has it.

    >>> explain_type("int | list[int] | None", ["a"])
    'must be a whole number, a list, null'
    """
    outer = kind.replace("Optional[", "None|").replace("Config", "|dict")  # a class takes a dict
    while (shorter := re.sub(r"(list|dict)\[[^][]*\]", r"\1", outer)) != outer:
        outer = shorter
    words, own = re.findall(r"\w+", outer), type(value).__name__.replace("NoneType", "None")
    inner = "|".join(re.findall(r"list\[([^][]*)\]", kind))
    is_right = {"Any", own} & {*words} or {"int": "float", "str": "Literal"}.get(own) in words
    if is_right and not (own == "list" and inner and any(explain_type(inner, v) for v in value)):
        return None
    return f"must be {', '.join(text for word, text in _KINDS.items() if word in words)}"
