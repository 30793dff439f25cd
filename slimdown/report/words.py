"""What is said: every sentence and every verdict's look once, for console, files and pages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, isnan
from typing import TYPE_CHECKING

from slimdown.config.schema import PaperMetric, Role
from slimdown.report.numbers import (
    NOTHING,
    asked,
    interval,
    number,
    percent,
    plural,
    points,
    together,
)
from slimdown.stats.anatomy import EXPLANATIONS, Anatomy, Choices
from slimdown.stats.budget import Outcome as Budgeted, hold_to_budgets
from slimdown.stats.changes import BenchmarkChange, Changes, Verdict
from slimdown.stats.comparison import Comparison
from slimdown.stats.findings import Findings
from slimdown.stats.paired import Estimate
from slimdown.stats.runs import Making
from slimdown.stats.search import Outcome

if TYPE_CHECKING:  # it would bring torch along
    from slimdown.training.fine_tune import TrainResult

_ERRORS = "the chance of any false claim of change is 5 % at most, that of any false claim of none 5 % as well"
LEGEND = (
    "± one standard error; [95 % interval], that of a change from each question's pair of answers; * target task. "
    "Verdicts hold for questions like these, where a benchmark has subjects for what is said beside it, and for this "
    f"checkpoint: another seed trains another model. Corrected for the number of benchmarks (Holm): {_ERRORS}."
)
STOPPED = (
    "Questions were asked until enough was known, or all were. Intervals, tests and verdicts are such that they hold "
    "at whichever question asking ends, of subjects for these alone; what would hold of a fixed number only, such as a "
    "standard error, is left out, and a change that was decided early tends to look larger than it is."
)
NO_INTERVAL = "A mean over several such runs has no interval."
COMPARISON_LEGEND = (
    "Change of each benchmark's primary metric in points, tuned − base, [95 % interval], verdict of the run (claims of "
    "change and of none at 5 % each), which is of its checkpoint and for questions like these (where they come from "
    "subjects, for such subjects; from fewer than 5, for these only); * target task."
)
SEEDS_LEGEND = (
    "Where a row holds several seeds: mean ± standard deviation over seeds, and the verdicts with their number of "
    "seeds."
)
NOISE_LEGEND = (
    "Mean change over seeds in points, tuned − base, with a 95 % interval for other questions and other seeds. Its two "
    "standard errors: questions, which more questions would lower, and training, which more seeds would; from seed to "
    "seed, the standard deviation of the true change, as likely too large as too small."
)
LUCK = "Whoever takes one for its place takes luck with it, as said above the table."
DATASETS_CAPTION = (
    "What each dataset teaches and makes forget: the mean change over its runs in points, red where it fell and blue "
    "where it rose; * target task. The sign is the verdict of the runs, each about its checkpoint, corrected for the "
    "whole table: ↓ forgotten, ↑ improved, = retained, ? undecided, or they disagree (pointed at, a cell tells). The "
    "interval, 95 %, is of the mean, for other seeds too: it can hold zero although every run has lost."
)
NO_TARGET = (
    "No target task was measured in these runs, so what was learned is not known here. Give a benchmark role=target to "
    "have it measured, e.g. benchmark.gsm8k.role=target."
)
_PAPER_SYMBOLS = {
    PaperMetric.ability_augmentation: "ΔA",
    PaperMetric.forgetting_rate: "FR",
    PaperMetric.knowledge_loss: "ΔK",
}


# --- how a verdict looks ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """How a verdict looks; nothing is said by colour alone."""

    sign: str
    console: str  # a style of rich
    colour: str  # in a plot, on light ground and on dark; after Okabe and Ito, for any kind of colour blindness
    on_light: str  # of text on a page
    on_dark: str
    marker: str  # in a plot


LOOKS = {
    Verdict.retained: Look("=", "bold cyan", "#2a86c7", "#1a6ba6", "#74b8ec", "s"),
    Verdict.forgotten: Look("↓", "bold red", "#d55e00", "#b04a00", "#ff9a5c", "v"),
    Verdict.improved: Look("↑", "bold green", "#009e73", "#00765a", "#4fd0a8", "^"),
    Verdict.undecided: Look("?", "yellow", "#7a7a7a", "#626262", "#b5b5b5", "o"),
}


def kind_of(verdict: str) -> Verdict:
    """The verdict whose look a text has: its own, or that of undecided where seeds disagree."""
    return Verdict(verdict) if verdict in LOOKS else Verdict.undecided


# --- one benchmark ----------------------------------------------------------------------------------


def benchmark_name(name: str, role: str) -> str:
    """The benchmark's name, a target task marked."""
    return f"{name} *" if role == Role.target.value else name


