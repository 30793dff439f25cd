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
    """Take what all evaluations have: their benchmarks, and of each the questions.

    Questions are the same if they have the same number and the same content. Where numbers mean
    other questions (tables whose ids are words are numbered in their order), the content alone
    decides. A benchmark that stopped early is taken as it is: its earlier end is a look.

    Args:
        evaluations: By the name that a message uses, such as a path.
        only: The benchmarks to take; empty: all that are in common.

    Returns:
        The evaluations, cut to what is in common; their `part` says so. And sentences for the user
        on what is left out; none if nothing is.

    Raises:
        ConfigError: `only` names a benchmark that an evaluation lacks.
        DataError: No benchmark is in common, or no question of one is.
    """
    asked = [list(evaluation.benchmarks) for evaluation in evaluations.values()]
    common = [name for name in asked[0] if all(name in names for names in asked)]
    for name in only:
        if name not in common:
            known = list(dict.fromkeys(name for names in asked for name in names))
            lacking = [side for side, one in evaluations.items() if name not in one.benchmarks]
            problem = f"{' and '.join(lacking)} did not ask it{nearest(name, known)}"
            raise ConfigError(f"--only {name}: {problem}; in common are {', '.join(common)}")
    if not common:
        told = [f"{side} asked {', '.join(one.benchmarks)}" for side, one in evaluations.items()]
        raise DataError(f"no benchmark is in common: {'; '.join(told)}; ask both models the same")
    chosen = [name for name in common if not only or name in only]
    notes, parts = list[str](), list[str]()
    if not only:
        notes += _describe_left_out(evaluations, common)
    benchmarks: dict[str, dict[str, BenchmarkEvaluation]] = {side: {} for side in evaluations}
    for name in chosen:
        sides = {side: one.benchmarks[name] for side, one in evaluations.items()}
        cut = _take_common_questions(name, sides)
        for side, benchmark in cut.items():
            benchmarks[side][name] = benchmark
        n, most = len(next(iter(cut.values())).samples), max(len(s.samples) for s in sides.values())
        if cut is not sides:
            parts.append(f"{n:,} of {most:,} of {name}")
            counts = ", ".join(f"{len(s.samples):,} in {side}" for side, s in sides.items())
            notes.append(f"{name}: {n:,} questions are in common ({counts}); these are judged.")
    is_cut = len(chosen) < max(map(len, asked))
    if is_cut and not parts:
        parts = [f"those of {', '.join(chosen)}"]
    in_common = f"those in common ({', '.join(parts)})" if parts else ""
    taken = {}
    for side, evaluation in evaluations.items():
        part = "; ".join(filter(None, (evaluation.part, in_common)))
        conditions = _keep_conditions(evaluation, chosen)
        taken[side] = replace(
            evaluation, benchmarks=benchmarks[side], conditions=conditions, part=part
        )
    return taken, notes


def _describe_left_out(
    evaluations: Mapping[str, Evaluation], common: Sequence[str]
) -> Iterator[str]:
    """Say which benchmarks an evaluation has that another lacks."""
    for side, evaluation in evaluations.items():
        if more := [name for name in evaluation.benchmarks if name not in common]:
            names = ", ".join(more)
            yield f"Left out: {names}, which {side} asked and another did not."


def _keep_conditions(evaluation: Evaluation, chosen: Sequence[str]) -> dict[str, str]:
    """Return the conditions of an evaluation without those of benchmarks that are left out."""
    kept, dropped = set[str](), set[str]()
    for name, benchmark in evaluation.benchmarks.items():
        names = kept if name in chosen else dropped
        names |= {name, benchmark.benchmark.task, *(sample.task for sample in benchmark.samples)}
    dropped -= kept
    return {
        key: value
        for key, value in evaluation.conditions.items()
        if "." not in key or key.partition(".")[0] not in dropped
    }


def _take_common_questions(
    name: str, sides: dict[str, BenchmarkEvaluation]
) -> dict[str, BenchmarkEvaluation]:
    """Cut one benchmark to the questions that all sides have; the same object if none is cut."""
    if any(benchmark.looks for benchmark in sides.values()):
        return sides
    by_side = {side: _number_as_asked(one.samples) for side, one in sides.items()}
    first, *others = by_side.values()
    if all(_list_contents(other) == _list_contents(first) for other in others):
        return sides
    in_all = [key for key in first if all(key in other for other in others)]
    if any(other[key].doc_hash != first[key].doc_hash for other in others for key in in_all):
        by_side = {side: _number_by_content(one.samples) for side, one in sides.items()}
        first, *others = by_side.values()
        in_all = [key for key in first if all(key in other for other in others)]
    if not in_all:
        counts = ", ".join(f"{len(one.samples):,} in {side}" for side, one in sides.items())
        raise DataError(
            f"{name}: no question is in common ({counts}); ask both models the same questions, or "
            "leave it out with --only"
        )
    cut = {}
    for side, samples in by_side.items():
        # The first side's numbers count for all.
        taken = tuple(replace(samples[key], doc_id=first[key].doc_id) for key in in_all)
        cut[side] = replace(sides[side], samples=taken)
    return cut


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
