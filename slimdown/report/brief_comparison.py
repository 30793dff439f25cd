"""The table of `slimdown compare` on a console: what was varied, what it did, how sure that is.

One line is one configuration. Above the first line of each base model stand its scores. The table
is never wider than the console: columns that find no room are left out, and named below it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf, isnan
from statistics import fmean

from slimdown.comparison.checkpoints import choose_checkpoint, read_steps
from slimdown.comparison.group_tests import find_differences
from slimdown.comparison.run_comparison import (
    Comparison,
    Configuration,
    describe_model_differences,
    group_rows,
)
from slimdown.comparison.run_order import sort_by_setting, sort_rows
from slimdown.comparison.run_records import KEPT, LEARNED
from slimdown.comparison.value_verdicts import JudgedMean, judge_configurations
from slimdown.comparison.varied_settings import FOLLOWERS, find_varied
from slimdown.config.benchmark_config import Role
from slimdown.report.formatting import (
    EMPTY,
    drop_shared_beginning,
    format_number,
    format_p_value,
    pluralize,
)
from slimdown.report.tables import Cell, Column, Row, Table
from slimdown.report.text import HOW_TO_CONFIRM
from slimdown.stats.seeds import ENOUGH_SEEDS

_FIRST_OUT = 1_000  # the `leave_out_rank` of a column that is left out before any benchmark
_MOST_SHOWN = 3  # settings named above the table, and significant differences named below it
_MODEL = ("model.id", "quantization", "model.dtype")  # the settings that tell base models apart
_NO_SEEDS = (
    "These runs measured finished models, so there are no seeds over which values could be "
    "compared. To compare two of them question by question: slimdown compare RUN RUN --paired"
)


def describe_briefly(
    comparison: Comparison, max_rows: int = 0, by: str | None = None
) -> tuple[list[str], Table]:
    """Describe a comparison for a console.

    Args:
        comparison: The compared runs, in the order of the lines.
        max_rows: The most configurations to show; 0 shows all.
        by: The setting whose values are tested against each other; None: all that were varied.

    Returns:
        The lines above the table, and the table with its notes.
    """
    judged = judge_configurations(comparison)  # for each row, its means by column
    n_shown = min(max_rows or len(judged), len(judged))
    notes = [f"Add --rows 0 to see all {len(judged):,} rows."] if n_shown < len(judged) else []
    notes += describe_claims(comparison, by)
    notes += comparison.notes
    notes += describe_choice(comparison)
    varied, meaning_of_numbers = head_comparison(comparison, by)
    varied_settings = find_settings(comparison, by)
    headings = [f"{meaning_of_numbers}."]
    if varied_settings:
        headings = [f"Varied: {varied}. {meaning_of_numbers}."]
        headings += _describe_other_differences(comparison, varied_settings)
    base_models = {_name_model(row) for row in comparison.rows}
    if len(base_models) == 1 and (base_model := base_models.pop()):  # empty: none is recorded
        headings.append(f"Base model: {base_model}.")
    headings += describe_model_differences([run for row in comparison.rows for run in row.runs])
    table = _make_table(comparison, judged[:n_shown], by)
    return headings, replace(table, notes=tuple(notes))


def _describe_other_differences(comparison: Comparison, varied: Sequence[str]) -> Iterator[str]:
    """Name the other settings in which the runs differ; nothing if there are none.

    Settings that follow from a varied one are not named. If the runs differ in `keep.name`, for
    example, they also differ in what the files of these mitigations set.
    """
    # Sections of which whole files were varied: "keep" by the key "keep.name", or "dataset", which
    # is a key of its own.
    chosen_sections = {
        key.partition(".")[0] for key in varied if key.endswith(".name") or "." not in key
    }
    # `describe_model_differences` names those of the base model.
    left_out_sections = chosen_sections | {"model", "quantization"}
    left_out_keys = {*varied, *FOLLOWERS, "seed"}
    others = [
        key
        for key in comparison.params
        if key not in left_out_keys and key.partition(".")[0] not in left_out_sections
    ]
    if others:
        named = others[:_MOST_SHOWN]
        if len(others) > _MOST_SHOWN:
            named.append(f"{len(others) - _MOST_SHOWN:,} more settings (--all)")
        yield f"The runs also differ in {', '.join(named)}."


def _name_model(row: Configuration) -> str:
    """Return a row's base model: "Qwen/Qwen2.5-0.5B, nf4, bfloat16"; empty if none is recorded."""
    return ", ".join(row.settings[key] for key in _MODEL if row.settings.get(key))


