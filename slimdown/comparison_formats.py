"""`Comparison` and `Paired` -> what a person or a program reads: console, Markdown, CSV, JSON, HTML, plots.

Numbers are in points for people and shares for programs, as in the record.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from slimdown.comparison import FEWEST_LOST, Cell, Comparison, Row, by_dataset, main_cause, series_by, short_keys
from slimdown.config import Role
from slimdown.forgetting import BenchmarkChange, ForgettingReport, Verdict
from slimdown.paired import Estimate
from slimdown.report import VERDICT_STYLES
from slimdown.seeds import SeedsChange

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("table", "markdown", "csv", "json", "html")
SEEDS_LEGEND = (
    "Mean change over seeds in points, tuned - base, with a 95 % interval for other questions and other seeds. Its two "
    "standard errors: questions, which more questions would lower, and training, which more seeds would; from seed to "
    "seed, the standard deviation of the true change."
)
_MOST_COLUMNS = 4  # settings with a column each; more stand together in one
_MOST_SEEDS = 4  # that are listed
_UNBOUNDED = 10_000  # columns: as wide as a table likes
_MOST_POINTS = 40  # in a plot of runs: more names than this are not legible
_LEGEND = (
    "Change of each benchmark's primary metric in points, tuned - base, [95 % interval], verdict of the run at 5 %; "
    "* target task."
)
_LEGEND_SEEDS = (
    "Where a row holds several seeds: mean ± standard deviation over seeds, "
    "and the verdicts with their number of seeds."
)


@dataclass(frozen=True)
class Heading:
    """What stands above a comparison."""

    title: str  # which runs of which store
    notes: tuple[str, ...]  # what was left out, what must be known


@dataclass(frozen=True)
class Paired:
    """Two tuned models, question by question."""

    before: str  # a run's name and id
    after: str
    report: ForgettingReport  # after - before
    causes: dict[str, dict[str, float]]  # by benchmark: share of the lost answers by cause
    n_lost: dict[str, int]  # by benchmark: answers that any metric lost


# --- console --------------------------------------------------------------------------------------


def show(comparison: Comparison, heading: Heading, console: Console, most: int) -> None:
    """Print the table, as wide as the console allows; at most so many rows (0: all)."""
    rows = comparison.rows[:most] if most else comparison.rows
    console.print(Text(heading.title), style="bold", soft_wrap=True)  # an address stays in one piece
    for note in heading.notes:
        console.print(Text(note), style="yellow")
    layouts: list[Callable[[Comparison, Sequence[Row]], Table]] = [_wide, _narrow]
    free = console.options.update(width=_UNBOUNDED)
    if not console.is_terminal:  # a file or a pipe is as wide as it has to be
        console.width = max(console.width, Measurement.get(console, free, _wide(comparison, rows)).maximum)
    for layout in layouts:
        table = layout(comparison, rows)
        if Measurement.get(console, free, table).maximum <= console.width:
            break
    else:
        table = _stacked(comparison, rows)
    console.print(table)
    if len(rows) < len(comparison.rows):
        console.print(f"{len(comparison.rows) - len(rows):,} more rows; --rows 0 shows all of {len(comparison.rows):,}")
    console.print(Text(legend(comparison)), style="dim")


def show_paired(paired: Paired, console: Console) -> None:
    """Print the table of two tuned models."""
    console.print(Text(f"{paired.before} → {paired.after}"), style="bold")
    table = _table()
    for column in ("benchmark", "metric"):
        table.add_column(column)
    for column in ("n", "first", "second", "change", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict")
    for name, b in paired.report.benchmarks.items():
        verdict = Text.assemble((b.verdict.value, VERDICT_STYLES[b.verdict]))
        if cause := _paired_cause(paired, name):
            verdict.append(f"\n{cause}", "dim")
        table.add_row(*(Text(text) for text in _paired_texts(name, b)), verdict)
    console.print(table)
    console.print(Text(_paired_legend(paired)), style="dim")


def show_seeds(changes: Mapping[str, Sequence[SeedsChange]], console: Console) -> None:
    """Print, for each configuration of several seeds, the noise of its questions and of its training."""
    table = _table()
    for column in ("run", "benchmark"):
        table.add_column(column)
    for column in ("seeds", "n", "mean change", "questions ±", "training ±", "from seed to seed"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, found in changes.items():
        for i, change in enumerate(found):
            noise = change.noise
            table.add_row(
                Text(name if i == 0 else ""),
                Text(change.benchmark),
                str(noise.n_seeds),
                str(change.n),
                Text(points(noise.mean, nan)),
                f"{100 * noise.question_standard_error:.1f}",
                f"{100 * noise.training_standard_error:.1f}",
                f"{100 * noise.training_spread:.1f}",
            )
    console.print(table)
    console.print(Text(SEEDS_LEGEND), style="dim")


def seeds_markdown(changes: Mapping[str, Sequence[SeedsChange]]) -> str:
    """The same as Markdown."""
    headings = ["run", "benchmark", "seeds", "n", "mean change", "questions ±", "training ±", "from seed to seed"]
    lines = [_line(headings), _line(["---"] * len(headings))]
    for record in seeds_records(changes):
        estimate = Estimate(record["change"], nan, record["low"], record["high"])
        spreads = (f"{100 * record[key]:.1f}" for key in ("question_stderr", "training_stderr", "training_spread"))
        cells = [record["run"], record["benchmark"], str(record["seeds"]), str(record["n"]), points(estimate, nan)]
        lines.append(_line([*cells, *spreads]))
    return "\n".join([*lines, "", SEEDS_LEGEND, ""])


def seeds_records(changes: Mapping[str, Sequence[SeedsChange]]) -> list[dict[str, Any]]:
    """The same as records; shares, not percent."""
    return [
        {
            "run": name,
            "benchmark": change.benchmark,
            "metric": change.metric,
            "seeds": change.noise.n_seeds,
            "n": change.n,
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


def legend(comparison: Comparison) -> str:
    """How the table is read."""
    return f"{_LEGEND} {_LEGEND_SEEDS}" if comparison.grouped else _LEGEND


def _wide(comparison: Comparison, rows: Sequence[Row]) -> Table:
    return _columns(comparison, rows, " ")


def _narrow(comparison: Comparison, rows: Sequence[Row]) -> Table:
    return _columns(comparison, rows, "\n")


def _columns(comparison: Comparison, rows: Sequence[Row], before_verdict: str) -> Table:
    table = _table()
    table.add_column("run", max_width=44, overflow="fold")
    table.add_column("id", no_wrap=True)
    for heading in param_headings(comparison):
        table.add_column(Text(heading), justify="left", max_width=40, overflow="fold")
    for name in comparison.benchmarks:
        table.add_column(Text(_starred(comparison, name)), no_wrap=True)
    table.add_column("mean retained", no_wrap=True)
    for row in rows:
        cells = [_cell_text(row.cells.get(name), before_verdict) for name in comparison.benchmarks]
        mean = Text(points(row.retained, row.retained_spread))
        table.add_row(Text(row.name), row.ids, *map(Text, param_texts(comparison, row)), *cells, mean)
    return table


def _stacked(comparison: Comparison, rows: Sequence[Row]) -> Table:
    """One line a benchmark below each run: for a narrow terminal."""
    table = _table()
    table.add_column("run, benchmark", overflow="fold")
    table.add_column("change", no_wrap=True)
    table.add_column("verdict", overflow="fold", min_width=10)
    for row in rows:
        settings = zip(param_headings(comparison), param_texts(comparison, row), strict=True)
        table.add_row(Text(f"{row.name} ({row.ids})", "bold"))
        if told := ", ".join(f"{key} {value}" for key, value in settings if value):
            table.add_row(Text(f"  {told}", "dim"))
        for name in comparison.benchmarks:
            if cell := row.cells.get(name):
                verdict = Text.assemble((cell.verdict, VERDICT_STYLES.get(cell.verdict, "yellow")))
                if cell.main_cause:
                    verdict.append(f", {cause_text(*cell.main_cause)}", "dim")
                table.add_row(f"  {_starred(comparison, name)}", points(cell.change, cell.spread), verdict)
        table.add_row("  mean retained", points(row.retained, row.retained_spread), end_section=True)
    return table


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)


def _cell_text(cell: Cell | None, before_verdict: str) -> Text:
    if cell is None:
        return Text("–", "dim")
    text = Text(points(cell.change, cell.spread))
    if cell.verdict:
        text.append(before_verdict)
        text.append(cell.verdict, VERDICT_STYLES.get(cell.verdict, "yellow"))
    if cell.main_cause:
        text.append(f"\n{cause_text(*cell.main_cause)}", "dim")
    return text


# --- words and numbers ------------------------------------------------------------------------------


def points(estimate: Estimate, spread: float) -> str:
    """A change in points with its interval, or with its standard deviation over seeds."""
    if not isfinite(estimate.value):
        return "–"
    text = f"{100 * estimate.value:+.1f}"
    if isfinite(spread):
        return f"{text} ± {100 * spread:.1f}"
    if isfinite(estimate.low) and isfinite(estimate.high):
        return f"{text} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"
    return text


def cause_text(name: str, share: float) -> str:
    """What most lost answers were lost to.

    >>> cause_text("other_format", 0.81)
    '81 % other format'
    """
    return f"{100 * share:.0f} % {name.replace('_', ' ')}"


def param_headings(comparison: Comparison) -> list[str]:
    """The headings of the settings' columns: one each, or one for all where they are many."""
    seeds = ["seeds"] if comparison.grouped else []
    names = short_keys(comparison.params)
    if len(comparison.params) <= _MOST_COLUMNS:
        return seeds + list(names.values())
    return [*seeds, "what differs"]


