"""Compare recorded runs: one row for each configuration, with its change on each benchmark.

Every change is a share (0.02 is two points) and was judged when the run was made.
`value_verdicts.py` corrects verdicts for all cells of the table: of thirty runs without any change,
some look changed. The best of many runs looks better than it is; `holdout.py` cures that.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite, nan
from statistics import fmean

import numpy as np

from slimdown.comparison.run_records import KEPT, LEARNED, RunRecord
from slimdown.config.benchmark_config import CHOICE_PROBABILITY, Role
from slimdown.config.fields import TRAINING
from slimdown.judging.findings import BenchmarkChange
from slimdown.judging.verdicts import Verdict, list_comparable
from slimdown.stats.estimates import Difference
from slimdown.stats.seeds import SeedAnswers, SeedMean, split_noise
from slimdown.stats.sequential import Floats
from slimdown.utils.errors import ConfigError


@dataclass(frozen=True)
class MeanChange:
    """The change of one configuration on one benchmark."""

    change: SeedMean  # of the primary metric, tuned - base
    role: Role
    n: float  # questions; a mean where seeds stopped at different numbers
    n_available: int | None  # questions in all, if answers were looked at while they came in
    verdict: str  # if seeds disagree, each verdict with its number of seeds; empty: watched
    p_value: float  # nan for several seeds
    forgetting_rate: float  # a share of 1; nan where undefined

    @property
    def is_stopped(self) -> bool:
        """Whether any run stopped early; its change is then on average too large."""
        return self.n_available is not None and self.n < self.n_available


@dataclass(frozen=True)
class Configuration:
    """One configuration: a run, or runs that differ only in their seed."""

    name: str
    runs: tuple[RunRecord, ...]  # newest first
    settings: dict[str, str]  # by dotted key; `dataset` and `benchmark` hold the names
    changes: dict[str, MeanChange]  # by benchmark
    retained: SeedMean  # mean change of the retained benchmarks; nan where there is none
    target: SeedMean  # mean change of the target tasks; nan where there is none

    @property
    def seeds(self) -> list[str]:
        """The seeds, sorted."""
        return sorted((run.params.get("seed", "") for run in self.runs), key=lambda s: (len(s), s))

    @property
    def id_or_count(self) -> str:
        """The beginning of the run's id, or how many runs there are."""
        return self.runs[0].run_id[:8] if len(self.runs) == 1 else f"{len(self.runs)} runs"

    @property
    def given_name(self) -> str:
        """What the setting `name` gave to its runs; empty where it gave nothing, or several."""
        names = {run.given_name for run in self.runs}
        return names.pop() if len(names) == 1 else ""

    @property
    def learned_loss(self) -> float:
        """How far the loss on held-out rows fell, nats a token; nan where a run trained nothing."""
        done = [run.findings.training if run.findings else None for run in self.runs]
        return fmean(t.validation_loss_before - t.validation_loss_after if t else nan for t in done)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs side by side. Equal only to itself, so what follows from it is computed once."""

    rows: tuple[Configuration, ...]
    params: tuple[str, ...]  # the settings in which the rows differ
    benchmarks: tuple[str, ...]  # target tasks first, watched ones last
    notes: tuple[str, ...]  # caveats, one sentence each
    # the value of the tested setting with which the others are compared; None: each with each
    reference: str | None = None

    @property
    def holds_out(self) -> bool:
        """Whether one of several may be chosen, and all held questions back to confirm it."""
        runs = [run for row in self.rows for run in row.runs]
        return len(self.rows) > 1 and all(run.held_out for run in runs)

    @property
    def grouped(self) -> bool:
        """Whether any row is a mean over seeds."""
        return any(len(row.runs) > 1 for row in self.rows)


def compare_runs(runs: Sequence[RunRecord], group_seeds: bool = True) -> Comparison:
    """Compare finished runs.

    Args:
        runs: At least one, with findings, in the order of the rows.
        group_seeds: Make one row of runs that differ only in their seed.
    """
    groups, notes = _group_by_seed(runs) if group_seeds else ([[run] for run in runs], [])
    rows = list(map(_make_row, groups))
    roles = {name: change.role for row in rows for name, change in row.changes.items()}
    benchmarks = sorted(roles, key=lambda name: (list(Role).index(roles[name]), name))
    notes += _describe_caveats(runs, rows, benchmarks)
    return Comparison(tuple(rows), tuple(_find_differing(rows)), tuple(benchmarks), tuple(notes))


def group_rows(comparison: Comparison) -> Comparison:
    """Return a comparison with one row for runs that differ only in their seed."""
    runs = [run for row in comparison.rows for run in row.runs]
    groups, _ = _group_by_seed(runs)
    if len(groups) == len(comparison.rows):
        return comparison
    return replace(compare_runs(runs), reference=comparison.reference)


def average_seeds(*benchmarks: Sequence[BenchmarkChange]) -> SeedMean:
    """Average the changes of several runs, of one benchmark or as the mean of several.

    A bad seed is bad on all benchmarks, so the mean over the benchmarks is taken seed by seed.
    Benchmarks with equal numbers of questions are added question by question: if they ask the same,
    their errors add up.

    Args:
        benchmarks: For each benchmark, the change of each run; the same runs in the same order. If
            there are several benchmarks, at least two runs: a single one has `mean_change`.

    Returns:
        The mean, a share; without an interval if a benchmark's questions differ between the runs,
        its evaluation may have stopped early, or some runs lack it. nan if there is no benchmark.
    """
    if [len(changes) for changes in benchmarks] == [1]:  # one run of one benchmark
        return SeedMean(**vars(benchmarks[0][0].primary.difference.estimate))
    without_interval = partial(SeedMean, standard_error=nan, low=nan, high=nan)
    values = [[change.primary.difference.value for change in changes] for changes in benchmarks]
    if len(set(map(len, values))) != 1:  # some runs lack a benchmark, or there is none
        return without_interval(fmean(map(fmean, values)) if values else nan)
    hashes = [{change.question_hash for change in changes} for changes in benchmarks]
    # Some runs were asked other questions, or may have stopped early.
    if max(map(len, hashes)) > 1 or any(changes[0].may_have_stopped for changes in benchmarks):
        by_seed = np.mean(values, axis=0)
        return without_interval(float(by_seed.mean()), sd_over_seeds=float(by_seed.std(ddof=1)))
    # Each part is an array [runs, questions]; its step is how much one 0/1 answer counts in it.
    parts, steps = stack_answers(*benchmarks)
    return split_noise(*parts, steps=steps)


def stack_answers(*benchmarks: Sequence[BenchmarkChange]) -> tuple[list[Floats], list[float]]:
    """Return the mean of several benchmarks as a sum of parts, for tests that need each answer.

    A part holds the changes of all benchmarks that have the same number of questions, added
    question by question. Benchmarks that ask the same questions so share their errors.

    Args:
        benchmarks: As for `average_seeds`; each asks the same questions of all runs.

    Returns:
        The parts, [runs, questions] each; the sum of their means is the mean of the benchmarks. And
        how much one 0/1 answer counts in each part; 0 where answers are graded.
    """
    parts, steps = list[Floats](), list[float]()
    weight = 1 / len(benchmarks)  # each benchmark counts equally in the mean
    for group in _group_by_size(benchmarks):
        parts.append(np.sum([[d.observations * weight for d in runs] for runs in group], axis=0))
        n_binary = sum(all(d.has_independent_answers for d in runs) for runs in group)
        # The answers to one question may change together in all benchmarks of the part.
        steps.append(n_binary * weight)
    return parts, steps


def _group_by_size(benchmarks: Sequence[Sequence[BenchmarkChange]]) -> list[list[list[Difference]]]:
    """Put benchmarks with equal numbers of questions together; of each, the differences by run."""
    groups: dict[int, list[list[Difference]]] = {}
    for changes in benchmarks:
        differences = [change.primary.difference for change in changes]
        groups.setdefault(len(differences[0].observations), []).append(differences)
    return list(groups.values())


def can_average(benchmarks: Sequence[Sequence[BenchmarkChange]]) -> bool:
    """Whether a claim may be made about the mean of these benchmarks over these runs.

    It may where each run was asked the same questions, all of them, and nothing is unclear.
    """
    if len(set(map(len, benchmarks))) != 1:  # some runs lack a benchmark
        return False
    for changes in benchmarks:
        is_whole = all(c.is_measured and not c.may_have_stopped for c in changes)
        questions = {(change.question_hash, change.metric, change.margin) for change in changes}
        if not is_whole or len(questions) != 1:
            return False
    return True


def collect_answers(
    benchmarks: Sequence[Sequence[BenchmarkChange]], seeds: Sequence[str] = ()
) -> SeedAnswers:
    """Collect the answers behind a mean over seeds, in the form that its tests take.

    Args:
        benchmarks: For each benchmark, the change of each run. `can_average` must hold for them.
        seeds: The runs' seeds, to compare this mean with another one seed by seed; empty: it is
            not compared so.
    """
    parts, _ = stack_answers(*benchmarks)
    bounds = list[float]()  # for each part, how large a change of one question can be
    for group in _group_by_size(benchmarks):  # each is a part, in the order of `stack_answers`
        largest = [max(1.0, *map(_find_largest_change, differences)) for differences in group]
        bounds.append(sum(largest) / len(benchmarks))
    tests = [change.primary.difference.test for change in benchmarks[0]]
    is_binary = len(benchmarks) == 1 and all(test.is_margin for test in tests)
    # How much one question counts, in the part with the fewest.
    step = max(1 / (len(benchmarks) * part.shape[1]) for part in parts)
    return SeedAnswers(parts, bounds, step, is_binary=is_binary, seeds=tuple(seeds))


def _find_largest_change(difference: Difference) -> float:
    return max(difference.largest_change, float(np.abs(difference.observations).max()))


def list_columns(changes: Mapping[str, BenchmarkChange]) -> dict[str, list[str]]:
    """List the columns that may be claimed about, with the benchmarks whose mean each holds.

    These are the benchmarks themselves, and `learned` and `kept` where they are means of several.
    """
    columns = {name: [name] for name in changes}
    for heading, role in ((LEARNED, Role.target), (KEPT, Role.retained)):
        averaged = _list_averaged(changes, role)
        if len(averaged) > 1:
            columns[heading] = averaged
    return columns


def _list_averaged(changes: Mapping[str, BenchmarkChange], role: Role) -> list[str]:
    """List the benchmarks of a role whose changes have a mean, measured or not."""
    return list_comparable({n: c.metric for n, c in changes.items() if c.role is role})


def _join_verdicts(verdicts: Iterable[Verdict | None]) -> str:
    counts = Counter(verdict or "" for verdict in verdicts).most_common()
    return counts[0][0] if len(counts) == 1 else ", ".join(f"{v} {n}" for v, n in counts)


def _find_differing(rows: Sequence[Configuration]) -> list[str]:
    """Return the settings in which rows differ, sorted.

    Not among them: the seed if rows are means over seeds, and `benchmark`, the list of benchmarks,
    which are the columns of the table.

    A setting that only some rows have is a difference, except if it is optional. The optional ones
    are those of trainings and benchmarks: a row lacks them if it does not use the dataset, the
    benchmark or the mitigation that they belong to (keep=none has no `keep.share`). Their values
    are compared among the rows that have them.

    A row also lacks a setting whose value is null. If others have a value of it, that is a
    difference, which this comparison misses. So a second step looks at rows that are alike in all
    differences found so far. These use the same datasets, benchmarks and mitigation. So if some of
    them have an optional setting and others lack it, its value is null in the others.
    """
    keys = {key for row in rows for key in row.settings} - {"benchmark"}
    if any(len(row.runs) > 1 for row in rows):
        keys.discard("seed")
    differing = []
    for key in sorted(keys):
        values = [row.settings[key] for row in rows if key in row.settings]
        is_optional = key.partition(".")[0] in (*TRAINING, "benchmark")
        is_lacking = len(values) < len(rows)
        if len(set(values)) > 1 or (is_lacking and not is_optional):
            differing.append(key)
    # The second step. Rows are alike if they have the same values of the settings found so far.
    rows_alike: dict[tuple[str | None, ...], list[Configuration]] = {}
    for row in rows:
        differing_values = tuple(row.settings.get(key) for key in differing)
        rows_alike.setdefault(differing_values, []).append(row)
    for key in sorted(keys - {*differing, "seed"}):  # a seed is never null
        # Each row that has this setting has the same value, so rows differ in having it.
        if any(len({key in row.settings for row in group}) > 1 for group in rows_alike.values()):
            differing.append(key)
    return sorted(differing)


def _make_row(runs: Sequence[RunRecord]) -> Configuration:
    """Make the row of runs that differ at most in their seed."""
    settings = _read_settings(runs[0])
    name = runs[0].name
    if len(runs) > 1:  # the row stands for all seeds, so neither it nor its name has one
        settings.pop("seed", None)
        name = re.sub(r" seed=\S+", "", name)
    benchmarks = dict.fromkeys(benchmark for run in runs for benchmark in run.changes)
    return Configuration(
        name,
        tuple(runs),
        settings,
        changes={benchmark: _average_cell(runs, benchmark) for benchmark in benchmarks},
        retained=_average_role(runs, Role.retained),
        target=_average_role(runs, Role.target),
    )


def _average_cell(runs: Sequence[RunRecord], benchmark: str) -> MeanChange:
    """Average the changes of those runs that have a benchmark."""
    changes = [run.changes[benchmark] for run in runs if benchmark in run.changes]
    rates = [change.forgetting_rate.value for change in changes if change.forgetting_rate]
    return MeanChange(
        change=average_seeds(changes),
        role=changes[0].role,
        n=fmean(change.n for change in changes),
        n_available=max(change.n_available or 0 for change in changes) or None,
        verdict=_join_verdicts(change.verdict for change in changes),
        p_value=changes[0].p_value if len(changes) == 1 else nan,
        forgetting_rate=fmean([rate for rate in rates if isfinite(rate)] or [nan]),
    )


def _average_role(runs: Sequence[RunRecord], role: Role) -> SeedMean:
    """Average a role's benchmarks over runs, without those that are unclear in any run."""
    if len(runs) == 1 and runs[0].findings:
        return SeedMean(**vars(runs[0].findings.mean_change(role)))
    found = {name: change for run in runs for name, change in run.changes.items()}
    usable = []
    for name in _list_averaged(found, role):
        changes = [run.changes[name] for run in runs if name in run.changes]
        if all(change.is_measured for change in changes):
            usable.append(changes)
    return average_seeds(*usable)


