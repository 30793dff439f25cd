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

FORMAT = 1
"""Of recorded findings. Raised when an older slimdown would misread them; files without a number
have format 1. A field that is added gets a default, so that older files are still read."""
# Metadata of a field that is not recorded; it must have a default.
NOT_RECORDED = {"recorded": False}
_MOST_BYTES = 2**28  # of all arrays of one record, unpacked


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


def from_plain(hint: Any, value: Any, room: list[int] | None = None) -> Any:
    """Restore a value of a type from what `to_plain` made of it.

    Args:
        hint: The type.
        value: The value.
        room: How many bytes all arrays may still take.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it was not made from such a type.
    """
    room = [_MOST_BYTES] if room is None else room
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return from_plain(next(a for a in arguments if a is not type(None)), value, room)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        return hint(**{n: from_plain(hints[n], v, room) for n, v in value.items() if n in hints})
    if origin is np.ndarray:
        stream = zlib.decompressobj()
        content = stream.decompress(base64.b64decode(value), room[0] + 1)
        room[0] -= len(content)
        if room[0] < 0 or not stream.eof:
            raise ValueError(f"its arrays are cut short, or above {_MOST_BYTES >> 20} MiB")
        return np.frombuffer(content, dtype=np.float64)
    if origin in (dict, Mapping):
        return {
            from_plain(arguments[0], key, room): from_plain(arguments[1], item, room)
            for key, item in value.items()
        }
    if origin in (tuple, list):
        return origin(from_plain(arguments[0], item, room) for item in value)
    return hint(value)  # a number, a text, a path or an enumeration
