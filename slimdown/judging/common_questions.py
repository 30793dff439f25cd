"""Take the benchmarks and questions that several evaluations have in common."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

from slimdown.config.fields import nearest
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation, Sample
from slimdown.utils.errors import ConfigError, DataError


def take_common(
    evaluations: Mapping[str, Evaluation], only: Sequence[str] = ()
) -> tuple[dict[str, Evaluation], list[str]]:
    """Take the benchmarks that all evaluations have, and of each the questions that all asked.

    Questions are the same if they have the same number and the same content. If the same number
    stands for different questions (tables whose ids are words are numbered in their order), the
    content alone decides. A benchmark that stopped early is not cut. Its test holds only for the
    questions that were asked up to one of its looks (the times at which the rule could stop).

    Args:
        evaluations: By the name that a message uses, such as a path.
        only: The benchmarks to take; empty: all that are in common.

    Returns:
        The evaluations, cut to what is in common; their `part`, which names the questions in
        reports, says so. And sentences for the user on what is left out; none if nothing is.

    Raises:
        ConfigError: `only` names a benchmark that an evaluation lacks.
        DataError: No benchmark is in common, or no question of one is.
    """
    chosen = _choose_benchmarks(evaluations, only)
    notes = [] if only else list(_describe_left_out(evaluations, chosen))
    # What is taken, by side (the name of an evaluation) and by benchmark.
    benchmarks: dict[str, dict[str, BenchmarkEvaluation]] = {side: {} for side in evaluations}
    cut_benchmarks = list[str]()
    for name in chosen:
        whole = {side: evaluation.benchmarks[name] for side, evaluation in evaluations.items()}
        cut = _take_common_questions(name, whole)
        for side, benchmark in (cut or whole).items():
            benchmarks[side][name] = benchmark
        if cut:
            n_common = len(next(iter(cut.values())).samples)
            n_most = max(len(benchmark.samples) for benchmark in whole.values())
            cut_benchmarks.append(f"{n_common:,} of {n_most:,} of {name}")
            in_common = f"{n_common:,} questions are in common ({_count_questions(whole)})"
            notes.append(f"{name}: {in_common}; these are judged.")
    part = ""
    if cut_benchmarks:
        part = f"those in common ({', '.join(cut_benchmarks)})"
    elif any(len(chosen) < len(evaluation.benchmarks) for evaluation in evaluations.values()):
        part = f"those in common (those of {', '.join(chosen)})"
    taken = {}
    for side, evaluation in evaluations.items():
        taken[side] = replace(
            evaluation,
            benchmarks=benchmarks[side],
            conditions=_keep_conditions(evaluation, chosen),
            part="; ".join(filter(None, (evaluation.part, part))),
        )
    return taken, notes


def _choose_benchmarks(evaluations: Mapping[str, Evaluation], only: Sequence[str]) -> list[str]:
    """Choose the benchmarks that all evaluations have, or those of them that `only` names.

    Raises:
        ConfigError: `only` names a benchmark that an evaluation lacks.
        DataError: No benchmark is in common.
    """
    known = dict.fromkeys(n for evaluation in evaluations.values() for n in evaluation.benchmarks)
    common = [n for n in known if all(n in e.benchmarks for e in evaluations.values())]
    for name in only:
        if name not in common:
            without = [side for side, e in evaluations.items() if name not in e.benchmarks]
            sides = " and ".join(without)
            advice = "" if name in known else nearest(name, list(known))
            shared = f"in common are {', '.join(common)}" if common else "nothing is in common"
            raise ConfigError(f"--only {name}: {sides} did not ask it{advice}; {shared}")
    if not common:
        listed = [f"{side} asked {', '.join(e.benchmarks)}" for side, e in evaluations.items()]
        raise DataError(f"no benchmark is in common: {'; '.join(listed)}; ask both models the same")
    return [name for name in common if not only or name in only]


def _count_questions(benchmarks: Mapping[str, BenchmarkEvaluation]) -> str:
    return ", ".join(f"{len(b.samples):,} in {side}" for side, b in benchmarks.items())


def _describe_left_out(
    evaluations: Mapping[str, Evaluation], common: Sequence[str]
) -> Iterator[str]:
    """Say which benchmarks an evaluation has that another lacks."""
    for side, evaluation in evaluations.items():
        names = ", ".join(name for name in evaluation.benchmarks if name not in common)
        if names:
            yield f"Left out: {names}, which {side} asked and another did not."


def _keep_conditions(evaluation: Evaluation, chosen: Sequence[str]) -> dict[str, str]:
    """Return the conditions of an evaluation without those of benchmarks that are left out."""
    kept_tasks, dropped_tasks = set[str](), set[str]()
    for name, benchmark in evaluation.benchmarks.items():
        tasks = kept_tasks if name in chosen else dropped_tasks
        tasks |= {name, benchmark.benchmark.task, *(sample.task for sample in benchmark.samples)}
    dropped_tasks -= kept_tasks
    return {
        key: value
        for key, value in evaluation.conditions.items()
        if "." not in key or key.partition(".")[0] not in dropped_tasks
    }


def _take_common_questions(
    name: str, sides: Mapping[str, BenchmarkEvaluation]
) -> dict[str, BenchmarkEvaluation] | None:
    """Cut one benchmark to the questions that all sides have; None if nothing is to be cut.

    Args:
        name: The benchmark's name, for messages.
        sides: What each evaluation asked of it, by the evaluation's name.

    Raises:
        DataError: No question is in common.
    """
    if any(benchmark.looks for benchmark in sides.values()):  # it stopped early, see `take_common`
        return None
    # For each side, its samples by what identifies a question: first its number, then its content.
    by_key = {side: _number_as_asked(b.samples) for side, b in sides.items()}
    first, *others = by_key.values()
    if all(_list_contents(other) == _list_contents(first) for other in others):
        return None
    keys = _find_common_keys(by_key)
    if any(other[key].doc_hash != first[key].doc_hash for other in others for key in keys):
        # The same number stands for different questions.
        by_key = {side: _number_by_content(b.samples) for side, b in sides.items()}
        keys = _find_common_keys(by_key)
    if not keys:
        raise DataError(
            f"{name}: no question is in common ({_count_questions(sides)}); ask both models the "
            "same questions, or leave it out with --only"
        )
    first = next(iter(by_key.values()))
    cut = {}
    for side, samples in by_key.items():
        # The first side's numbers count for all, so that answers can be paired by number.
        common = tuple(replace(samples[key], doc_id=first[key].doc_id) for key in keys)
        cut[side] = replace(sides[side], samples=common)
    return cut


def _find_common_keys(numbered: Mapping[str, Mapping[Hashable, Sample]]) -> list[Hashable]:
    """Return the keys that all sides have, in the order of the first side."""
    first, *others = numbered.values()
    return [key for key in first if all(key in other for other in others)]


def _number_as_asked(samples: Sequence[Sample]) -> dict[Hashable, Sample]:
    """Return samples by task and number."""
    return {(sample.task, sample.doc_id): sample for sample in samples}


def _number_by_content(samples: Sequence[Sample]) -> dict[Hashable, Sample]:
    """Return samples by task and content; copies of a question are numbered in their order."""
    seen = Counter[tuple[str, str]]()
    numbered: dict[Hashable, Sample] = {}
    for sample in samples:
        content = sample.task, sample.doc_hash
        numbered[content, seen[content]] = sample
        seen[content] += 1
    return numbered


def _list_contents(samples: Mapping[Hashable, Sample]) -> dict[Hashable, str]:
    """Return the content of each question by its number."""
    return {key: sample.doc_hash for key, sample in samples.items()}
