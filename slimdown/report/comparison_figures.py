"""The figures of a comparison: each seed by what was varied, and learned against kept."""

from dataclasses import replace
from functools import partial
from math import isfinite, nan
from statistics import fmean

from matplotlib.figure import Figure

from slimdown.comparison.checkpoints import read_steps
from slimdown.comparison.run_comparison import Comparison, Configuration, group_rows
from slimdown.comparison.run_records import KEPT, LEARNED
from slimdown.comparison.value_verdicts import judge_configurations
from slimdown.config.benchmark_config import Role
from slimdown.judging.verdicts import list_comparable
from slimdown.report.brief_comparison import find_settings, head_columns, order_by_settings
from slimdown.report.figures import PHONE_WIDTH, DrawnMean, draw_learned_and_kept, draw_seeds
from slimdown.report.formatting import EMPTY, drop_shared_beginning
from slimdown.stats.estimates import Estimate

_MOST_DRAWN = 60  # configurations: more are not legible
_SEEDS_CAPTION = (
    "Changes in percentage points. Each small dot is one seed. The marker beside the dots is their "
    "mean with the confidence interval of its verdict. The axes are chosen so that all dots are "
    "visible; a long interval may extend beyond them."
)
_LEARNED_CAPTION = (
    "Higher means that more was learned. Further right means that more was kept: this is the mean "
    "change of the benchmarks that were not trained for. A line joins the values in their order. "
    "The bars are the confidence intervals of the verdicts."
)
PageFigure = tuple[Figure, Figure, str]  # for a wide screen, for a phone, and the caption


def draw_comparison(comparison: Comparison, by: str | None = None) -> list[PageFigure]:
    """Draw a comparison by what was varied.

    Args:
        comparison: The compared runs; runs that differ only in their seed are drawn together.
        by: The setting along the axes; None: the first that was varied.

    Returns:
        First the seeds and means of each column. Then, if two configurations have both, what was
        learned against what was kept. Nothing if there is only one configuration or more than
        `_MOST_DRAWN`, no setting was varied, or nothing was measured.
    """
    grouped = group_rows(comparison)
    settings = find_settings(grouped, by)
    if not settings or not 1 < len(grouped.rows) <= _MOST_DRAWN:
        return []
    grouped = order_by_settings(grouped, by)
    columns = _collect_means(grouped, settings)
    headings = head_columns(grouped)
    panels = {
        headings[name]: means
        for name, means in columns.items()
        if any(isfinite(drawn.mean.value) for drawn in means)
    }
    if not panels:
        return []
    draw = partial(draw_seeds, settings[0], panels)
    seeds_figure = (draw(), draw(PHONE_WIDTH), _SEEDS_CAPTION)
    return [seeds_figure, *_draw_learned(grouped, settings[0], columns)]


def _collect_means(grouped: Comparison, settings: list[str]) -> dict[str, list[DrawnMean]]:
    """Return by column (`learned`, benchmarks, `kept`) a mean for each row.

    The mean is nan if the row did not measure the column.

    Args:
        grouped: The compared runs, grouped by seed.
        settings: The varied settings. The values of the first one label the means.
    """
    axis_setting, *other_settings = settings
    steps = [f"{step:,}" for step in read_steps(grouped)]  # empty unless the rows are checkpoints
    values = [row.settings.get(axis_setting, EMPTY) for row in grouped.rows]
    labels = steps or drop_shared_beginning(values, "/")
    columns: dict[str, list[DrawnMean]] = {name: [] for name in head_columns(grouped)}
    judged_rows = judge_configurations(grouped)
    for row, label, judged in zip(grouped.rows, labels, judged_rows, strict=True):
        others = " ".join(f"{key}={row.settings.get(key, EMPTY)}" for key in other_settings)
        for name, means in columns.items():
            mean = judged[name].shown if name in judged else Estimate(nan, nan, nan, nan)
            means.append(DrawnMean(label, others, _list_seeds(row, name), mean))
    return columns


def _draw_learned(
    comparison: Comparison, setting: str, columns: dict[str, list[DrawnMean]]
) -> list[PageFigure]:
    """Draw what was learned against what was kept; nothing if fewer than two rows have both.

    Without a target benchmark, what was learned is how far the loss on held-out rows fell.

    Args:
        comparison: The compared runs, grouped by seed.
        setting: The setting whose values name the dots.
        columns: By column, a mean for each row of the comparison; nan where it was not measured.
    """
    roles = {name: change.role for row in comparison.rows for name, change in row.changes.items()}
    # A role has a column of means only if it has several benchmarks.
    kept = columns.get(KEPT) or _find_only(columns, roles, Role.retained)
    learned = columns.get(LEARNED) or _find_only(columns, roles, Role.target)
    if not kept:  # only target or watched benchmarks were asked
        return []
    unit = "points"
    if not learned:
        unit = "held-out loss, 0.01 nats per token"  # the figure shows 100 times the number
        learned = [
            replace(kept_mean, mean=Estimate(row.learned_loss, nan, nan, nan))
            for kept_mean, row in zip(kept, comparison.rows, strict=True)
        ]
    pairs = [
        pair
        for pair in zip(learned, kept, strict=True)
        if all(isfinite(drawn.mean.value) for drawn in pair)
    ]
    if len(pairs) < 2:
        return []
    drawn_learned, drawn_kept = zip(*pairs, strict=True)
    draw = partial(draw_learned_and_kept, setting, drawn_learned, drawn_kept, unit)
    return [(draw(), draw(PHONE_WIDTH), _LEARNED_CAPTION)]


def _find_only(
    columns: dict[str, list[DrawnMean]], roles: dict[str, Role], role: Role
) -> list[DrawnMean]:
    """Return the column of the only benchmark that has a role; empty if none has it."""
    return next((columns[name] for name, its_role in roles.items() if its_role is role), [])


def _list_seeds(row: Configuration, name: str) -> list[float]:
    """Return the change of each seed in a column, a share; seeds that lack it are left out.

    The column is a benchmark's, or `learned` or `kept`, which average several benchmarks.
    """
    role = {LEARNED: Role.target, KEPT: Role.retained}.get(name)
    benchmarks = _list_averaged(row, role) if role else [name]
    changes_of_seeds = []
    for run in row.runs:
        changes = [run.changes[benchmark] for benchmark in benchmarks if benchmark in run.changes]
        if changes:
            changes_of_seeds.append(fmean(change.primary.difference.value for change in changes))
    return changes_of_seeds


def _list_averaged(row: Configuration, role: Role) -> list[str]:
    """Return the benchmarks that the mean of a role averages, as `Configuration.target` does.

    Their metrics are comparable, and the changes of all runs on them are measured.
    """
    changes = [pair for run in row.runs for pair in run.changes.items() if pair[1].role is role]
    comparable = list_comparable({name: change.metric for name, change in changes})
    unmeasured = {name for name, change in changes if not change.is_measured}
    return [name for name in comparable if name not in unmeasured]
