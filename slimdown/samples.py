"""Every question and answer of one evaluation as a Parquet file, and back.

One row a question and metric; what holds for the whole evaluation lies in the file's metadata, so that a file is a
`BenchmarkReport` complete.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slimdown.config import BenchmarkConfig
from slimdown.evaluate import BenchmarkReport, Sample, Score

SCHEMA = pa.schema(
    [
        ("model", pa.string()),  # base or tuned
        ("benchmark", pa.string()),
        ("task", pa.string()),
        ("metric", pa.string()),
        ("doc_id", pa.int32()),
        ("doc_hash", pa.string()),
        ("prompt_hash", pa.string()),
        ("question", pa.string()),
        ("target", pa.string()),
        ("answer", pa.string()),  # the choice taken, or the text that the metric's filter kept
        ("response", pa.string()),  # generated text, before any filter
        ("choices", pa.list_(pa.string())),
        ("log_likelihoods", pa.list_(pa.float64())),  # nats, one a choice
        ("score", pa.float32()),
    ]
)


def write_samples(file: Path, model: str, name: str, report: BenchmarkReport) -> None:
    """Write one benchmark's samples; `model` is base or tuned."""
    rows = [
        {
            "model": model,
            "benchmark": name,
            "task": sample.task,
            "metric": metric,
            "doc_id": sample.doc_id,
            "doc_hash": sample.doc_hash,
            "prompt_hash": sample.prompt_hash,
            "question": sample.question,
            "target": sample.target,
            "answer": sample.answers[metric],
            "response": sample.response,
            "choices": list(sample.choices),
            "log_likelihoods": list(sample.log_likelihoods),
            "score": score,
        }
        for sample in report.samples
        for metric, score in sample.scores.items()
    ]
    evaluation = {
        "task_version": report.task_version,
        "task_hash": report.task_hash,
        "scores": {metric: [score.value, score.standard_error] for metric, score in report.scores.items()},
        "seconds": report.seconds,
    }
    schema = SCHEMA.with_metadata({"slimdown": json.dumps(evaluation)})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, compression="zstd")


def read_samples(file: Path, benchmark: BenchmarkConfig) -> BenchmarkReport:
    """The report that a file was written from, read as `benchmark` says (primary metric, role, chance)."""
    table = pq.read_table(file)
    evaluation = json.loads(table.schema.metadata[b"slimdown"])
    by_question: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        by_question.setdefault((row["task"], row["doc_id"]), []).append(row)
    samples = tuple(
        Sample(
            task=rows[0]["task"],
            doc_id=rows[0]["doc_id"],
            doc_hash=rows[0]["doc_hash"],
            prompt_hash=rows[0]["prompt_hash"],
            question=rows[0]["question"],
            target=rows[0]["target"],
            response=rows[0]["response"],
            choices=tuple(rows[0]["choices"]),
            log_likelihoods=tuple(rows[0]["log_likelihoods"]),
            answers={row["metric"]: row["answer"] for row in rows},
            scores={row["metric"]: row["score"] for row in rows},
        )
        for rows in by_question.values()
    )
    return BenchmarkReport(
        benchmark=benchmark,
        task_version=evaluation["task_version"],
        task_hash=evaluation["task_hash"],
        scores={metric: Score(*pair) for metric, pair in evaluation["scores"].items()},
        samples=samples,
        seconds=evaluation["seconds"],
    )
