"""A run before it starts: what it asks and trains, and how long that takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from operator import itemgetter

from slimdown.evaluation.results import Cost, Work
from slimdown.report.formatting import format_duration, pluralize
from slimdown.report.tables import Cell, Column, Row, Table

_LONG = 3600.0  # seconds, above which ways to shorten a run are named
_ENOUGH = 200  # questions that a shorter run would ask
_MOST_ADVICE = 2


@dataclass(frozen=True)
class PlannedPart:
    """One part of a run.

    Attributes:
        part: `base`, `train`, `tuned`, or `served`: the tuned model as it is served.
        cost: What it costs; its seconds are an estimate, nan where no rate is known.
        text: What is done, such as `400 rows, 50 steps of 8`.
        is_recorded: Whether the record has it, so that nothing is left to do.
        is_shared: Whether a run that is planned above does it.
        n_tasks: How many tasks of the harness the benchmark has, each with its own limit.
    """

    part: str
    cost: Cost
    text: str
    is_recorded: bool = False
    n_tasks: int = 1
    is_shared: bool = False

    @property
    def seconds(self) -> float:
        """What is left to do."""
        return 0.0 if self.is_recorded or self.is_shared else self.cost.seconds


@dataclass(frozen=True)
class RunPlan:
    """What a command will do.

    Attributes:
        title: Which run, or how many.
        parts: In order.
        facts: How benchmarks are asked, what is cut, memory, download: a sentence each.
        rates: Where the time comes from; empty where it is not known.
        n_equal: How many jobs of a sweep do the same.
        on_cpu: Whether it runs on a CPU.
    """

    title: str
    parts: Sequence[PlannedPart]
    facts: Sequence[str] = ()
    rates: str = ""
    n_equal: int = 1
    on_cpu: bool = False

    @property
    def seconds(self) -> float:
        """How long all parts take; nan: not known."""
        return self._add_times(self.parts)

    @property
    def known_seconds(self) -> float:
        """How long those parts take whose time is known."""
        return self._add_times([planned for planned in self.parts if isfinite(planned.seconds)])

    def _add_times(self, parts: Sequence[PlannedPart]) -> float:
        """Add the seconds of parts: those of the base once, all others once for each run."""
        base = sum(planned.seconds for planned in parts if planned.part == "base")
        others = sum(planned.seconds for planned in parts if planned.part != "base")
        return base + self.n_equal * others


def summarize_plans(plans: Sequence[RunPlan], n_finished: int = 0) -> str:
    """Say how long all runs of a command take together.

    Args:
        plans: The plans of the runs that are left to do.
        n_finished: How many runs of the command are finished already.
    """
    verb = "is" if n_finished == 1 else "are"
    finished = f" {pluralize(n_finished, 'run')} {verb} in the record already."
    done = finished if n_finished else ""
    if not plans:
        return f"Nothing is left to do.{done}"
    seconds = sum(plan.seconds for plan in plans)
    bases = [planned for plan in plans for planned in plan.parts if planned.part == "base"]
    has_all_answers = bases and all(planned.is_recorded for planned in bases)
    base = ". The base model's answers are in the record already" if has_all_answers else ""
    if isfinite(seconds):
        return f"About {format_duration(seconds)} in total{base}.{done}"
    if known := sum(plan.known_seconds for plan in plans):
        return (
            f"At least {format_duration(known)}{base}. Add --plan=try to measure the parts that "
            f"have a question mark.{done}"
        )
    unknown = (
        "The time is unknown, because no run with this model, quantization and dtype is recorded "
        "on this machine"
    )
    advice = "Add --plan=try to measure one batch of each kind of work."
    return f"{unknown}{base}. {advice}{done}"


def plan_table(plan: RunPlan) -> Table:
    """Show the parts of a plan: what is done, how many tokens it takes, and how long."""
    rows = []
    for planned in plan.parts:
        cost = planned.cost
        written = f" + {_format_tokens(cost.new_tokens)}" if cost.new_tokens else ""
        tokens = f"{_format_tokens(cost.prompt_tokens)}{written}" if cost.prompt_tokens else ""
        if planned.is_recorded:
            time = "recorded"
        else:
            time = "as above" if planned.is_shared else _format_seconds(cost.seconds)
        cells = {
            Column("part"): Cell(planned.part),
            Column("what", is_name=True): Cell(cost.name),
            Column("how much"): Cell(planned.text),
            Column("tokens read + written", is_number=True): Cell(tokens),
            Column("time", is_number=True): Cell(time),
        }
        rows.append(Row(cells))
    title = f"{plan.title}{f', for each of {plan.n_equal} runs' if plan.n_equal > 1 else ''}"
    return Table(title, rows)


def describe_plan(plan: RunPlan) -> Iterator[str]:
    """Say what a plan's table does not."""
    yield from plan.facts
    if plan.rates:
        yield f"Times: {plan.rates}."
    if plan.seconds > _LONG or plan.on_cpu:
        advice = sorted(_shorten(plan), key=itemgetter(1), reverse=True)
        named = [f"{text} (−{format_duration(saved)})" for text, saved in advice[:_MOST_ADVICE]]
        if named:
            yield f"To shorten the run: {', '.join(named)}"


def _shorten(plan: RunPlan) -> Iterator[tuple[str, float]]:
    """Yield settings that ask fewer questions or take fewer steps, and the seconds they save.

    Parts of equal work, such as a benchmark that both models are asked, have the same setting.
    """
    equal_parts: dict[tuple[str, Work], list[PlannedPart]] = {}
    for planned in plan.parts:
        equal_parts.setdefault((planned.cost.name, planned.cost.work), []).append(planned)
    for (name, _), parts in equal_parts.items():
        cost = parts[0].cost
        seconds = sum(planned.seconds for planned in parts)
        if not isfinite(seconds) or seconds < 1 or cost.work is Work.other:
            continue
        if cost.work is Work.steps:
            fewer = max(1, cost.n // 2)
            yield f"train.max_steps={fewer}", seconds * (1 - fewer / cost.n)
        elif cost.n > _ENOUGH:
            n_tasks = parts[0].n_tasks
            limit = max(1, _ENOUGH // n_tasks)  # it holds for each task
            saved_share = 1 - limit * n_tasks / cost.n
            yield f"benchmark.{name}.limit={limit}", seconds * saved_share


def _format_seconds(seconds: float) -> str:
    return format_duration(seconds) if isfinite(seconds) else "?"


def _format_tokens(n: float) -> str:
    """Write a number of tokens in three digits.

    >>> [_format_tokens(n) for n in (950, 41_230, 2_500_000)]
    ['950', '41k', '2.5M']
    """
    if n < 1000:
        return f"{n:.0f}"
    return f"{n / 1000:.0f}k" if n < 1_000_000 else f"{n / 1_000_000:.1f}M"
