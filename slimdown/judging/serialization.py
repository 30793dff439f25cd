"""Convert dataclasses to plain dictionaries that JSON can hold, and back."""

import base64
import dataclasses
import types
import zlib
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

# Metadata of a field that is not recorded; it must have a default.
NOT_RECORDED = {"recorded": False}
_MOST_BYTES = 2**28  # of one array, unpacked


def to_plain(value: Any) -> Any:
    """Convert a value to what JSON holds; arrays are packed, nan and infinities are text.

    Of numpy's own numbers, only floats are converted: no recorded field holds its integers or
    booleans.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        recorded = [f.name for f in dataclasses.fields(value) if f.metadata.get("recorded", True)]
        return {name: to_plain(getattr(value, name)) for name in recorded}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.ndarray):
        packed = zlib.compress(np.asarray(value, dtype=np.float64).tobytes(), 9)
        return base64.b64encode(packed).decode()
    if isinstance(value, Mapping):
        return {str(to_plain(key)): to_plain(content) for key, content in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(to_plain, value))
    if isinstance(value, (float, np.floating)):
        return float(value) if isfinite(value) else str(float(value))
    return str(value) if isinstance(value, Path) else value


def from_plain(hint: Any, value: Any) -> Any:
    """Restore a value of a type from what `to_plain` made of it.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it was not made from such a type.
    """
    return _make_reader(hint)(value)


@cache
def _make_reader(hint: Any) -> Callable[[Any], Any]:
    """Make the function that restores values of a type from what `to_plain` returned.

    It is made once for each type.

    Args:
        hint: The type, as a class annotates its field with it.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: value
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        if len(kinds) > 1:  # such as int | str: JSON holds them as they are
            return lambda value: value
        read = _make_reader(kinds[0])
        return lambda value: None if value is None else read(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hasattr(hint, "read_plain"):  # a class that reads itself
            return lambda value: hint.read_plain(value)
        readers = {name: _make_reader(field) for name, field in get_type_hints(hint).items()}
        # Fields that the class does not have any more are left out.
        return lambda plain: hint(
            **{name: readers[name](value) for name, value in plain.items() if name in readers}
        )
    if origin is np.ndarray:
        return _unpack
    if origin in (dict, Mapping):
        read_key, read = map(_make_reader, arguments)
        return lambda plain: {read_key(key): read(value) for key, value in plain.items()}
    if origin in (tuple, list):
        read = _make_reader(arguments[0])
        return lambda value: origin(map(read, value))
    return lambda value: hint(value)  # a number, a text, a path or an enumeration


def _unpack(packed: str) -> NDArray[np.float64]:
    """Unpack an array; a few bytes can unpack to more than memory holds, so its size is limited."""
    stream = zlib.decompressobj()
    content = stream.decompress(base64.b64decode(packed), _MOST_BYTES)
    if not stream.eof:
        raise ValueError(f"its arrays are cut short, or above {_MOST_BYTES >> 20} MiB")
    return np.frombuffer(content, dtype=np.float64)