def param_texts(comparison: Comparison, row: Row) -> list[str]:
    """What stands below `param_headings` in one row."""
    seeds = [_seeds(row)] if comparison.grouped else []
    values = {short: row.settings.get(key, "") for key, short in short_keys(comparison.params).items()}
    if len(values) <= _MOST_COLUMNS:
        return seeds + list(values.values())
    return [*seeds, ", ".join(f"{key}={value}" for key, value in values.items() if value)]


def _seeds(row: Row) -> str:
    return ", ".join(row.seeds) if len(row.seeds) <= _MOST_SEEDS else f"{len(row.seeds)} seeds"


def _starred(comparison: Comparison, name: str) -> str:
    target = any(row.cells[name].role == Role.target.value for row in comparison.rows if name in row.cells)
    return f"{name} *" if target else name


def _paired_texts(name: str, b: BenchmarkChange) -> list[str]:
    d = b.primary.difference
    return [
        f"{name} *" if b.role is Role.target else name,
        b.metric,
        f"{b.n:,}",
        f"{100 * b.primary.base.value:.1f}",
        f"{100 * b.primary.tuned.value:.1f}",
        points(Estimate(d.value, d.standard_error, d.low, d.high), float("nan")),
        f"{b.p_value:.2g}",
    ]


def _paired_cause(paired: Paired, name: str) -> str:
    found = main_cause(paired.causes[name])
    return cause_text(*found) if found and paired.n_lost[name] >= FEWEST_LOST else ""


