"""The models of the record as MLflow's logged models: bases, and what was trained or made of it.

A run's page and the tab "Models" show them with the metrics that were measured on them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdown.config.tracking_config import TrackingConfig
from slimdown.tracking import store
from slimdown.tracking.metrics_and_tags import Tag
from slimdown.utils.errors import TrackingError
from slimdown.utils.hashing import hash_json
from slimdown.utils.secrets import redact_leaf

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric

    from slimdown.models.base_model import LoadedModel

_MAX_NAME = 250  # characters of a model's name
# The metrics of a model that was made, which belong to no single benchmark.
_MEAN_METRICS = frozenset({"learned", "learned_loss", "kept", "kept_low", "kept_high"})


class ModelKind(StrEnum):
    """How a model came about; MLflow shows it as the model's type."""

    base = "base"
    tuned = "tuned"
    scaled = "scaled"
    merged = "merged"


@dataclass(frozen=True)
class ModelRecord:
    """What the record says about a model.

    Attributes:
        kind: How it came about.
        name: Shown in MLflow.
        params: Its settings.
        key: Identifies the model: two records with the same key describe the same model.
    """

    kind: ModelKind
    name: str
    params: Mapping[str, str]
    key: str = field(repr=False)


def describe_base(base: "LoadedModel") -> ModelRecord:
    """Describe a base: runs on the same weights, quantized alike, share its entry."""
    params = {
        "model.id": base.id,
        "model.revision": base.revision,
        "quantization": base.quantization,
        "dtype": base.dtype,
    }
    name = f"{base.id.rpartition('/')[2]} {base.quantization}"
    return ModelRecord(ModelKind.base, name, params, f"base {hash_json(params)}")


def describe_named(model_id: str) -> ModelRecord:
    """Describe a base of which only the name is known, as logs name it."""
    params = {"model.id": model_id}
    return ModelRecord(ModelKind.base, model_id, params, f"base {hash_json(params)}")


def describe_made(
    kind: ModelKind, run_id: str, name: str, params: Mapping[str, str], detail: str = ""
) -> ModelRecord:
    """Describe a model that a run trained, or that was made of it; `detail` tells two apart."""
    return ModelRecord(kind, name, params, f"{kind.value} {run_id} {detail}".rstrip())


def find_or_create_model(
    client: Any, experiment_id: str, record: ModelRecord, run_id: str | None = None
) -> Any:
    """Return MLflow's entry of a model; a new one is not marked as ready and has no files.

    Args:
        client: A client of the store.
        experiment_id: The experiment.
        record: Describes the model. An entry with the same key is the same model.
        run_id: The run that made it.
    """
    with_key = f"tags.`{Tag.model_key}` = '{record.key}'"
    if models := client.search_logged_models([experiment_id], with_key, max_results=1):
        return models[0]
    # MLflow forbids some characters, and others break the address `runs:/RUN_ID/NAME`.
    name = re.sub(r"[^\w=,+ -]", "_", redact_leaf(record.name), flags=re.ASCII)[:_MAX_NAME]
    params = {key: redact_leaf(value) for key, value in record.params.items() if value}
    tags = {Tag.model_key.value: record.key, Tag.kind.value: record.kind.value}
    model_type = record.kind.value
    return client.create_logged_model(
        experiment_id, name, source_run_id=run_id, tags=tags, params=params, model_type=model_type
    )


def log_model(
    client: Any,
    experiment_id: str,
    record: ModelRecord,
    run_id: str | None = None,
    folder: Path | None = None,
) -> str:
    """Find a model in an experiment, or add it; an entry that a kill left unready is completed.

    Args:
        client: A client of the store.
        experiment_id: The experiment.
        record: Describes the model. An entry with the same key is the same model.
        run_id: The run that made it; None for a base.
        folder: The model's files; they are in the record before the model is marked as ready.

    Returns:
        MLflow's id of the model.
    """
    from mlflow.entities import LoggedModelStatus

    model = find_or_create_model(client, experiment_id, record, run_id)
    if str(model.status) != LoggedModelStatus.READY.value:
        if folder:
            client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def log_base(client: Any, tracking: TrackingConfig, experiment_id: str, base: ModelRecord) -> str:
    """Find or add a base; a lock keeps two processes of this machine from adding it twice.

    Returns:
        MLflow's id of the model.
    """
    with store.lock(tracking, "models"):
        return log_model(client, experiment_id, base)


