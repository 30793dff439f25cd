"""What a model answered: `Evaluation`, `BenchmarkEvaluation`, `Sample`. No torch, no pyarrow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from math import fsum, isfinite, nan, sqrt

from slimdown.config.benchmark_config import CHOICE_PROBABILITY, ResolvedBenchmark

FLAT_MESSAGES = "messages_as_text"
"""The condition of an evaluation whose prompts are chats that its tool wrote as one text."""

SEED_CONDITION = "fewshot_seed"
"""The name of a condition of benchmarks whose worked examples are drawn with a seed."""


class Metric(str):
    """A metric and the filter of its answers, as settings and records name it.

    >>> Metric("acc", "none"), Metric("exact_match", "strict")
    ('acc', 'exact_match.strict')
    >>> Metric("exact_match.strict").name, Metric("exact_match.strict").filter, Metric("acc").filter
    ('exact_match', 'strict', '')
    """

    def __new__(cls, name: str, filter_name: str = "none") -> "Metric":
        """Take the harness's two names, or the text that stands for both."""
        return super().__new__(cls, name if filter_name == "none" else f"{name}.{filter_name}")

    @property
    def name(self) -> str:
        """The metric without the filter."""
        return self.partition(".")[0]

    @property
    def filter(self) -> str:
        """The filter; empty if there is none."""
        return self.partition(".")[2]


class Answer(str):
    """A generated answer as it is scored, and what the model wrote besides.

    Attributes:
        thinking: What stands before the answer; empty where the model did not think.
        never_ended: Whether the thinking has no end; then there is no answer.
        ran_out: Whether it ended at the limit of tokens.
    """

    thinking: str
    never_ended: bool
    ran_out: bool

    def __new__(
        cls, text: str, thinking: str = "", never_ended: bool = False, ran_out: bool = False
    ) -> "Answer":
        """Take the text that is scored."""
        answer = super().__new__(cls, text)
        answer.thinking, answer.never_ended, answer.ran_out = thinking, never_ended, ran_out
        return answer

    @property
    def parts(self) -> tuple[str, str, bool, bool]:
        """Its parts, as JSON holds them."""
        return str(self), self.thinking, self.never_ended, self.ran_out


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
    category: str = ""  # named by the question's document, such as HellaSwag's activity
    thinking: str = ""  # what the model wrote before its answer
    never_ended: bool = False  # whether its thinking has no end; then there is no answer
    ran_out: bool = False  # whether it ran out of tokens before its answer was complete
    cluster: str = ""  # what `benchmark.NAME.cluster` names; its questions count as one
    # By metric, the score of each answer if several were drawn. All other fields except `scores`
    # are those of the first answer.
    repeated_scores: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What counts as one question: its cluster where one is named, else its document."""
        return self.cluster or self.doc_hash

    def is_right(self, metric: str) -> bool:
        """Whether the answer is right; by p_right, whether the likeliest choice is."""
        if metric == CHOICE_PROBABILITY:
            return self.answers.get(metric) == self.target
        return self.scores.get(metric) == 1

    @property
    def first(self) -> "Sample":
        """The sample with the scores of the first answer alone."""
        if not self.repeated_scores:
            return self
        firsts = {metric: scores[0] for metric, scores in self.repeated_scores.items()}
        return replace(self, scores=self.scores | firsts)


@dataclass(frozen=True)
class MeanScore:
    """A mean over questions and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class BenchmarkEvaluation:
    """What one benchmark says about one model.

    Samples hold the metrics that can be compared. Their questions' scores lie between 0 and 1 once
    `benchmark.scale` has divided them; more is better, and their mean is the benchmark's score.
    """

    benchmark: ResolvedBenchmark
    task_version: str
    samples: tuple[Sample, ...] = field(repr=False)  # in the order in which they were asked
    seconds: float
    # Questions asked by each look at the answers; empty: all were asked before the only look.
    looks: tuple[int, ...] = ()
    n_available: int | None = None  # questions in all; None: there are no more
    # The harness's weights of a group's tasks, which sum to 1; None: all questions weigh the same.
    task_weights: dict[str, float] | None = None
    max_new_tokens: int | None = None  # of a generated answer; None: not known
    origin: str = ""  # which run, user and date measured it; empty: this run

    @cached_property
    def scores(self) -> dict[str, MeanScore]:
        """The score on each metric."""
        metrics = self.samples[0].scores if self.samples else ()
        return {metric: self.average(self.scores_of(metric)) for metric in metrics}

    @property
    def score(self) -> MeanScore:
        """The primary metric's score."""
        return self.scores[self.benchmark.metric]

    def scores_of(self, metric: str) -> list[float]:
        """Return each question's score on one metric."""
        return [sample.scores[metric] for sample in self.samples]

    def average(self, values: Sequence[float]) -> MeanScore:
        """Average one value for each sample, weighted as the harness does.

        Args:
            values: Of each sample, in the order of `samples`, such as its score on a metric.

        Returns:
            The mean of all values or, if tasks have weights, the weighted mean of the tasks' means;
            and its standard error. The standard error is nan if a task has one sample.
        """
        # Without weights, all samples count as one task, with the name "".
        values_by_task: dict[str, list[float]] = {}
        for sample, value in zip(self.samples, values, strict=True):
            values_by_task.setdefault(sample.task if self.task_weights else "", []).append(value)
        weights = self.task_weights or {"": 1.0}
        # Below 1 if some tasks have no samples here, as in a part of the questions.
        total_weight = fsum(weights[task] for task in values_by_task)
        mean = variance = 0.0
        for task, task_values in values_by_task.items():
            n = len(task_values)
            share = weights[task] / total_weight
            task_mean = fsum(task_values) / n
            squares = fsum((value - task_mean) ** 2 for value in task_values)
            variance_of_mean = squares / (n - 1) / n if n > 1 else nan
            mean += share * task_mean
            variance += share**2 * variance_of_mean
        return MeanScore(mean, sqrt(variance))