def legend(changes: Changes) -> str:
    """How a table of findings is read."""
    return f"{LEGEND} {STOPPED}" if changes.in_stages else LEGEND


def comparison_legend(comparison: Comparison) -> str:
    """How a table of many runs is read."""
    seeds = [SEEDS_LEGEND] if comparison.grouped else []
    return " ".join(
        [COMPARISON_LEGEND, *seeds, *([STOPPED, NO_INTERVAL] if comparison.in_stages else [])]
    )


def short_metric(metric: str, benchmark: BenchmarkChange) -> str:
    """The filter's name where several filters read one metric, else the metric's."""
    name, _, filter_name = metric.partition(".")
    alike = [m for m in benchmark.changes if m.split(".")[0] == name]
    return filter_name if len(alike) > 1 and filter_name else name


def rate(benchmark: BenchmarkChange, found: Estimate | None, zero: str) -> tuple[str, str, str]:
    """A forgetting rate, its interval and a note, or what is known of it; nothing for a target task.

    Args:
        benchmark: whose rate it is.
        found: the rate; None where any is possible.
        zero: what the base must be shown to be above for a rate to be told.
    """
    if benchmark.role is Role.target:
        return "", "", ""
    if found and not isnan(found.value):
        return *percent(found), ""
    note = f"base not shown above {zero}"
    if found is None:
        return "any possible", "", note
    if isfinite(found.low):
        return f"at least {number(100 * found.low)} %", "", note
    return f"at most {number(100 * found.high)} %", "", note


def rate_above_chance(benchmark: BenchmarkChange) -> tuple[str, str, str]:
    """The share of what the base had above chance that is gone, its interval and a note, or what is known of it."""
    return rate(
        benchmark, benchmark.forgetting_rate_above_chance, "chance" if benchmark.chance else "0"
    )


def paper(benchmark: BenchmarkChange) -> tuple[str, str]:
    """The paper's metric of this benchmark with the standard error that the paper gives, and the paired interval."""
    if benchmark.paper_metric is None or (found := benchmark.paper_value) is None:
        return "", ""
    symbol = _PAPER_SYMBOLS[benchmark.paper_metric]
    if isnan(found.value):
        return f"{symbol} undefined, base at 0", ""
    if benchmark.paper_metric is PaperMetric.forgetting_rate:
        text, doubt = percent(found)
        return f"{symbol} {text}", doubt
    error = "" if isnan(found.standard_error) else f" ±{number(found.standard_error)}"
    return f"{symbol} {number(found.value, '+.1f')}{error}", interval(found.low, found.high, "+.1f")


def cause(name: str, share: float) -> str:
    """What most lost answers were lost to.

    >>> cause("other_format", 0.81)
    '81 % other format'
    """
    return f"{100 * share:.0f} % {name.replace('_', ' ')}"


# --- sentences --------------------------------------------------------------------------------------


def sentences(findings: Findings) -> list[str]:
    """What the findings say in words: the verdicts, what became of lost answers, what training did."""
    return [*found(findings), *([learned(findings.training)] if findings.training else [])]


def found(findings: Findings) -> list[str]:
    """The verdicts in words, what became of lost answers, and which questions stood in the rows."""
    told = findings.training.contamination.told if findings.training else []
    return [
        *summary(findings.changes),
        *anatomy_lines(findings.anatomies),
        *(f"{line}." for line in told),
    ]


