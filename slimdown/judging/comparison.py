"""Recorded runs -> `Comparison`: one row a configuration, its change on each benchmark, and what is not comparable.

Pure: no store, no torch. Every change is a share (0.02 is two points) and was judged when the run was made; here its
verdict is only corrected for all that stand beside it. What a mean over seeds adds is said at `pooled`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan, sqrt
from statistics import fmean, stdev

from slimdown.judging.anatomy import EXPLANATIONS, main_cause
from slimdown.judging.paired import Estimate, t_quantile
from slimdown.judging.runs import UNKNOWN, RecordedRun
from slimdown.judging.selection import choosing, corrected_verdicts, corrections

_PLACES = ("dataset.", "benchmark.")  # keys that only runs with this dataset or benchmark have
# What two runs must have in common for a benchmark's changes to be of the same questions, read the same way.
_MEASURED_BY = ("task", "metric", "num_fewshot", "limit", "margin")
_MEASURED_IN = ("harness_version", "scoring_path")


@dataclass(frozen=True)
class MeanChange:
    """What one configuration did to one benchmark."""

    change: Estimate  # of the primary metric, tuned - base
    spread: float  # standard deviation over seeds; nan where there is one
    role: str  # target or retained
    metric: str
    n: float  # questions; nan where not recorded
    verdicts: Counter[str]  # how many runs came to each
    corrected: Counter[str]  # the same, corrected for every run and benchmark of the comparison
    p_value: float  # nan for several seeds
    forgetting_rate: float  # the share of the base's accuracy that is gone; nan where undefined
    causes: dict[str, float]  # share of the lost answers, by cause
    lost: float  # answers on the primary metric; nan where not recorded
    lost_any_metric: float  # answers that any metric lost: what the causes are shares of

    @property
    def verdict(self) -> str:
        """The verdict, or each one with its number of seeds where they disagree."""
        return _told(self.verdicts)

    @property
    def verdict_corrected(self) -> str:
        """The same, corrected for every run and benchmark of the comparison."""
        return _told(self.corrected)

    @property
    def main_cause(self) -> tuple[str, float] | None:
        """What most of the lost answers were lost to, with its share; None where no cause has most of them."""
        return main_cause(self.causes, self.lost_any_metric)


@dataclass(frozen=True)
class Configuration:
    """One configuration: a run, or runs that differ only in their seed."""

    name: str
    runs: tuple[RecordedRun, ...]  # newest first
    settings: dict[str, str]  # every one, by its dotted key; `dataset` and `benchmark` hold the names
    changes: dict[str, MeanChange]  # by benchmark
    retained: Estimate  # mean change of the retained benchmarks; nan where there is none
    retained_spread: float  # over seeds
    target: Estimate  # mean change of the target tasks; nan where there is none
    target_spread: float

    @property
    def seeds(self) -> list[str]:
        """The seeds, sorted."""
        return sorted((run.params.get("seed", "") for run in self.runs), key=lambda seed: (len(seed), seed))

    @property
    def ids(self) -> str:
        """The beginning of the run's id, or how many runs there are."""
        return self.runs[0].run_id[:8] if len(self.runs) == 1 else f"{len(self.runs)} runs"


@dataclass(frozen=True)
class Comparison:
    """What the shown runs did, side by side."""

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


def compare(runs: Sequence[RecordedRun], group_seeds: bool = True) -> Comparison:
    """Lay finished runs side by side.

    Args:
        runs: at least one, in the order that the rows shall have.
        group_seeds: make one row of runs that differ only in their seed.
    """
    notes: list[str] = []
    groups = _by_seed(runs, notes) if group_seeds else [[run] for run in runs]
    verdicts = corrected_verdicts([run for group in groups for run in group])
    rows = [_row(group, verdicts) for group in groups]
    roles = {name: change.role for row in rows for name, change in row.changes.items()}
    benchmarks = sorted(roles, key=lambda name: (roles[name] != "target", name))
    params = differing(rows)
    notes += _unlike(runs, benchmarks)
    if any(len(row.runs) > 1 for row in rows):
        params = [key for key in params if key != "seed"]
    notes += [*corrections(rows), *choosing(rows)]
    return Comparison(tuple(rows), tuple(params), tuple(benchmarks), tuple(notes))


