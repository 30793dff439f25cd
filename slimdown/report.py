"""What a person reads: the plan before a run, its progress, and the table of results on the console and in Markdown."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isnan

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

from slimdown.config import PaperMetric, Role, RunConfig
from slimdown.evaluate import Score
from slimdown.forgetting import BenchmarkChange, Change, ForgettingReport
from slimdown.train import TrainResult

console = Console(highlight=False, width=None if Console().is_terminal else 120)

_PAPER_SYMBOLS = {
    PaperMetric.ability_augmentation: "ΔA",
    PaperMetric.forgetting_rate: "FR",
    PaperMetric.knowledge_loss: "ΔK",
}
_LEGEND = (
    "ΔA ability augmentation, FR forgetting rate, ΔK knowledge loss (Mai 2025); ± one standard error; * target task."
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
    plan.add_row("[bold]model[/]", escape(f"{config.model.id}, {config.quantization.name}"))
    plan.add_row("[bold]rows[/]", f"{n_rows} of {' + '.join(config.dataset)}")
    plan.add_row(
        "[bold]adapter[/]",
        f"r {config.lora.r}, alpha {config.lora.lora_alpha}, {', '.join(config.lora.target_modules)}",
    )
    plan.add_row("[bold]measured[/]", benchmarks)
    console.print(plan)
    console.print()


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


def show_results(report: ForgettingReport, training: TrainResult) -> None:
    """Print the table of results."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("benchmark")
    table.add_column("metric")
    for heading in ("n", "base", "tuned", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("paper", no_wrap=True)
    for name, benchmark in report.benchmarks.items():
        for metric, change in _ordered(benchmark):
            primary = metric == benchmark.metric
            style = "" if primary else "dim"
            table.add_row(
                (f"{name} *" if benchmark.role is Role.target else name) if primary else "",
                _short(metric, benchmark),
                str(benchmark.n) if primary else "",
                _score(change.base),
                _score(change.tuned),
                _points(change),
                _paper(benchmark) if primary else "",
                style=style,
            )
    console.print(table)
    console.print(_learned(training))
    console.print(_LEGEND, style="dim")


def show_where(run_id: str, uri: str) -> None:
    """Print where the run is kept and how to look at it."""
    console.print(f"\nrun {run_id}")
    if uri.startswith("http"):
        console.print(f"see {uri}")
    else:
        console.print(f"see mlflow ui --backend-store-uri {uri}", soft_wrap=True)


def markdown_report(name: str, report: ForgettingReport, training: TrainResult, costs: dict[str, float]) -> str:
    """The results as Markdown: the table, what was learned, what it cost, how to read it."""
    lines = [
        f"### {name}",
        "",
        "| benchmark | metric | n | base | tuned | change | paper |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for benchmark_name, benchmark in report.benchmarks.items():
        for metric, change in _ordered(benchmark):
            primary = metric == benchmark.metric
            shown = f"**{benchmark_name}**" if primary else benchmark_name
            if primary and benchmark.role is Role.target:
                shown += " *"
            lines.append(
                f"| {shown} | {metric} | {benchmark.n} | {_score(change.base)} | {_score(change.tuned)} "
                f"| {_points(change)} | {_paper(benchmark) if primary else ''} |"
            )
    spent = ", ".join(
        f"{key.removesuffix('_seconds')} {value:.0f} s" for key, value in costs.items() if "seconds" in key
    )
    peak = costs.get("peak_memory_bytes", 0) / 2**30
    lines += [
        "",
        _learned(training),
        "",
        f"Time: {spent}, training {training.runtime_seconds:.0f} s ({training.tokens_per_second:.0f} tokens/s). "
        f"Peak memory {peak:.2f} GiB.",
        "",
        f"{_LEGEND} That of a change takes base and tuned as independent, as the harness does; both answered the same "
        "questions, so it is wider than the truth. Every answer is in `samples/`.",
        "",
    ]
    return "\n".join(lines)


def _bar(transient: bool) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=transient,
    )


def _ordered(benchmark: BenchmarkChange) -> list[tuple[str, Change]]:
    """The primary metric first."""
    return sorted(benchmark.changes.items(), key=lambda item: item[0] != benchmark.metric)


def _short(metric: str, benchmark: BenchmarkChange) -> str:
    """The filter's name where several filters read one metric, else the metric's."""
    name, _, filter_name = metric.partition(".")
    alike = [m for m in benchmark.changes if m.split(".")[0] == name]
    return filter_name if len(alike) > 1 and filter_name else name


def _score(score: Score) -> str:
    error = "" if isnan(score.standard_error) else f" ± {100 * score.standard_error:.1f}"
    return f"{100 * score.value:.1f}{error}"


def _points(change: Change) -> str:
    error = "" if isnan(change.standard_error) else f" ± {100 * change.standard_error:.1f}"
    return f"{100 * change.value:+.1f}{error}"


def _paper(benchmark: BenchmarkChange) -> str:
    if benchmark.paper_metric is None or benchmark.paper_value is None:
        return ""
    symbol, value = _PAPER_SYMBOLS[benchmark.paper_metric], benchmark.paper_value
    if isnan(value.value):
        return f"{symbol} undefined, base at 0"
    if benchmark.paper_metric is PaperMetric.forgetting_rate:
        return f"{symbol} {100 * value.value:.1f} %"
    error = "" if isnan(value.standard_error) else f" ± {value.standard_error:.1f}"
    return f"{symbol} {value.value:+.1f}{error}"


def _learned(training: TrainResult) -> str:
    return (
        f"Validation loss {training.validation_loss_before:.3f} → {training.validation_loss_after:.3f} nats a token "
        f"in {training.steps} steps; {training.n_trainable:,} parameters trained, {training.trainable_percent:.2f} %."
    )
