"""A `Comparison` in another order, and its changes over a setting or by dataset."""

from collections import Counter
from dataclasses import replace
from math import isfinite, isnan
from pathlib import Path
from statistics import fmean

from slimdown.config.keys import nearest
from slimdown.stats.comparison import Comparison, Configuration, in_words, pooled
from slimdown.stats.paired import Estimate
from slimdown.utils.errors import SlimdownError

Value = float | str | None


def value_of(row: Configuration, key: str) -> Value:
    """What a row holds under a benchmark's name, a setting's, a metric's, or retained, target, name, started."""
    if key == "name":
        return row.name
    if key == "started":
        return row.runs[0].started.isoformat()
    if key in row.settings:
        return typed(row.settings[key])
    if key == "seed":  # in a row of several seeds it is no setting
        return typed(row.seeds[0])
    means = {
        "retained": row.retained,
        "target": row.target,
        **{n: mean.change for n, mean in row.changes.items()},
    }
    values = (
        [means[key].value]
        if key in means
        else [run.metrics[key] for run in row.runs if key in run.metrics]
    )
    return fmean(values) if values and not isnan(fmean(values)) else None


def ordered(comparison: Comparison, key: str) -> Comparison:
    """The same with its rows sorted; a leading minus means from the largest down, what has no value comes last.

    Raises:
        SlimdownError: nothing is called so; with the nearest names.
    """
    name = key.removeprefix("-")
    metrics = {metric for row in comparison.rows for run in row.runs for metric in run.metrics}
    known = {
        "retained",
        "target",
        "name",
        "started",
        "seed",
        *metrics,
        *comparison.benchmarks,
        *_settings(comparison),
    }
    if name not in known:
        advice = nearest(name, sorted(known))
        if "did you mean" not in advice:
            benchmarks = f"a benchmark ({', '.join(comparison.benchmarks)})"
            advice = f"; {benchmarks}, a setting such as lora.r, a metric, or retained, target, name, started"
        raise SlimdownError(f"--sort {name}: nothing is called so in these runs{advice}")
    keyed = [(value_of(row, name), row) for row in comparison.rows]
    having = [(value, row) for value, row in keyed if value is not None]
    having.sort(key=lambda pair: _order(pair[0]), reverse=key.startswith("-"))
    lacking = [row for value, row in keyed if value is None]
    return replace(comparison, rows=(*(row for _, row in having), *lacking))


def by(comparison: Comparison, param: str) -> Comparison:
    """The same with its rows sorted by a setting, which is the first one shown.

    Raises:
        SlimdownError: no run has such a setting.
    """
    if param not in (known := _settings(comparison)):
        raise SlimdownError(f"--by {param}: no run has this setting{nearest(param, sorted(known))}")
    others = [key for key in comparison.params if key != param]
    return replace(ordered(comparison, param), params=(param, *others))


def series_by(comparison: Comparison, param: str) -> dict[str, list[tuple[float | str, Estimate]]]:
    """Each benchmark's change by the value of a setting; runs that share a value are pooled."""
    series: dict[str, dict[float | str, list[Estimate]]] = {
        name: {} for name in comparison.benchmarks
    }
    for row in comparison.rows:
        if (value := typed(row.settings.get(param, ""))) is not None:
            for name in row.changes:
                series[name].setdefault(value, []).extend(_changes(row, name))
    return {
        name: [(value, pooled(changes[value])) for value in sorted(changes, key=_order)]
        for name, changes in series.items()
        if changes
    }


def by_dataset(comparison: Comparison) -> dict[str, list[tuple[Estimate, str] | None]]:
    """For each dataset the mean change on every benchmark and the corrected verdicts; None where none was measured."""
    rows_of: dict[str, list[Configuration]] = {}
    for row in comparison.rows:
        if name := _data(row):
            rows_of.setdefault(name, []).append(row)

    def mean_change(rows: list[Configuration], name: str) -> tuple[Estimate, str] | None:
        changes = [change for row in rows for change in _changes(row, name)]
        verdicts = sum(
            (row.changes[name].corrected for row in rows if name in row.changes), Counter[str]()
        )
        return (pooled(changes), in_words(verdicts)) if changes else None

    return {
        dataset: [mean_change(rows_of[dataset], name) for name in comparison.benchmarks]
        for dataset in sorted(rows_of)
    }


def _data(row: Configuration) -> str:
    """The names of the datasets, of `dataset=[file]` the file's."""
    file = Path(row.settings.get("dataset.file.path", "file")).name
    return ",".join(
        file if name == "file" else name for name in row.settings.get("dataset", "").split(",")
    )


def typed(text: str) -> Value:
    """A setting as a number where it is one, None where it is empty.

    >>> typed("8"), typed("2e-4"), typed("nf4"), typed("")
    (8, 0.0002, 'nf4', None)
    """
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if isfinite(number) else text
    return text or None


def _settings(comparison: Comparison) -> set[str]:
    return {key for row in comparison.rows for key in row.settings}


def _changes(row: Configuration, name: str) -> list[Estimate]:
    """Each run's own: pooling what is pooled would count the training's noise among what the runs have in common."""
    return [
        run.changes.benchmarks[name].change for run in row.runs if name in run.changes.benchmarks
    ]


def _order(value: Value) -> tuple[int, float, str]:
    """Numbers before words."""
    return (1, 0.0, value) if isinstance(value, str) else (0, value or 0.0, "")
