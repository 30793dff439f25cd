"""What a person reads: the plan before a run, its progress, and the table of results on the console and in Markdown."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite, isnan
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from slimdown.guarding.redaction import redact
from slimdown.judging.anatomy import EXPLANATIONS, Anatomy
from slimdown.judging.budget import Judgement, Outcome, overall
from slimdown.judging.changes import BenchmarkChange, Change, Changes, Verdict
from slimdown.judging.findings import Findings
from slimdown.judging.paired import Estimate
from slimdown.settings.schema import PaperMetric, Role, RunConfig

if TYPE_CHECKING:  # it would bring torch along
    from slimdown.training.fine_tune import TrainResult

console = Console(highlight=False, width=None if Console().is_terminal else 120)

_PAPER_SYMBOLS = {
    PaperMetric.ability_augmentation: "ΔA",
    PaperMetric.forgetting_rate: "FR",
    PaperMetric.knowledge_loss: "ΔK",
}
VERDICT_STYLES: dict[str, str] = {
    Verdict.forgotten: "bold red",
    Verdict.improved: "bold green",
    Verdict.retained: "bold cyan",
    Verdict.undecided: "yellow",
}
LEGEND = (
    "± one standard error; [95 % interval], that of a change from each question's pair of answers; * target task. "
    "Verdicts hold for questions like these, where a benchmark has subjects for what is said beside it, and for this "
    "checkpoint: another seed trains another model. Corrected for the number of benchmarks (Holm): the chance of any "
    "false claim of change is 5 % at most, that of any false claim of none 5 % as well."
)


def show_plan(config: RunConfig, name: str) -> None:
    """Print what the run is about to do."""
    rows = "all" if any(d.max_examples is None for d in config.dataset.values()) else None
    n_rows = rows or sum(d.max_examples or 0 for d in config.dataset.values())
    benchmarks = ", ".join(
        f"{benchmark} ({b.num_fewshot}-shot" + (f", first {b.limit})" if b.limit else ")")
        for benchmark, b in config.benchmark.items()
    )
    plan = Table.grid(padding=(0, 2))
    plan.add_row("[bold]run[/]", escape(name))  # lora.target_modules=[q_proj] is not markup
    plan.add_row("[bold]model[/]", escape(redact(f"{config.model.id}, {config.quantization.name}")))
    if config.tuned is not None:
        plan.add_row("[bold]tuned[/]", escape(redact(config.tuned)))
    else:
        plan.add_row("[bold]rows[/]", escape(f"{n_rows} of {' + '.join(config.dataset)}"))
        adapter = f"r {config.lora.r}, alpha {config.lora.lora_alpha}, {', '.join(config.lora.target_modules)}"
        plan.add_row("[bold]adapter[/]", escape(adapter))
    plan.add_row("[bold]measured[/]", escape(benchmarks))
    console.print(plan)
    console.print()


def show_notes(lines: Iterable[str]) -> None:
    """Print what a person should know before they wait, a line each."""
    for line in lines:
        show_note(line)


def show_note(line: str) -> None:
    """Print what a person should know before they wait."""
    console.print(escape(line), style="yellow")


@contextmanager
def doing(what: str) -> Iterator[None]:
    """A spinner with the seconds so far, while something runs that cannot say how far it is."""
    with _bar(transient=True) as progress:
        progress.add_task(what, total=None, note="")
        yield


@contextmanager
def progress_bar(what: str) -> Iterator["Bar"]:
    """A bar with what is done, what there is, and the time left."""
    with _bar(transient=True) as progress:
        yield Bar(progress, what)


class Bar:
    """A bar that learns its length when the work has begun."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=None, note="")

    def __call__(self, done: int, total: int, note: str) -> None:
        self._progress.update(self._task, completed=done, total=total, note=note)