def summary(changes: Changes) -> list[str]:
    """What the verdicts say, one sentence each."""
    found = [f"About {changes.part}."] if changes.part else []
    by_verdict: dict[Verdict, list[tuple[str, BenchmarkChange]]] = {}
    for name, benchmark in changes.benchmarks.items():
        by_verdict.setdefault(benchmark.verdict, []).append((name, benchmark))
    for verdict in (Verdict.improved, Verdict.forgotten, Verdict.retained):
        if shown := by_verdict.get(verdict):
            listed = ", ".join(f"{name} ({_change(b)})" for name, b in shown)
            margins = " or ".join(f"{m:g}" for m in sorted({100 * b.margin for _, b in shown}))
            within = (
                f", shown to be within {margins} points of the base"
                if verdict is Verdict.retained
                else ""
            )
            found.append(f"{verdict.value.capitalize()}: {listed}{within}.")
    for name, b in by_verdict.get(Verdict.undecided, []):
        enough = f", about {b.n_to_decide:,} would decide" if b.n_to_decide else ""
        if b.is_stopped:
            found.append(f"Undecided: {name} ({_change(b)}); more were not asked{enough}.")
            continue
        smallest = b.minimum_detectable_change
        can_show = (
            "no change at all"
            if isnan(smallest)
            else f"only changes of {100 * smallest:.1f} points or more"
        )
        questions = "1 question shows" if b.n == 1 else f"{b.n:,} questions show"
        found.append(f"Undecided: {name} ({_change(b)}); {questions} {can_show}{enough}.")
    return [*found, *_budgets(changes)]


def _budgets(changes: Changes) -> Iterator[str]:
    """Whether each kept to what it may lose, where that was set for any, or ended the asking of one."""
    if any(b.max_loss is not None or _is_held(b) for b in changes.benchmarks.values()):
        told = {
            Budgeted.within: "within",
            Budgeted.beyond: "beyond",
            Budgeted.undecided: "undecided at",
        }
        held = ", ".join(
            f"{j.benchmark} {told[j.outcome]} {100 * j.budget:g} points"
            for j in hold_to_budgets(changes, {})
        )
        yield f"Held to what may be lost: {held}."


def _is_held(benchmark: BenchmarkChange) -> bool:
    """Whether asking ended because of its budget: it is known to be kept or not, and the verdict is not."""
    return (
        benchmark.role is Role.retained
        and benchmark.is_stopped
        and benchmark.verdict is Verdict.undecided
    )


def _change(benchmark: BenchmarkChange) -> str:
    """The change in points, what it took, and, where the questions come from subjects, what it is said of."""
    d, n = benchmark.primary.difference, asked(benchmark.n, benchmark.n_available)
    so_far = f" after {n} questions" if benchmark.is_stopped else ""
    return f"{points(d)[0]} points{so_far}" + (f", for {d.population}" if d.n_groups else "")


def anatomy_lines(anatomies: dict[str, Anatomy]) -> list[str]:
    """What became of lost answers, one line a benchmark that lost any."""
    lines = []
    for name, found in anatomies.items():
        if not found.n_lost:
            continue
        shares = ", ".join(
            f"{together((f'{100 * c.share.value:.0f} %', interval(100 * c.share.low, 100 * c.share.high, '.0f')))} "
            f"{EXPLANATIONS[c.name].split(':')[0]}"
            for c in found.causes
            if c.share and c.count
        )
        lead = f" {leads(found.choices)}" if found.choices else ""
        lines.append(
            f"Of {found.n_lost} answers lost in {name}: {shares or 'causes unknown'}.{lead}".rstrip()
        )
    moved = [
        f"{name}: {position(a.choices)}"
        for name, a in anatomies.items()
        if a.choices and a.choices.collapsed
    ]
    return lines + moved


def lost(found: Anatomy) -> str:
    """How many answers were lost, in a sentence."""
    if not found.n_right:
        return "No answer was right before, so none could be lost."
    if not found.n_lost:
        return f"None of {plural(found.n_right, 'right answer')} was lost."
    share = number(100 * found.n_lost / found.n_right)
    unknown = "" if found.causes else " Why is not known: a question has several right choices."
    before = f"Of {plural(found.n_right, 'answer')} that were right before"
    return f"{before}, {found.n_lost:,} were lost ({share} %).{unknown}"


def leads(moved: Choices) -> str:
    """How far ahead the right choice was of the others where it was lost, and is; empty where none was lost."""
    before, after = moved.median_lead_before, moved.median_lead_after
    if isnan(before) or isnan(after):
        return ""
    side = "is behind by" if after < 0 else "still leads by"
    return (
        f"In the lost answers the right choice led by {before:.2f} nats before and {side} {abs(after):.2f} after "
        "(medians)."
    )


def position(moved: Choices) -> str:
    """Which position the tuned model takes most often, and whether it is shown to have moved there."""
    begin = (
        "The tuned model moved to"
        if moved.collapsed
        else "No move to one position is shown; taken most often is"
    )
    before, after = together(percent(moved.share_before)), together(percent(moved.share_after))
    return (
        f"{begin} choice {chr(ord('A') + moved.position)}, with {before} of all questions before and {after} after; it "
        f"is right in {number(100 * moved.share_right)} %."
    )


