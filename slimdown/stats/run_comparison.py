"""Recorded runs -> `Comparison`: one row a configuration, its change on each benchmark.

Every change is a share (0.02 is two points) and was judged when the run was made. Here its verdict
is corrected for all
that stand beside it: among thirty runs in which nothing changed, some look as if it had. And
whoever picks the best picks the luckiest along with it; `holdout.py` cures that.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import NormalDist, fmean

import numpy as np

from slimdown.config.schema import TRAINING, Role
from slimdown.stats.estimates import holm, mean_of_estimates
from slimdown.stats.findings import STOPPED_EARLY, Verdict, decide_verdict
from slimdown.stats.run_records import RunRecord
from slimdown.stats.seeds import SeedMean, average_seeds

# keys that only runs with this dataset, ..., method have
_PLACES = ("dataset.", "benchmark.", "lora.", "method.")
# what two runs must share for a benchmark's changes to be of the same questions, read alike
_MEASURED_BY = ("task", "metric", "num_fewshot", "limit", "margin")


@dataclass(frozen=True)
class MeanChange:
    """What one configuration did to one benchmark."""

    change: SeedMean  # of the primary metric, tuned - base
    role: Role
    metric: str
    n: float  # questions; a mean where seeds stopped at different numbers
    n_available: int | None  # of how many, where answers were looked at while they came in
    verdicts: Counter[str]  # how many runs came to each
    corrected: Counter[str]  # the same, corrected for every run and benchmark of the comparison
    p_value: float  # nan for several seeds
    forgetting_rate: float  # a share of 1; nan where undefined
    lost: float  # answers; nan where scores are not 0 or 1

    @property
    def is_stopped(self) -> bool:
        """Whether any run stopped early; its change is then on average too large."""
        return self.n_available is not None and self.n < self.n_available

    @property
    def verdict(self) -> str:
        """The verdict, or each one with its number of seeds where they disagree."""
        return count_verdicts(self.verdicts)

    @property
    def verdict_corrected(self) -> str:
        """The same, corrected for every run and benchmark of the comparison."""
        return count_verdicts(self.corrected)


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
    def ids(self) -> str:
        """The beginning of the run's id, or how many runs there are."""
        return self.runs[0].run_id[:8] if len(self.runs) == 1 else f"{len(self.runs)} runs"


@dataclass(frozen=True)
class Comparison:
    """What runs did, side by side."""

    rows: tuple[Configuration, ...]
    params: tuple[str, ...]  # the settings in which the rows differ
    benchmarks: tuple[str, ...]  # target tasks first
    notes: tuple[str, ...]  # what a reader must know before comparing

    @property
    def grouped(self) -> bool:
        """Whether any row is a mean over seeds."""
        return any(len(row.runs) > 1 for row in self.rows)

    @property
    def has_target(self) -> bool:
        """Whether a target task was measured in any row."""
        return any(isfinite(row.target.value) for row in self.rows)


def compare_runs(runs: Sequence[RunRecord], group_seeds: bool = True) -> Comparison:
    """Lay finished runs side by side.

    Args:
        runs: at least one, with findings, in the order that the rows shall have.
        group_seeds: make one row of runs that differ only in their seed.
    """
    groups, notes = _group_by_seed(runs) if group_seeds else ([[run] for run in runs], [])
    corrected = correct_verdicts([run for group in groups for run in group])
    rows = [_make_row(group, corrected) for group in groups]
    roles = {name: change.role for row in rows for name, change in row.changes.items()}
    benchmarks = sorted(roles, key=lambda name: (roles[name] is not Role.target, name))
    notes += [
        *_describe_unlike(runs, benchmarks),
        *_describe_stopping(rows),
        *_describe_correction(rows),
        *_describe_luck(rows),
    ]
    return Comparison(tuple(rows), tuple(_find_differing(rows)), tuple(benchmarks), tuple(notes))


def correct_verdicts(runs: Sequence[RunRecord]) -> dict[tuple[str, str], Verdict]:
    """By run and benchmark, what is left of its verdict when all of them are corrected for (Holm).

    As within a run, claims of change and of no change apart: the chance of any false claim of
    either kind is at most 5 %, however the runs depend on each other. What does not hold becomes
    undecided: more caution is not more loss.
    """
    cells = [(run, name, change) for run in runs for name, change in run.changes.items()]
    differences = [change.primary.difference for _, _, change in cells]
    changed = holm([d.p_value for d in differences])
    equal = holm(
        [d.equivalence_p_value(c.margin) for d, (_, _, c) in zip(differences, cells, strict=True)]
    )
    verdicts = {}
    for (run, name, change), p_value, equivalence in zip(cells, changed, equal, strict=True):
        verdict = decide_verdict(change.primary.difference.value, p_value, equivalence)
        holds = len(runs) == 1 or verdict is change.verdict
        verdicts[run.run_id, name] = change.verdict if holds else Verdict.undecided
    return verdicts


