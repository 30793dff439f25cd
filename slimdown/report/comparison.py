"""Runs side by side, or the noise of their seeds -> a `Table`; the figures and the page of many runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any

from slimdown.report import numbers, words
from slimdown.report.table import Cell, Column, Row, Table
from slimdown.stats.comparison import Comparison, Configuration, MeanChange, Pooled, short_keys
from slimdown.stats.paired import Estimate
from slimdown.stats.search import Outcome
from slimdown.stats.selection import MARK
from slimdown.stats.sorting import by_dataset, series_by, typed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from slimdown.stats.seeds import SeedsChange

_MOST_COLUMNS = 4  # settings with a column each; more stand together in one
_MOST_SEEDS = 4  # that are listed
_MOST_POINTS = 40  # in a plot of runs: more are not legible
_TOLD = (
    "model.",
    "quantization.",
    "dataset",
    "method.",
    "lora.",
    "train.",
    "evaluation.holdout",
    "seed",
)  # when pointed at
_ENDS = ("", "_stderr", "_low", "_high", "_sd_over_seeds")
_QUANTITIES = (
    *(f"change{end}" for end in _ENDS),
    *(
        "n",
        "n_available",
        "p_value",
        "verdict",
        "verdict_corrected",
        "forgetting_rate",
        "lost",
        "main_cause",
        "main_cause_share",
    ),
)


# --- tables -------------------------------------------------------------------------------------------


def comparison_table(
    comparison: Comparison, title: str = "", notes: Sequence[str] = (), most: int = 0
) -> Table:
    """Runs side by side, one row a configuration: what differs, and each benchmark's change with its verdict.

    Records are named as the params and metrics of a run; numbers are shares of 1.

    Args:
        comparison: what is shown.
        title: which runs these are.
        notes: what must be known besides the comparison's own notes.
        most: at most so many rows; 0: all.
    """
    shorts = short_keys(comparison.params)
    settings = list(shorts.values()) if len(shorts) <= _MOST_COLUMNS else ["what differs"]
    roles = _roles(comparison)
    notes = (*notes, *comparison.notes)
    about = {
        "title": title,
        "notes": notes,
        "n_candidates": len(comparison.rows),
        "differing": comparison.params,
    }
    return Table(
        title=title,
        columns=(
            Column("run", widest=44),
            Column("id"),
            *([Column("seeds")] if comparison.grouped else []),
            *(Column(heading, widest=40, is_choice=True) for heading in settings),
            *(
                Column(words.benchmark_name(name, roles[name]), "points [95 %]", is_choice=True)
                for name in comparison.benchmarks
            ),
            Column("mean retained", "points [95 %]"),
        ),
        rows=tuple(_row(comparison, row, shorts) for row in comparison.rows[: most or None]),
        legend=words.comparison_legend(comparison),
        notes=notes,
        n_left_out=max(0, len(comparison.rows) - most) if most else 0,
        document=lambda: {**about, "rows": [_document(comparison, row) for row in comparison.rows]},
    )


def _roles(comparison: Comparison) -> dict[str, str]:
    return {name: change.role for row in comparison.rows for name, change in row.changes.items()}


def search_table(
    comparison: Comparison, outcomes: Mapping[str, Outcome], study: str, n_pruned: int
) -> Table:
    """The trials of a search, a row each in the order given, with what each lost beyond its budget.

    Args:
        comparison: of the finished ones, seeds not grouped.
        outcomes: by run id.
        study: its name.
        n_pruned: how many were ended early, and are in no row.
    """
    table = comparison_table(comparison, f"search {study}")
    found = [outcomes[row.runs[0].run_id] for row in comparison.rows]
    cells = [
        Cell(words.excess(one), order=one.order[0], values={"is_within_budget": one.is_within})
        for one in found
    ]
    return replace(
        table,
        columns=(*table.columns, Column("budget", widest=30, is_choice=True)),
        rows=tuple(
            replace(row, cells=(*row.cells, cell))
            for row, cell in zip(table.rows, cells, strict=True)
        ),
        notes=(words.search_note(found, n_pruned), *table.notes),
    )


def _row(comparison: Comparison, row: Configuration, shorts: Mapping[str, str]) -> Row:
    about = {
        "run_ids": " ".join(run.run_id for run in row.runs),
        "name": row.name,
        "experiment": row.runs[0].experiment,
        "started": row.runs[0].started.isoformat(),
        "n_candidates": len(comparison.rows),
        "n_seeds": len(row.runs),
        "seeds": " ".join(row.seeds),
    }
    settings = {key: row.settings.get(key, "") for key in shorts}
    if len(shorts) <= _MOST_COLUMNS:
        cells = [
            Cell(value, order=typed(value), values={key: value}) for key, value in settings.items()
        ]
    else:
        told = ", ".join(f"{shorts[key]}={value}" for key, value in settings.items() if value)
        cells = [Cell(told, values=settings)]
    means = {
        f"forgetting/{name}{end}": value
        for name, mean in _means(row).items()
        for end, value in zip(_ENDS, vars(mean).values(), strict=True)
    }
    return Row(
        (
            Cell(row.name, values=about),
            Cell(row.ids),
            *([Cell(_seeds(row))] if comparison.grouped else []),
            *cells,
            *(_cell(name, row.changes.get(name)) for name in comparison.benchmarks),
            Cell(
                *numbers.mean_points(row.retained, row.retained.sd_over_seeds),
                order=row.retained.value,
                values=means,
            ),
        ),
        hint=_hint(row),
    )


def _cell(name: str, change: MeanChange | None) -> Cell:
    values = dict(zip(_names(name), _quantities(change), strict=True))
    if change is None:
        return Cell(numbers.NOTHING, values=values)
    notes = [words.cause(*change.main_cause)] if change.main_cause else []
    if change.n < change.n_available:
        mean = " in the mean" if change.verdicts.total() > 1 else ""
        notes.append(f"after {numbers.asked(change.n, change.n_available)}{mean}")
    return Cell(
        *numbers.mean_points(change.change, change.change.sd_over_seeds),
        note=", ".join(notes),
        verdict=change.verdict,
        correction=""
        if change.corrected == change.verdicts
        else f" → {change.verdict_corrected} {MARK}",
        order=change.change.value,
        values=values,
    )


@cache
def _names(benchmark: str) -> tuple[str, ...]:
    return tuple(f"forgetting/{benchmark}/{name}" for name in _QUANTITIES)


def _quantities(change: MeanChange | None) -> tuple[Any, ...]:
    """What programs get of a change, as `_QUANTITIES` names it; the names are there without one too."""
    if change is None:
        return (None,) * len(_QUANTITIES)
    verdicts = change.verdict or None, change.verdict_corrected or None
    lost = change.forgetting_rate, change.lost, *(change.main_cause or (None, None))
    asked = change.n, change.n_available if isfinite(change.n_available) else change.n
    return *vars(change.change).values(), *asked, change.p_value, *verdicts, *lost


def _document(comparison: Comparison, row: Configuration) -> dict[str, Any]:
    """A row as JSON has it: with types."""
    benchmarks = {
        name: {
            **dict(zip(_QUANTITIES, _quantities(change), strict=True)),
            "role": change.role,
            "metric": change.metric,
            "verdicts": change.verdicts,
            "verdicts_corrected": change.corrected,
            "causes": change.causes,
        }
        for name, change in row.changes.items()
    }
    return {
        "run_ids": [run.run_id for run in row.runs],
        "name": row.name,
        "experiment": row.runs[0].experiment,
        "started": row.runs[0].started.isoformat(),
        "seeds": [_in_json(seed) for seed in row.seeds],
        "params": {key: _in_json(row.settings.get(key, "")) for key in comparison.params},
        "benchmarks": benchmarks,
        **{name: vars(mean) for name, mean in _means(row).items()},
    }


def _means(row: Configuration) -> dict[str, Pooled]:
    return {"mean_retained_change": row.retained, "mean_target_change": row.target}


def _in_json(text: str) -> Any:
    """A recorded setting with its type.

    >>> _in_json("8"), _in_json("2e-4"), _in_json("True"), _in_json("None"), _in_json("nf4")
    (8, 0.0002, True, None, 'nf4')
    """
    words_of_python = {"None": None, "": None, "True": True, "False": False}
    return words_of_python[text] if text in words_of_python else typed(text)


def _seeds(row: Configuration) -> str:
    return ", ".join(row.seeds) if len(row.seeds) <= _MOST_SEEDS else f"{len(row.seeds)} seeds"


def _hint(row: Configuration) -> str:
    """What tells a row from all others: its runs and its settings, a line each."""
    runs = ", ".join(run.run_id[:8] for run in row.runs)
    told = [f"{key} = {value}" for key, value in row.settings.items() if key.startswith(_TOLD)]
    return "\n".join([row.name, f"{runs}, seed {', '.join(row.seeds)}", *told])


def noise_table(changes: "Mapping[str, Sequence[SeedsChange]]") -> Table:
    """For each configuration of several seeds, by name, the noise of its questions and of its training."""
    headings = ("seeds", "n", "mean change", "questions ±", "training ±", "from seed to seed")
    parts = sorted({change.part for found in changes.values() for change in found if change.part})
    return Table(
        title="The noise of questions and of training",
        columns=(
            Column("run", widest=44),
            Column("benchmark"),
            *(Column(h, is_number=True) for h in headings),
        ),
        rows=tuple(
            Row((Cell("" if i else name, values={"run": name}), *_noise_cells(change)))
            for name, found in changes.items()
            for i, change in enumerate(found)
        ),
        legend=" ".join([words.NOISE_LEGEND, *(f"About {part}." for part in parts)]),
    )


def _noise_cells(change: "SeedsChange") -> list[Cell]:
    noise = change.noise
    subjects = f" ({noise.population})" if noise.n_groups else ""
    means = {"change": noise.mean.value, "low": noise.mean.low, "high": noise.mean.high}
    errors = {
        "question_stderr": noise.question_standard_error,
        "training_stderr": noise.training_standard_error,
        "training_spread": noise.training_spread,
    }
    return [
        Cell(
            change.benchmark + subjects,
            values={"benchmark": change.benchmark, "metric": change.metric},
        ),
        Cell(str(noise.n_seeds), values={"seeds": noise.n_seeds}),
        Cell(f"{change.n:,}", values={"n": change.n, "population": noise.population}),
        Cell(*numbers.points(noise.mean), values=means),
        *(
            Cell(numbers.number(100 * error), values={name: error})
            for name, error in errors.items()
        ),
    ]


# --- figures and page ---------------------------------------------------------------------------------


def figures(comparison: Comparison, param: str | None) -> "dict[str, Figure]":
    """The figures that these runs have something to show in, by name."""
    from slimdown.report.plots import Trade, by_param, heat_map, learning_forgetting

    found: dict[str, Figure] = {}
    if comparison.has_target:
        known = [
            row
            for row in comparison.rows
            if isfinite(row.target.value) and isfinite(row.retained.value)
        ]
        trades = [
            Trade(_point_name(row), row.target, _lost(row.retained), _hint(row)) for row in known
        ]
        found["learning-forgetting"] = learning_forgetting(trades[:_MOST_POINTS])
    if param:
        found[f"by-{param}"] = by_param(param, series_by(comparison, param))
    if len(cells := by_dataset(comparison)) > 1:
        roles = _roles(comparison)
        columns = [words.benchmark_name(name, roles[name]) for name in comparison.benchmarks]
        found["datasets"] = heat_map(columns, cells)
    return found


def _point_name(row: Configuration) -> str:
    """The name, with what else tells this row from others."""
    return f"{row.name} ({f'seeds {_seeds(row)}' if len(row.runs) > 1 else row.ids})"


def _lost(change: Estimate) -> Estimate:
    return Estimate(-change.value, change.standard_error, -change.high, -change.low)


def comparison_page(comparison: Comparison, table: Table, param: str | None) -> str:
    """A page of the table, to be sorted and filtered by a click, and of the runs' figures."""
    captions = {
        "learning-forgetting": words.trade_caption(len(comparison.rows), _MOST_POINTS),
        f"by-{param}": words.by_caption(
            [k for k in comparison.params if k != param], comparison.in_stages
        ),
        "datasets": words.DATASETS_CAPTION,
    }
    drawn = [(figure, captions[name]) for name, figure in figures(comparison, param).items()]
    return table_page(
        table, "", drawn, "" if comparison.has_target else words.NO_TARGET, words.LUCK
    )


def table_page(
    table: Table,
    options: str,
    figures: "Sequence[tuple[Figure, str]]" = (),
    note: str = "",
    luck: str = "",
) -> str:
    """A page that needs nothing but itself.

    Args:
        table: what is shown.
        options: of `slimdown.compare`, that show this table.
        figures: each with what stands below it.
        note: what is said behind them.
        luck: what is said of rows that were sorted; without it, a click sorts and filters none.
    """
    from slimdown.report.pages import render  # jinja2 takes a fifth of a second

    luck = luck if len(table.rows) > 1 else ""
    return render(
        "table_page.html.j2", table=table, options=options, figures=figures, note=note, luck=luck
    )