def _paired_legend(paired: Paired) -> str:
    return (
        "Change in points from the first to the second run's tuned model with its 95 % interval, each question's two "
        "answers paired; verdicts at 5 %, corrected for the number of benchmarks (Holm); * target task. Mean change of "
        f"the retained benchmarks: {points(paired.report.mean_retained_change, float('nan'))}."
    )


# --- Markdown ---------------------------------------------------------------------------------------


def markdown(comparison: Comparison, heading: Heading) -> str:
    """The comparison as a Markdown table."""
    headings = [
        "run",
        "id",
        *param_headings(comparison),
        *(_starred(comparison, name) for name in comparison.benchmarks),
        "mean retained",
    ]
    lines = [f"### {_cell_safe(heading.title)}", "", *(f"- {_cell_safe(note)}" for note in heading.notes)]
    lines += [""] if heading.notes else []
    lines += [_line(headings), "|" + "---|" * len(headings)]
    for row in comparison.rows:
        cells = [_markdown_cell(row.cells.get(name)) for name in comparison.benchmarks]
        lines.append(
            _line(
                [
                    row.name,
                    row.ids,
                    *param_texts(comparison, row),
                    *cells,
                    points(row.retained, row.retained_spread),
                ]
            )
        )
    return "\n".join([*lines, "", legend(comparison), ""])


def paired_markdown(paired: Paired) -> str:
    """Two tuned models as a Markdown table."""
    headings = ["benchmark", "metric", "n", "first", "second", "change", "p", "verdict", "most lost answers"]
    rows = [
        _line([*_paired_texts(name, b), b.verdict.value, _paired_cause(paired, name)])
        for name, b in paired.report.benchmarks.items()
    ]
    title = f"### {_cell_safe(paired.before)} → {_cell_safe(paired.after)}"
    table = [_line(headings), "|" + "---|" * len(headings), *rows]
    return "\n".join([title, "", *table, "", _paired_legend(paired), ""])


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    cause = f" ({cause_text(*cell.main_cause)})" if cell.main_cause else ""
    return f"{points(cell.change, cell.spread)} {cell.verdict}{cause}".strip()


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell_safe, cells)) + " |"


