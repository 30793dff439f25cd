"""Reads the harness's log of each question: `Sample` and `BenchmarkEvaluation`. No torch."""

import os
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isnan, nan
from statistics import fmean
from typing import Any

from slimdown.config.benchmark_config import ResolvedBenchmark
from slimdown.evaluation.results import BenchmarkEvaluation, Metric, Sample
from slimdown.evaluation.right_choice import add_p_right
from slimdown.utils.errors import DataError
from slimdown.utils.hashing import hash_json

# acc_norm comes before acc, because endings differ in length. Generated answers come last.
_PREFERRED = ("acc_norm", "acc", "exact_match")
FLEXIBLE = "flexible_accuracy"  # the paper's: compares numbers
_CATEGORIES = ("activity_label", "category", "subject")  # HellaSwag's, and other benchmarks'


def choose_metric(metrics: Sequence[str]) -> str:
    """Choose the primary metric, if the user sets none.

    It is the first of acc_norm, acc and exact_match that the task has, because tasks are mostly
    reported by these. If it has none of them, it is the metric that the task lists first. Of this
    metric's filters, a flexible one is taken, because strict filters count an answer in another
    format as wrong. If none is flexible, it is the first.

    Args:
        metrics: The metrics that can be compared, with filters after a dot, in the task's order.

    >>> choose_metric(["acc", "acc_norm"]), choose_metric(["f1", "em.flexible-extract"])
    ('acc_norm', 'f1')
    >>> choose_metric(["exact_match.strict-match", "exact_match.flexible-extract"])
    'exact_match.flexible-extract'
    """
    names = [Metric(metric).name for metric in metrics]
    chosen = next((name for name in _PREFERRED if name in names), names[0])
    with_filters = [metric for metric in metrics if Metric(metric).name == chosen]
    flexible = (metric for metric in with_filters if Metric(metric).filter.startswith("flexible"))
    return next(flexible, with_filters[0])


def read_task_samples(
    task: str, lines: Iterable[Any], task_config: Any, benchmark: ResolvedBenchmark
) -> list[Sample]:
    """Read the samples of one task.

    Args:
        task: The harness's name.
        lines: What the harness logs: a line for each question and filter.
        task_config: The task's settings as the harness logs them.
        benchmark: `numeric_tolerance` adds flexible_accuracy; `scale` divides the primary metric.

    Returns:
        One sample for each question, in the order of `lines`.

    Raises:
        DataError: A question lacks the field that `benchmark.cluster` names.
    """
    by_question: dict[int, list[Any]] = {}
    for line in lines:
        by_question.setdefault(line["doc_id"], []).append(line)
    output_type = task_config["output_type"]
    delimiter = task_config.get("target_delimiter", " ")  # between a prompt and a choice
    samples = []
    for doc_id, own_lines in by_question.items():
        first = own_lines[0]
        scores = _read_scores(own_lines, benchmark)  # already divided by `benchmark.scale`
        if output_type == "multiple_choice":
            exchange = _read_choosing(first, scores, delimiter)
        elif output_type == "loglikelihood_rolling":  # the document is the prompt
            exchange = _Exchange(_read_prompt(first), target="", answers=dict.fromkeys(scores, ""))
        else:
            exchange = _read_generating(own_lines, scores)
        if benchmark.numeric_tolerance is not None:
            _add_flexible_accuracy(exchange, scores, benchmark.numeric_tolerance)
        document = first.get("doc") or {}
        sample = Sample(
            task=task,
            doc_id=int(doc_id),
            doc_hash=first["doc_hash"],
            prompt_hash=first["prompt_hash"],
            scores=scores,
            category=find_category(document),
            cluster=read_cluster(document, benchmark.cluster, f"{doc_id} of {task}"),
            **vars(exchange),
        )
        samples.append(sample)
    return samples


@dataclass
class _Exchange:
    """What a question asked and what the model answered; the fields are those of `Sample`."""

    prompt: str
    target: str
    answers: dict[str, str]
    response: str = ""
    choices: tuple[str, ...] = ()
    log_likelihoods: tuple[float, ...] = ()


def _add_flexible_accuracy(exchange: _Exchange, scores: dict[str, float], tolerance: float) -> None:
    """Add the metric `FLEXIBLE`, which compares numbers, to the scores and answers of a question.

    The harness's flexible-extract compares strings: "18.00" is not "18".
    """
    read = exchange.answers
    extracted = (read[metric] for metric in read if metric.endswith("flexible-extract"))
    answer = next(extracted, exchange.response)  # the whole response if none is extracted
    exchange.answers[FLEXIBLE] = answer
    scores[FLEXIBLE] = float(numbers_agree(answer, exchange.target, tolerance))


