"""What all logs share: `LoggedTask`, the answers of one model to one benchmark. No torch."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import fsum, isclose, nan
from pathlib import Path
from typing import Any, Protocol

from slimdown.config.benchmark_config import (
    CHOICE_PROBABILITY,
    BenchmarkConfig,
    ResolvedBenchmark,
    Role,
)
from slimdown.config.fields import nearest
from slimdown.evaluation.harness_results import (
    choose_metric,
    find_category,
    read_cluster,
    summarize_samples,
)
from slimdown.evaluation.results import BenchmarkEvaluation, Sample, check_evaluation
from slimdown.utils.errors import ConfigError, DataError, SlimdownError, describe_error
from slimdown.utils.hashing import hash_json
from slimdown.utils.row_files import iter_records
from slimdown.utils.secrets import redact


class LogReader(Protocol):
    """What a module of this folder offers: it reads the logs of one tool.

    Attributes:
        FILES: What its files are, as a message says that there are none.
    """

    FILES: str

    def find_files(self, path: Path) -> list[Path]:
        """Find this tool's logs in a folder, oldest first, or take one file; else none.

        Names decide if they can; the first lines of another tool's file may be read, too.
        """

    def open_logs(self, file: Path) -> Iterable["LoggedTask"]:
        """Read what was asked, but not the answers: those of older logs are not needed.

        Raises:
            DataError: The file is not as the tool writes it.
        """


LoggedAnswer = tuple[str, float, dict[str, Any]]
"""The id of a question, what guessing scores, and what a log says: fields of `Sample` by name.

