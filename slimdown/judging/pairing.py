"""Pair two evaluations question by question, or refuse to compare them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from slimdown.evaluation.results import SEED_CONDITION, BenchmarkEvaluation, Evaluation, Sample
from slimdown.stats.estimates import Sampling
from slimdown.stats.sequential import Floats
from slimdown.utils.errors import DataError
from slimdown.utils.hashing import hash_json


@dataclass(frozen=True)
class Pair:
    """Both models' answers to the same questions of one benchmark, in the same order."""

    base: BenchmarkEvaluation
    tuned: BenchmarkEvaluation
    sampling: Sampling
    question_hash: str  # of all questions, prompts and targets, in their order

    @property
    def base_scores(self) -> Floats:
        """The base's score on each question, by the primary metric."""
        return np.array(self.base.scores_of(self.base.benchmark.metric))

    @property
    def tuned_scores(self) -> Floats:
        """The tuned model's score on each question, by the base's primary metric."""
        return np.array(self.tuned.scores_of(self.base.benchmark.metric))

    @property
    def with_first_answers(self) -> "Pair":
        """The pair with only the first answer to each question."""
        base = replace(self.base, samples=tuple(s.first for s in self.base.samples))
        tuned = replace(self.tuned, samples=tuple(s.first for s in self.tuned.samples))
        return replace(self, base=base, tuned=tuned)


def pair_evaluations(
    base: Evaluation, tuned: Evaluation, same_prompts: bool = True
) -> dict[str, Pair]:
    """Pair both models' answers, by benchmark.

    Prompts are compared as the base's chat template writes them. A server gets the messages instead
    and has a template of its own: then equal prompts mean equal messages, and engines may differ.

    If an evaluation stopped early, only the questions that both answered are paired. Both are then
    treated as stopped after these questions. The tests of a stopped evaluation hold wherever it
    stops, so they hold there.

    Args:
        base, tuned: The evaluations.
        same_prompts: Refuse other prompts, another engine and other settings of the model. Without
            it only questions, right answers and scoring must be equal.

    Returns:
        The pair of each benchmark, by its name.

    Raises:
        DataError: the two were not asked the same; names the first field that differs.
    """
    base_conditions = _list_conditions(base, same_prompts)
    tuned_conditions = _list_conditions(tuned, same_prompts)
    if base.served_by or tuned.served_by:  # a server is another engine
        base_conditions["backend"] = tuned_conditions["backend"] = "not compared"
    _check_equal("base and tuned", base_conditions, tuned_conditions)
    return {
        name: pair_benchmark(name, benchmark, tuned.benchmarks[name], same_prompts)
        for name, benchmark in base.benchmarks.items()
    }


def _list_conditions(evaluation: Evaluation, same_prompts: bool) -> dict[str, object]:
    """List what two evaluations must have in common, by the name that a message uses."""
    benchmarks = sorted(evaluation.benchmarks)
    listed: dict[str, object] = {"benchmarks": benchmarks, "part": evaluation.part}
    if same_prompts:
        listed |= {"backend": evaluation.backend, **evaluation.conditions}
    else:
        listed |= {k: value for k, value in evaluation.conditions.items() if _is_of_scoring(k)}
    # The conditions of logs name all that another version of the harness would change, and some of
    # them hold for all benchmarks. Each of ours begins with a name and a dot: it belongs to one.
    if all("." in key for key in evaluation.conditions):
        listed["harness_version"] = evaluation.harness_version
    return listed


def describe_differences(before: Evaluation, after: Evaluation) -> Iterator[str]:
    """Say how two models were asked differently, a line for each difference.

    For pairs that `pair_evaluations` makes without `same_prompts`: prompts and engines may differ.
    """
    conditions = {"backend": before.backend, **before.conditions}
    later_conditions = {"backend": after.backend, **after.conditions}
    for key in dict.fromkeys((*conditions, *later_conditions)):
        first = str(conditions.get(key, "not set"))
        second = str(later_conditions.get(key, "not set"))
        if first != second:
            if key != "backend":  # the name of a server is not shortened
                first, second = _show_difference(first, second)
            yield f"{key} is {second} instead of {first}"
    for name, benchmark in after.benchmarks.items():
        prompts = {(s.task, s.doc_id): s.prompt_hash for s in before.benchmarks[name].samples}
        # A question that was not asked before does not count.
        n_differing = sum(
            prompts.get((s.task, s.doc_id), s.prompt_hash) != s.prompt_hash
            for s in benchmark.samples
        )
        if n_differing:
            yield f"{n_differing:,} of {len(benchmark.samples):,} prompts of {name} differ"


def _is_of_scoring(key: str) -> bool:
    """Whether a condition says how answers are scored, and not how prompts are made."""
    return "." in key and not key.endswith(f".{SEED_CONDITION}")


