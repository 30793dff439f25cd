"""Sort a `Comparison`, and average its changes by the value of a setting."""

import re
from dataclasses import replace
from math import isfinite

from slimdown.comparison.run_comparison import Comparison, Configuration
from slimdown.comparison.run_records import KEPT, LEARNED
from slimdown.config.fields import nearest
from slimdown.utils.errors import ConfigError

SortValue = float | str | None


def sort_rows(comparison: Comparison, key: str) -> Comparison:
    """Sort the rows by a benchmark's change, a setting, or a mean; rows without a value are last.

    Args:
        comparison: The compared runs.
        key: The benchmark, the setting, or a mean change: "learned" (that of the target
            benchmarks) or "kept" (that of the retained ones). If a benchmark and a setting have the
            same name, it is the benchmark. With a "-" in front the largest value comes first.

    Returns:
        The comparison with sorted rows; the same object if they were in this order.

    Raises:
        ConfigError: The runs have no such benchmark or setting.
    """
    name = key.removeprefix("-")
    measured = {LEARNED, KEPT, *comparison.benchmarks}
    settings = {setting for row in comparison.rows for setting in row.settings}
    if name not in measured | settings:
        advice = nearest(name, sorted(measured | settings))
        raise ConfigError(
            f"--sort {name}: these runs have no benchmark or setting of this name{advice}"
        )

    def read_value(row: Configuration) -> SortValue:
        """Return what a row is sorted by; None if it has no such value."""
        if name not in measured:
            return parse_setting(row.settings.get(name, ""))
        means = {benchmark: cell.change for benchmark, cell in row.changes.items()}
        means |= {KEPT: row.retained, LEARNED: row.target}
        return means[name].value if name in means and isfinite(means[name].value) else None

    is_descending = key.startswith("-")
    rows = sorted(comparison.rows, key=lambda row: _order(read_value(row)), reverse=is_descending)
    # Rows without a value go to the end. Sorting is stable, so the others keep their order.
    rows.sort(key=lambda row: read_value(row) is None)
    # Verdicts are cached by the comparison object, so keep it if nothing has moved.
    if all(row is old for row, old in zip(rows, comparison.rows, strict=True)):
        return comparison
    return replace(comparison, rows=tuple(rows))


def sort_by_setting(comparison: Comparison, setting: str) -> Comparison:
    """Sort the rows by a setting, and make it the first one shown.

    Raises:
        ConfigError: No run has such a setting.
    """
    settings = {key for row in comparison.rows for key in row.settings}
    if setting not in settings:
        advice = nearest(setting, sorted(settings))
        raise ConfigError(f"--by {setting}: no run has this setting{advice}")
    params = (setting, *(key for key in comparison.params if key != setting))
    ordered = sort_rows(comparison, setting)
    return ordered if params == ordered.params else replace(ordered, params=params)


def parse_setting(text: str) -> SortValue:
    """Read a setting as a number where it is one; None where it is empty.

    >>> parse_setting("8"), parse_setting("2e-4"), parse_setting("nf4"), parse_setting("")
    (8, 0.0002, 'nf4', None)
    """
    for kind in (int, float):
        try:
            number = kind(text)
            return number if isfinite(number) else text
        except (ValueError, OverflowError):  # a word; a number of 400 digits
            continue
    return text or None


def _order(value: SortValue) -> tuple[int, float, str]:
    """Put numbers before words, and `checkpoint-50` before `checkpoint-100`."""
    if isinstance(value, str):
        return 1, 0.0, re.sub(r"\d+", lambda number: number[0].zfill(12), value)
    return 0, value or 0.0, ""
