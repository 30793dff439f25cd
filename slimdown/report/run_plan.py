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
        part: `base` (ask the base model), `train`, `tuned` (ask the tuned model), `served` (ask it
            once more, as its own files say), or `rest` (load, validate and record).
        cost: What it costs; its seconds are an estimate, nan where no rate is known.
        text: What is done, such as `400 rows, 50 steps of 8`.
        is_recorded: Whether the record has it, so that nothing is left to do.
        n_tasks: How many tasks of the harness the benchmark has, each with its own limit. Only
            parts of the base hold the number.
        is_shared: Whether a run that is planned above does it.
    """

    part: str
    cost: Cost
    text: str
    is_recorded: bool = False
    n_tasks: int = 1
    is_shared: bool = False

    @property
    def seconds(self) -> float:
        """How long what is left to do takes; nan where no rate is known."""
        return 0.0 if self.is_recorded or self.is_shared else self.cost.seconds


@dataclass(frozen=True)
class RunPlan:
    """What a run will do, or several runs with the same amount of work.

    Attributes:
        title: The name of the run.
        parts: What is done, in order.
        facts: How benchmarks are asked, what is cut, memory, download: a sentence each.
        rates: Where the time comes from; empty where it is not known.
        n_equal: How many runs of the command do this; the answers of the base serve all of them.
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
        """How long all parts of all runs take; nan where the time of a part is not known."""
        return self._add_times(self.parts)

    @property
    def known_seconds(self) -> float:
        """How long those parts of all runs take whose time is known."""
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
    done = f" {pluralize(n_finished, 'run')} {verb} in the record already." if n_finished else ""
    if not plans:
        return f"Nothing is left to do.{done}"
    seconds = sum(plan.seconds for plan in plans)  # nan if a part's time is not known
    base_parts = [planned for plan in plans for planned in plan.parts if planned.part == "base"]
    has_all_answers = base_parts and all(planned.is_recorded for planned in base_parts)
    answers = " The base model's answers are in the record already." if has_all_answers else ""
    if isfinite(seconds):
        return f"About {format_duration(seconds)} in total.{answers}{done}"
    if known := sum(plan.known_seconds for plan in plans):
        return (
            f"At least {format_duration(known)}.{answers} Add --plan=try to measure the parts that "
            f"have a question mark.{done}"
        )
    return (
        "The time is unknown, because no run with this model, quantization and dtype is recorded "
        f"on this machine.{answers} Add --plan=try to measure one batch of each kind of work.{done}"
    )


def plan_table(plan: RunPlan) -> Table:
    """Show the parts of a plan, a row each: what is done, how many tokens it takes, and how long.

    An unknown time is a question mark.
    """
    rows = []
    for planned in plan.parts:
        cost = planned.cost
        written = f" + {_format_tokens(cost.new_tokens)}" if cost.new_tokens else ""
        tokens = f"{_format_tokens(cost.prompt_tokens)}{written}" if cost.prompt_tokens else ""
        if planned.is_recorded:
            time = "recorded"
        elif planned.is_shared:
            time = "as above"
        else:
            time = format_duration(cost.seconds) if isfinite(cost.seconds) else "?"
        cells = {
            Column("part"): Cell(planned.part),
            Column("what", is_name=True): Cell(cost.name),  # the benchmark; empty for a training
            Column("how much"): Cell(planned.text),
            Column("tokens read + written", is_number=True): Cell(tokens),
            Column("time", is_number=True): Cell(time),
        }
        rows.append(Row(cells))
    suffix = f", for each of {plan.n_equal} runs" if plan.n_equal > 1 else ""
    return Table(f"{plan.title}{suffix}", rows)


def describe_plan(plan: RunPlan) -> Iterator[str]:
    """Say what a plan's table does not: its facts, where its times come from, how to shorten it."""
    yield from plan.facts
    if plan.rates:
        yield f"Times: {plan.rates}."
    if plan.seconds > _LONG or plan.on_cpu:
        settings = sorted(_shorten(plan), key=itemgetter(1), reverse=True)  # by the seconds saved
        named = [f"{key} (−{format_duration(saved)})" for key, saved in settings[:_MOST_ADVICE]]
        if named:
            yield f"To shorten the run: {', '.join(named)}"


def _shorten(plan: RunPlan) -> Iterator[tuple[str, float]]:
    """Yield settings that ask fewer questions or take fewer steps, and the seconds they save.

    A benchmark has one setting, whichever models are asked. So the seconds of all its parts are
    added, as far as they are known.
    """
    parts_by_name: dict[str, list[PlannedPart]] = {}  # by benchmark; "" holds the training
    for planned in plan.parts:
        if planned.cost.work is not Work.other:
            parts_by_name.setdefault(planned.cost.name, []).append(planned)
    for name, parts in parts_by_name.items():
        cost = parts[0].cost  # every model is asked as many questions
        seconds = sum(planned.seconds for planned in parts if isfinite(planned.seconds))
        if seconds < 1:
            continue
        if cost.work is Work.steps:
            fewer = max(1, cost.n // 2)
            yield f"train.max_steps={fewer}", seconds * (1 - fewer / cost.n)
        elif cost.n > _ENOUGH:
            n_tasks = max(planned.n_tasks for planned in parts)
            limit = max(1, _ENOUGH // n_tasks)  # it holds for each task
            saved_share = 1 - limit * n_tasks / cost.n
            yield f"benchmark.{name}.limit={limit}", seconds * saved_share


def _format_tokens(n: float) -> str:
    """Write a number of tokens in few digits, in thousands or millions.

    >>> [_format_tokens(n) for n in (950, 41_230, 2_500_000)]
    ['950', '41k', '2.5M']
    """
    if n < 1000:
        return f"{n:.0f}"
    return f"{n / 1000:.0f}k" if n < 1_000_000 else f"{n / 1_000_000:.1f}M"
