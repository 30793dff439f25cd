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
    headings = head_columns(grouped)  # by column: `learned`, benchmarks, `kept`
    axis_setting, *other_settings = settings
    steps = [f"{step:,}" for step in read_steps(grouped)]  # empty unless the rows are checkpoints
    values = [row.settings.get(axis_setting, EMPTY) for row in grouped.rows]
    labels = steps or drop_shared_beginning(values, "/")
    # By column, a mean for each row; nan if the row did not measure this column.
    columns: dict[str, list[DrawnMean]] = {name: [] for name in headings}
    judged_rows = judge_configurations(grouped)
    for row, label, judged in zip(grouped.rows, labels, judged_rows, strict=True):
        others = " ".join(f"{key}={row.settings.get(key, EMPTY)}" for key in other_settings)
        for name in headings:
            mean = judged[name].shown if name in judged else Estimate(nan, nan, nan, nan)
            columns[name].append(DrawnMean(label, others, _list_seeds(row, name), mean))
    panels = {
        headings[name]: means
        for name, means in columns.items()
        if any(isfinite(drawn.mean.value) for drawn in means)
    }
    if not panels:
        return []
    figure = draw_seeds(axis_setting, panels)
    phone_figure = draw_seeds(axis_setting, panels, PHONE_WIDTH)
    seeds_figure = (figure, phone_figure, _SEEDS_CAPTION)
    return [seeds_figure, *_draw_learned(grouped, axis_setting, columns)]


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
    drawn_learned, drawn_kept = list[DrawnMean](), list[DrawnMean]()
    for learned_mean, kept_mean in zip(learned, kept, strict=True):
        if isfinite(learned_mean.mean.value) and isfinite(kept_mean.mean.value):
            drawn_learned.append(learned_mean)
            drawn_kept.append(kept_mean)
    if len(drawn_kept) < 2:
        return []
    draw = partial(draw_learned_and_kept, setting, drawn_learned, drawn_kept, unit)
    return [(draw(), draw(PHONE_WIDTH), _LEARNED_CAPTION)]


def _find_only(
    columns: dict[str, list[DrawnMean]], roles: dict[str, Role], role: Role
) -> list[DrawnMean]:
    """Return the column of the only benchmark that has a role; empty if none has it."""
    return next((columns[name] for name, its_role in roles.items() if its_role is role), [])


def _list_seeds(row: Configuration, name: str) -> list[float]:
    """Return the change of each seed in a column, a share; seeds that lack it are left out.

    The column is a benchmark's, or `learned` or `kept`. These two average, for each seed, the
    benchmarks that the row's own mean averages (`Configuration.target` and `retained`): those of
    the role whose metrics are comparable, without those that are unclear in any run.
    """
    names = [name]
    if name in (LEARNED, KEPT):
        role = Role.target if name == LEARNED else Role.retained
        changes_of_role = [
            (benchmark, change)
            for run in row.runs
            for benchmark, change in run.changes.items()
            if change.role is role
        ]
        unclear = {benchmark for benchmark, change in changes_of_role if not change.is_measured}
        comparable = list_comparable({name: change.metric for name, change in changes_of_role})
        names = [benchmark for benchmark in comparable if benchmark not in unclear]
    values = []
    for run in row.runs:
        changes = [run.changes[benchmark] for benchmark in names if benchmark in run.changes]
        if changes:
            values.append(fmean(change.primary.difference.value for change in changes))
    return values