def winners_curse(n: int) -> tuple[float, float]:
    """By how many standard errors the best of `n` equally good candidates looks better than it is.

    For independent errors; where all are wrong on the same questions it is less.

    Returns:
        On average (Blom 1958), and what 95 % of the time it is at most.

    >>> [tuple(round(z, 2) for z in winners_curse(n)) for n in (1, 2, 30)]
    [(0.0, 1.64), (0.59, 1.95), (2.04, 2.93)]
    """
    normal = NormalDist()
    return normal.inv_cdf((n - 0.375) / (n + 0.25)), normal.inv_cdf(0.95 ** (1 / n))


def count_verdicts(verdicts: Mapping[str, int]) -> str:
    """The verdict of all runs, or each one with its number of runs where they disagree."""
    if len(verdicts) == 1:
        return next(iter(verdicts))
    return ", ".join(f"{name} {count}" for name, count in verdicts.items())


def _find_differing(rows: Sequence[Configuration]) -> list[str]:
    """The settings in which rows differ, sorted; of what the columns show, benchmarks and pooled seeds, none.

    What only runs with one dataset or benchmark have is compared among those, and what is set of a
    training among the
    runs that trained: that the others lack it is no difference.
    """
    values: dict[str, list[str]] = {}
    n_trained = sum(row.settings.get("tuned", "None") == "None" for row in rows)
    for row in rows:
        for key, value in row.settings.items():
            values.setdefault(key, []).append(value)
    shown = {"benchmark", *(["seed"] if any(len(row.runs) > 1 for row in rows) else [])}
    differing = []
    for key in sorted(values.keys() - shown):
        n_with = n_trained if key.partition(".")[0] in TRAINING else len(rows)
        is_lacking = len(values[key]) < n_with and not key.startswith(_PLACES)
        if len(set(values[key])) > 1 or is_lacking:
            differing.append(key)
    return differing


def _make_row(
    runs: Sequence[RunRecord], corrected: Mapping[tuple[str, str], Verdict]
) -> Configuration:
    settings, name = _read_settings(runs[0]), runs[0].name
    if len(runs) > 1:
        settings.pop("seed", None)
        name = re.sub(r" seed=\S+", "", name)
    cells = {}
    for benchmark in dict.fromkeys(name for run in runs for name in run.changes):
        measured = [run for run in runs if benchmark in run.changes]
        changes = [run.changes[benchmark] for run in measured]
        rates = [c.forgetting_rate.value for c in changes if c.forgetting_rate]
        lost = [c.primary.counts.lost for c in changes if c.primary.counts]
        cells[benchmark] = MeanChange(
            change=average_seeds(changes),
            role=changes[0].role,
            metric=changes[0].metric,
            n=fmean(c.n for c in changes),
            n_available=max((c.n_available or 0 for c in changes)) or None,
            verdicts=_count([c.verdict for c in changes]),
            corrected=_count([corrected[run.run_id, benchmark] for run in measured]),
            p_value=changes[0].p_value if len(changes) == 1 else nan,
            forgetting_rate=fmean(r for r in rates if isfinite(r))
            if any(map(isfinite, rates))
            else nan,
            lost=fmean(lost) if lost else nan,
        )
    means = []
    for role in (Role.retained, Role.target):
        of_runs = [run.findings.mean_change(role) for run in runs if run.findings]
        mean, spread = of_runs[0] if of_runs else mean_of_estimates([]), nan
        if len(of_runs) > 1:
            mean = mean_of_estimates([c.change for c in cells.values() if c.role is role])
            spread = float(np.std([one.value for one in of_runs], ddof=1))
        means.append(SeedMean(mean.value, mean.standard_error, mean.low, mean.high, spread))
    return Configuration(name, tuple(runs), settings, cells, *means)


def _count(verdicts: Sequence[Verdict]) -> Counter[str]:
    """The most frequent first."""
    return Counter(dict(Counter(verdict.value for verdict in verdicts).most_common()))


def _read_settings(run: RunRecord) -> dict[str, str]:
    """The params that say what was done, and the names of datasets and benchmarks."""
    settings = {
        key: value
        for key, value in run.params.items()
        if not key.startswith(("tracking.", "contamination.", "baseline."))
        and not (key.endswith(".max_loss") and value == "None")
    }
    if datasets := sorted({key.split(".")[1] for key in settings if key.startswith("dataset.")}):
        settings["dataset"] = ",".join(datasets)
    return settings | {"benchmark": ",".join(sorted(run.benchmarks))}


