"""What a model answered: `Evaluation`, `BenchmarkEvaluation`, `Sample`. No torch, no pyarrow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan

from slimdown.config.schema import BenchmarkConfig


@dataclass(frozen=True)
class Sample:
    """One question and what the model made of it."""

    task: str  # the harness's task; a group has several
    doc_id: int
    doc_hash: str
    prompt_hash: str
    prompt: str  # all of it, worked examples included
    target: str
    response: str  # generated text, before any filter; empty for multiple choice
    choices: tuple[str, ...]  # empty for generated answers
    log_likelihoods: tuple[float, ...]  # nats, one for each choice
    answers: dict[str, str]  # by metric: the choice taken, or the text that the filter kept
    scores: dict[str, float]  # by metric


@dataclass(frozen=True)
class Score:
    """A mean over questions and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class BenchmarkEvaluation:
    """What one benchmark says about one model.

    `scores` and samples hold the metrics that can be compared: means of their questions' scores,
    between 0 and 1 once `benchmark.scale` has divided them, of which more is better.
    """

    benchmark: BenchmarkConfig
    task_version: str
    scores: dict[str, Score]  # by metric
    samples: tuple[Sample, ...] = field(repr=False)  # in the order in which they were asked
    seconds: float
    # Questions asked each time that the answers were looked at; empty: asked whole, looked at once.
    looks: tuple[int, ...] = ()
    n_available: int | None = None  # of how many questions those are; None: of no more
    # How the harness weighs the tasks of a group, summing to 1; None: every question alike.
    task_weights: dict[str, float] | None = None
    origin: str = ""  # which run, user and date measured it; empty: this run

    @property
    def score(self) -> Score:
        """The primary metric's score."""
        return self.scores[self.benchmark.metric]

    @property
    def subjects(self) -> list[str] | None:
        """The task of each question, where the benchmark is a group of tasks."""
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
    backend: str  # the code that scored, and its batch size
    seconds: float
    peak_bytes: float = nan  # the most that was held meanwhile
    part: str = ""  # which of the questions, where not all: see stats/holdout.py
    # What else must be equal for two evaluations to be compared; see lm_eval_logs.py.
    conditions: Mapping[str, str] = field(default_factory=dict)
