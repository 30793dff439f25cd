"""Pair two evaluations question by question, or refuse to compare them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from slimdown.evaluation.results import FEWSHOT_SEED, BenchmarkEvaluation, Evaluation, Sample
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


def pair_evaluations(
    base: Evaluation, tuned: Evaluation, same_prompts: bool = True
) -> dict[str, Pair]:
    """Pair both models' answers, by benchmark.

    If an evaluation stopped early, only the questions that both answered are paired. The earlier
    end is a look, known as such when it came, so everything that holds at any look holds there.

    Args:
        base, tuned: The evaluations.
        same_prompts: Refuse other prompts, another engine and other settings of the model. Without
            it questions, right answers and scoring must be equal, see `describe_differences`.

    Raises:
        DataError: the two were not asked the same; names the first field that differs.
    """
    asked = [
        {"benchmarks": sorted(one.benchmarks), "part": one.part}
        | ({"backend": one.backend} if same_prompts else {})
        | {k: value for k, value in one.conditions.items() if same_prompts or _is_of_scoring(k)}
        # The conditions of logs hold what another version of the harness would change. Ours do not:
        # each of them belongs to one benchmark.
        | ({} if _is_of_logs(one) else {"harness_version": one.harness_version})
        for one in (base, tuned)
    ]
    _check_equal("base and tuned", *asked)
    return {
        name: pair_benchmark(name, one, tuned.benchmarks[name], same_prompts)
        for name, one in base.benchmarks.items()
    }


def describe_differences(before: Evaluation, after: Evaluation) -> Iterator[str]:
    """Say how two models were asked differently, where `same_prompts` is not asked for."""
    sides = [{"backend": one.backend, **one.conditions} for one in (before, after)]
    for key in dict.fromkeys((*sides[0], *sides[1])):
        first, second = (str(one.get(key, "not set")) for one in sides)
        if first != second:
            first, second = _show_difference(first, second)
            yield f"{key} is {second} after {first}"
    for name, benchmark in after.benchmarks.items():
        prompts = {(s.task, s.doc_id): s.prompt_hash for s in before.benchmarks[name].samples}
        asked = [(prompts.get((s.task, s.doc_id)), s.prompt_hash) for s in benchmark.samples]
        if n_other := sum(first != second for first, second in asked if first):
            yield f"{n_other:,} of {len(asked):,} prompts of {name} are others"


def _is_of_scoring(key: str) -> bool:
    """Whether a condition says how answers are scored, and not how prompts are made."""
    return "." in key and not key.endswith(f".{FEWSHOT_SEED}")


def _is_of_logs(evaluation: Evaluation) -> bool:
    return any("." not in key for key in evaluation.conditions)


def pair_benchmark(
    name: str, base: BenchmarkEvaluation, tuned: BenchmarkEvaluation, same_prompts: bool = True
) -> Pair:
    """Pair both models' answers to one benchmark, see `pair_evaluations`."""
    fields = [
        {
            "task": one.benchmark.task,
            "task_version": one.task_version,
            "num_fewshot": one.benchmark.num_fewshot,
            "number of questions": one.n_available or len(one.samples),
            "task_weights": one.task_weights,
        }
        for one in (base, tuned)
    ]
    _check_equal(name, *fields)
    stopped = [one for one in (base, tuned) if one.looks]
    shorter = min(stopped or [base], key=lambda one: len(one.samples))
    places = [(sample.task, sample.doc_id) for sample in shorter.samples]
    sides = [{(s.task, s.doc_id): s for s in one.samples} for one in (base, tuned)]
    described = []
    has_clusters = any(sample.cluster for one in (base, tuned) for sample in one.samples)
    whole = max(base, tuned, key=lambda one: len(one.samples))
    if shorter.looks and _number_units(whole.samples) is not None:
        problem = "stopped early, and looks may divide its clusters, or copies of a question"
        raise DataError(f"{name} {problem}; ask all questions, evaluation.until=all")
    about = ["doc_hash", "target", *(["cluster"] if has_clusters else [])]
    about += ["prompt_hash"] if same_prompts else []
    for place in places:
        questions = [{f: getattr(of.get(place), f, None) for f in about} for of in sides]
        _check_equal(f"{name}, question {place[1]} of {place[0]}", *questions)
        described.append([*place, *questions[0].values()])
    cut_base, cut_tuned = (
        replace(one, samples=tuple(samples[place] for place in places), looks=shorter.looks)
        for one, samples in zip((base, tuned), sides, strict=True)
    )
    return Pair(cut_base, cut_tuned, describe_sampling(whole, cut_base), hash_json(described))


def _check_equal(name: str, base: Mapping[str, object], tuned: Mapping[str, object]) -> None:
    for field in dict.fromkeys((*base, *tuned)):
        if base.get(field) != tuned.get(field):
            values = (str(one.get(field, "not set")) for one in (base, tuned))
            first, second = _show_difference(*values)
            raise DataError(
                f"{name}: these two evaluations cannot be compared, {field} differs: "
                f"{first} and {second}"
            )


def _show_difference(first: str, second: str) -> tuple[str, str]:
    """Cut two texts to 60 characters, a few before the first in which they differ."""
    if max(len(first), len(second)) <= 60:
        return first, second
    pairs = enumerate(zip(first, second, strict=False))
    begin = next((i for i, (a, b) in pairs if a != b), min(len(first), len(second))) - 20
    opening, begin = ("...", begin) if begin > 0 else ("", 0)
    return opening + first[begin:][:60], opening + second[begin:][:60]


def describe_sampling(whole: BenchmarkEvaluation, part: BenchmarkEvaluation) -> Sampling:
    """Describe the sampling of some questions, with the weights of the harness's groups.

    A task keeps the weight that the harness gives it. Within it all documents and clusters weigh
    the same, however often they are asked.
    """
    sizes = Counter(sample.task for sample in whole.samples)
    weights, largest_weight, n_skipped_looks = None, 1.0, 0
    if whole.task_weights:
        total = sum(whole.task_weights[task] for task in sizes)
        copies = Counter((sample.task, sample.unit) for sample in whole.samples)
        n_units = Counter(task for task, _ in copies)
        weight_of = {
            (task, unit): whole.task_weights[task] / total * sizes.total() / n_units[task] / n
            for (task, unit), n in copies.items()
        }
        weights = np.array([weight_of[sample.task, sample.unit] for sample in part.samples])
        if part.looks:  # and so without copies
            largest_weight, tasks = max(weight_of.values()), [s.task for s in part.samples]
            n_skipped_looks = sum(len(set(tasks[:look])) < len(sizes) for look in part.looks)
    n_available = (part.n_available or len(whole.samples)) if part.looks else None
    n_subjects = len(sizes) if len(sizes) > 1 else 0  # even if a look has seen only one
    return Sampling(
        weights,
        part.looks,
        n_available,
        n_subjects,
        largest_weight,
        n_skipped_looks,
        clusters=_number_units(part.samples),
    )


def _number_units(samples: Sequence[Sample]) -> Floats | None:
    """Number what counts as one question, which may span tasks; None: every question does."""
    units = [sample.unit for sample in samples]
    if len(set(units)) == len(units):
        return None
    return np.unique(units, return_inverse=True)[1].astype(float)
