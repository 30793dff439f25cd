"""Sort a `Comparison`, and average its changes by the value of a setting."""

from dataclasses import replace
from math import isfinite

from slimdown.comparison.run_comparison import Comparison, Configuration, average_seeds
from slimdown.config.fields import nearest
from slimdown.judging.findings import BenchmarkChange
from slimdown.stats.estimates import Estimate
from slimdown.utils.errors import ConfigError

SortValue = float | str | None


def sort_rows(comparison: Comparison, key: str) -> Comparison:
    """Sort the rows by a benchmark's change, a setting, or a mean; rows without a value are last.

    Args:
        comparison: The compared runs.
        key: The benchmark, the setting, "retained" or "target"; with a "-" in front the largest
            value comes first.

    Raises:
        ConfigError: The runs have no such benchmark or setting.
    """
    name = key.removeprefix("-")
    settings = {name for row in comparison.rows for name in row.settings}
    sortable = {"retained", "target", *comparison.benchmarks, *settings}
    if name not in sortable:
        advice = nearest(name, sorted(sortable))
        raise ConfigError(f"--sort {name}: these runs have no such benchmark or setting{advice}")

    def read_value(row: Configuration) -> SortValue:
        means = {benchmark: cell.change for benchmark, cell in row.changes.items()}
        means |= {"retained": row.retained, "target": row.target}
        if name in means and isfinite(means[name].value):
            return means[name].value
        return parse_setting(row.settings.get(name, ""))

    is_down = key.startswith("-")
    rows = sorted(comparison.rows, key=lambda row: _order(read_value(row)), reverse=is_down)
    rows.sort(key=lambda row: read_value(row) is None)  # it is stable
    return replace(comparison, rows=tuple(rows))


def sort_by_setting(comparison: Comparison, setting: str) -> Comparison:
    """Sort the rows by a setting, and make it the first one shown.

    Raises:
        ConfigError: No run has such a setting.
    """
    if setting not in (settings := {key for row in comparison.rows for key in row.settings}):
        advice = nearest(setting, sorted(settings))
        raise ConfigError(f"--by {setting}: no run has this setting{advice}")
    others = [key for key in comparison.params if key != setting]
    return replace(sort_rows(comparison, setting), params=(setting, *others))


def series_by_setting(
    comparison: Comparison, setting: str
) -> dict[str, list[tuple[float | str, Estimate]]]:
    """Average each benchmark's change by the value of a setting, as if runs were seeds."""
    changes: dict[str, dict[float | str, list[BenchmarkChange]]] = {}
    for row in comparison.rows:
        if (value := parse_setting(row.settings.get(setting, ""))) is not None:
            for run in row.runs:
                for name, change in run.changes.items():
                    changes.setdefault(name, {}).setdefault(value, []).append(change)
    return {
        name: [(value, average_seeds(of[value])) for value in sorted(of, key=_order)]
        for name in comparison.benchmarks
        if (of := changes.get(name))
    }


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
    """Put numbers before words."""
    return (1, 0.0, value) if isinstance(value, str) else (0, value or 0.0, "")
