"""The view that MLflow's page of an experiment opens with: its runs, columns and charts."""

import json
from collections import Counter
from typing import Any

from slimdown.tracking.metric_names import Tag

VIEW = "slimdown"
_N_RUNS = 200  # the newest decide what the page shows: reading them takes a second
_N_BENCHMARKS = 30  # MLflow takes 20,000 characters for a tag of an experiment


def share_view(client: Any, experiment_id: str) -> None:
    """Share a view of an experiment, as the button "Share" of MLflow's page does.

    It lists the tuned runs with the settings that the newest sweep varied, changes and verdicts.
    The view is a tag of the experiment, see `useSharedExperimentViewState.ts` in
    https://github.com/mlflow/mlflow/tree/v3.17.2/mlflow/server/js/src/experiment-tracking.

    Args:
        client: A client of the store.
        experiment_id: The id of an experiment that exists.
    """
    tuned = f"tags.`{Tag.kind}` = 'tuned'"
    finished = f"{tuned} and attributes.status = 'FINISHED'"
    runs = client.search_runs([experiment_id], finished, max_results=_N_RUNS)
    sweeps = [run.data.tags.get(Tag.sweep) for run in runs]
    newest = [run.data.params for run, name in zip(runs, sweeps, strict=True) if name == sweeps[0]]
    pairs = {pair for params in newest for pair in params.items() if pair[0] != "verdict"}
    n_values = Counter(key for key, _ in pairs)
    columns = {f"params.`{key}`": 70 for key in sorted(n_values) if n_values[key] > 1}
    metrics = {key for run in runs for key in run.data.metrics if key.startswith(Tag.change)}
    names = sorted(key.removeprefix(Tag.change) for key in metrics)[:_N_BENCHMARKS]
    columns |= {"params.`verdict`": 150}
    columns |= {f"metrics.`{Tag.change}{name}`": min(150, 80 + 6 * len(name)) for name in names}
    chart = {"type": "BAR", "metricSectionId": "change", "runsCountToCompare": 10}
    keys = [f"{Tag.change}{name}" for name in names]
    view = {
        "searchFilter": tuned,
        "selectedColumns": list(columns),
        "columnOrder": ["attributes.`Run Name`", *columns],
        "columnWidths": columns,
        "compareRunCharts": [chart | {"uuid": key, "metricKey": key} for key in keys],
        "compareRunSections": [{"uuid": "change", "name": "change", "display": True}],
        "isAccordionReordered": True,  # the sections that MLflow adds come after it
    }
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{VIEW}", json.dumps(view))