def _make_table(
    comparison: Comparison, judged: Sequence[Mapping[str, JudgedMean]], by: str | None
) -> Table:
    """Make a table with a row for each judged configuration.

    The scores of a base model are a row above the first configuration that has this base model.

    Args:
        comparison: The compared runs.
        judged: For the first rows of the comparison, the means by column; only these are shown.
        by: The setting that is shown first; None: the order of `find_settings`.
    """
    headings = head_columns(comparison)
    ranks = _rank_benchmarks(comparison)
    number_columns = {
        name: Column(heading, is_number=True, leave_out_rank=ranks.get(name, 0))
        for name, heading in headings.items()
    }
    labels = _label_rows(comparison, find_settings(comparison, by))
    rows = list[Row]()
    # The base models that have a row. One that scored otherwise, such as on other questions, gets
    # another row. Scores are rounded, because means over seeds may differ in their last digits.
    shown_bases = list[tuple[str, dict[str, float]]]()
    # `judged` may be shorter than the others.
    for configuration, label, means in zip(comparison.rows, labels, judged, strict=False):
        scores = _average_base_scores(configuration)
        rounded = {name: round(score, 4) for name, score in scores.items()}
        base = _name_model(configuration), rounded
        if base not in shown_bases:
            shown_bases.append(base)
            rows.append(_make_base_row(scores, label, number_columns))
        cells = {column: _show_change(means.get(name)) for name, column in number_columns.items()}
        rows.append(Row({**label, **cells}))
    return Table("", rows)


def _make_base_row(
    scores: Mapping[str, float], label: Iterable[Column], number_columns: Mapping[str, Column]
) -> Row:
    """Return the row of a base model.

    Args:
        scores: Its score on each benchmark, a share.
        label: The columns that name a row. The word "base" stands in the first one.
        number_columns: By benchmark, the column of the scores.
    """
    cells = dict.fromkeys(label, Cell())
    cells[next(iter(label))] = Cell("base")
    for name, column in number_columns.items():
        cells[column] = _show_score(scores.get(name))
    return Row(cells, is_secondary=True)


def _average_base_scores(row: Configuration) -> dict[str, float]:
    """Return the base model's score on each benchmark, a share; the mean over the row's runs."""
    scores: dict[str, list[float]] = {}
    for run in row.runs:
        for name, change in run.changes.items():
            scores.setdefault(name, []).append(change.primary.base.value)
    return {name: fmean(scores_of_runs) for name, scores_of_runs in scores.items()}


def _rank_benchmarks(comparison: Comparison) -> dict[str, int]:
    """Return each benchmark's `leave_out_rank`: those that lost least are left out first.

    A benchmark's loss is that of the row in which it lost most. If there is only one target, it has
    no rank, so that it always stays.
    """
    roles = {n: change.role for row in comparison.rows for n, change in row.changes.items()}
    targets = [name for name, role in roles.items() if role is Role.target]
    worst_changes = {}
    # A benchmark that is the only target is not among these.
    droppable = [name for name in comparison.benchmarks if targets != [name]]
    for name in droppable:
        changes = [row.changes[name].change.value for row in comparison.rows if name in row.changes]
        worst_changes[name] = min((value for value in changes if not isnan(value)), default=inf)
    # The highest rank is left out first, so the largest loss gets the lowest one, and a benchmark
    # that no row measured (inf) the highest.
    ordered = sorted(worst_changes, key=lambda name: worst_changes[name])
    return {name: rank for rank, name in enumerate(ordered, start=1)}


def _show_score(score: float | None) -> Cell:
    """Show a base score; two spaces stand where the changes below have a sign."""
    return Cell("" if score is None else f"{format_number(100 * score)}  ")


def _show_change(mean: JudgedMean | None) -> Cell:
    """Show a mean change with the sign of its verdict; a dash if it was not measured."""
    if mean is None or isnan(mean.value):
        return Cell(f"{EMPTY}  ")
    return Cell(format_number(100 * mean.value, "+.1f"), sign=mean.verdict or "watched")


