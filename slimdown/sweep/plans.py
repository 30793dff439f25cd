"""The plan of a command with many runs: jobs that do the same are planned once."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from slimdown.config.naming import run_name
from slimdown.config.schema import RunConfig
from slimdown.report.run_plan import RunPlan
from slimdown.sweep.command_line import ComposedRun
from slimdown.tracking import store
from slimdown.tracking.resume import find_finished, run_key
from slimdown.utils.errors import TrackingError


@dataclass(frozen=True)
class PlannedCommand:
    """What a command will do."""

    plans: tuple[RunPlan, ...]
    n_finished: int  # runs that are in the record already


def plan_runs(runs: Sequence[ComposedRun], n_trials: int, tries: bool) -> PlannedCommand:
    """Plan all runs of a command; jobs that do the same are planned once.

    Args:
        runs: The runs in order; for a search, one run that stands for all its trials.
        n_trials: The number of trials of a search; without a search, 1.
        tries: Whether to try one batch of each kind of work, to measure its time.
    """
    groups: dict[str, list[ComposedRun]] = {}  # jobs that do the same work are together
    n_finished = 0
    for run in runs:
        if n_trials == 1 and _is_finished(run.config):
            n_finished += 1
            continue
        groups.setdefault(repr(_find_work(run.config)), []).append(run)
    from slimdown.runs.planning import plan_run  # imports torch

    plans: list[RunPlan] = []
    bases: set[str] = set()  # the base models of earlier plans, with what they are asked
    for group in groups.values():
        config = group[0].config
        title = run_name(group[0].model, group[0].overrides)
        n_equal = n_trials if n_trials > 1 else len(group)
        plan = plan_run(config, title, tries, n_equal)
        base = repr((config.model, config.quantization, config.benchmark, config.evaluation))
        if base in bases:  # its measurement is reused
            parts = [replace(part, is_shared=part.part == "base") for part in plan.parts]
            plan = replace(plan, parts=parts)
        bases.add(base)
        plans.append(plan)
    return PlannedCommand(tuple(plans), n_finished)


def _is_finished(config: RunConfig) -> bool:
    """Whether the record has a finished run of these settings; it makes no record."""
    with suppress(TrackingError):
        store.open_store(config.tracking, must_exist=True)
        return find_finished(config, run_key(config)) is not None
    return False


def _find_work(config: RunConfig) -> RunConfig:
    """Return settings that are equal where the amount of work is."""
    train = replace(config.train, learning_rate=1.0)
    lora = replace(config.lora, r=1, lora_alpha=1, lora_dropout=0.0)
    return replace(config, seed=0, train=train, lora=lora)
