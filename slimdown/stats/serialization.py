"""Convert dataclasses to plain dictionaries that JSON can hold, and back."""

import base64
import dataclasses
import types
import zlib
from collections.abc import Mapping
from enum import Enum
from math import isfinite
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

# Metadata of a field that is not recorded; it must have a default.
NOT_RECORDED = {"recorded": False}


def to_plain(value: Any) -> Any:
    """Convert a value to what JSON holds; arrays are packed, nan and infinities are text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        recorded = [f.name for f in dataclasses.fields(value) if f.metadata.get("recorded", True)]
        return {name: to_plain(getattr(value, name)) for name in recorded}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.ndarray):
        packed = zlib.compress(np.asarray(value, dtype=np.float64).tobytes(), 9)
        return base64.b64encode(packed).decode()
    if isinstance(value, Mapping):
        return {str(to_plain(key)): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if isfinite(value) else str(float(value))
    return str(value) if isinstance(value, Path) else value


def from_plain(hint: Any, value: Any) -> Any:
    """Restore a value of a type from what `to_plain` made of it.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it was not made from such a type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return from_plain(next(a for a in arguments if a is not type(None)), value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        return hint(**{n: from_plain(hints[n], v) for n, v in value.items() if n in hints})
    if origin is np.ndarray:
        return np.frombuffer(zlib.decompress(base64.b64decode(value)), dtype=np.float64)
    if origin in (dict, Mapping):
        return {
            from_plain(arguments[0], key): from_plain(arguments[1], item)
            for key, item in value.items()
        }
    if origin in (tuple, list):
        return origin(from_plain(arguments[0], item) for item in value)
    return hint(value)  # a number, a text, a path or an enumeration
