"""Format numbers as people read them, and make any text safe to show."""

import logging
import os
import re
from collections.abc import Sequence
from itertools import takewhile
from math import isfinite
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from slimdown.stats.estimates import Estimate

UNDEFINED = "undefined"
EMPTY = "–"
SHORTEST_NAME = 9  # characters that a cut name keeps
FORMATS: dict[str, tuple[str, ...]] = {
    "table": (),
    "markdown": (".md",),
    "csv": (".csv",),
    "json": (".json",),
    "html": (".html", ".htm"),
}
"""The formats of a table, with the endings of their files."""
# By code point, what is shown instead. ASCII's control characters become their pictures, such as ␛.
# The others (0x80 to 0x9F), and marks that reorder text, become U+FFFD.
_PICTURES = {code: 0x2400 + code for code in range(32)} | {0x7F: 0x2421}
for _start, _end in ((0x80, 0xA0), (0x202A, 0x202F), (0x2066, 0x206A)):
    _PICTURES |= dict.fromkeys(range(_start, _end), 0xFFFD)
_PICTURES |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)  # half of a surrogate pair
_TAB_AND_LINE_FEED = (9, 10)
_PICTURES_IN_LINES = {k: v for k, v in _PICTURES.items() if k not in _TAB_AND_LINE_FEED}
_ASCII = str.maketrans("−–’“”→←↑↓†±·×█…✓✗", '--\'""><^v+~.x#.yx')


def visible(text: object, multiline: bool = False) -> str:
    r"""Replace control characters, so that no name can steer a terminal or break a page.

    Args:
        text: What anybody may have written: a run's name, a model's answer.
        multiline: Keep line feeds and tabs.

    Returns:
        The same text with control characters as pictures.

    >>> visible("a\x1b[2Jb\n")
    'a␛[2Jb␊'
    """
    pictures = _PICTURES_IN_LINES if multiline else _PICTURES
    return str(text).replace("\r\n", "\n").translate(pictures)


class VisibleFormatter(logging.Formatter):
    """Formats a message of a log without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return visible(super().format(record), multiline=True)


def encodable(text: str, encoding: str) -> str:
    """Replace what an encoding lacks; minus signs, arrows and the like become similar signs."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    return text


def format_number(value: float, spec: str = ".1f") -> str:
    """Format a number with a true minus sign; nan and infinity as "undefined".

    A number that would be rounded to zero gets two or three decimals, so that its sign is seen. If
    they are zeros, too, the number is shown as zero without a sign.

    Args:
        value: The number.
        spec: How `format` is to write it; it ends with the number of decimals and "f".

    >>> format_number(-3.14), format_number(2.0, "+.1f"), format_number(float("nan"))
    ('−3.1', '+2.0', 'undefined')
    >>> format_number(-0.034, "+.1f"), format_number(-1e-9, "+.1f"), format_number(0.0, "+.1f")
    ('−0.03', '0.0', '0.0')
    """
    if not isfinite(value):
        return UNDEFINED
    more_decimals = [f"{spec[:-2]}{digits}f" for digits in (2, 3)]  # "+.1f" becomes "+.2f"
    for longer_spec in (spec, *more_decimals):
        text = f"{value:{longer_spec}}"
        if float(text.replace(",", "")) != 0:
            return text.replace("-", "−")
    return f"{0.0:{spec}}".lstrip("+")


def format_interval(low: float, high: float, spec: str = ".1f") -> str:
    """Format an interval in brackets; empty where an end is undefined.

    >>> format_interval(-2.04, 3.0, "+.1f")
    '[−2.0, +3.0]'
    """
    if not (isfinite(low) and isfinite(high)):
        return ""
    return f"[{format_number(low, spec)}, {format_number(high, spec)}]"


def format_points(change: "Estimate") -> tuple[str, str]:
    """Format a change in percentage points and its 95 % interval."""
    interval = format_interval(100 * change.low, 100 * change.high, "+.1f")
    return format_number(100 * change.value, "+.1f"), interval


def format_percent(share: "Estimate") -> tuple[str, str]:
    """Format a share in percent and its 95 % interval."""
    interval = format_interval(100 * share.low, 100 * share.high)
    return f"{format_number(100 * share.value)} %", interval


