"""Recorded runs -> `Comparison`: one row a configuration, its change on each benchmark, and what is not comparable.

Pure: no store, no torch. Every change is a share (0.02 is two points) and was judged when the run was made; here its
verdict is only corrected for all that stand beside it. What a mean over seeds adds is said at `pooled`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, nan, sqrt
from statistics import fmean, stdev

from slimdown.config.schema import TRAINING
from slimdown.stats.anatomy import EXPLANATIONS, main_cause
from slimdown.stats.changes import Verdict
from slimdown.stats.paired import Estimate, t_quantile
from slimdown.stats.runs import RecordedRun
from slimdown.stats.selection import MARK, corrected_verdicts, luck_of_the_best

_PLACES = (
    "dataset.",
    "benchmark.",
    "lora.",
    "method.",
)  # keys that only runs with this dataset, ..., method have
# What two runs must have in common for a benchmark's changes to be of the same questions, read the same way.
_MEASURED_BY = ("task", "metric", "num_fewshot", "limit", "margin")


@dataclass(frozen=True)
class Pooled(Estimate):
    """A mean over seeds."""

    sd_over_seeds: float = nan  # standard deviation; nan where there is one seed


@dataclass(frozen=True)
class MeanChange:
    """What one configuration did to one benchmark."""

    change: Pooled  # of the primary metric, tuned - base
    role: str  # target or retained
    metric: str
    n: float  # questions; nan where not recorded
    n_available: float  # of how many, where they were asked in stages; else nan
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
        return in_words(self.verdicts)

    @property
    def verdict_corrected(self) -> str:
        """The same, corrected for every run and benchmark of the comparison."""
        return in_words(self.corrected)

    @property
    def main_cause(self) -> tuple[str, float] | None:
        """What most of the lost answers were lost to, with its share; None where no cause has most of them."""
        return main_cause(self.causes, self.lost_any_metric)


@dataclass(frozen=True)
class Configuration:
    """One configuration: a run, or runs that differ only in their seed."""

    name: str
    runs: tuple[RecordedRun, ...]  # newest first
    settings: dict[
        str, str
    ]  # every one, by its dotted key; `dataset` and `benchmark` hold the names
    changes: dict[str, MeanChange]  # by benchmark
    retained: Pooled  # mean change of the retained benchmarks; nan where there is none
    target: Pooled  # mean change of the target tasks; nan where there is none

    @property
    def seeds(self) -> list[str]:
        """The seeds, sorted."""
        return sorted(
            (run.params.get("seed", "") for run in self.runs), key=lambda seed: (len(seed), seed)
        )

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

    @cached_property
    def grouped(self) -> bool:
        """Whether any row is a mean over seeds."""
        return any(len(row.runs) > 1 for row in self.rows)

    @cached_property
    def in_stages(self) -> bool:
        """Whether any run was asked until something was known."""
        return _in_stages(self.rows)

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
    groups, notes = _by_seed(runs) if group_seeds else ([[run] for run in runs], [])
    verdicts = corrected_verdicts([run for group in groups for run in group])
    rows = [_row(group, verdicts) for group in groups]
    roles = {name: change.role for row in rows for name, change in row.changes.items()}
    benchmarks = sorted(roles, key=lambda name: (roles[name] != "target", name))
    notes += [
        *_unlike(runs, benchmarks),
        *_asked(runs, rows),
        *_corrections(rows),
        *_choosing(rows),
    ]
    return Comparison(tuple(rows), tuple(_differing(rows)), tuple(benchmarks), tuple(notes))


def pooled(estimates: Sequence[Estimate]) -> Pooled:
    """The mean of several runs' estimates; nan of none that is known.

    The runs were asked the same questions, so the noise of the questions does not average out: the interval holds
    the mean of theirs and the training's, standard deviation over the root of the number, each with the quantile of its
    own degrees of freedom (Cochran and Cox, as in `seeds.py`): two seeds say little. `--noise` tells the two apart,
    from every answer.

    >>> mean = pooled([Estimate(0.1, 0.03, 0, 0), Estimate(0.2, 0.03, 0, 0)])
    >>> round(mean.value, 3), round(mean.standard_error, 4), round(mean.sd_over_seeds, 4)
    (0.15, 0.0583, 0.0707)
    """
    known = [e for e in estimates if isfinite(e.value)]
    if len(known) < 2:
        return Pooled(**vars(known[0])) if known else Pooled(nan, nan, nan, nan)
    value, spread = fmean(e.value for e in known), stdev(e.value for e in known)
    training, questions = spread**2 / len(known), fmean(e.standard_error**2 for e in known)
    error = sqrt(questions + training)
    half = (
        (t_quantile(len(known) - 1) * training + t_quantile(inf) * questions) / error
        if error
        else 0.0
    )
    return Pooled(value, error, value - half, value + half, spread)


def _differing(rows: Sequence[Configuration]) -> list[str]:
    """The settings in which rows differ, sorted; of what the columns show, benchmarks and pooled seeds, none.

    What only runs with one dataset or benchmark have is compared among those, and what is set of a training among the
    runs that trained: that the others lack it is no difference.
    """
    values: dict[str, list[str]] = {}
    n_trained = sum(row.settings.get("tuned", "None") == "None" for row in rows)
    for row in rows:
        for key, value in row.settings.items():
            values.setdefault(key, []).append(value)
    shown = {"benchmark", *(["seed"] if any(len(row.runs) > 1 for row in rows) else [])}

    def is_lacking(key: str) -> bool:
        n_with = n_trained if key.partition(".")[0] in TRAINING else len(rows)
        return len(values[key]) < n_with and not key.startswith(_PLACES)

    return sorted(
        key for key in values if key not in shown and (len(set(values[key])) > 1 or is_lacking(key))
    )


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


def in_words(verdicts: Mapping[str, int]) -> str:
    """The verdict of all runs, or each one with its number of runs where they disagree."""
    if len(verdicts) == 1:
        return next(iter(verdicts))
    return ", ".join(f"{name} {count}" for name, count in verdicts.items())


def _row(runs: Sequence[RecordedRun], corrected: Mapping[tuple[str, str], str]) -> Configuration:
    settings, name = _settings(runs[0]), runs[0].name
    if len(runs) > 1:
        del settings["seed"]
        name = re.sub(r" seed=\S+", "", name)
    benchmarks = dict.fromkeys(
        name for run in runs for name in run.benchmarks if name in run.changes.benchmarks
    )
    return Configuration(
        name=name,
        runs=tuple(runs),
        settings=settings,
        changes={name: _mean_change(runs, name, corrected) for name in benchmarks},
        retained=pooled([run.changes.mean_retained_change for run in runs]),
        target=pooled([run.changes.mean_target_change for run in runs]),
    )


def _settings(run: RecordedRun) -> dict[str, str]:
    """The params and the like that say what was done, names of datasets and benchmarks; not where it was recorded."""
    kept = {
        key: value
        for key, value in run.params.items()
        if not key.startswith(("tracking.", "contamination."))
    }
    datasets = sorted({key.split(".")[1] for key in kept if key.startswith("dataset.")})
    if named := ",".join(datasets) or run.dataset:
        kept["dataset"] = named
    kept = {
        key: value
        for key, value in kept.items()
        if not (key.endswith(".max_loss") and value == "None")
    }
    for key, value in (("evaluation.holdout", "0.0"), ("evaluation.until", "all")):
        kept.setdefault(key, value)  # older records, which have none of the three
    if "lora.r" in kept:  # as well
        kept = {"method.name": "lora", "train.engine": "trl"} | kept
    kept |= {"benchmark": ",".join(sorted(run.benchmarks)), "processes": run.processes}
    return kept


def _mean_change(
    runs: Sequence[RecordedRun], name: str, corrected: Mapping[tuple[str, str], str]
) -> MeanChange:
    measured = [run for run in runs if name in run.changes.benchmarks]
    recorded = [run.changes.benchmarks[name] for run in measured]
    having = [one.causes for one in recorded if one.causes]
    causes = [cause for cause in EXPLANATIONS if any(cause in shares for shares in having)]
    return MeanChange(
        change=pooled([one.change for one in recorded]),
        role=measured[0].params.get(f"benchmark.{name}.role", "retained"),
        metric=measured[0].params.get(f"benchmark.{name}.metric", ""),
        n=_mean(one.n for one in recorded),
        n_available=_mean(one.n_available for one in recorded),
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


def _by_seed(runs: Sequence[RecordedRun]) -> tuple[list[list[RecordedRun]], list[str]]:
    """The runs in groups that differ only in their seed, and a note where of equal runs only the newest counts."""
    alike: dict[frozenset[tuple[str, str]], list[RecordedRun]] = {}
    for run in runs:
        settings = frozenset(pair for pair in _settings(run).items() if pair[0] != "seed")
        alike.setdefault(settings, []).append(run)
    groups: list[list[RecordedRun]] = []
    n_repeated = 0
    for group in alike.values():
        newest: dict[str, RecordedRun] = {}
        for run in sorted(group, key=lambda run: run.started, reverse=True):
            newest.setdefault(run.params.get("seed", ""), run)
        if len(newest) > 1:
            n_repeated += len(group) - len(newest)
            groups.append(list(newest.values()))
        else:
            groups += [[run] for run in group]
    note = (
        f"{counted(n_repeated, 'run')} left out of the means over seeds: a newer one has the same settings and seed; "
        "--no-group-seeds shows every run."
    )
    return groups, [note] if n_repeated else []


def _unlike(runs: Sequence[RecordedRun], benchmarks: Sequence[str]) -> Iterator[str]:
    """What was not measured alike, one sentence each."""
    for name in benchmarks:
        params = [run.params for run in runs if name in run.changes.benchmarks]
        fields = {
            field: [of_run.get(f"benchmark.{name}.{field}", "") for of_run in params]
            for field in _MEASURED_BY
        }
        if differences := _differences(fields):
            yield f"{name} was not measured alike ({differences}): compare its changes with care."
    conditions = {
        "harness_version": [run.harness_version for run in runs],
        "scoring_path": [run.scoring_path for run in runs],
        "holdout": [f"{run.holdout:g}" for run in runs],
        "apply_chat_template": [
            run.params.get("evaluation.apply_chat_template", "") for run in runs
        ],
    }
    if differences := _differences(conditions):
        yield f"The runs were not measured alike ({differences}): compare their changes with care."
    retained = {
        frozenset(
            b
            for b in run.benchmarks
            if run.params.get(f"benchmark.{b}.role", "retained") == "retained"
        )
        for run in runs
    }
    if len(retained) > 1:
        yield "The means are over different benchmarks: compare the benchmarks one by one."


def _in_stages(rows: Sequence[Configuration]) -> bool:
    return any(isfinite(cell.n_available) for row in rows for cell in row.changes.values())


def _asked(runs: Sequence[RecordedRun], rows: Sequence[Configuration]) -> Iterator[str]:
    """What comparing runs means that were asked until something was known, in a sentence."""
    if len(runs) < 2 or not _in_stages(rows):
        return
    asked: dict[str, set[float]] = {}
    for run in runs:
        for name, change in run.changes.benchmarks.items():
            asked.setdefault(name, set()).add(change.n)
    unlike = [
        f"{name} {min(ns):,.0f} to {max(ns):,.0f}" for name, ns in asked.items() if len(ns) > 1
    ]
    different = f" (questions of {', '.join(unlike)})" if unlike else ""
    some = "Some runs" if any(row.settings["evaluation.until"] == "all" for row in rows) else "Runs"
    yield (
        f"{some} were asked until enough was known of each{different}: an interval is right for its own row; RUN RUN "
        "--paired compares two rows, on the questions that both were asked."
    )


def _differences(fields: Mapping[str, list[str]]) -> str:
    """Of fields with a value a run, those whose values differ, with how many runs have each."""
    differences = []
    for field, values in fields.items():
        counts = Counter(values).most_common()
        if len(counts) > 1:
            each = " and ".join(f"{value or 'not recorded'} in {count}" for value, count in counts)
            differences.append(f"{field} is {each}")
    return "; ".join(differences)


def _corrections(rows: Sequence[Configuration]) -> Iterator[str]:
    """What the correction for the whole table changes, in a sentence."""
    cells = [cell for row in rows for cell in row.changes.values()]
    n_all = sum(cell.verdicts.total() for cell in cells)
    n_claims = n_all - sum(cell.verdicts[Verdict.undecided.value] for cell in cells)
    n_lost = sum((cell.verdicts - cell.corrected).total() for cell in cells)
    if sum(len(row.runs) for row in rows) < 2 or not n_claims:
        return
    together = f"corrected for all {n_all:,} in this table (Holm)"
    if n_lost:
        yield (
            f"{MARK} {n_lost:,} of {n_claims:,} verdicts other than undecided do not hold when {together}; what does "
            "stands behind the arrow."
            + " A run that is asked until its own verdict is known has little to spare for that."
            * _in_stages(rows)
        )
    else:
        yield f"Every verdict other than undecided holds when {together}."


def _choosing(rows: Sequence[Configuration]) -> Iterator[str]:
    """What picking the best row does, and what to do about it, in a sentence each."""
    n = len(rows)
    errors: dict[str, list[float]] = {}
    for row in rows:
        for name, cell in row.changes.items():
            if isfinite(cell.change.standard_error):
                errors.setdefault(name, []).append(cell.change.standard_error)
    if n < 2 or not (errors or _in_stages(rows)):
        return
    cure = "python -m slimdown.compare RUN --confirm"
    if all(run.holdout for row in rows for run in row.runs):
        advice = f"Judge the one you choose on the questions that are held out: {cure}"
    else:
        whole = " and evaluation.until=all" if _in_stages(rows) else ""
        advice = f"Runs with evaluation.holdout=0.5{whole} keep questions to judge the chosen one on: {cure}"
    looks = "the best looks better than it is, the more so where asking ended as soon as enough was known"
    if not _in_stages(rows):
        luck = 100 * luck_of_the_best(n) * max(map(fmean, errors.values()))
        looks = f"the best looks up to about {luck:.1f} points better than it is on one benchmark"
    yield f"Whoever picks the best of these {n:,} picks luck too: of {n:,} that are equally good, {looks}. {advice}."


def counted(n: int, what: str) -> str:
    """A number with its noun and the verb that fits.

    >>> counted(1, "run"), counted(2, "run")
    ('1 run is', '2 runs are')
    """
    return f"{n:,} {what} is" if n == 1 else f"{n:,} {what}s are"
