"""The view that MLflow's page of an experiment opens with: its runs, columns and charts."""

import json
from collections.abc import Sequence
from math import isfinite
from statistics import fmean
from typing import Any

from slimdown.comparison.varied_settings import find_varied
from slimdown.tracking.metrics_and_tags import Tag

VIEW = "slimdown"
_N_RUNS = 200  # the newest decide what the page shows: reading them takes a second
_N_BENCHMARKS = 30  # MLflow takes 20,000 characters for a tag of an experiment
_KIND = "mlflow.experimentKind"
# MLflow always shows these columns: the second as narrow as its icon, the third at the end.
_NAME, _CREATED, _DURATION = "attributes.`Run Name`", "runDateAndNestInfo", "duration"


def share_view(client: Any, experiment_id: str) -> None:
    """Share a view of an experiment, as the button "Share" of MLflow's page does.

    The view lists the fine-tuning runs. Its columns are the settings that the newest sweep varied,
    the metric `kept` with its confidence interval, what was learned, the verdicts, and the changes,
    the largest loss first.

    Seeds are not grouped: MLflow would average the ends of their intervals, and these averages are
    no interval of the group.

    The experiment's page is also set to the kind for model training, unless somebody chose another
    kind. MLflow marks a kind that it inferred itself as `..._inferred`.

    MLflow keeps the view as a tag of the experiment, see `useSharedExperimentViewState.tsx` in
    https://github.com/mlflow/mlflow/tree/v3.17.2/mlflow/server/js/src/experiment-tracking.

    Args:
        client: A client of the store.
        experiment_id: The id of an experiment that exists.
    """
    kind = client.get_experiment(experiment_id).tags.get(_KIND, "")
    if kind in ("", "no_inferred_type") or kind.endswith("_inferred"):
        client.set_experiment_tag(experiment_id, _KIND, "custom_model_development")
    is_tuned = f"tags.`{Tag.kind}` = 'tuned'"
    is_finished = f"{is_tuned} and attributes.status = 'FINISHED'"
    runs = client.search_runs([experiment_id], is_finished, max_results=_N_RUNS)
    text = json.dumps(build_view(runs, filter_string=is_tuned))
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{VIEW}", text)


def build_view(runs: Sequence[Any], filter_string: str) -> dict[str, Any]:
    """Build the view of an experiment's page, see `share_view`.

    Args:
        runs: Finished fine-tuning runs as MLflow gives them, newest first.
        filter_string: MLflow's filter for the runs that the page lists.

    Returns:
        The view as MLflow's page writes and reads it, to be kept as JSON.
    """
    # If the newest run belongs to no sweep, this is None, and `sweep_runs` are all runs outside
    # sweeps.
    newest_sweep = runs[0].data.tags.get(Tag.sweep) if runs else None
    sweep_runs = [run for run in runs if run.data.tags.get(Tag.sweep) == newest_sweep]
    names = [run.info.run_name or "" for run in sweep_runs]
    varied = find_varied(names, [run.data.params for run in sweep_runs])
    means = _average_metrics(runs)
    learned = "learned"
    if "learned" not in means and "learned_loss" in means:
        learned = "learned_loss"  # without target benchmarks, the loss on held-out rows tells it
    outcome = [name for name in ("kept", "kept_low", "kept_high", learned) if name in means]
    changes = [name for name in means if name.startswith(Tag.change)]
    # The largest loss comes first.
    changes = sorted(changes, key=lambda name: means[name])[:_N_BENCHMARKS]
    verdicts = [str(run.data.tags.get(Tag.verdict, "")) for run in runs]
    column_widths = _choose_widths(varied, outcome, verdicts, changes)
    axes = [name for name in (learned, "kept") if name in means]
    charts = _arrange_charts(settings=varied or ["seed"], outcome=axes, changes=changes)
    return {
        "searchFilter": filter_string,
        "selectedColumns": list(column_widths),
        "columnOrder": [_NAME, _CREATED, *column_widths, _DURATION],
        "columnWidths": {_NAME: 150, _CREATED: 38, **column_widths, _DURATION: 80},
        "groupBy": None,
        "useGroupedValuesInCharts": False,
        **charts,
        "isAccordionReordered": True,  # the sections that MLflow adds come after these
    }


def _choose_widths(
    varied: Sequence[str], outcome: Sequence[str], verdicts: Sequence[str], changes: Sequence[str]
) -> dict[str, int]:
    """Return the columns in their order, each with its width in pixels.

    The column of a setting or a change is as wide as its heading, with about 7 pixels per letter
    and a border. That of a setting is at most 110 pixels wide, that of a change at least 84. The
    column of the verdicts is as wide as the longest text in it, and at most 160 pixels.

    Args:
        varied: The names of the settings that the newest sweep varied, without the seed.
        outcome: The names of the metrics that say how much was kept and learned.
        verdicts: The verdicts of each run, as one text.
        changes: The names of the metrics that hold the change of one benchmark.
    """
    widths = {f"params.`{key}`": min(110, 24 + 7 * len(key)) for key in varied}
    widths["params.`seed`"] = 52
    widths |= {f"metrics.`{key}`": 90 for key in outcome}
    if longest_verdict := max(map(len, verdicts), default=0):
        widths[f"tags.`{Tag.verdict}`"] = min(160, 70 + 6 * longest_verdict)
    return widths | {f"metrics.`{key}`": max(84, 24 + 7 * len(key)) for key in changes}


def _average_metrics(runs: Sequence[Any]) -> dict[str, float]:
    """Return the mean of each metric over the runs that have it."""
    values_by_name: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.data.metrics.items():
            if isfinite(value):
                values_by_name.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in values_by_name.items()}


def _arrange_charts(
    settings: Sequence[str], outcome: Sequence[str], changes: Sequence[str]
) -> dict[str, Any]:
    """Return a plot from settings to outcome, and bars of each change, two in a row."""
    plot = {"uuid": "settings", "type": "PARALLEL", "metricSectionId": "outcome"}
    axes = {"selectedParams": settings, "selectedMetrics": outcome, "showAllRuns": True}
    bar = {"type": "BAR", "metricSectionId": "change"}
    bars = [bar | {"uuid": name, "metricKey": name} for name in changes]
    sections = [
        {"uuid": "outcome", "name": "learned and kept", "display": True, "columns": 1},
        {"uuid": "change", "name": "change", "display": True, "columns": 2},
    ]
    return {"compareRunCharts": [plot | axes, *bars], "compareRunSections": sections}
