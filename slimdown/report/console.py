"""What a person reads on the console: the plan before a run, its progress, its findings, and where they are kept."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console, RenderableType
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

from slimdown.config.schema import Engine, RunConfig
from slimdown.report import words
from slimdown.report.findings import Pair, findings_table, pairs_table
from slimdown.report.sweep import State, Sweep, headline
from slimdown.report.table import show
from slimdown.stats.budget import Judgement, Outcome, overall
from slimdown.stats.findings import Findings
from slimdown.stats.runs import RecordedRun
from slimdown.utils.redaction import redact

_below_bars: list[Callable[[], str]] = []  # lines that every bar shows below it
console = Console(highlight=False, width=None if Console().is_terminal else 120)


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
        by = ", by Unsloth" if config.train.engine is Engine.unsloth else ""
        plan.add_row("[bold]method[/]", escape(_method(config) + by))
    plan.add_row("[bold]measured[/]", escape(benchmarks))
    console.print(plan)
    console.print()


def _method(config: RunConfig) -> str:
    lora, own = config.lora, config.method
    if own.is_lora:
        return f"{own.name}, r {lora.r}, alpha {lora.lora_alpha}, {', '.join(lora.target_modules)}"
    size = f", {own.size} {getattr(own, own.size.partition('.')[2])}" if own.size else ""
    return f"{own.name}{size}"


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
def progress_bar(what: str, tell: Callable[[str], None] = lambda at: None) -> Iterator["Bar"]:
    """A bar with what is done, what there is, and the time left; `tell` is told in words how far it is."""
    with _bar(transient=True) as progress:
        tell(what)
        yield Bar(progress, what, tell)


class Bar:
    """A bar that learns its length when the work has begun."""

    def __init__(self, progress: Progress, what: str, tell: Callable[[str], None]) -> None:
        self._progress, self._what, self._tell = progress, what, tell
        self._task = progress.add_task(what, total=None, note="")

    def __call__(self, done: int, total: int, note: str) -> None:
        self._progress.update(self._task, completed=done, total=total, note=note)
        self._tell(f"{self._what} {done}/{total}")


def show_job(sweep: Sweep) -> None:
    """Print which job of a sweep begins, and the time left; from now on every bar shows it, too."""
    console.print(f"\n{escape(sweep.progress)}", style="bold", soft_wrap=True)
    _below_bars[:] = [lambda: sweep.progress]


@contextmanager
def sweep_status(sweep: Sweep) -> Iterator[Callable[[], None]]:
    """While workers make the jobs: a line with how far the sweep is, and, at each call, one for each that ended."""
    with console.status("") as status:

        def show() -> None:
            for number in sweep.hear():
                job = sweep.jobs[number]
                run, log = (
                    f", run {job.run_id}" if job.run_id else "",
                    f"; see {job.log}" if job.log else "",
                )
                line = f"{sweep.which(number)}, {job.state}{run}: {job.what}{log if job.state is State.failed else ''}"
                console.print(escape(line), soft_wrap=True)
            status.update(escape(sweep.progress))

        yield show


def show_sweep(sweep: Sweep) -> None:
    """Print what became of the jobs."""
    _below_bars.clear()
    show(sweep.table(), console)


def show_skipped(run: RecordedRun, sweep: Sweep | None = None) -> None:
    """Print in a line that an equal run is finished, and what it found."""
    which = f"{sweep.at_hand}, " if sweep else ""
    advice = "" if sweep else "; rerun=true makes it again"
    line = f"{which}finished before: run {run.run_id}, {headline(run.changes)}{advice}"
    console.print(escape(line), soft_wrap=True)


def show_findings(findings: Findings) -> None:
    """Print the table of findings, what they say in words, and how to read them."""
    table = findings_table(findings)
    show(replace(table, legend=""), console)
    for sentence in words.sentences(findings):
        console.print(escape(sentence))
    console.print(escape(table.legend), style="dim")


def show_pair(first: str, second: str, findings: Findings) -> None:
    """Print what changed from one tuned model to another."""
    show(pairs_table([Pair(first, second, findings)]), console)


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
    console.print(
        "Of this checkpoint, for questions like these where no subjects are named.", style="dim"
    )


class _Progress(Progress):
    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and what stands below every bar."""
        yield from super().get_renderables()
        yield from (Text(line(), style="dim") for line in _below_bars)

    def stop(self) -> None:
        """End it; rich would leave an empty line in a log (15.0)."""
        self.live.stop()


def _bar(transient: bool) -> Progress:
    return _Progress(
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