class Work(StrEnum):
    """A kind of work, whose speed says nothing about another kind's."""

    choices = "choices"  # likelihoods of given answers
    documents = "documents"  # likelihoods of whole texts
    answers = "answers"  # generated answers
    server = "served"  # whatever a server answers
    steps = "steps"  # of training
    other = "other"  # loading, trying, validating, recording


@dataclass(frozen=True)
class Cost:
    """What one part of a run costs: as a plan counts it before, or as it was."""

    name: str  # the benchmark; empty for a training
    work: Work
    n: int  # questions, documents, or steps
    prompt_tokens: int  # that are read: prompts and choices, or the batches of a training
    new_tokens: int  # that are written; in a plan, the most
    seconds: float = nan


@dataclass(frozen=True)
class Evaluation:
    """What every benchmark says about one model."""

    benchmarks: dict[str, BenchmarkEvaluation]
    harness_version: str
    backend: str  # the code that scored, and its batch size
    served_by: str = field(default="", kw_only=True)  # the server that answered; empty: none
    seconds: float
    peak_bytes: float = nan  # the most that was held meanwhile
    part: str = ""  # which questions, if not all: see judging/holdout.py
    # What else must be equal for two evaluations to be compared; see evaluation/logs/.
    conditions: Mapping[str, str] = field(default_factory=dict)
    model: str = ""  # as the logs name it
    adapter: str = ""  # that the model had, as the logs name it
    costs: tuple[Cost, ...] = ()  # of the benchmarks that were asked anew, and whole


StopRule = Callable[[dict[str, BenchmarkEvaluation]], set[str]]
"""Takes what the tuned model answered so far; returns the benchmarks that need more questions."""


def check_evaluation(evaluation: BenchmarkEvaluation) -> str:
    """Say what is wrong with an evaluation that was read from a file.

    Returns:
        What is wrong in a few words. Empty if the evaluation is sound: each question is there
        once, every log-likelihood is finite, and every score is between 0 and 1.
    """
    samples, metric = evaluation.samples, evaluation.benchmark.metric
    if not samples or len({(sample.task, sample.doc_id) for sample in samples}) != len(samples):
        return "questions are missing or doubled"
    if metric not in samples[0].scores:
        return f"it has no {metric}"
    for sample in samples:
        if not all(map(isfinite, sample.log_likelihoods)):
            return f"a log-likelihood of question {sample.doc_id} of {sample.task} is not finite"
        # A generated answer has no choices.
        if len(sample.choices) not in (0, len(sample.log_likelihoods)):
            return f"question {sample.doc_id} of {sample.task} lacks log-likelihoods"
        for name in samples[0].scores:  # every question must have the metrics of the first
            if name not in sample.answers or not 0 <= sample.scores.get(name, -1) <= 1:
                return f"question {sample.doc_id} of {sample.task} has no {name} between 0 and 1"
    return ""
