"""What a run was trained and measured on, as MLflow's datasets: the run's page lists them."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from slimdown.config.dataset_config import DatasetConfig
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.utils.hashing import hash_json
from slimdown.utils.secrets import redact_leaf

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

    from slimdown.data.contamination import Contamination
    from slimdown.data.training_data import TrainingData

_MAX_TAG = 500  # characters of a tag of an input
_DIGEST_LENGTH = 8  # as MLflow's own: with more, a run's page has no room for the other datasets


def describe_rows(
    rows: "TrainingData", configs: Mapping[str, DatasetConfig], contamination: "Contamination"
) -> "Iterator[DatasetInput]":
    """Yield each dataset of the training rows, with the context `train`.

    Args:
        rows: The rows.
        configs: The settings of datasets; rows that the base wrote itself have none.
        contamination: The questions that stand in the rows.
    """
    texts: dict[str, list[str]] = {part.name: [] for part in rows.parts}
    for text in rows.iter_texts():
        texts[text.dataset].append(text.text)
    for name, of_dataset in texts.items():
        if not of_dataset:
            continue  # its weight is 0
        n_standing = Counter(
            overlap.benchmark
            for overlap in contamination.overlaps
            if overlap.stands and overlap.dataset == name
        )
        n_all = contamination.n_questions
        shares = [f"{benchmark} {n / n_all[benchmark]:.2%}" for benchmark, n in n_standing.items()]
        config = configs.get(name)
        source = {"path": config.path, "revision": config.revision} if config else {}
        tags = {"slimdown.contamination": ", ".join(shares) or "none"}
        yield _make_input("train", name, hash_json(of_dataset), len(of_dataset), source, tags)


def describe_questions(name: str, evaluation: BenchmarkEvaluation) -> "DatasetInput":
    """Return the questions of a benchmark as a dataset, with the context `eval`."""
    rows = [[s.task, s.doc_id, s.doc_hash, s.prompt_hash, s.target] for s in evaluation.samples]
    source = {"task": evaluation.benchmark.task, "version": evaluation.task_version}
    return _make_input("eval", name, hash_json(rows), len(rows), source, {})


def _make_input(
    context: str,
    name: str,
    digest: str,
    n_rows: int,
    source: Mapping[str, Any],
    tags: Mapping[str, str],
) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    shown = {key: redact_leaf(str(value)) for key, value in source.items() if value}
    dataset = Dataset(
        name=redact_leaf(name),
        digest=digest[:_DIGEST_LENGTH],
        source_type=_benchmarksource(source),
        source=json.dumps(shown),
        profile=json.dumps({"num_rows": n_rows}),
    )
    texts = {"mlflow.data.context": context, **tags}
    return DatasetInput(dataset, [InputTag(key, texts[key][:_MAX_TAG]) for key in texts])


def _benchmarksource(source: Mapping[str, Any]) -> str:
    """Name a source as MLflow's pages know it."""
    if "task" in source:
        return "lm-eval"
    path = str(source.get("path", ""))
    is_hub = path and DatasetConfig(path=path).file is None and not path.startswith("pocket:")
    return "hugging_face" if is_hub else "local"