def show_findings(findings: Findings) -> None:
    """Print the table of results, what it says in words, and what became of lost answers."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("benchmark", no_wrap=True)
    for heading in ("n", "base", "tuned", "change", "forgetting rate"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name, benchmark in findings.changes.benchmarks.items():
        for metric, change in benchmark.changes.items():
            primary = metric == benchmark.metric
            shown = short_metric(metric, benchmark)
            table.add_row(
                escape(f"{shown_name(name, benchmark)} {shown}" if primary else f"  {shown}"),
                str(benchmark.n) if primary else "",
                score(change.base),
                score(change.tuned),
                points(change),
                rate(benchmark) if primary else "",
                f"[{VERDICT_STYLES[benchmark.verdict]}]{benchmark.verdict}[/]" if primary else "",
                style="" if primary else "dim",
            )
    console.print(table)
    for line in sentences(findings):
        console.print(escape(line))
    console.print(escape(LEGEND), style="dim")


def show_where(run_id: str, uri: str, artifacts: str, undelivered: str) -> None:
    """Print where the run is kept, how to look at it, and what is left to be done."""
    console.print(f"\nrun {run_id}")
    if artifacts.startswith("file:"):
        console.print(f"open {artifacts}/report.html", soft_wrap=True, markup=False)
    if uri.startswith("http"):
        console.print(f"see {uri}", markup=False)
    else:
        console.print(f"see mlflow ui --backend-store-uri {uri}", soft_wrap=True, markup=False)
    if undelivered:
        console.print(escape(undelivered), soft_wrap=True)


def show_judgements(judged: Sequence[Judgement], console: Console) -> None:
    """Print each loss against its budget, and what holds for all of them."""
    styles = {Outcome.within: "green", Outcome.beyond: "red", Outcome.undecided: "yellow"}
    width = max(len(judgement.benchmark) for judgement in judged)
    for judgement in judged:
        shown = (f"{judgement.outcome.name:<9}", styles[judgement.outcome])
        console.print(Text.assemble(shown, f"  {judgement.benchmark:<{width}}  {judgement.reason}"))
    outcome = overall(judged)
    sentence = {
        Outcome.within: "Passed: every loss is shown to be within its budget.",
        Outcome.beyond: "Failed: a loss beyond its budget is shown.",
        Outcome.undecided: "Undecided: no loss beyond its budget is shown, and not every one is shown to be within.",
    }
    console.print(f"[bold {styles[outcome]}]{sentence[outcome]}[/]")
    console.print("Of this checkpoint, for questions like these where no subjects are named.", style="dim")


def sentences(findings: Findings) -> list[str]:
    """What the findings say in words: the verdicts, what became of lost answers, what training did."""
    training = [learned(findings.training)] if findings.training else []
    return [*summary(findings.changes), *anatomy_lines(findings.anatomies), *training]


def markdown(name: str, findings: Findings) -> str:
    """The findings as Markdown: the table, what it says in words, what it cost, how to read it."""
    report, training, costs = findings.changes, findings.training, findings.costs
    lines = [
        f"### {in_markdown(name)}",
        "",
        *(f"- {in_markdown(line)}" for line in summary(report)),
        "",
        "| benchmark | metric | n | base | tuned | change | forgetting rate | paper | verdict |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for benchmark_name, benchmark in report.benchmarks.items():
        for metric, change in benchmark.changes.items():
            primary = metric == benchmark.metric
            star = " \\*" if benchmark.role is Role.target else ""
            shown = f"**{in_markdown(benchmark_name)}**{star}" if primary else in_markdown(benchmark_name)
            lines.append(
                f"| {shown} | {in_markdown(metric)} | {benchmark.n} | {score(change.base)} | {score(change.tuned)} "
                f"| {points(change)} | {rate(benchmark) if primary else ''} | {paper(benchmark) if primary else ''} "
                f"| {benchmark.verdict if primary else ''} |"
            )
    spent = ", ".join(
        f"{key.removesuffix('_seconds')} {value:.0f} s" for key, value in costs.items() if "seconds" in key
    )
    trained = ""
    if training:
        trained = f", training {training.runtime_seconds:.0f} s ({training.tokens_per_second:.0f} tokens/s)"
    peak = costs.get("peak_memory_bytes", 0) / 2**30
    lines += [
        "",
        *(f"- {in_markdown(line)}" for line in anatomy_lines(findings.anatomies)),
        "",
        *([learned(training), ""] if training else []),
        f"Time: {spent}{trained}. Peak memory {peak:.2f} GiB.",
        "",
        f"{LEGEND} Every answer is in `samples/` (a base's, where tags `slimdown.baseline.*` "
        "name another run, in that one's); the whole report is in `report.html`.",
        "",
    ]
    return "\n".join(lines)


def summary(report: Changes) -> list[str]:
    """What the verdicts say, one sentence each."""
    sentences = [f"About {report.part}."] if report.part else []
    by_verdict: dict[Verdict, list[tuple[str, BenchmarkChange]]] = {}
    for name, benchmark in report.benchmarks.items():
        by_verdict.setdefault(benchmark.verdict, []).append((name, benchmark))
    for verdict in (Verdict.improved, Verdict.forgotten, Verdict.retained):
        if there := by_verdict.get(verdict):
            listed = ", ".join(f"{name} ({_told(b)})" for name, b in there)
            within = ""
            if verdict is Verdict.retained:
                margins = sorted({100 * b.margin for _, b in there})
                within = f", shown to be within {' or '.join(f'{m:g}' for m in margins)} points of the base"
            sentences.append(f"{verdict.value.capitalize()}: {listed}{within}.")
    for name, b in by_verdict.get(Verdict.undecided, []):
        smallest = b.minimum_detectable_change
        can_show = "no change at all" if isnan(smallest) else f"only changes of {100 * smallest:.1f} points or more"
        enough = f", about {b.n_to_decide:,} would decide" if b.n_to_decide else ""
        questions = "1 question shows" if b.n == 1 else f"{b.n:,} questions show"
        sentences.append(f"Undecided: {name} ({_told(b)}); {questions} {can_show}{enough}.")
    return sentences


def anatomy_lines(anatomies: dict[str, Anatomy]) -> list[str]:
    """What became of lost answers, one line a benchmark that lost any."""
    lines = []
    for name, found in anatomies.items():
        if not found.n_lost:
            continue
        shares = ", ".join(
            f"{100 * cause.share.value:.0f} % [{100 * cause.share.low:.0f}, {100 * cause.share.high:.0f}] "
            f"{EXPLANATIONS[cause.name].split(':')[0]}"
            for cause in found.causes
            if cause.share and cause.count
        )
        line = f"Of {found.n_lost} answers lost in {name}: {shares or 'causes unknown'}."
        if (moved := found.choices) and moved.median_lead_after == moved.median_lead_after:
            line += (
                f" There the right choice led by {moved.median_lead_before:.2f} nats and is behind by "
                f"{-moved.median_lead_after:.2f} (medians)."
            )
        lines.append(line)
    for name, found in anatomies.items():
        if found.choices and found.choices.collapsed:
            moved = found.choices
            lines.append(
                f"{name} moved to choice {chr(ord('A') + moved.position)}: "
                f"taken in {100 * moved.share_before.value:.0f} % of questions before and "
                f"{100 * moved.share_after.value:.0f} % after, right in {100 * moved.share_right:.0f} %."
            )
    return lines


def _bar(transient: bool) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=transient,
    )


def shown_name(name: str, benchmark: BenchmarkChange) -> str:
    """The benchmark's name, a target task marked."""
    return f"{name} *" if benchmark.role is Role.target else name


