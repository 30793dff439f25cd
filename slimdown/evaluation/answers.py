"""What was asked and answered: `Evaluation`, `BenchmarkEvaluation`, `Sample`, and their Parquet files.

One file a benchmark, one row a question and metric; what holds for the whole evaluation lies in the file's metadata, so
that a file is a `BenchmarkEvaluation` complete.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slimdown.config.schema import BenchmarkConfig


@dataclass(frozen=True)
class Sample:
    """One question and what the model made of it."""

    task: str  # the harness task; a group has several
    doc_id: int
    doc_hash: str
    prompt_hash: str
    prompt: str  # all of it, worked examples included
    target: str
    response: str  # generated text, before any filter; empty for multiple choice
    choices: tuple[str, ...]  # empty for generated answers
    log_likelihoods: tuple[float, ...]  # nats, one a choice
    answers: dict[str, str]  # by metric: the choice taken, or the text that the filter kept
    scores: dict[str, float]  # by metric


@dataclass(frozen=True)
class Score:
    """A mean over questions and its standard error, as the harness computes them."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class BenchmarkEvaluation:
    """What one benchmark says about one model."""

    benchmark: BenchmarkConfig
    task_version: str
    task_hash: str  # of every question, prompt and target asked
    scores: dict[str, Score]  # by metric
    samples: tuple[Sample, ...] = field(repr=False)
    seconds: float
    score_precision: str = (
        "float64"  # of the samples' graded scores; earlier records rounded them to float32
    )
    # Questions asked each time that the answers were looked at, in the order of `samples`; empty: all asked at once.
    stages: tuple[int, ...] = ()
    n_available: int | None = None  # of how many questions those are; None: of no more

    @property
    def is_graded(self) -> bool:
        """Whether any score lies between whole numbers."""
        return any(score % 1 for sample in self.samples for score in sample.scores.values())

    @property
    def score(self) -> Score:
        """The primary metric's."""
        return self.scores[self.benchmark.metric]

    @property
    def clusters(self) -> list[str] | None:
        """The task that each question comes from, where the benchmark is a group of tasks."""
        tasks = [sample.task for sample in self.samples]
        return tasks if len(set(tasks)) > 1 else None

    def scores_of(self, metric: str) -> list[float]:
        """One metric's score of each question."""
        return [sample.scores[metric] for sample in self.samples]


@dataclass(frozen=True)
class Evaluation:
    """What every benchmark says about one model."""

    benchmarks: dict[str, BenchmarkEvaluation]
    harness_version: str
    scoring_path: str
    seconds: float
    peak_bytes: float = nan  # the most that was held meanwhile; not of what was found in a record
    accepted_draft_share: float = nan  # of the tokens decoded meanwhile
    part: str = ""  # which of the questions, where not all: see holdout.py
    # What else must be equal for two evaluations to be compared, as far as nothing here says it; see logs.py.
    conditions: Mapping[str, str] = field(default_factory=dict)


SCHEMA = pa.schema(
    [
        ("model", pa.string()),  # base or tuned
        ("benchmark", pa.string()),
        ("task", pa.string()),
        ("metric", pa.string()),
        ("doc_id", pa.int32()),
        ("doc_hash", pa.string()),
        ("prompt_hash", pa.string()),
        ("prompt", pa.string()),  # all of it, worked examples included
        ("target", pa.string()),
        ("answer", pa.string()),  # the choice taken, or the text that the metric's filter kept
        ("response", pa.string()),  # generated text, before any filter
        ("choices", pa.list_(pa.string())),
        ("log_likelihoods", pa.list_(pa.float64())),  # nats, one a choice
        ("score", pa.float64()),
    ]
)


def write_samples(file: Path, model: str, name: str, report: BenchmarkEvaluation) -> None:
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
            "prompt": sample.prompt,
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
        "scores": {
            metric: [score.value, score.standard_error] for metric, score in report.scores.items()
        },
        "seconds": report.seconds,
        **({"stages": report.stages, "n_available": report.n_available} if report.stages else {}),
    }
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    about = {"slimdown": json.dumps(evaluation), "digest": _digest(table, evaluation)}
    pq.write_table(table.replace_schema_metadata(about), file, compression="zstd")


def _digest(table: pa.Table, evaluation: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([table.to_pylist(), evaluation]).encode()).hexdigest()


class DamagedSamples(ValueError):
    """A file of samples that cannot be read, or holds something else."""


def read_samples(file: Path, benchmark: BenchmarkConfig) -> BenchmarkEvaluation:
    """The report that a file was written from, read as `benchmark` says (primary metric, role, chance).

    Raises:
        DamagedSamples: the file is cut short, changed, or not one of samples.
    """
    try:
        return _read_samples(file, benchmark)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedSamples(" ".join(str(error).split())[:200] or type(error).__name__) from None


def _read_samples(file: Path, benchmark: BenchmarkConfig) -> BenchmarkEvaluation:
    table = pq.read_table(file)
    about = table.schema.metadata
    evaluation = json.loads(about[b"slimdown"])
    rounded = table.schema.field("score").type == pa.float32()
    if (
        "question" in table.schema.names
    ):  # what records had before: the last 600 characters of a prompt, no digest
        table = table.rename_columns({"question": "prompt"})
    elif about[b"digest"].decode() != _digest(table, evaluation):
        raise ValueError("its content is not what was written")
    by_question: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in table.select(SCHEMA.names).cast(SCHEMA).to_pylist():
        by_question.setdefault((row["task"], row["doc_id"]), []).append(row)
    samples = tuple(
        Sample(
            task=rows[0]["task"],
            doc_id=rows[0]["doc_id"],
            doc_hash=rows[0]["doc_hash"],
            prompt_hash=rows[0]["prompt_hash"],
            prompt=rows[0]["prompt"],
            target=rows[0]["target"],
            response=rows[0]["response"],
            choices=tuple(rows[0]["choices"]),
            log_likelihoods=tuple(rows[0]["log_likelihoods"]),
            answers={row["metric"]: row["answer"] for row in rows},
            scores={row["metric"]: row["score"] for row in rows},
        )
        for rows in by_question.values()
    )
    return BenchmarkEvaluation(
        benchmark=benchmark,
        task_version=evaluation["task_version"],
        task_hash=evaluation["task_hash"],
        scores={metric: Score(*pair) for metric, pair in evaluation["scores"].items()},
        samples=samples,
        seconds=evaluation["seconds"],
        score_precision="float32"
        if rounded and any(v % 1 for s in samples for v in s.scores.values())
        else "float64",
        stages=tuple(evaluation.get("stages", ())),
        n_available=evaluation.get("n_available"),
    )