def _label_rows(comparison: Comparison, settings: Sequence[str]) -> list[dict[Column, Cell]]:
    """Return the cells that name each row: the run's id, its name, and the settings that differ.

    If no user gave names, the rows get the names of their runs, but only if their settings are not
    enough to tell them apart.

    Args:
        comparison: The compared runs.
        settings: The varied settings, in the order of their columns. Those of the base model are
            added if they differ.
    """
    rows = comparison.rows
    shown_settings = [*settings]
    for key in _MODEL:
        if key not in settings and len({row.settings.get(key) for row in rows}) > 1:
            shown_settings.append(key)
    values = {key: [row.settings.get(key) or EMPTY for row in rows] for key in shown_settings}
    # By setting, what each row shows: paths lack the folders that all of them begin with.
    short_values = {key: drop_shared_beginning(texts, "/") for key, texts in values.items()}
    combinations = {*zip(*short_values.values(), strict=True)}
    # Names that a user gave stay on a narrow console. Names of runs are left out first.
    names, name_rank = [row.given_name or EMPTY for row in rows], 0
    if len({*names}) == 1:  # no user gave names, or all rows have the same
        settings_are_enough = len(combinations) == len(rows)
        names = [] if settings_are_enough else [row.name for row in rows]
        name_rank = _FIRST_OUT
    labels = []
    for number, row in enumerate(rows):
        cells = {Column("run"): Cell(row.id_or_count)}
        if names:
            cells[Column("name", is_name=True, leave_out_rank=name_rank)] = Cell(names[number])
        for key, texts in short_values.items():
            cells[Column(key, is_name=True)] = Cell(texts[number])
        labels.append(cells)
    return labels


def describe_choice(comparison: Comparison) -> Iterator[str]:
    """Say which checkpoint to take, and how to confirm a choice on held-out questions.

    If the rows are not checkpoints of one training, say only how to confirm a choice, and nothing
    if no questions were held out.
    """
    if not read_steps(comparison):
        if comparison.holds_out:
            yield HOW_TO_CONFIRM
        return
    chosen = choose_checkpoint(comparison)
    if not chosen:
        yield "No checkpoint has all its measured losses within their budgets."
        return
    rise = format_number(100 * chosen.learned, "+.1f")  # points
    if chosen.learned <= 0:  # not so if it is nan
        yield (
            "Among the steps whose measured losses are within their budgets, none improved the "
            f"targets (the best is step {chosen.step:,}: {rise} points). Train longer, or ask "
            "more questions."
        )
        return
    reason = f"its targets improved most ({rise} points)"
    if isnan(chosen.learned):  # no target was asked, so nothing says what was learned
        reason = "it is the last one (no target was measured)"
    yield (
        f"Take step {chosen.step:,}: among the steps whose measured losses are within their "
        f"budgets, {reason}."
    )
    if comparison.holds_out:
        run_id = chosen.row.runs[0].run_id[:8]
        yield f"Next, confirm it on the held-out questions: slimdown compare {run_id} --confirm"
    else:
        yield (
            "If you want to confirm your choice on held-out questions, measure the checkpoints "
            "with evaluation.holdout=0.5."
        )


def find_settings(comparison: Comparison, by: str | None = None) -> list[str]:
    """Return the settings whose values the lines show: what was varied, and seeds not grouped.

    Args:
        comparison: The compared runs.
        by: The setting that comes first, varied or not; None: the order of `find_varied`.
    """
    rows, keys = comparison.rows, set(comparison.params)
    differing = [{k: v for k, v in row.settings.items() if k in keys} for row in rows]
    varied = find_varied([row.name for row in rows], differing)
    # `find_varied` leaves the seed out. Rows only differ in it if none is a mean over seeds.
    if "seed" in keys:
        varied = [*varied, "seed"]
    return [by, *(key for key in varied if key != by)] if by else varied


def order_by_settings(comparison: Comparison, by: str | None = None) -> Comparison:
    """Order the rows by what was varied, `by` first."""
    # Sorting is stable, so the setting that is sorted by last decides first.
    for setting in reversed(find_settings(comparison, by)):
        comparison = sort_rows(comparison, setting)
    return comparison


