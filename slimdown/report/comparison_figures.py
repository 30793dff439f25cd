"""The figures of a comparison: each seed by what was varied, and learned against kept."""

from dataclasses import replace
from math import isfinite, nan

from matplotlib.figure import Figure

from slimdown.comparison.checkpoints import read_steps
from slimdown.comparison.run_comparison import Comparison, Configuration, compare_runs
from slimdown.comparison.run_records import KEPT, LEARNED
from slimdown.comparison.value_verdicts import judge_configurations
from slimdown.config.benchmark_config import Role
from slimdown.report.brief_comparison import find_settings, head_columns, order_by_settings
from slimdown.report.figures import (
    PHONE_WIDTH,
    DrawnMean,
    draw_learned_and_kept,
    draw_seeds,
)
from slimdown.report.formatting import EMPTY, drop_shared_folders
from slimdown.stats.estimates import Estimate

_MOST_DRAWN = 60  # configurations: more are not legible
_OF_SEEDS = (
    "Changes in percentage points. Each small dot is one seed. The marker beside the dots is their "
    "mean with the confidence interval of its verdict. The axes are chosen so that all dots are "
    "visible; a long interval may extend beyond them."
)
_OF_BOTH = (
    "Higher means that more was learned. Further right means that more was kept: this is the mean "
    "change of the benchmarks that were not trained for. A line joins the values in their order. "
    "The bars are the confidence intervals of the verdicts."
)
PageFigure = tuple[Figure, Figure | None, str]  # for a page, for a phone, and what it shows


def draw_comparison(comparison: Comparison, by: str | None = None) -> list[PageFigure]:
    """Draw a comparison by what was varied; nothing where nothing was, or too much.

    Args:
        comparison: The compared runs.
        by: The setting along the axes; None: the first that was varied.
    """
    runs = [run for row in comparison.rows for run in row.runs]
    grouped = compare_runs(runs, corrects=False)
    settings = find_settings(grouped, by)
    if not settings or not 1 < len(grouped.rows) <= _MOST_DRAWN:
        return []
    grouped = order_by_settings(grouped, by)
    names = head_columns(grouped)
    columns: dict[str, list[DrawnMean]] = {name: [] for name in names}
    for row, judged in zip(grouped.rows, judge_configurations(grouped), strict=True):
        value, *others = (row.settings.get(key, EMPTY) for key in settings)
        shared = " ".join(f"{k}={v}" for k, v in zip(settings[1:], others, strict=True))
        for name in names:
            mean = judged[name].shown if name in judged else Estimate(nan, nan, nan, nan)
            columns[name].append(DrawnMean(value, shared, _list_seeds(row, name), mean))
    steps = [f"{step:,}" for step in read_steps(grouped)]
    short = steps or drop_shared_folders(
        [row.settings.get(settings[0], EMPTY) for row in grouped.rows]
    )
    columns = {
        name: [replace(one, value=value) for one, value in zip(means, short, strict=True)]
        for name, means in columns.items()
    }
    seen = {
        names[name]: [one for one in means if isfinite(one.mean.value)]
        for name, means in columns.items()
    }
    seen = {heading: means for heading, means in seen.items() if means}
    if not seen:
        return []
    both = draw_seeds(settings[0], seen), draw_seeds(settings[0], seen, PHONE_WIDTH)
    return [(*both, _OF_SEEDS), *_draw_learned(grouped, settings[0], columns)]


def _draw_learned(
    comparison: Comparison, setting: str, columns: dict[str, list[DrawnMean]]
) -> list[PageFigure]:
    """Draw what was learned against what was kept, where both were measured.

    Without a target, what was learned is how far the loss on held-out rows fell.
    """
    roles = {name: one.role for row in comparison.rows for name, one in row.changes.items()}
    kept = columns.get(KEPT) or _find_only(columns, roles, Role.retained)
    learned, unit = columns.get(LEARNED) or _find_only(columns, roles, Role.target), "points"
    if not learned and kept:
        unit = "held-out loss, 0.01 nats per token"
        losses = [row.learned_loss for row in comparison.rows]
        means = [Estimate(loss, nan, nan, nan) for loss in losses]
        learned = [replace(one, mean=mean) for one, mean in zip(kept, means, strict=True)]
    pairs = [
        pair
        for pair in zip(learned, kept, strict=True)
        if all(isfinite(one.mean.value) for one in pair)
    ]
    if len(pairs) < 2:
        return []
    both = setting, [one for one, _ in pairs], [one for _, one in pairs], unit
    figures = draw_learned_and_kept(*both), draw_learned_and_kept(*both, PHONE_WIDTH)
    return [(*figures, _OF_BOTH)]


def _find_only(
    columns: dict[str, list[DrawnMean]], roles: dict[str, Role], role: Role
) -> list[DrawnMean]:
    """Return the column of the one benchmark with a role; nothing where there are none."""
    return next((columns[name] for name, of in roles.items() if of is role), [])


def _list_seeds(row: Configuration, name: str) -> list[float]:
    """Return the change of each seed, of a benchmark or of the mean over a role."""
    roles = {LEARNED: Role.target, KEPT: Role.retained}
    values = []
    for run in row.runs:
        of = [c for n, c in run.changes.items() if n == name or c.role is roles.get(name)]
        if name not in run.changes:
            of = [change for change in of if change.is_measured]
        if of:
            values.append(sum(change.primary.difference.value for change in of) / len(of))
    return values