def format_p_value(p_value: float) -> str:
    """Format a p-value with three decimals.

    It gets up to nine if three would round it to the other side of 0.05.

    >>> format_p_value(0.0004), format_p_value(0.0449), format_p_value(0.04996)
    ('< 0.001', '0.045', '0.04996')
    """
    if p_value < 0.001:
        return "< 0.001"
    is_significant = p_value < 0.05
    n_decimals = 3
    while n_decimals < 9 and (round(p_value, n_decimals) < 0.05) != is_significant:
        n_decimals += 1
    return format_number(p_value, f".{n_decimals}f")


def format_duration(seconds: float) -> str:
    """Format seconds in the units that a person counts in.

    >>> format_duration(9.96), format_duration(130), format_duration(7260)
    ('10 s', '2 min 10 s', '2 h 1 min')
    """
    if not isfinite(seconds):
        return UNDEFINED
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_bytes(n_bytes: float) -> str:
    """Format bytes as 2.30 GiB or 256.6 MiB."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def format_value(value: object) -> str:
    """Format a whole number with commas between thousands, a fraction with three digits.

    All other values are written as they are.

    >>> format_value(12345), format_value(0.12345), format_value("nf4")
    ('12,345', '0.123', 'nf4')
    """
    spec = ",d" if isinstance(value, int) else ".3g" if isinstance(value, float) else ""
    return format(value, spec)


def format_count(n: float, n_available: float | None = None) -> str:
    """Format a number of questions, and out of how many if they are not all.

    >>> format_count(48, 1319), format_count(1319, 1319), format_count(1319)
    ('48 of 1,319', '1,319', '1,319')
    """
    return f"{n:,.0f}" + (f" of {n_available:,.0f}" if n_available and n < n_available else "")


def pluralize(n: int, noun: str) -> str:
    """Format a number with its noun.

    >>> pluralize(1, "step"), pluralize(1200, "step")
    ('1 step', '1,200 steps')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def drop_shared_beginning(names: Sequence[str], separator: str) -> list[str]:
    """Return names without the parts that all of them begin with; a single name stays whole.

    The last part of a name always stays.

    Args:
        names: What is shortened. If all names are equal, they stay whole.
        separator: What stands between the parts of a name.

    >>> drop_shared_beginning(["pocket_math", "pocket_cs"], "_")
    ['math', 'cs']
    >>> drop_shared_beginning(["out/checkpoint-50", "out/checkpoint-100"], "/")
    ['checkpoint-50', 'checkpoint-100']
    """
    if len({*names}) < 2:
        return [*names]
    parts_by_name = [name.split(separator) for name in names]
    # All first parts, then all second parts, and so on, as far as the shortest name goes.
    parts_by_position = zip(*(parts[:-1] for parts in parts_by_name), strict=False)
    shared = list(takewhile(lambda parts: len({*parts}) == 1, parts_by_position))
    return [separator.join(parts[len(shared) :]) for parts in parts_by_name]


def cut_name(name: str, width: int) -> str:
    """Cut a name to `width` characters, at least 3, in its middle.

    The end stays, because names often differ there.

    >>> cut_name("mmlu_college_computer_science", 15)
    'mmlu_co…science'
    """
    if len(name) <= width:
        return name
    n_last = (width - 1) // 2
    return f"{name[: width - 1 - n_last]}…{name[-n_last:]}"


def find_local_path(uri: str) -> str:
    """Return the path of an address on this machine: with the scheme `file:`, or without one.

    For every other address, return an empty text.

    >>> find_local_path("file:///srv/my%20runs"), find_local_path("mlflow-artifacts:/1/models")
    ('/srv/my runs', '')
    """
    place = urlsplit(uri)
    return unquote(place.path) if place.scheme in ("", "file") else ""


def shorten_path(path: str) -> str:
    """Return a path relative to the working folder; unchanged if the file lies outside of it."""
    relative = os.path.relpath(path) if os.path.isabs(path) else path
    return path if relative.startswith(os.pardir) else relative


def describe_model_place(uri: str, run_id: str) -> str:
    """Say where the files of a run's model are: their folder, or the command that fetches them.

    Args:
        uri: The address of the files, as MLflow names it.
        run_id: The run's id, for the command.
    """
    path = find_local_path(uri)
    return shorten_path(path) if path else f"slimdown export {run_id[:8]} DIR"


def escape_markdown(text: str) -> str:
    r"""Escape what Markdown or HTML would read as markup, also inside a table.

    >>> print(escape_markdown("a|b <b> `c` [d](e)"))
    a\|b &lt;b> \`c\` \[d\](e)
    """
    plain = " ".join(visible(text, multiline=True).split())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;")
    # An underscore between two letters or digits marks nothing, so it needs no backslash.
    return re.sub(r"([\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", plain)