def link_models(client: Any, run_id: str, base_id: str = "", made_id: str = "") -> None:
    """Show the models on a run's page: what it began with, and what it made."""
    from mlflow.entities import LoggedModelInput, LoggedModelOutput

    run = client.get_run(run_id)
    inputs = {model.model_id for model in run.inputs.model_inputs} if run.inputs else set()
    outputs = {model.model_id for model in run.outputs.model_outputs} if run.outputs else set()
    if base_id and base_id not in inputs:
        client.log_inputs(run_id, models=[LoggedModelInput(base_id)])
    if made_id and made_id not in outputs:
        client.log_outputs(run_id, [LoggedModelOutput(made_id, step=0)])


def assign_metrics(
    values: Mapping[str, float],
    questions: Mapping[str, "DatasetInput"],
    base_id: str,
    made_id: str,
    timestamp: int,
) -> "list[Metric]":
    """Return the metrics of a run, each with the model and the questions that it belongs to.

    A score of the base belongs to the base. Every other number about a benchmark, such as a change,
    belongs to the model that was made, and so do the means over benchmarks. A metric of the run as
    a whole, such as a cost, belongs to no model.

    Args:
        values: Metrics by name, such as `base/gsm8k`; what follows the slash is the benchmark.
        questions: By benchmark, what `describe_questions` returned.
        base_id: MLflow's id of the base model; empty if MLflow has no entry of it.
        made_id: MLflow's id of the model that the run made; empty if there is none.
        timestamp: When they were measured, in milliseconds.
    """
    from mlflow.entities import Metric

    metrics = []
    for key, value in values.items():
        kind, _, benchmark = key.partition("/")  # base, change, bits_per_byte_base, ...
        dataset = questions[benchmark].dataset if benchmark in questions else None
        name, digest = (dataset.name, dataset.digest) if dataset else (None, None)
        model_id = None
        if dataset or key in _MEAN_METRICS:
            model_id = (base_id if kind.endswith("base") else made_id) or None
        metric = Metric(
            key,
            value,
            timestamp,
            step=0,
            model_id=model_id,
            dataset_name=name,
            dataset_digest=digest,
        )
        metrics.append(metric)
    return metrics


def find_made_model(client: Any, run_id: str) -> Any:
    """Return the model that a run trained.

    Raises:
        TrackingError: The run has none.
    """
    run = client.get_run(run_id)
    for output in run.outputs.model_outputs if run.outputs else ():
        model = client.get_logged_model(output.model_id)
        if model.model_type == ModelKind.tuned.value:
            return model
    raise TrackingError(f"run {run_id} has no model in the record; make it again with rerun=true")


def download_model(client: Any, model: Any, folder: Path) -> Path:
    """Download the files of a logged model into a new folder `model` within `folder`.

    Returns:
        The folder that holds `config.json` of a whole model, or `adapter_config.json` of an
        adapter. A model's record has one such folder.

    Raises:
        TrackingError: The store has no files of the model any more, or no configuration.
    """
    from mlflow.artifacts import download_artifacts

    problem = f"the record has lost what run {model.source_run_id} trained"
    if not client.list_logged_model_artifacts(model.model_id):
        raise TrackingError(f"{problem}; train it again")
    target = folder / "model"
    target.mkdir()
    download_artifacts(
        artifact_uri=model.artifact_location, dst_path=str(target), tracking_uri=client.tracking_uri
    )
    # MLflow puts the files into a folder within `target`, which it names after the address. The
    # pattern also matches files such as generation_config.json, which lie in the same folder.
    config_file = next(target.rglob("*config.json"), None)
    if config_file is None:
        raise TrackingError(f"{problem}; train it again")
    return config_file.parent
