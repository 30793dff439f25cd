"""A `Comparison` or a pair -> files: CSV and JSON for programs, a page and plots for people.

In CSV and JSON numbers are shares at full precision; what is not known is empty or null, never NaN. A spreadsheet that
opens a CSV file must not take a name for a formula.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdown.judging.changes import Verdict
from slimdown.judging.comparison import Cell, Comparison, Row, by_dataset, series_by, typed
from slimdown.judging.paired import Estimate
from slimdown.judging.seeds import SeedsChange
from slimdown.showing.comparison_formats import (
    Heading,
    Paired,
    cause_text,
    correction_text,
    legend,
    paired_cause,
    paired_legend,
    paired_texts,
    param_headings,
    param_texts,
    points,
    seeds_text,
    starred,
)
from slimdown.showing.console import VERDICT_STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS = 40  # in a plot of runs: more names than this are not legible

# --- for programs -----------------------------------------------------------------------------------


def as_csv(comparison: Comparison) -> str:
    """One row a configuration; columns are called as the params and metrics of the record, numbers are whole."""
    columns = ["run_ids", "name", "experiment", "started", "n_candidates", "n_seeds", "seeds", *comparison.params]
    for name in comparison.benchmarks:
        columns += [f"forgetting/{name}/{key}" for key in _quantities(None)]
    columns += [f"forgetting/{mean}{end}" for mean in ("mean_retained_change", "mean_target_change") for end in _ENDS]
    records = []
    for row in comparison.rows:
        record: dict[str, Any] = {
            "run_ids": " ".join(run.run_id for run in row.runs),
            "name": row.name,
            "experiment": row.runs[0].experiment,
            "started": row.runs[0].started.isoformat(),
            "n_candidates": len(comparison.rows),
            "n_seeds": len(row.runs),
            "seeds": " ".join(row.seeds),
            **{key: row.settings.get(key, "") for key in comparison.params},
        }
        for name in comparison.benchmarks:
            quantities = _quantities(row.cells.get(name))
            record |= {f"forgetting/{name}/{key}": value for key, value in quantities.items()}
        for mean, estimate, spread in _means(row):
            values = (*asdict(estimate).values(), spread)
            record |= {f"forgetting/{mean}{end}": value for end, value in zip(_ENDS, values, strict=True)}
        records.append(record)
    return _csv(columns, records)


def as_json(comparison: Comparison, heading: Heading) -> str:
    """The comparison with its types; what is not known is null."""
    rows = [
        {
            "run_ids": [run.run_id for run in row.runs],
            "name": row.name,
            "experiment": row.runs[0].experiment,
            "started": row.runs[0].started.isoformat(),
            "seeds": [_typed(seed) for seed in row.seeds],
            "params": {key: _typed(row.settings.get(key, "")) for key in comparison.params},
            "benchmarks": {
                name: {
                    **_quantities(cell),
                    "role": cell.role,
                    "metric": cell.metric,
                    "verdicts": cell.verdicts,
                    "verdicts_corrected": cell.corrected,
                    "causes": cell.causes,
                }
                for name, cell in row.cells.items()
            },
            **{mean: {**asdict(estimate), "sd_over_seeds": spread} for mean, estimate, spread in _means(row)},
        }
        for row in comparison.rows
    ]
    about = {"title": heading.title, "notes": heading.notes, "n_candidates": len(comparison.rows)}
    return _json({**about, "differing": comparison.params, "rows": rows})


def paired_records(paired: Paired) -> list[dict[str, Any]]:
    """One record a benchmark."""
    first, second = paired.sides
    records = []
    for name, b in paired.report.benchmarks.items():
        d, counts = b.primary.difference, b.primary.counts
        records.append(
            {
                "benchmark": name,
                "role": b.role.value,
                "metric": b.metric,
                "n": b.n,
                "population": d.population,
                first: b.primary.base.value,
                f"{first}_stderr": b.primary.base.standard_error,
                second: b.primary.tuned.value,
                f"{second}_stderr": b.primary.tuned.standard_error,
                "change": d.value,
                "change_stderr": d.standard_error,
                "change_low": d.low,
                "change_high": d.high,
                "p_value": b.p_value,
                "equivalence_p_value": b.equivalence_p_value,
                "verdict": b.verdict.value,
                "lost": counts.lost if counts else None,
                "gained": counts.gained if counts else None,
            }
        )
    return records


def paired_csv(pairs: Sequence[Paired]) -> str:
    """One row a pair and benchmark, numbers whole."""
    records = [{"pair": paired.title, **record} for paired in pairs for record in paired_records(paired)]
    return _csv(list(records[0]), records)


def paired_json(pairs: Sequence[Paired]) -> str:
    """Each pair with types; what is not known is null. Two tuned models are one pair and no list."""
    found = [
        {
            paired.sides[0]: paired.before,
            paired.sides[1]: paired.after,
            "part": paired.report.part,
            "n_confirmed": paired.n_confirmed,
            "benchmarks": paired_records(paired),
            "causes": paired.causes,
            "mean_retained_change": asdict(paired.report.mean_retained_change),
        }
        for paired in pairs
    ]
    return _json(found if pairs[0].n_confirmed else found[0])


_ENDS = ("", "_stderr", "_low", "_high", "_sd_over_seeds")


def _quantities(cell: Cell | None) -> dict[str, Any]:
    """What programs get of a cell, by name; the names are there without a cell too."""
    names = [f"change{end}" for end in _ENDS]
    names += ["n", "p_value", "verdict", "verdict_corrected"]
    names += ["forgetting_rate", "lost", "main_cause", "main_cause_share"]
    if cell is None:
        return dict.fromkeys(names)
    cause, share = cell.main_cause or (None, None)
    estimate = asdict(cell.change).values()
    said = (cell.n, cell.p_value, cell.verdict or None, cell.verdict_corrected or None)
    rest = (cell.forgetting_rate, cell.lost, cause, share)
    return dict(zip(names, (*estimate, cell.spread, *said, *rest), strict=True))


def _means(row: Row) -> list[tuple[str, Estimate, float]]:
    return [
        ("mean_retained_change", row.retained, row.retained_spread),
        ("mean_target_change", row.target, row.target_spread),
    ]


def _csv(columns: Sequence[str], records: Sequence[Mapping[str, Any]]) -> str:
    out = StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: _harmless(value) for key, value in _without_nan(record).items()})
    return out.getvalue()


def _harmless(value: Any) -> Any:
    """The value with an apostrophe before what a spreadsheet would compute; numbers stay numbers.

    >>> _harmless("=1+1"), _harmless("-3.2"), _harmless(-3.2), _harmless("-r 8"), _harmless("a=1")
    ("'=1+1", '-3.2', -3.2, "'-r 8", 'a=1')
    """
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula and isinstance(typed(value), str) else value


def _json(content: Any) -> str:
    return json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _without_nan(content: Any) -> Any:
    """JSON has no word for what is no number."""
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not isfinite(content) else content


def _typed(text: str) -> Any:
    """A recorded setting as JSON has it.

    >>> _typed("8"), _typed("2e-4"), _typed("True"), _typed("None"), _typed("nf4")
    (8, 0.0002, True, None, 'nf4')
    """
    known = {"None": None, "": None, "True": True, "False": False}
    if text in known:
        return known[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# --- the page and its plots -------------------------------------------------------------------------


def plots(comparison: Comparison, param: str | None) -> dict[str, "Figure"]:
    """The figures that these runs have something to show in, by name."""
    from slimdown.showing.plots import Trade, by_param, heat_map, learning_forgetting

    figures: dict[str, Figure] = {}
    if comparison.has_target:
        trades = [
            Trade(_point_name(comparison, row), row.target, _lost(row.retained))
            for row in comparison.rows
            if isfinite(row.target.value) and isfinite(row.retained.value)
        ]
        figures["learning-forgetting"] = learning_forgetting(trades[:_MOST_POINTS])
    if param:
        figures[f"by-{param}"] = by_param(param, series_by(comparison, param))
    datasets, values = by_dataset(comparison)
    if len(datasets) > 1:
        figures["datasets"] = heat_map(datasets, comparison.benchmarks, values)
    return figures


def write_plots(figures: Mapping[str, "Figure"], folder: Path) -> list[Path]:
    """The files: each figure as SVG and as PNG."""
    from slimdown.showing.plots import png, svg

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in figures.items():
        stem = name.replace("/", "-")
        for file, content in ((folder / f"{stem}.svg", svg(figure).encode()), (folder / f"{stem}.png", png(figure))):
            file.write_bytes(content)
            files.append(file)
    return files


def html(comparison: Comparison, heading: Heading, param: str | None) -> str:
    """A page that needs nothing but itself: the table and the plots."""
    from slimdown.showing.page import inline, render  # matplotlib and jinja2 take half a second

    figures = {name: inline(figure) for name, figure in plots(comparison, param).items()}
    return render(
        "compare.html.j2",
        title=heading.title,
        notes=heading.notes,
        headings=param_headings(comparison),
        benchmarks=[starred(comparison, name) for name in comparison.benchmarks],
        rows=[
            {
                "name": row.name,
                "id": row.ids,
                "params": param_texts(comparison, row),
                "cells": [_page_cell(row.cells.get(name)) for name in comparison.benchmarks],
                "retained": points(row.retained, row.retained_spread),
            }
            for row in comparison.rows
        ],
        legend=legend(comparison),
        trade=figures.get("learning-forgetting"),
        n_left_out=max(0, len(comparison.rows) - _MOST_POINTS),
        most=_MOST_POINTS,
        param=param,
        others=", ".join(key for key in comparison.params if key != param),
        by_param=figures.get(f"by-{param}"),
        datasets=figures.get("datasets"),
    )


def paired_html(pairs: Sequence[Paired]) -> str:
    """A page of two tuned models, or of the runs that are confirmed."""
    from slimdown.showing.page import render

    return render(
        "paired.html.j2",
        command="--confirm" if pairs[0].n_confirmed else "--paired",
        pairs=[
            {
                "title": paired.title,
                "sides": paired.sides,
                "rows": [
                    {"texts": paired_texts(name, b), "verdict": b.verdict.value, "cause": paired_cause(paired, name)}
                    for name, b in paired.report.benchmarks.items()
                ],
            }
            for paired in pairs
        ],
        legend=paired_legend(pairs),
    )


def _page_cell(cell: Cell | None) -> dict[str, str] | None:
    if cell is None:
        return None
    return {
        "points": points(cell.change, cell.spread),
        "verdict": cell.verdict,
        "correction": correction_text(cell),
        "style": cell.verdict if cell.verdict in VERDICT_STYLES else Verdict.undecided.value,
        "cause": cause_text(*cell.main_cause) if cell.main_cause else "",
    }


def _point_name(comparison: Comparison, row: Row) -> str:
    """The name, with what else tells this row from others."""
    told = [f"seeds {seeds_text(row)}"] if len(row.runs) > 1 else [row.ids]
    return f"{row.name} ({', '.join(told)})"


def _lost(change: Estimate) -> Estimate:
    return Estimate(-change.value, change.standard_error, -change.high, -change.low)


def seeds_records(changes: Mapping[str, Sequence[SeedsChange]]) -> list[dict[str, Any]]:
    """The same as records; shares, not percent."""
    return [
        {
            "run": name,
            "benchmark": change.benchmark,
            "metric": change.metric,
            "seeds": change.noise.n_seeds,
            "n": change.n,
            "population": change.noise.population,
            "change": change.noise.mean.value,
            "low": change.noise.mean.low,
            "high": change.noise.mean.high,
            "question_stderr": change.noise.question_standard_error,
            "training_stderr": change.noise.training_standard_error,
            "training_spread": change.noise.training_spread,
        }
        for name, found in changes.items()
        for change in found
    ]


def seeds_csv(changes: Mapping[str, Sequence[SeedsChange]]) -> str:
    """The same as CSV."""
    records = seeds_records(changes)
    return _csv(list(records[0]), records)


def seeds_json(changes: Mapping[str, Sequence[SeedsChange]]) -> str:
    """The same as JSON."""
    return _json(seeds_records(changes))
