"""What a run was trained and measured on, as MLflow's datasets: the run's page lists them."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slimdown.config.dataset_config import DatasetConfig
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation
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
        rows: The training rows of all datasets; each of its `parts` is one dataset.
        configs: The settings by dataset; rows that the base wrote itself have none.
        contamination: Which questions of benchmarks are found in the rows.
    """
    texts_by_dataset: dict[str, list[str]] = {part.name: [] for part in rows.parts}
    for row in rows.iter_texts():  # it reads the same `parts`
        texts_by_dataset[row.dataset].append(row.text)
    for name, texts in texts_by_dataset.items():
        if not texts:
            continue  # a dataset of weight 0 has no rows
        config = configs.get(name)
        yield _make_input(
            name,
            texts,
            context="train",
            source={"path": config.path, "revision": config.revision} if config else {},
            tags={"slimdown.contamination": _describe_contamination(name, contamination)},
        )


def _describe_contamination(dataset: str, contamination: "Contamination") -> str:
    """Say what share of each benchmark's questions stands in a dataset: `gsm8k 1.50%`."""
    n_standing = Counter(
        overlap.benchmark
        for overlap in contamination.overlaps
        if overlap.stands and overlap.dataset == dataset
    )
    n_questions = contamination.n_questions
    shares = [f"{name} {n / n_questions[name]:.2%}" for name, n in n_standing.items()]
    return ", ".join(shares) or "none"


def describe_questions(name: str, evaluation: BenchmarkEvaluation) -> "DatasetInput":
    """Return the questions of a benchmark as a dataset, with the context `eval`."""
    rows = [[s.task, s.doc_id, s.doc_hash, s.prompt_hash, s.target] for s in evaluation.samples]
    source = {"task": evaluation.benchmark.task, "version": evaluation.task_version}
    return _make_input(name, rows, context="eval", source=source, tags={})


def describe_all_questions(evaluation: Evaluation | None) -> "dict[str, DatasetInput]":
    """Return the questions of an evaluation as datasets, by benchmark; none without one."""
    if evaluation is None:
        return {}
    return {name: describe_questions(name, b) for name, b in evaluation.benchmarks.items()}


def _make_input(
    name: str,
    rows: Sequence[Any],
    *,
    context: str,
    source: Mapping[str, Any],
    tags: Mapping[str, str],
) -> "DatasetInput":
    """Describe some rows as a dataset of MLflow: by their digest and their number.

    Secrets in the name and in the source, such as a token in an address, are replaced by `***`.

    Args:
        name: The name of the dataset or of the benchmark.
        rows: The rows or questions, in a form that JSON can hold.
        context: MLflow's word for what the rows are used for: `train` or `eval`.
        source: Where the rows come from: a `path` or a harness's `task`. It is empty if the base
            wrote the rows; the type of the source is `local` then. Empty values are left out.
        tags: More tags beside the context; long ones are cut.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source_texts = {key: redact_leaf(str(value)) for key, value in source.items() if value}
    dataset = Dataset(
        name=redact_leaf(name),
        digest=hash_json(rows)[:_DIGEST_LENGTH],
        source_type=_name_source_type(source),
        source=json.dumps(source_texts),
        profile=json.dumps({"num_rows": len(rows)}),
    )
    all_tags = {"mlflow.data.context": context, **tags}
    return DatasetInput(dataset, [InputTag(key, all_tags[key][:_MAX_TAG]) for key in all_tags])


def _name_source_type(source: Mapping[str, Any]) -> str:
    """Return the kind of source, as MLflow's pages know it."""
    if "task" in source:
        return "lm-eval"
    path = str(source.get("path", ""))
    if not path or path.startswith("pocket:") or DatasetConfig(path=path).file is not None:
        return "local"
    return "hugging_face"
