"""Parquet files of samples: a file per benchmark, a row per question and metric.

The file's metadata holds the facts about the whole evaluation, so that a file is a complete
`BenchmarkEvaluation`.
"""

import json
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slimdown.config.benchmark_config import ResolvedBenchmark
from slimdown.evaluation.results import BenchmarkEvaluation, Sample, check_evaluation
from slimdown.utils.errors import DataError
from slimdown.utils.files import FORMAT, check_format

# model: base, tuned, or served (the tuned one as it is served); answer: the choice taken, or the
# text that the metric's filter kept; response: generated text, before any filter.
_TEXTS = ("model", "benchmark", "metric", "answer", "task", "doc_hash", "prompt_hash", "category")
# Fields of `BenchmarkEvaluation` that a file's metadata holds; the others are the samples, and what
# is known when the file is read.
_EVALUATION_FACTS = ["task_version", "seconds", "looks", "n_available", "task_weights"]
_EVALUATION_FACTS += ["max_new_tokens"]
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in (*_TEXTS, "prompt", "target", "response")),
        ("doc_id", pa.int64()),
        ("choices", pa.list_(pa.string())),
        ("log_likelihoods", pa.list_(pa.float64())),  # nats, one for each choice
        ("score", pa.float64()),
        ("thinking", pa.string()),
        ("never_ended", pa.bool_()),
        ("ran_out", pa.bool_()),
        ("repeated_scores", pa.list_(pa.float64())),  # of each answer, where several were drawn
        ("cluster", pa.string()),
    ]
)


# Fields of `Sample` that have a value for each metric, of which a row holds one.
_BY_METRIC = ("answers", "scores", "repeated_scores")
_QUESTION_FACTS = [field.name for field in fields(Sample) if field.name not in _BY_METRIC]


# What pyarrow, `json` and Python raise for a file whose content is not as expected.
_READING_ERRORS = (pa.ArrowException, OSError, ValueError, LookupError, TypeError)
_OTHER_VERSION = "another version of slimdown wrote it"


class DamagedSamples(ValueError):
    """A file of samples that is not what was written, or contradicts itself."""


def write_samples(file: Path, model: str, name: str, evaluation: BenchmarkEvaluation) -> None:
    """Write one benchmark's samples.

    Args:
        file: Where to; it is replaced.
        model: "base", "tuned" or "served".
        name: The benchmark's name.
        evaluation: What was answered.
    """
    rows = []
    for sample in evaluation.samples:
        for metric, score in sample.scores.items():
            # Of the sample's fields, the table takes those that its schema names.
            row = vars(sample) | {"model": model, "benchmark": name, "metric": metric}
            row |= {"answer": sample.answers[metric], "score": score}
            row["repeated_scores"] = sample.repeated_scores.get(metric)
            rows.append(row)
    facts = {fact: getattr(evaluation, fact) for fact in _EVALUATION_FACTS} | {"format": FORMAT}
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    metadata = {"slimdown": json.dumps(facts), "digest": _hash_content(table, facts)}
    pq.write_table(table.replace_schema_metadata(metadata), file, compression="zstd")


def read_samples(file: Path, benchmark: ResolvedBenchmark) -> BenchmarkEvaluation:
    """Read the evaluation that a file was written from.

    Args:
        file: As `write_samples` writes it.
        benchmark: The benchmark's settings of today, such as its primary metric and role.

    Returns:
        What was answered; `origin` is empty.

    Raises:
        DamagedSamples: The file is cut short, changed, or not one of samples. Or its evaluation is
            unsound, see `check_evaluation`.
        DataError: Another version of slimdown wrote it, and this one cannot read it.
    """
    try:
        table = pq.read_table(file)
        metadata = table.schema.metadata
        facts = json.loads(metadata[b"slimdown"])
        check_format(facts.get("format"))
        if metadata[b"digest"].decode() != _hash_content(table, facts):
            raise ValueError("its content is not what was written")
    except DataError as error:  # of `check_format`
        raise DataError(f"{_OTHER_VERSION}: {_shorten(error)}") from None
    except _READING_ERRORS as error:
        raise DamagedSamples(_shorten(error)) from None
    # The content is what was written. So if no evaluation can be built from it, another version
    # wrote it.
    try:
        evaluation = _build_evaluation(table, facts, benchmark)
        problem = check_evaluation(evaluation)
    except _READING_ERRORS as error:
        raise DataError(f"{_OTHER_VERSION}: {_shorten(error)}") from None
    if problem:  # it can be read, so no other version is to blame: it was unsound when written
        raise DamagedSamples(problem)
    return evaluation


def _build_evaluation(
    table: pa.Table, facts: dict[str, Any], benchmark: ResolvedBenchmark
) -> BenchmarkEvaluation:
    """Build an evaluation from the rows of a file and the facts of its metadata."""
    # By task and number of a question, its rows, one for each metric.
    by_question: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in table.select(SCHEMA.names).cast(SCHEMA).to_pylist():
        by_question.setdefault((row["task"], row["doc_id"]), []).append(row)
    fields_of_evaluation = {name: facts[name] for name in _EVALUATION_FACTS}
    fields_of_evaluation["looks"] = tuple(facts["looks"])
    samples = tuple(map(_build_sample, by_question.values()))
    return BenchmarkEvaluation(benchmark, samples=samples, **fields_of_evaluation)


def _build_sample(rows: list[dict[str, Any]]) -> Sample:
    """Build the sample of a question from its rows, one for each metric."""
    facts = {name: rows[0][name] for name in _QUESTION_FACTS}
    facts |= {name: tuple(facts[name]) for name in ("choices", "log_likelihoods")}
    repeated = {row["metric"]: row["repeated_scores"] for row in rows}  # None: one answer was drawn
    return Sample(
        **facts,
        answers={row["metric"]: row["answer"] for row in rows},
        scores={row["metric"]: row["score"] for row in rows},
        repeated_scores={metric: tuple(scores) for metric, scores in repeated.items() if scores},
    )


def _shorten(error: Exception) -> str:
    """Return the first 200 characters of an error in one line; its class if it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _hash_content(table: pa.Table, facts: dict[str, Any]) -> str:
    """Hash the rows of a file and the facts of its metadata, by which damage is noticed."""
    return sha256(json.dumps([table.to_pylist(), facts]).encode()).hexdigest()