def name_quantization(params: Mapping[str, str]) -> str:
    """Return the name of a run's quantization: nf4, fp4, int8 or none; empty where it is unknown.

    >>> name_quantization({"quantization.load_in_4bit": "False"}), name_quantization({})
    ('none', '')
    """
    if params.get("quantization.load_in_4bit") == "True":
        return params.get("quantization.bnb_4bit_quant_type", "nf4")
    if params.get("quantization.load_in_8bit") == "True":
        return "int8"
    return "none" if "quantization.load_in_4bit" in params else ""


def describe_model_differences(runs: Sequence[RunRecord]) -> list[str]:
    """Say where the base models of runs differ: the model, its quantization, its dtype.

    Returns:
        One sentence, or nothing where they are alike.
    """
    facts = {
        "base model": [run.params.get("model.id", "") for run in runs],
        "quantization": [name_quantization(run.params) for run in runs],
        "dtype": [run.params.get("model.dtype", "") for run in runs],
    }
    differing = []
    for fact, values in facts.items():
        if counted := _describe_differing(value or "unknown" for value in values):
            differing.append(f"{fact} ({counted})")
    if not differing:
        return []
    return [f"The runs differ in {', '.join(differing)}, so their base models answer differently."]


def _read_settings(run: RunRecord) -> dict[str, str]:
    """Return the params that say what was done, and the names of datasets and benchmarks."""
    settings = {k: v for k, v in run.params.items() if not k.startswith("contamination.")}
    if quantization := name_quantization(settings):
        settings["quantization"] = quantization
        for key in ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type"):
            settings.pop(f"quantization.{key}", None)
    for section in ("dataset", "benchmark"):
        if names := {key.split(".")[1] for key in settings if key.startswith(f"{section}.")}:
            settings[section] = ",".join(sorted(names))
    return settings