def head_comparison(comparison: Comparison, by: str | None = None) -> tuple[str, str]:
    """Say what was varied, and what the numbers mean.

    Returns:
        The varied settings ("lora.r, seed"), or "runs" if nothing was varied. And sentences on the
        seeds and the units of the numbers, without the last full stop.
    """
    varied = ", ".join(find_settings(comparison, by)) or "runs"
    counts = sorted({len(row.runs) for row in comparison.rows})  # of seeds
    means, scope = "one seed", "A verdict holds for that training run only"
    if counts[-1] > 1:
        n_seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        means = f"the mean over {n_seeds} seeds"
        scope = "Verdicts over several seeds generalise to new seeds"
    return varied, (
        f"Each row is {means}. Changes are in percentage points against the base model, whose row "
        f"shows scores in percent. {scope}"
    )


def head_columns(comparison: Comparison) -> dict[str, str]:
    """Return the headings by column, in their order: `learned`, benchmarks, `kept`.

    `learned` is a column only if there are several targets, and `kept` only if there are several
    retained benchmarks. A single target is a column under its own name, with the heading "learned".
    """
    names = comparison.benchmarks
    roles = {n: change.role for row in comparison.rows for n, change in row.changes.items()}
    targets = [name for name in names if roles[name] is Role.target]
    short_names = dict(zip(names, drop_shared_beginning(names, "_"), strict=True))
    headings = {LEARNED: LEARNED} if len(targets) > 1 else {}
    headings |= {name: LEARNED if targets == [name] else short_names[name] for name in names}
    if sum(roles[name] is Role.retained for name in names) > 1:
        headings[KEPT] = KEPT
    return headings


def list_tested(comparison: Comparison, by: str | None = None) -> list[str]:
    """Return the settings whose values are tested against each other: `by`, or what was varied."""
    if by:
        return [by]
    # Checkpoints of one training have no seeds to test by, and one row has nothing to compare.
    if read_steps(comparison) or len(comparison.rows) < 2:
        return []
    return [key for key in find_settings(comparison) if key != "seed"]


def describe_claims(
    comparison: Comparison, by: str | None = None, most: int = _MOST_SHOWN
) -> Iterator[str]:
    """Name the significant differences between values of a setting, or say that there are none.

    If nothing could be tested, the reason is said. Nothing is yielded if no setting was varied.

    Args:
        comparison: The compared runs.
        by: The setting whose values are tested; None: all that were varied.
        most: The most differences to name, the clearest first.
    """
    headings = head_columns(comparison)
    tested_settings = list_tested(comparison, by)
    if not tested_settings:
        return
    if "seed" in find_settings(comparison):  # rows may be single seeds; tests need them grouped
        comparison = sort_by_setting(group_rows(comparison), tested_settings[0])
    found = find_differences(comparison, *tested_settings)
    if not found.tested:
        are_finished_models = all(row.settings.get("tuned") for row in comparison.rows)
        yield _NO_SEEDS if are_finished_models else found.reason
        return
    claims = list[str]()
    for difference in found.shown[:most]:
        value = difference.value
        if len(tested_settings) > 1:
            value = f"{difference.setting}={value}"
        benchmark = headings.get(difference.benchmark, difference.benchmark)
        p_name = "p" if claims else "corrected p"  # "corrected" is said once
        claims.append(
            f"{value} is {difference.points} points {difference.side} {difference.other} on "
            f"{benchmark}{difference.where} ({p_name} {_show_p_value(difference.p_value)})"
        )
    if len(found.shown) > most:
        claims.append(f"{pluralize(len(found.shown) - most, 'more difference')} (--all)")
    if claims:
        has_others = len(found.shown) < len(found.tested)
        rest = " No other difference is significant." if has_others else ""
        yield f"Significant differences: {'; '.join(claims)}.{rest}"
    else:
        clearest = found.tested[0]  # the one with the smallest p-value
        benchmark = headings.get(clearest.benchmark, clearest.benchmark)
        yield (
            f"No difference between the values of {' or '.join(tested_settings)} is significant "
            f"(smallest corrected p {_show_p_value(clearest.p_value)}, on {benchmark}). More seeds "
            "may reveal one."
        )
    if found.has_few_seeds:
        yield (
            f"With fewer than {ENOUGH_SEEDS} seeds, the tests assume that all values vary equally "
            "from seed to seed."
        )


def _show_p_value(p_value: float) -> str:
    """Show a p-value with its sign: "= 0.045" or "< 0.001"."""
    shown = format_p_value(p_value)
    return shown if shown.startswith("<") else f"= {shown}"