def in_markdown(text: str) -> str:
    r"""The text as it reads, in a cell of a table too: names may hold what Markdown or HTML takes for its own.

    >>> print(in_markdown("a|b <b> `c` [d](e)"))
    a\|b &lt;b> \`c\` \[d\](e)
    """
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", plain)  # within a word _ is a letter


def short_metric(metric: str, benchmark: BenchmarkChange) -> str:
    """The filter's name where several filters read one metric, else the metric's."""
    name, _, filter_name = metric.partition(".")
    alike = [m for m in benchmark.changes if m.split(".")[0] == name]
    return filter_name if len(alike) > 1 and filter_name else name


def _told(benchmark: BenchmarkChange) -> str:
    """The change in points and, where the questions come from subjects, what it is said of."""
    d = benchmark.primary.difference
    return f"{100 * d.value:+.1f} points" + (f", for {d.population}" if d.n_groups else "")


def score(estimate: Estimate) -> str:
    """A score in percent ± its standard error."""
    error = "" if isnan(estimate.standard_error) else f" ±{100 * estimate.standard_error:.1f}"
    return f"{100 * estimate.value:.1f}{error}"


def points(change: Change) -> str:
    """A change in points with its interval."""
    d = change.difference
    return f"{100 * d.value:+.1f}{_interval(100 * d.low, 100 * d.high, '+')}"


def rate(benchmark: BenchmarkChange) -> str:
    """The forgetting rate above chance with its interval, or what is known of it; nothing for a target task."""
    if benchmark.role is Role.target:
        return ""
    found = benchmark.forgetting_rate_above_chance
    if found is None or isnan(found.value):
        return bound(found)
    return f"{100 * found.value:.1f} %{_interval(100 * found.low, 100 * found.high)}"


def bound(found: Estimate | None) -> str:
    """What is known of a forgetting rate whose base is not shown to be above chance."""
    if found is None:
        return "any possible"
    return f"at least {100 * found.low:.1f} %" if isfinite(found.low) else f"at most {100 * found.high:.1f} %"


def paper(benchmark: BenchmarkChange) -> str:
    """The paper's metric of this benchmark, with the standard error that the paper gives."""
    if benchmark.paper_metric is None or benchmark.paper_value is None:
        return ""
    symbol, value = _PAPER_SYMBOLS[benchmark.paper_metric], benchmark.paper_value
    if isnan(value.value):
        return f"{symbol} undefined, base at 0"
    if benchmark.paper_metric is PaperMetric.forgetting_rate:
        return f"{symbol} {100 * value.value:.1f} %"
    error = "" if isnan(value.standard_error) else f" ± {value.standard_error:.1f}"
    return f"{symbol} {value.value:+.1f}{error}"


def learned(training: "TrainResult") -> str:
    """What training did, in one sentence."""
    return (
        f"Validation loss {training.validation_loss_before:.3f} → {training.validation_loss_after:.3f} nats a token "
        f"in {training.steps} steps; {training.n_trainable:,} parameters trained, {training.trainable_percent:.2f} %."
        + (f" {training.cut}." if training.cut.n_cut else "")
    )


def _interval(low: float, high: float, sign: str = "") -> str:
    return f" [{low:{sign}.1f}, {high:{sign}.1f}]" if isfinite(low) and isfinite(high) else ""