def _group_by_seed(runs: Sequence[RunRecord]) -> tuple[list[list[RunRecord]], list[str]]:
    """Group runs that differ only in their seed.

    Returns:
        The groups: of several seeds, with the newest run of each; of a single seed, each run is a
        group of its own. And a note for the user if older runs with the same settings and seed are
        left out of the groups of several seeds.
    """
    runs_by_settings: dict[frozenset[tuple[str, str]], list[RunRecord]] = {}
    for run in runs:
        settings = frozenset(pair for pair in _read_settings(run).items() if pair[0] != "seed")
        runs_by_settings.setdefault(settings, []).append(run)
    groups: list[list[RunRecord]] = []
    n_older = 0
    for equal_runs in runs_by_settings.values():
        newest_by_seed: dict[str, RunRecord] = {}
        for run in sorted(equal_runs, key=lambda run: run.started, reverse=True):
            newest_by_seed.setdefault(run.params.get("seed", ""), run)
        if len(newest_by_seed) > 1:
            n_older += len(equal_runs) - len(newest_by_seed)
            groups.append(list(newest_by_seed.values()))
        else:  # all have the same seed, so none of them is a mean, and all are shown
            groups += [[run] for run in equal_runs]
    note = f"The means over seeds leave out {n_older:,} older runs with the same settings and seed."
    return groups, [note] if n_older else []