def pair_benchmark(
    name: str, base: BenchmarkEvaluation, tuned: BenchmarkEvaluation, same_prompts: bool = True
) -> Pair:
    """Pair both models' answers to one benchmark.

    Args:
        name: The benchmark's name, for messages.
        base, tuned: The answers; either evaluation may have stopped early.
        same_prompts: See `pair_evaluations`.

    Raises:
        DataError: The two were not asked the same, or a stopped evaluation has clusters.
    """
    _check_equal(name, _describe_benchmark(base), _describe_benchmark(tuned))
    # `shorter` has the questions that are paired. Only an evaluation with looks may have stopped
    # early. If neither has looks, the base's questions are taken. The tuned model was then asked as
    # many, see `_describe_benchmark`, and a question that only one of them was asked is refused
    # below.
    may_have_stopped = [benchmark for benchmark in (base, tuned) if benchmark.looks]
    shorter = min(may_have_stopped or [base], key=lambda benchmark: len(benchmark.samples))
    longer = max(base, tuned, key=lambda benchmark: len(benchmark.samples))
    has_clusters = _number_units(longer.samples) is not None  # or copies of a question
    if shorter.looks and has_clusters:
        problem = "stopped early, which may have divided its clusters or copies of a question"
        raise DataError(f"{name} {problem}; ask all questions, evaluation.until=all")
    fields = ["doc_hash", "target"]  # that must be equal
    if any(sample.cluster for sample in (*base.samples, *tuned.samples)):
        fields.append("cluster")
    if same_prompts:
        fields.append("prompt_hash")
    base_samples = {(sample.task, sample.doc_id): sample for sample in base.samples}
    tuned_samples = {(sample.task, sample.doc_id): sample for sample in tuned.samples}
    keys = [(sample.task, sample.doc_id) for sample in shorter.samples]
    described = []  # what `question_hash` is made of
    for task, doc_id in keys:
        question = _read_fields(base_samples.get((task, doc_id)), fields)
        tuned_question = _read_fields(tuned_samples.get((task, doc_id)), fields)
        _check_equal(f"{name}, question {doc_id} of {task}", question, tuned_question)
        described.append([task, doc_id, *question.values()])
    base = replace(base, samples=tuple(base_samples[key] for key in keys), looks=shorter.looks)
    tuned = replace(tuned, samples=tuple(tuned_samples[key] for key in keys), looks=shorter.looks)
    return Pair(base, tuned, describe_sampling(longer, base), question_hash=hash_json(described))


def _describe_benchmark(evaluation: BenchmarkEvaluation) -> dict[str, object]:
    """List what two evaluations of a benchmark must share, by the name that a message uses."""
    return {
        "task": evaluation.benchmark.task,
        "task_version": evaluation.task_version,
        "num_fewshot": evaluation.benchmark.num_fewshot,
        "number of questions": evaluation.n_available or len(evaluation.samples),
        "task_weights": evaluation.task_weights,
    }


def _read_fields(sample: Sample | None, names: Sequence[str]) -> dict[str, object]:
    """Return some fields of a sample; None for each where the question was not asked."""
    return {name: getattr(sample, name, None) for name in names}


def _check_equal(name: str, base: Mapping[str, object], tuned: Mapping[str, object]) -> None:
    """Refuse two descriptions that differ in a field, and show where its values differ."""
    for field in dict.fromkeys((*base, *tuned)):
        if base.get(field) != tuned.get(field):
            first, second = _show_difference(
                str(base.get(field, "not set")), str(tuned.get(field, "not set"))
            )
            raise DataError(
                f"{name}: these two evaluations cannot be compared, {field} differs: "
                f"{first} and {second}"
            )


def _show_difference(first: str, second: str) -> tuple[str, str]:
    """Cut two texts to 60 characters, of which 20 stand before the first that differs."""
    if max(len(first), len(second)) <= 60:
        return first, second
    differing = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    begin = next(differing, min(len(first), len(second))) - 20
    if begin <= 0:
        return first[:60], second[:60]
    return f"...{first[begin:][:60]}", f"...{second[begin:][:60]}"


def describe_sampling(longer: BenchmarkEvaluation, paired: BenchmarkEvaluation) -> Sampling:
    """Describe how the paired questions were drawn, looked at and weighted.

    They have weights if the harness gives the tasks of a group weights.

    Args:
        longer: The evaluation that asked more questions. Weights are those among its questions.
        paired: The questions that both evaluations asked, and the looks at their answers.
    """
    n_tasks = len({sample.task for sample in longer.samples})
    sampling = Sampling(
        looks=paired.looks,
        n_available=(paired.n_available or len(longer.samples)) if paired.looks else None,
        n_subjects=n_tasks if n_tasks > 1 else 0,  # even if the paired ones are of one task
        clusters=_number_units(paired.samples),
    )
    if not longer.task_weights:
        return sampling
    weights = _weigh_units(longer.samples, longer.task_weights)
    tasks = [sample.task for sample in paired.samples]
    # A look is a number of questions. A weighted mean needs an answer of each task. So nothing is
    # claimed at the first looks, if they come before a task's first question.
    skipped_looks = [look for look in paired.looks if len(set(tasks[:look])) < n_tasks]
    return replace(
        sampling,
        weights=np.array([weights[sample.task, sample.unit] for sample in paired.samples]),
        # Questions to come may weigh more than those asked. An evaluation without looks asked all
        # of its questions, so for it the default of `Sampling` is enough.
        largest_weight=max(weights.values()) if paired.looks else Sampling.largest_weight,
        n_skipped_looks=len(skipped_looks),
    )


def _weigh_units(
    samples: Sequence[Sample], task_weights: Mapping[str, float]
) -> dict[tuple[str, str], float]:
    """Return the weight of a question, by its task and its unit; the mean weight is 1.

    A task keeps the weight that the harness gives it. Within the task all units (documents or
    clusters) weigh the same, however many questions they have.
    """
    tasks = dict.fromkeys(sample.task for sample in samples)
    total_weight = sum(task_weights[task] for task in tasks)
    sizes = Counter((sample.task, sample.unit) for sample in samples)  # questions of each unit
    n_units = Counter(task for task, _ in sizes)
    weights = {}
    for (task, unit), size in sizes.items():
        # The task's questions together. Its units share this alike, and so do a unit's questions.
        task_weight = task_weights[task] / total_weight * len(samples)
        weights[task, unit] = task_weight / n_units[task] / size
    return weights


def _number_units(samples: Sequence[Sample]) -> Floats | None:
    """Number what counts as one question, which may span tasks; None: every question does."""
    units = [sample.unit for sample in samples]
    if len(set(units)) == len(units):
        return None
    return np.unique(units, return_inverse=True)[1].astype(float)