def _cell_safe(text: str) -> str:
    """A run's name may hold what Markdown takes for a table's or a tag's."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


# --- for programs -----------------------------------------------------------------------------------


def as_csv(comparison: Comparison) -> str:
    """One row a configuration; columns are called as the params and metrics of the record, numbers are whole."""
    columns = ["run_ids", "name", "experiment", "started", "n_seeds", "seeds", *comparison.params]
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
                    "causes": cell.causes,
                }
                for name, cell in row.cells.items()
            },
            **{mean: {**asdict(estimate), "sd_over_seeds": spread} for mean, estimate, spread in _means(row)},
        }
        for row in comparison.rows
    ]
    everything = {"title": heading.title, "notes": heading.notes, "differing": comparison.params, "rows": rows}
    return _json(everything)


def paired_records(paired: Paired) -> list[dict[str, Any]]:
    """One record a benchmark."""
    records = []
    for name, b in paired.report.benchmarks.items():
        d, counts = b.primary.difference, b.primary.counts
        records.append(
            {
                "benchmark": name,
                "role": b.role.value,
                "metric": b.metric,
                "n": b.n,
                "first": b.primary.base.value,
                "first_stderr": b.primary.base.standard_error,
                "second": b.primary.tuned.value,
                "second_stderr": b.primary.tuned.standard_error,
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


def paired_csv(paired: Paired) -> str:
    """One row a benchmark, numbers whole."""
    records = paired_records(paired)
    return _csv(list(records[0]), records)


def paired_json(paired: Paired) -> str:
    """Two tuned models with types; what is not known is null."""
    return _json(
        {
            "first": paired.before,
            "second": paired.after,
            "benchmarks": paired_records(paired),
            "causes": paired.causes,
            "mean_retained_change": asdict(paired.report.mean_retained_change),
        }
    )


_ENDS = ("", "_stderr", "_low", "_high", "_sd_over_seeds")


def _quantities(cell: Cell | None) -> dict[str, Any]:
    """What programs get of a cell, by name; the names are there without a cell too."""
    names = [f"change{end}" for end in _ENDS]
    names += ["n", "p_value", "verdict", "forgetting_rate", "lost", "main_cause", "main_cause_share"]
    if cell is None:
        return dict.fromkeys(names)
    cause, share = cell.main_cause or (None, None)
    estimate = asdict(cell.change).values()
    rest = (cell.n, cell.p_value, cell.verdict or None, cell.forgetting_rate, cell.lost, cause, share)
    return dict(zip(names, (*estimate, cell.spread, *rest), strict=True))


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
        writer.writerow(_without_nan(record))
    return out.getvalue()


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
    from slimdown.plots import Trade, by_param, heat_map, learning_forgetting

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
    from slimdown.plots import png, svg

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
    from slimdown.page import inline, render  # matplotlib and jinja2 take half a second

    figures = {name: inline(figure) for name, figure in plots(comparison, param).items()}
    return render(
        "compare.html.j2",
        title=heading.title,
        notes=heading.notes,
        headings=param_headings(comparison),
        benchmarks=[_starred(comparison, name) for name in comparison.benchmarks],
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


def paired_html(paired: Paired) -> str:
    """A page of two tuned models."""
    from slimdown.page import render

    return render(
        "paired.html.j2",
        title=f"{paired.before} → {paired.after}",
        rows=[
            {"texts": _paired_texts(name, b), "verdict": b.verdict.value, "cause": _paired_cause(paired, name)}
            for name, b in paired.report.benchmarks.items()
        ],
        legend=_paired_legend(paired),
    )


def _page_cell(cell: Cell | None) -> dict[str, str] | None:
    if cell is None:
        return None
    return {
        "points": points(cell.change, cell.spread),
        "verdict": cell.verdict,
        "style": cell.verdict if cell.verdict in VERDICT_STYLES else Verdict.undecided.value,
        "cause": cause_text(*cell.main_cause) if cell.main_cause else "",
    }


def _point_name(comparison: Comparison, row: Row) -> str:
    """The name, with what else tells this row from others."""
    told = [f"seeds {_seeds(row)}"] if len(row.runs) > 1 else [row.ids]
    return f"{row.name} ({', '.join(told)})"


def _lost(change: Estimate) -> Estimate:
    return Estimate(-change.value, change.standard_error, -change.high, -change.low)