The fields are `prompt`, `target`, `response`, `scores`, and others if the log has them; `document`
is the question's row, with the fields by which it is sorted and grouped.
"""

# Arguments of a model that `drop_free` leaves out.
_FREE_ARGUMENTS = re.compile(
    "model_(name|path)|tokenizer_path|(max|adaptive)_connections|attempt_timeout|batch|cache|"
    "pretrained|peft|delta|revision|subfolder|gguf_file|tokenizer|tokenizer_revision|model|"
    "lora_local_path|enable_lora|max_lora_rank|base_url|api_key|token|hf_token|auth_token|cache_dir|"
    "trust_remote_code|use_fast_tokenizer|low_cpu_mem_usage|device|device_map|device_map_option|"
    "parallelize|gpus|max_memory_per_gpu|max_cpu_memory|offload_folder|tensor_parallel_size|"
    "data_parallel_size|gpu_memory_utilization|swap_space|batch_size|max_batch_size|logits_cache|"
    "num_concurrent|max_retries|timeout|headers?|.*(pass(word|wd|phrase)|secret|(api|access)_?key|auth)"
)


@dataclass(frozen=True)
class LoggedAnswers:
    """What a log says about one benchmark, whichever tool wrote it."""

    samples: Sequence[Sample]
    questions: Sequence[str]  # of each sample, as the tool calls it
    metrics: Sequence[str]  # that can be compared; one of the first `n_reported` is chosen
    chances: Sequence[float]  # by question, what guessing scores; 0: not known
    settings: BenchmarkConfig  # what is known of the benchmark
    n_reported: int | None = None  # metrics by which the tool reports the benchmark; None: all
    task_version: str = ""
    task_weights: dict[str, float] | None = None  # of a group's tasks, as the tool weighs them
    max_new_tokens: int | None = None  # of a generated answer; None: not known

    def choose_metric(self) -> str:
        """Return the metric that the settings name, if it was logged; else the usual one."""
        if self.settings.metric in self.metrics:
            return str(self.settings.metric)
        return str(choose_metric(self.metrics[: self.n_reported]))

    def summarize(self, metric: str, role: Role | None, seconds: float) -> BenchmarkEvaluation:
        """Make the evaluation, with one of the metrics as the primary one.

        Args:
            metric: The primary metric.
            role: The benchmark's role; None: the one that the settings name.
            seconds: How long the questions took.
        """
        settings = self.settings
        # The chance is what a model that guesses would score. The settings may give it for the
        # metric that they name; on another metric, it does not hold.
        known_chance = settings.chance if settings.metric == metric else None
        benchmark = ResolvedBenchmark.of(
            settings, metric=metric, chance=known_chance or 0.0, role=role or settings.role
        )
        evaluation = summarize_samples(benchmark, self.samples, self.task_weights, self.metrics)
        # An unknown chance was set to 0 above. It is computed only now, because it is a mean over
        # the questions that takes the weights of this evaluation.
        if known_chance is None:
            benchmark = replace(benchmark, chance=self._guess_chance(evaluation, metric))
        return replace(
            evaluation,
            benchmark=benchmark,
            task_version=self.task_version,
            seconds=seconds,
            max_new_tokens=self.max_new_tokens,
        )

    def _guess_chance(self, evaluation: BenchmarkEvaluation, metric: str) -> float:
        """Average what guessing scores; 0 (not known) if an answer is neither right nor wrong."""
        is_right_or_wrong = metric == CHOICE_PROBABILITY or all(
            sample.scores[metric] in (0, 1) for sample in self.samples
        )
        is_known = is_right_or_wrong and all(self.chances)  # a chance of 0 is not known
        return evaluation.average(self.chances).value if is_known else 0.0


@dataclass(frozen=True)
class LoggedTask:
    """The answers of one model to one benchmark, as a log holds them."""

    file: Path
    title: str  # the tool's name of the benchmark
    made_by: Mapping[str, str]  # `model`, `tool` with its version, and `backend`
    conditions: Mapping[str, str]  # what must be equal for answers to be compared
    answers: Iterable[LoggedAnswer]  # read when they are needed: those of older logs are not
    task_version: str = ""
    max_new_tokens: int | None = None
    seconds: float = nan
    settings: BenchmarkConfig | None = None  # what is known of the benchmark
    # The means that the tool reports, by metric: a metric that has another mean is no mean.
    reported: Mapping[str, float] = field(default_factory=dict)

    def read_benchmark(
        self, name: str, metric: str | None, role: Role | None, cluster: str | None = None
    ) -> BenchmarkEvaluation | None:
        """Read the answers, and check that each has a score on the primary metric.

        Args:
            name: The benchmark's name in the record.
            metric: The primary metric; None: the usual one.
            role: The benchmark's role; None: the one that the settings name.
            cluster: The field of a question's row that names its cluster.

        Returns:
            The evaluation. None if no metric can be compared; the benchmark is then left out.

        Raises:
            ConfigError: The log has no such metric.
            DataError: The answers are not as the tool writes them.
        """
        logged = self.read_answers(name, cluster)
        if not logged.metrics:
            return None
        if metric and metric not in logged.metrics:
            similar = nearest(metric, list(logged.metrics))
            demand = "it must be a mean of scores from 0 to 1 of which more is better"
            raise ConfigError(f"{name}={metric}: no such score{similar}; to be compared, {demand}")
        primary = metric or logged.choose_metric()
        for sample, question in zip(logged.samples, logged.questions, strict=True):
            if not 0 <= sample.scores.get(primary, nan) <= 1:
                problem = f"question {question} has {primary}={sample.scores.get(primary)}"
                demand = "a number from 0 to 1 must stand there"
                has = ", ".join(logged.metrics)
                raise DataError(f"{self.file}: {self.title}: {problem}; {demand}; it has {has}")
        evaluation = logged.summarize(primary, role, self.seconds)
        if problem := check_evaluation(evaluation):
            raise DataError(f"{self.file}: {name} is odd, {problem}")
        return evaluation

    def read_answers(self, name: str, cluster: str | None) -> LoggedAnswers:
        """Read the benchmark's questions, and find the metrics that can be compared.

        Call it once, because `answers` may be an iterator.

        Args:
            name: The benchmark's name.
            cluster: The field of a question's row that names its cluster.

        Returns:
            A sample for each question, by their numbers. If the tool reports means, only metrics
            that have these means, or are not reported; otherwise all metrics. The reported ones
            come first.

        Raises:
            DataError: A question stands there twice, nothing is scored, or a question lacks the
                field of its cluster.
        """
        place = f"{self.file}: {self.title}"
        answers = list(self.answers)  # of each question: id, what guessing scores, and fields
        metrics = list(dict.fromkeys(key for _, _, fields in answers for key in fields["scores"]))
        if not metrics:
            raise DataError(f"{place} has no metric that is a mean of scores, the more the better")
        counts = Counter(question for question, _, _ in answers)
        for question, count in counts.items():
            if count > 1:
                raise DataError(f"{place}: question {question!r} stands there twice; keep one")
        numbers = _number_questions(counts)
        answers.sort(key=lambda answer: numbers[answer[0]])  # by the number of the question's id
        samples = []
        for question, _, logged_fields in answers:
            fields = dict(logged_fields)  # a copy: the log's own stay as they are
            document = fields.pop("document", {})  # the question's row, which no sample holds
            prompt_hash = hash_json(fields["prompt"])
            # The fields that a log may leave out.
            defaults: dict[str, Any] = {"choices": (), "log_likelihoods": ()}
            defaults |= {"doc_hash": prompt_hash, "prompt_hash": prompt_hash}
            defaults["answers"] = dict.fromkeys(fields["scores"], fields["response"])
            # The fields that no log has.
            facts = {"task": name, "doc_id": numbers[question], "category": find_category(document)}
            facts["cluster"] = read_cluster(document, cluster, f"{question!r} of {place}")
            samples.append(Sample(**defaults | fields | facts))
        if self.reported:  # a metric whose mean is not the reported one is no mean of scores
            means = [metric for metric in metrics if self._is_mean(metric, samples)]
            metrics = sorted(means, key=lambda metric: metric not in self.reported)  # False first
        return LoggedAnswers(
            samples=samples,
            questions=[repr(question) for question, _, _ in answers],
            metrics=metrics,
            chances=[chance for _, chance, _ in answers],
            settings=replace(self.settings or BenchmarkConfig(task=self.title), cluster=cluster),
            # None: the tool reports none of these metrics, so any of them may be chosen.
            n_reported=sum(metric in self.reported for metric in metrics) or None,
            task_version=self.task_version,
            max_new_tokens=self.max_new_tokens,
        )

    def _is_mean(self, metric: str, samples: Sequence[Sample]) -> bool:
        """Whether each question has a score on a metric, and their mean is the reported one."""
        mean = fsum(sample.scores.get(metric, nan) for sample in samples) / len(samples)
        return isclose(self.reported.get(metric, mean), mean, abs_tol=1e-9)


def _number_questions(ids: Collection[str]) -> dict[str, int]:
    """Number questions by their ids if these are numbers, else in the order of the ids."""
    if all(re.fullmatch("0|-?[1-9][0-9]{0,17}", question) for question in ids):
        return {question: int(question) for question in ids}
    return {question: number for number, question in enumerate(sorted(ids))}


def name_benchmark(name: str) -> str:
    """Write a benchmark's name as a record takes it."""
    return re.sub(r"[^\w-]", "_", name)