def _group_by_seed(runs: Sequence[RunRecord]) -> tuple[list[list[RunRecord]], list[str]]:
    """Groups of runs that differ only in their seed, and a note where only the newest counts."""
    by_settings: dict[frozenset[tuple[str, str]], list[RunRecord]] = {}
    for run in runs:
        settings = frozenset(pair for pair in _read_settings(run).items() if pair[0] != "seed")
        by_settings.setdefault(settings, []).append(run)
    groups: list[list[RunRecord]] = []
    n_repeated = 0
    for group in by_settings.values():
        newest: dict[str, RunRecord] = {}
        for run in sorted(group, key=lambda run: run.started, reverse=True):
            newest.setdefault(run.params.get("seed", ""), run)
        if len(newest) > 1:
            n_repeated += len(group) - len(newest)
            groups.append(list(newest.values()))
        else:
            groups += [[run] for run in group]
    n = "1 run is" if n_repeated == 1 else f"{n_repeated:,} runs are"
    note = (
        f"{n} left out of the means over seeds: a newer one has the same settings and seed; "
        "--no-group-seeds shows every run."
    )
    return groups, [note] if n_repeated else []


def _describe_unlike(runs: Sequence[RunRecord], benchmarks: Sequence[str]) -> Iterator[str]:
    """What was not measured alike, one sentence each."""
    for name in benchmarks:
        params = [run.params for run in runs if name in run.changes]
        fields = {f: [p.get(f"benchmark.{name}.{f}", "") for p in params] for f in _MEASURED_BY}
        if differences := _describe_differences(fields):
            yield f"{name} was not measured alike ({differences}): compare its changes with care."
    conditions = [run.findings.conditions if run.findings else {} for run in runs]
    fields = {
        key: [c.get(key, "") for c in conditions] for key in {k: 0 for c in conditions for k in c}
    }
    fields |= {
        key: [run.params.get(f"evaluation.{key}", "") for run in runs]
        for key in ("holdout", "apply_chat_template")
    }
    if differences := _describe_differences(fields):
        yield f"The runs were not measured alike ({differences}): compare their changes with care."
    retained = {
        frozenset(name for name, change in run.changes.items() if change.role is Role.retained)
        for run in runs
    }
    if len(retained) > 1:
        yield "The means are over different benchmarks: compare the benchmarks one by one."


def _describe_differences(fields: Mapping[str, list[str]]) -> str:
    """Of fields with a value a run, those whose values differ, with how many runs have each."""
    differences = []
    for name, values in fields.items():
        counts = Counter(values).most_common()
        if len(counts) > 1:
            each = " and ".join(f"{value or 'not recorded'} in {count}" for value, count in counts)
            differences.append(f"{name} is {each}")
    return "; ".join(differences)


def _describe_stopping(rows: Sequence[Configuration]) -> Iterator[str]:
    if any(cell.is_stopped for row in rows for cell in row.changes.values()):
        yield (
            f"{STOPPED_EARLY} Each interval is right for its own row; RUN RUN --paired compares two rows, on the "
            "questions that both answered."
        )


def _describe_correction(rows: Sequence[Configuration]) -> Iterator[str]:
    """What the correction for the whole table changes, in a sentence."""
    cells = [cell for row in rows for cell in row.changes.values()]
    n_all = sum(cell.verdicts.total() for cell in cells)
    n_claims = n_all - sum(cell.verdicts[Verdict.undecided] for cell in cells)
    n_lost = sum((cell.verdicts - cell.corrected).total() for cell in cells)
    if sum(len(row.runs) for row in rows) < 2 or not n_claims:
        return
    shown = (
        f"corrected for all {n_all:,} in this table (Holm); runs that it leaves out do not count"
    )
    if n_lost:
        yield f"† {n_lost:,} of {n_claims:,} verdicts become undecided when {shown}."
    else:
        yield f"Every verdict other than undecided holds when {shown}."


def _describe_luck(rows: Sequence[Configuration]) -> Iterator[str]:
    """What picking the best row does, and what to do about it."""
    errors: dict[str, list[float]] = {}
    for row in rows:
        for name, cell in row.changes.items():
            if isfinite(cell.change.standard_error):
                errors.setdefault(name, []).append(cell.change.standard_error)
    if len(rows) < 2 or not errors:
        return
    error = 100 * max(map(fmean, errors.values()))
    mean, most = (z * error for z in winners_curse(len(rows)))
    cure = "slimdown compare RUN --confirm"
    if all(run.holdout for row in rows for run in row.runs):
        advice = f"Judge the one you choose on the questions that are held out: {cure}."
    else:
        advice = f"Runs with evaluation.holdout=0.5 hold questions out to judge it on: {cure}."
    yield (
        f"The best row is lucky, too: the best of {len(rows):,} equally good ones looks better than it is on one "
        f"benchmark, on average by about {mean:.1f} points, in 95 % of tables by at most {most:.1f}. {advice}"
    )
