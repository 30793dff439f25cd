"""What the harness returns -> `BenchmarkEvaluation`. No torch: the harness's log files are read by it too."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import sqrt
from numbers import Real
from typing import Any

from slimdown.config.schema import BenchmarkConfig
from slimdown.evaluation.answers import BenchmarkEvaluation, Sample, Score
from slimdown.utils.errors import SlimdownError


def read_results(
    name: str, benchmark: BenchmarkConfig, results: Any, seconds: float
) -> BenchmarkEvaluation:
    """The scores and samples of one benchmark.

    Args:
        name: of the benchmark.
        benchmark: how it is read.
        results: what `lm_eval.evaluate` returns, `samples` those of this benchmark's tasks alone.
        seconds: that measuring took.

    Raises:
        SlimdownError: the task has no such metric.
    """
    samples = _all_samples(results, benchmark)
    scores: dict[str, Score] = {}
    summary = results["results"].get(benchmark.task) or results.get("groups", {}).get(
        benchmark.task, {}
    )
    for key, value in summary.items():
        metric, _, filter_name = key.partition(",")
        if filter_name and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            error = summary.get(f"{metric}_stderr,{filter_name}")
            scores[metric_name(metric, filter_name)] = Score(
                float(value), float(error) if isinstance(error, (int, float)) else float("nan")
            )
    if benchmark.numeric_tolerance is not None:
        scores["flexible_accuracy"] = _mean_score([s.scores["flexible_accuracy"] for s in samples])
    if benchmark.metric not in scores:
        raise SlimdownError(
            f"benchmark.{name}.metric={benchmark.metric}: {benchmark.task} has no such metric; "
            f"it has {', '.join(sorted(scores))}"
        )
    versions = [results["versions"].get(task) for task in results["samples"]]
    return BenchmarkEvaluation(
        benchmark=benchmark,
        task_version=_version(versions),
        task_hash=_task_hash(samples),
        scores=scores,
        samples=tuple(samples),
        seconds=seconds,
    )


def read_stage(
    benchmark: BenchmarkConfig,
    results: Any,
    asked: Sequence[tuple[str, int]],
    means: Iterable[str],
    versions: Iterable[object],
    seconds: float,
) -> BenchmarkEvaluation:
    """The samples of some questions of a benchmark, in the order of `asked`, and the means of their scores.

    Args:
        benchmark: how it is read.
        results: what `lm_eval.evaluate` returns of them.
        asked: task and number of each.
        means: the metrics, without filters, that are means.
        versions: of all tasks of the benchmark.
        seconds: that measuring took.
    """
    samples = {(sample.task, sample.doc_id): sample for sample in _all_samples(results, benchmark)}
    in_order = tuple(samples[question] for question in asked)
    metrics = [m for m in in_order[0].scores if m.partition(".")[0] in means]
    scores = {
        m: _mean_score([s.scores[m] for s in in_order])
        for m in metrics
        if all(m in s.scores for s in in_order)
    }
    return BenchmarkEvaluation(
        benchmark, _version(versions), _task_hash(in_order), scores, in_order, seconds
    )


def joined(
    report: BenchmarkEvaluation | None, stage: BenchmarkEvaluation, n_available: int
) -> BenchmarkEvaluation:
    """What a benchmark says after one stage more; None: this is the first."""
    if report is None:
        return replace(stage, stages=(len(stage.samples),), n_available=n_available)
    samples = report.samples + stage.samples
    both = replace(report, samples=samples, stages=(*report.stages, len(samples)))
    return _again(both, report.seconds + stage.seconds)


def first_stages(report: BenchmarkEvaluation, n_stages: int) -> BenchmarkEvaluation:
    """What a benchmark said after its first stages; `report` itself where it has no more."""
    if n_stages >= len(report.stages):
        return report
    stages = report.stages[:n_stages]
    return _again(
        replace(report, samples=report.samples[: stages[-1]], stages=stages), report.seconds
    )


def _again(report: BenchmarkEvaluation, seconds: float) -> BenchmarkEvaluation:
    """The report with what follows from its samples."""
    scores = {
        m: _mean_score(report.scores_of(m))
        for m in report.scores
        if all(m in s.scores for s in report.samples)
    }
    return replace(report, scores=scores, task_hash=_task_hash(report.samples), seconds=seconds)


def _all_samples(results: Any, benchmark: BenchmarkConfig) -> list[Sample]:
    logged = results["samples"].items()
    return [
        sample
        for task, of_task in logged
        for sample in _read_samples(task, of_task, results["configs"][task], benchmark)
    ]


def _task_hash(samples: Sequence[Sample]) -> str:
    asked = "".join(f"{s.task}{s.doc_hash}{s.prompt_hash}{s.target}" for s in samples)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _version(versions: Iterable[object]) -> str:
    return ", ".join(sorted({str(version) for version in versions}))


def _read_samples(
    task: str, logged: list[Any], task_config: Any, benchmark: BenchmarkConfig
) -> Iterator[Sample]:
    """One `Sample` a question; the harness logs one entry a question and filter."""
    by_doc: dict[int, list[Any]] = {}
    for entry in logged:
        by_doc.setdefault(entry["doc_id"], []).append(entry)
    delimiter = task_config.get("target_delimiter", " ")
    for doc_id, entries in by_doc.items():
        first = entries[0]
        prompt = str(first["arguments"][0][0])
        is_choice = task_config["output_type"] == "multiple_choice"
        choices: tuple[str, ...] = ()
        log_likelihoods: tuple[float, ...] = ()
        response = ""
        answers: dict[str, str] = {}
        scores: dict[str, float] = {}
        target = str(first["target"])
        if is_choice:
            choices = tuple(
                str(arguments[1]).removeprefix(delimiter) for arguments in first["arguments"]
            )
            log_likelihoods = tuple(float(r[0]) for r in first["filtered_resps"])[: len(choices)]
            by_length = [
                ll / max(len(c), 1) for ll, c in zip(log_likelihoods, choices, strict=True)
            ]
            if target.isdigit() and int(target) < len(choices):
                target = choices[int(target)]
        else:
            response = str(first["resps"][0][0])
        for entry in entries:
            for metric in entry["metrics"]:
                if (score := _number(entry[metric])) is None:
                    continue  # a metric over all questions, such as F1, has no score of its own here
                key = metric_name(metric, entry["filter"])
                scores[key] = score
                if is_choice:
                    ranked = by_length if metric == "acc_norm" else log_likelihoods
                    answers[key] = choices[max(range(len(choices)), key=ranked.__getitem__)]
                else:
                    answers[key] = str(entry["filtered_resps"][0])
        if benchmark.numeric_tolerance is not None:
            # The harness's flexible-extract compares strings ("18.00" is not "18"); the paper's flexible accuracy
            # compares numbers.
            extracted = next(
                (a for k, a in answers.items() if k.endswith("flexible-extract")), response
            )
            answers["flexible_accuracy"] = extracted
            scores["flexible_accuracy"] = float(
                numbers_agree(extracted, target, benchmark.numeric_tolerance)
            )
        yield Sample(
            task=task,
            doc_id=int(doc_id),
            doc_hash=first["doc_hash"],
            prompt_hash=first["prompt_hash"],
            prompt=prompt,
            target=target,
            response=response,
            choices=choices,
            log_likelihoods=log_likelihoods,
            answers=answers,
            scores=scores,
        )


def _number(value: Any) -> float | None:
    """The score that the harness holds as any kind of number, or has written as text; None where it is none.

    >>> _number(1), _number("0.5"), _number("True"), _number([0, 1])
    (1.0, 0.5, 1.0, None)
    """
    if isinstance(value, Real):
        return float(value)
    if (text := str(value)) in ("True", "False"):  # numpy's, which is no number
        return float(text == "True")
    try:
        return float(text) if isinstance(value, str) else None
    except ValueError:
        return None


def numbers_agree(answer: str, target: str, tolerance: float) -> bool:
    r"""Whether the last number of an answer is within `tolerance` of the target's (paper 2.4: |p - t| < 0.01).

    >>> numbers_agree("18.00", "9 + 9 = 18\n#### 18", 0.01)
    True
    >>> numbers_agree("$1,200.", "#### 1200", 0.01), numbers_agree("17", "#### 18", 0.01)
    (True, False)
    >>> numbers_agree("no idea", "#### 18", 0.01)
    False
    """
    number, wanted = _last_number(answer), _last_number(target.rsplit("####", 1)[-1])
    return number is not None and wanted is not None and abs(number - wanted) < tolerance


def _last_number(text: str) -> float | None:
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+", text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def _mean_score(values: list[float]) -> Score:
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return Score(mean, float("nan"))
    return Score(mean, sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n))


def metric_name(metric: str, filter_name: str) -> str:
    """`acc` for the harness's `acc,none`, `exact_match.strict-match` for `exact_match,strict-match`."""
    return metric if filter_name == "none" else f"{metric}.{filter_name}"