def _read_prompt(line: Any) -> str:
    return str(line["arguments"][0][0])


def _read_scores(lines: Sequence[Any], benchmark: ResolvedBenchmark) -> dict[str, float]:
    """Read the scores of a question by metric; the primary one's are divided by its scale."""
    scores: dict[str, float] = {}
    for line in lines:
        for name in line["metrics"]:
            metric, score = Metric(name, line["filter"]), parse_score(line[name])
            if score is not None:  # a metric over all questions, such as F1, has none for each
                is_primary = metric == benchmark.metric
                scores[metric] = score / (benchmark.scale or 1) if is_primary else score
    return scores


def _read_generating(lines: Sequence[Any], metrics: Container[str]) -> _Exchange:
    """Read what was generated, and by metric what its filter kept of it."""
    kept: dict[str, str] = {}
    for line in lines:
        for metric in (Metric(name, line["filter"]) for name in line["metrics"]):
            if metric in metrics:
                kept[metric] = str(line["filtered_resps"][0])
    first = lines[0]
    return _Exchange(_read_prompt(first), str(first["target"]), kept, str(first["resps"][0][0]))


def _read_choosing(line: Any, scores: dict[str, float], delimiter: str) -> _Exchange:
    """Read the choices of a question, which of them each metric takes, and which one is right.

    Args:
        line: What the harness logs of the question.
        scores: The question's scores by metric. If one choice is right, its probability is added.
        delimiter: What stands between a prompt and a choice.
    """
    prompt, choices = _read_choices(line["arguments"], delimiter)
    all_log_likelihoods = tuple(float(response[0]) for response in line["filtered_resps"])
    # Some tasks ask every choice again without the prompt; these log-likelihoods come last.
    log_likelihoods = all_log_likelihoods[: len(choices)]
    target = str(line["target"])
    contexts = {arguments[0] for arguments in line["arguments"]}
    if target.isdigit() and int(target) < len(choices):
        target = choices[int(target)]
    elif len(contexts) > 1 and len(choices) == 2:
        # The contexts differ by the choices (WinoGrande), and the log does not say which choice is
        # right. But `acc` says whether the likeliest one is.
        likeliest = log_likelihoods.index(max(log_likelihoods))
        target = choices[likeliest if scores.get("acc") == 1 else 1 - likeliest]
    answers = add_p_right(scores, choices, log_likelihoods, target)
    return _Exchange(prompt, target, answers, choices=choices, log_likelihoods=log_likelihoods)


def average_repeats(answers: Sequence[Sample]) -> Sample:
    """Make one sample of several answers to a question: the first, with the mean of all scores."""
    metrics = answers[0].scores
    repeated = {metric: tuple(answer.scores[metric] for answer in answers) for metric in metrics}
    means = {metric: fmean(scores) for metric, scores in repeated.items()}
    return replace(answers[0], scores=means, repeated_scores=repeated if len(answers) > 1 else {})


def find_category(document: Mapping[str, Any]) -> str:
    """Find the category that a question's document names; empty if it names none."""
    return next((str(document[key])[:80] for key in _CATEGORIES if document.get(key)), "")