def learned(training: "TrainResult") -> str:
    """What training did, in one sentence."""
    cut = f" {training.cut}." if training.cut.is_worth_telling else ""
    return f"{_loss(training)} in {plural(training.steps, 'step')}; {_share(training)}.{cut}"


def learned_on(made: Making) -> str:
    """What training did and on how much, in one sentence, as its record has it."""
    rows = f"{made.n_train:,.0f} rows and {made.n_validation:,.0f} held out"
    return f"{_loss(made)}, of {rows}; {_share(made)}."


def _loss(made: "TrainResult | Making") -> str:
    before, after = made.validation_loss_before, made.validation_loss_after
    return f"Validation loss {number(before, '.3f')} → {number(after, '.3f')} nats a token"


def _share(made: "TrainResult | Making") -> str:
    return f"{made.n_trainable:,.0f} parameters trained, {number(made.trainable_percent, '.2f')} %"


def tests_legend(n_benchmarks: int) -> str:
    """How the tests behind the verdicts are read."""
    return (
        f"p-values are corrected for {plural(n_benchmarks, 'benchmark')} (Holm). Smallest seen: the smallest change "
        "that would be shown, with a chance of 80 %, by as many questions. Questions to decide: about how many would "
        "settle an undecided one. Unpaired: the standard error that two independent measurements would have."
    )


def pairs_legend(changes: list[Changes], confirmed: bool) -> str:
    """How pairs are read: two tuned models are one pair, each run that is confirmed is one with its base."""
    stopped = f" {STOPPED}" if changes[0].in_stages else ""
    differences = {name: b.primary.difference for name, b in changes[0].benchmarks.items()}
    subjects = "".join(
        f", {name} for {d.population}" for name, d in differences.items() if d.n_groups
    )
    means = "; ".join(
        NOTHING
        if isnan(change.mean_retained_change.value)
        else together(points(change.mean_retained_change))
        for change in changes
    )
    part = f" About {changes[0].part}." if changes[0].part else ""
    if confirmed:
        change, whose = (
            "from the base to the tuned model",
            f"{'this' if len(changes) == 1 else 'each'} checkpoint",
        )
    else:
        change, whose = "from the first to the second run's tuned model", "these two checkpoints"
    return (
        f"Change in points {change} with its 95 % interval, each question's two answers paired; * target task. Mean "
        f"change of the retained benchmarks: {means}.{part} Verdicts hold for {whose} and questions like "
        f"these{subjects}; {_ERRORS} (Holm).{stopped}"
    )


def trade_caption(n_rows: int, most: int) -> str:
    """What stands below a plot of what was learned against what was forgotten."""
    left_out = (
        f" Of {n_rows:,} rows the first {most} are drawn; sort or filter for others."
        if n_rows > most
        else ""
    )
    luck = f" {LUCK}" if n_rows > 1 else ""
    return f"Each point is a row of the table: up is learned, right is forgotten.{luck}{left_out}"


def by_caption(others: list[str], in_stages: bool) -> str:
    """What stands below a plot over a setting; `others` are the settings in which the runs differ besides."""
    none = "; of runs that were asked until enough was known there is none" if in_stages else ""
    although = f", although they differ in {', '.join(others)} too" if others else ""
    return (
        f"Runs that share a value are pooled{although}: their mean, with an interval that holds the noise of the "
        f"questions and how the runs differ{none}."
    )


def excess(found: Outcome) -> str:
    """Whether a trial kept to its budget, and what it lost beyond it."""
    beyond = [f"{name} {100 * share:.1f}" for name, share in found.excess.items() if share > 0]
    return f"beyond by {', '.join(beyond)}" if beyond else "within"


def search_note(found: Sequence[Outcome], n_pruned: int) -> str:
    """How many trials kept to the budget, and what the order of the rows is."""
    n_within = sum(one.is_within for one in found)
    pruned = (
        f" {plural(n_pruned, 'trial')} pruned before the end stand in no row." if n_pruned else ""
    )
    order = (
        "that learned most of these stands first"
        if n_within
        else "none is: the one nearest to it stands first"
    )
    return f"Within the budget as measured: {n_within} of {plural(len(found), 'finished trial')}; {order}.{pruned}"
