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

    There is an exception, which `_cut_to_common_questions` makes. If a benchmark may have stopped
    early in an evaluation, it is taken uncut, with the questions that only some asked. Its test
    holds only for whole looks: for all questions that were asked up to a time at which the
    evaluation could stop.

    Args:
        evaluations: By label. The label is what a message calls the evaluation, such as its path.
        only: The benchmarks to take; empty: all that are in common.

    Returns:
        The evaluations by label, with what is in common alone. If this leaves something out, their
        `part` names what is taken, because reports call the questions by it. And sentences for the
        user: one for each benchmark that is cut to fewer questions, and, unless `only` chose the
        benchmarks, one for each evaluation with benchmarks that are left out.

    Raises:
        ConfigError: `only` names a benchmark that an evaluation lacks.
        DataError: No benchmark is in common, or no question of one is.
    """
    chosen = _choose_benchmarks(evaluations, only)
    notes = [] if only else list(_describe_left_out(evaluations, chosen))
    taken: dict[str, dict[str, BenchmarkEvaluation]] = {}  # by benchmark, and there by label
    cuts = list[str]()  # what is taken of each benchmark that is cut: "30 of 40 of gsm8k"
    for name in chosen:
        whole = {label: evaluation.benchmarks[name] for label, evaluation in evaluations.items()}
        cut = _cut_to_common_questions(name, whole)
        taken[name] = cut or whole
        if cut:
            n_common = len(next(iter(cut.values())).samples)
            n_most = max(len(benchmark.samples) for benchmark in whole.values())
            cuts.append(f"{n_common:,} of {n_most:,} of {name}")
            in_common = f"{n_common:,} questions are in common ({_count_questions(whole)})"
            notes.append(f"{name}: {in_common}; these are judged.")
    part = ""  # empty: nothing is left out
    if cuts:
        part = f"those in common ({', '.join(cuts)})"
    elif any(len(evaluation.benchmarks) > len(chosen) for evaluation in evaluations.values()):
        part = f"those in common (those of {', '.join(chosen)})"
    common_evaluations = {}
    for label, evaluation in evaluations.items():
        common_evaluations[label] = replace(
            evaluation,
            benchmarks={name: by_label[label] for name, by_label in taken.items()},
            conditions=_keep_conditions(evaluation, chosen),
            part="; ".join(filter(None, (evaluation.part, part))),  # it may have had one before
        )
    return common_evaluations, notes


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
            without = [label for label, e in evaluations.items() if name not in e.benchmarks]
            labels = " and ".join(without)
            advice = "" if name in known else nearest(name, list(known))
            shared = f"in common are {', '.join(common)}" if common else "nothing is in common"
            raise ConfigError(f"--only {name}: {labels} did not ask it{advice}; {shared}")
    if not common:
        listed = [f"{label} asked {', '.join(e.benchmarks)}" for label, e in evaluations.items()]
        raise DataError(f"no benchmark is in common: {'; '.join(listed)}; ask both models the same")
    return [name for name in common if not only or name in only]


def _count_questions(benchmarks: Mapping[str, BenchmarkEvaluation]) -> str:
    return ", ".join(f"{len(b.samples):,} in {label}" for label, b in benchmarks.items())


def _describe_left_out(
    evaluations: Mapping[str, Evaluation], common: Sequence[str]
) -> Iterator[str]:
    """Say which benchmarks an evaluation has that another lacks."""
    for label, evaluation in evaluations.items():
        names = ", ".join(name for name in evaluation.benchmarks if name not in common)
        if names:
            yield f"Left out: {names}, which {label} asked and another did not."


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


def _cut_to_common_questions(
    name: str, whole: Mapping[str, BenchmarkEvaluation]
) -> dict[str, BenchmarkEvaluation] | None:
    """Cut one benchmark to the questions that all evaluations asked.

    Two evaluations asked the same question if it has the same task, number and content in both. If
    any number stands for different contents (tables whose ids are words are numbered in their
    order), numbers identify nothing, and questions are the same if task and content are.

    Args:
        name: The benchmark's name, for messages.
        whole: What each evaluation asked of the benchmark, by the evaluation's label.

    Returns:
        The benchmark by label, with the common questions alone. They have the order and the numbers
        of the first evaluation, so that answers can be paired by number. None if nothing is to be
        cut: all asked the same questions, or one may have stopped early (see `take_common`).

    Raises:
        DataError: No question is in common.
    """
    if any(benchmark.looks for benchmark in whole.values()):  # one may have stopped early
        return None
    samples_by_label = {label: _key_by_number(b.samples) for label, b in whole.items()}
    first, *others = samples_by_label.values()
    keys = _find_common_keys(samples_by_label)
    numbers_agree = all(other[k].doc_hash == first[k].doc_hash for other in others for k in keys)
    if numbers_agree and all(len(samples) == len(keys) for samples in samples_by_label.values()):
        return None  # no evaluation asked a question besides the common ones
    if not numbers_agree:
        samples_by_label = {label: _key_by_content(b.samples) for label, b in whole.items()}
        first = next(iter(samples_by_label.values()))
        keys = _find_common_keys(samples_by_label)
    if not keys:
        raise DataError(
            f"{name}: no question is in common ({_count_questions(whole)}); ask both models the "
            "same questions, or leave it out with --only"
        )
    cut = {}
    for label, samples in samples_by_label.items():
        common = tuple(replace(samples[key], doc_id=first[key].doc_id) for key in keys)
        cut[label] = replace(whole[label], samples=common)
    return cut


def _find_common_keys(samples_by_label: Mapping[str, Mapping[Hashable, Sample]]) -> list[Hashable]:
    """Return the keys of the samples that all evaluations have, in the order of the first one."""
    first, *others = samples_by_label.values()
    return [key for key in first if all(key in other for other in others)]


def _key_by_number(samples: Sequence[Sample]) -> dict[Hashable, Sample]:
    """Return samples by task and number."""
    return {(sample.task, sample.doc_id): sample for sample in samples}


def _key_by_content(samples: Sequence[Sample]) -> dict[Hashable, Sample]:
    """Return samples by task and content; copies of a question are numbered in their order."""
    n_seen = Counter[tuple[str, str]]()
    keyed: dict[Hashable, Sample] = {}
    for sample in samples:
        content = sample.task, sample.doc_hash
        keyed[content, n_seen[content]] = sample
        n_seen[content] += 1
    return keyed