def name_models(folders: Sequence[Path]) -> str:
    """Name the folders of several models' logs, in a command that judges two of them."""
    folders = sorted(folders, key=lambda folder: ("base" not in folder.name, folder.name))
    first, second, *others = folders
    command = f"slimdown verdict {shlex.quote(str(first))} {shlex.quote(str(second))}"
    names = ", ".join(folder.name for folder in others)
    more = f"; there are also {names}" if others else ""
    return f"logs of several models; name the one before and the one after: {command}{more}"


def name_model(name: str, settings: Mapping[str, Any]) -> str:
    """Name a model, with its revision where its settings say one: steps of one model differ."""
    revision = settings.get("revision")
    return name if revision in (None, "", "main") else f"{name}@{revision}"


def name_metric(name: str) -> str:
    """Write a metric's name as a record takes it: `pass@k:k=1` as `pass_k_k_1`."""
    return re.sub(r"[^\w.-]", "_", name)


def read_limit(value: Any) -> int | None:
    """Read how many tokens an answer may have; None: the log does not say.

    Raises:
        ValueError: It is no number of tokens.
    """
    limit = int(value or 0)
    if not 0 <= limit < 2**31:
        raise ValueError(f"{value!s:.40} is no number of tokens")
    return limit or None


def drop_free(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's arguments without those that may differ in two logs that are compared.

    Left out are names of the weights, secrets, and settings of where and how fast a model runs.
    All others change answers, or may.
    """
    names = [name for name in arguments if not _FREE_ARGUMENTS.fullmatch(name)]
    return {name: arguments[name] for name in names}


def write_conditions(kind: str, task: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Write settings of a task as conditions, without secrets and memory addresses."""
    conditions = {"kind": kind}
    for key, value in settings.items():
        text = re.sub(" at 0x[0-9a-f]+", "", json.dumps(value, sort_keys=True, default=str))
        conditions[f"{name_benchmark(task)}.{key}"] = redact(text)
    return conditions


def read_table_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a table, with their numbers.

    Raises:
        DataError: It cannot be read.
    """
    try:
        for number, row in iter_records(file):
            if not isinstance(row, dict):
                problem = row if isinstance(row, DataError) else "it is no object with columns"
                raise DataError(f"row {number}: {problem}")
            yield number, row
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


@contextmanager
def explain_malformed(problem: str) -> Iterator[None]:
    """Turn any error that a malformed file causes inside into an error of one line.

    Args:
        problem: What the message begins with: the file, and what it is not.

    Raises:
        DataError: Something else than an error of slimdown was raised inside.
    """
    try:
        yield
    except SlimdownError:
        raise
    except Exception as error:  # no list of what readers raise at damaged bytes is complete
        raise DataError(f"{problem} ({describe_error(error)})") from None