def pooled(estimates: Sequence[Estimate]) -> tuple[Estimate, float]:
    """The mean of several runs' estimates, and their standard deviation (nan for one run).

    The runs were asked the same questions, so the noise of the questions does not average out: the interval holds
    the mean of theirs and the training's, standard deviation over the root of the number, each with the quantile of its
    own degrees of freedom (Cochran and Cox, as in `seeds.py`): two seeds say little. `--noise` tells the two apart,
    from every answer.

    >>> mean, spread = pooled([Estimate(0.1, 0.03, 0, 0), Estimate(0.2, 0.03, 0, 0)])
    >>> round(mean.value, 3), round(mean.standard_error, 4), round(spread, 4)
    (0.15, 0.0583, 0.0707)
    """
    known = [e for e in estimates if isfinite(e.value)]
    if len(known) < 2:
        return (known[0] if known else UNKNOWN), nan
    value, spread = fmean(e.value for e in known), stdev(e.value for e in known)
    training, questions = spread**2 / len(known), fmean(e.standard_error**2 for e in known)
    error = sqrt(questions + training)
    half = (t_quantile(len(known) - 1) * training + t_quantile(inf) * questions) / error if error else 0.0
    return Estimate(value, error, value - half, value + half), spread


def differing(rows: Sequence[Configuration]) -> list[str]:
    """The settings in which rows differ, sorted.

    What only runs with one dataset or benchmark have is compared among those: that the others lack it is no difference.
    """
    values: dict[str, set[str]] = {}
    count: Counter[str] = Counter()
    for row in rows:
        for key, value in row.settings.items():
            values.setdefault(key, set()).add(value)
            count[key] += 1
    found = [
        key
        for key, there in values.items()
        if len(there) > 1 or (count[key] < len(rows) and not key.startswith(_PLACES))
    ]
    return sorted(key for key in found if key != "benchmark")  # which benchmarks were measured, the columns show


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key by its last two parts, where no other key ends so.

    >>> short_keys(["lora.r", "dataset.alpaca.max_examples", "benchmark.a.limit", "model.a.limit"])["lora.r"]
    'lora.r'
    >>> short_keys(["dataset.alpaca.max_examples", "benchmark.a.limit", "model.a.limit"])
    {'dataset.alpaca.max_examples': 'alpaca.max_examples', 'benchmark.a.limit': 'benchmark.a.limit', \
'model.a.limit': 'model.a.limit'}
    """
    ends = {key: ".".join(key.split(".")[-2:]) for key in keys}
    alike = Counter(ends.values())
    return {key: end if alike[end] == 1 else key for key, end in ends.items()}


def _told(verdicts: Mapping[str, int]) -> str:
    if len(verdicts) == 1:
        return next(iter(verdicts))
    return ", ".join(f"{name} {count}" for name, count in verdicts.items())


def _row(runs: Sequence[RecordedRun], verdicts: Mapping[tuple[str, str], str]) -> Configuration:
    settings = _settings(runs[0])
    names = dict.fromkeys(name for run in runs for name in run.benchmarks)
    retained, retained_spread = pooled([run.changes.mean_retained_change for run in runs])
    target, target_spread = pooled([run.changes.mean_target_change for run in runs])
    name = runs[0].name
    if len(runs) > 1:
        del settings["seed"]
        name = re.sub(r" seed=\S+", "", name)
    changes = {name: change for name in names if (change := _mean_change(runs, name, verdicts))}
    return Configuration(name, tuple(runs), settings, changes, retained, retained_spread, target, target_spread)


def _settings(run: RecordedRun) -> dict[str, str]:
    """The params that say what was done, and the names of datasets and benchmarks; not where it was recorded."""
    kept = {key: value for key, value in run.params.items() if not key.startswith("tracking.")}
    datasets = sorted({key.split(".")[1] for key in kept if key.startswith("dataset.")})
    kept["dataset"] = ",".join(datasets) or run.dataset
    kept.setdefault("evaluation.holdout", "0.0")  # older records
    kept["benchmark"] = ",".join(sorted(run.benchmarks))
    return kept


def _mean_change(runs: Sequence[RecordedRun], name: str, corrected: Mapping[tuple[str, str], str]) -> MeanChange | None:
    measured = [run for run in runs if name in run.changes.benchmarks]
    if not measured:
        return None
    recorded = [run.changes.benchmarks[name] for run in measured]
    change, spread = pooled([one.change for one in recorded])
    having = [one.causes for one in recorded if one.causes]
    causes = [cause for cause in EXPLANATIONS if any(cause in shares for shares in having)]
    return MeanChange(
        change=change,
        spread=spread,
        role=measured[0].params.get(f"benchmark.{name}.role", "retained"),
        metric=measured[0].params.get(f"benchmark.{name}.metric", ""),
        n=_mean(one.n for one in recorded),
        verdicts=_counted([one.verdict for one in recorded]),
        corrected=_counted([corrected[run.run_id, name] for run in measured]),
        p_value=recorded[0].p_value if len(recorded) == 1 else nan,
        forgetting_rate=_mean(one.forgetting_rate.value for one in recorded),
        causes={cause: fmean(shares.get(cause, 0.0) for shares in having) for cause in causes},
        lost=_mean(one.lost for one in recorded),
        lost_any_metric=_mean(one.lost_any_metric for one in recorded),
    )


def _mean(values: Iterable[float]) -> float:
    """Of those that are known; nan where none is."""
    known = [value for value in values if isfinite(value)]
    return fmean(known) if known else nan


def _counted(verdicts: Sequence[str]) -> Counter[str]:
    """The most frequent first."""
    return Counter(dict(Counter(filter(None, verdicts)).most_common()))


def _by_seed(runs: Sequence[RecordedRun], notes: list[str]) -> list[list[RecordedRun]]:
    """The runs in groups that differ only in their seed; of equal runs only the newest counts in a mean."""
    groups: dict[frozenset[tuple[str, str]], list[RecordedRun]] = {}
    for run in runs:
        settings = frozenset(pair for pair in _settings(run).items() if pair[0] != "seed")
        groups.setdefault(settings, []).append(run)
    found: list[list[RecordedRun]] = []
    n_repeated = 0
    for group in groups.values():
        newest: dict[str, RecordedRun] = {}
        for run in sorted(group, key=lambda run: run.started, reverse=True):
            newest.setdefault(run.params.get("seed", ""), run)
        if len(newest) > 1:
            n_repeated += len(group) - len(newest)
            found.append(list(newest.values()))
        else:
            found += [[run] for run in group]
    if n_repeated:
        notes.append(
            f"{counted(n_repeated, 'run')} left out of the means over seeds: a newer one has the same "
            "settings and seed; --no-group-seeds shows every run."
        )
    return found


def _unlike(runs: Sequence[RecordedRun], benchmarks: Sequence[str]) -> list[str]:
    """What was not measured alike, one sentence each."""
    notes = []
    for name in benchmarks:
        measured = [run for run in runs if name in run.changes.benchmarks]
        reads: dict[str, Callable[[RecordedRun], str]] = {
            field: lambda run, key=f"benchmark.{name}.{field}": run.params.get(key, "")  # type: ignore[misc]
            for field in _MEASURED_BY
        }
        if unlike := _differences(measured, reads):
            notes.append(f"{name} was not measured alike ({unlike}): compare its changes with care.")
    tags: dict[str, Callable[[RecordedRun], str]] = {
        key: lambda run, key=key: str(getattr(run, key))  # type: ignore[misc]
        for key in _MEASURED_IN
    }
    tags["holdout"] = lambda run: f"{run.holdout:g}"
    tags["apply_chat_template"] = lambda run: run.params.get("evaluation.apply_chat_template", "")
    if unlike := _differences(runs, tags):
        notes.append(f"The runs were not measured alike ({unlike}): compare their changes with care.")
    kept = {
        frozenset(b for b in run.benchmarks if run.params.get(f"benchmark.{b}.role", "retained") == "retained")
        for run in runs
    }
    if len(kept) > 1:
        notes.append("The means are over different benchmarks: compare the benchmarks one by one.")
    return notes


def _differences(runs: Sequence[RecordedRun], reads: dict[str, Callable[[RecordedRun], str]]) -> str:
    found = []
    for field, read in reads.items():
        counts = Counter(read(run) for run in runs)
        if len(counts) > 1:
            shown = " and ".join(f"{value or 'not recorded'} in {count}" for value, count in counts.most_common())
            found.append(f"{field} is {shown}")
    return "; ".join(found)


def counted(n: int, what: str) -> str:
    """A number with its noun and the verb that fits.

    >>> counted(1, "run"), counted(2, "run")
    ('1 run is', '2 runs are')
    """
    return f"{n:,} {what} is" if n == 1 else f"{n:,} {what}s are"