def read_cluster(document: Mapping[str, Any], field: str | None, question: str) -> str:
    """Read which cluster a question belongs to; empty if no field is named.

    Args:
        document: The question's row.
        field: The name of the field whose value all questions of a cluster share.
        question: What a message calls the question.

    Raises:
        DataError: The document has no such field, or nothing in it.
    """
    if field is None:
        return ""
    value = document.get(field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a table may hold 3 as 3.0
    text = str(value).strip()
    if text in ("", "None", "nan", "[]", "{}"):  # no field, or an empty value of any type
        fields = ", ".join(map(str, document)) or "none"
        problem = f"has nothing in {field!r}, by which clusters are told apart"
        raise DataError(f"question {question} {problem}; its fields are {fields}"[:300])
    return hash_json(text)[:16]  # the text may be a whole passage


def _read_choices(arguments: Sequence[Any], delimiter: str) -> tuple[str, tuple[str, ...]]:
    """Return a question's prompt and its choices.

    Where the contexts differ by the choices (WinoGrande), the prompt is the words that all contexts
    begin with, and a choice is the rest of its context with the ending.
    """
    contexts = [str(pair[0]) for pair in arguments]
    endings = [str(pair[1]) for pair in arguments]
    n = len(contexts) // 2
    # Some tasks ask every choice again without the context, for pointwise mutual information.
    if n and contexts[0] and not any(contexts[n:]):
        contexts, endings = contexts[:n], endings[:n]
    if len(set(contexts)) == 1:
        return contexts[0], tuple(ending.removeprefix(delimiter) for ending in endings)
    shared = os.path.commonprefix(contexts)  # noqa: RUF071
    # The prompt ends with a whole word, although choices may begin with the same letters.
    n_shared = 1 + max(shared.rfind(" "), shared.rfind("\n"))
    texts = (context[n_shared:] + end for context, end in zip(contexts, endings, strict=True))
    return shared[:n_shared], tuple(texts)


def summarize_samples(
    benchmark: ResolvedBenchmark,
    samples: Sequence[Sample],
    task_weights: dict[str, float] | None = None,
    usable: Collection[str] | None = None,
) -> BenchmarkEvaluation:
    """Make a benchmark's evaluation from its samples.

    Args:
        benchmark: Its settings.
        samples: The questions that were asked.
        task_weights: How the harness weighs tasks; None weighs every question alike.
        usable: The metrics whose score is a mean where more is better; None: all are. A name
            without a filter, such as `exact_match`, stands for the metric with any filter.

    Returns:
        The evaluation, without the task's version and the seconds, which the caller adds. A metric
        is left out if it is not usable, or if a question has no score on it between 0 and 1.
    """

    def is_kept(metric: str) -> bool:
        is_usable = usable is None or metric in usable or Metric(metric).name in usable
        return is_usable and all(0 <= sample.scores.get(metric, inf) <= 1 for sample in samples)

    metrics = list(filter(is_kept, samples[0].scores))

    def drop_others(sample: Sample) -> Sample:
        if [*sample.scores] == [*sample.answers] == metrics:
            return sample  # saves time: most have no others, and there may be 100,000
        answers = {metric: sample.answers[metric] for metric in metrics}
        scores = {metric: sample.scores[metric] for metric in metrics}
        return replace(sample, answers=answers, scores=scores)

    return BenchmarkEvaluation(
        benchmark=benchmark,
        task_version="",
        samples=tuple(map(drop_others, samples)),
        seconds=nan,
        task_weights=task_weights,
    )


def check_primary_metric(
    name: str, benchmark: ResolvedBenchmark, samples: Sequence[Sample]
) -> None:
    """Check that every question has a score between 0 and 1 on the primary metric.

    Raises:
        DataError: A question has none, so base and tuned model could not be compared.
    """
    setting = f"benchmark.{name}.metric={benchmark.metric}"
    for sample in samples:
        score = sample.scores.get(benchmark.metric)
        if score is None or not 0 <= score <= 1:
            metrics = ", ".join(sorted(sample.scores)) or "none"
            raise DataError(
                f"{setting}: question {sample.doc_id} of {sample.task} scores {score}, and a score "
                f"must lie between 0 and 1; if it is of 100, set benchmark.{name}.scale=100, else "
                f"choose another metric: it has {metrics}"
            )


def find_no_number(samples: Sequence[Sample]) -> Sample | None:
    """Find the first sample with a log-likelihood or score that is not a number."""
    for sample in samples:
        if any(map(isnan, (*sample.log_likelihoods, *sample.scores.values()))):
            return sample
    return None


def parse_score(value: Any) -> float | None:
    """Read a score that the harness holds as any kind of number, or has logged as text.

    >>> parse_score(1), parse_score("0.5"), parse_score("True"), parse_score([0, 1])
    (1.0, 0.5, 1.0, None)
    """
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return {"True": 1.0, "False": 0.0}.get(str(value))


def numbers_agree(answer: str, target: str, tolerance: float) -> bool:
    r"""Return whether the last number of an answer is nearly the target's.

    The paper that slimdown follows (docs/paper.md) does so in section 2.4: |p - t| < 0.01.

    Args:
        answer: A text; without a number, it agrees with nothing.
        target: The right answer. If it has GSM8K's mark "####", the number stands behind that.
        tolerance: The numbers must differ by less than this.

    >>> numbers_agree("18.00", "9 + 9 = 18\n#### 18", 0.01)
    True
    >>> numbers_agree("$1,200.", "#### 1200", 0.01), numbers_agree("17", "#### 18", 0.01)
    (True, False)
    >>> numbers_agree("no idea", "#### 18", 0.01)
    False
    """

    def read_last(text: str) -> float:
        numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+", text)
        return float(numbers[-1].replace(",", "")) if numbers else nan

    right_answer = target.rsplit("####", maxsplit=1)[-1]
    return abs(read_last(answer) - read_last(right_answer)) < tolerance  # False for nan