def check_prompts(runs: Sequence[RunRecord]) -> None:
    """Refuse runs whose benchmarks were asked differently: their changes are not comparable.

    Raises:
        ConfigError: Names the setting that differs, and how many runs have each value.
    """
    all_findings = [run.findings for run in runs if run.findings]
    keys = {key for findings in all_findings for key in findings.conditions}
    # The conditions of one benchmark begin with its name: "gsm8k.num_fewshot".
    for key in sorted(key for key in keys if "." in key):
        name = key.partition(".")[0]
        conditions = [f.conditions for f in all_findings if name in f.benchmarks]
        if differing := _describe_differing(c.get(key, "not set") for c in conditions):
            raise ConfigError(
                f"{name} was not asked in the same way in all runs ({key} is {differing}); choose "
                "runs that were asked in the same way, by their names, --sweep or --filter"
            )


def _describe_differing(values: Iterable[str]) -> str:
    """Say how many runs have each value; nothing where all have the same."""
    counts = Counter(values).most_common()
    return " and ".join(f"{value} in {n}" for value, n in counts) if len(counts) > 1 else ""


def _describe_caveats(
    runs: Sequence[RunRecord], rows: Sequence[Configuration], benchmarks: Sequence[str]
) -> Iterator[str]:
    """Yield a sentence for each difference in how runs were measured, and on unusual numbers.

    Args:
        runs: All runs of the table.
        rows: Its rows, each a run or the mean of several.
        benchmarks: The names of its benchmarks.
    """
    for name in benchmarks:
        changes = [run.changes[name] for run in runs if name in run.changes]
        # Runs that stopped early answered fewer of the same questions, so it does no harm if their
        # hash of the questions differs.
        complete = [change for change in changes if not change.may_have_stopped]
        n_sets = len({change.question_hash for change in complete})
        if n_sets > 1 or len({(change.metric, change.margin) for change in changes}) > 1:
            yield (
                f"{name} does not have the same questions, metric and margin in all runs, so its "
                "changes do not show which run is better."
            )
        elif changes[0].metric == CHOICE_PROBABILITY:
            yield f"{name} is judged by {CHOICE_PROBABILITY}, the probability of the right choice."
    conditions = [
        run.findings.conditions | {"holdout": f"{run.holdout:g}"} for run in runs if run.findings
    ]
    for key in sorted(set().union(*conditions)):
        # `check_prompts` has compared those of one benchmark, which have a dot.
        differing = _describe_differing(values.get(key, "not recorded") for values in conditions)
        if differing and "." not in key:
            yield (
                f"The runs were not measured alike: {key} is {differing}. Small differences "
                "between them may come from this alone."
            )
    if any(cell.is_stopped for row in rows for cell in row.changes.values()):
        yield (
            "Some evaluations stopped early. Their verdicts and intervals are valid, but the "
            "measured changes are too large on average."
        )
