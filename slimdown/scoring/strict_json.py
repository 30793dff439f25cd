"""JSON as all programs read it alike: no key twice in an object, and no NaN."""

import json
from typing import Any


def take_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs.

    Raises:
        ValueError: A key stands there twice.
    """
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("a key stands there twice, and programs differ in which one they take")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not in JSON")


STRICT_DECODER = json.JSONDecoder(object_pairs_hook=take_pairs, parse_constant=_refuse_constant)
"""Raises ValueError at what is not JSON, and RecursionError where it is too deep."""
