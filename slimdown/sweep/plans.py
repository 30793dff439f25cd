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


def plan_runs(runs: Sequence[ComposedRun], n_trials: int, *, tries: bool) -> PlannedCommand:
    """Say what the runs of a command will do and how long that takes, without making them.

    Args:
        runs: The runs in order; for a search, one run that stands for all its trials.
        n_trials: The number of trials of a search; without a search, 1.
        tries: Whether to try one batch of each kind of work, to measure its time.

    Returns:
        One plan for all runs with the same amount of work, and the number of runs that the record
        has already.

    Raises:
        SlimdownError: A run cannot be made, for a reason that the user can mend.
    """
    groups: dict[str, list[ComposedRun]] = {}  # runs with the same amount of work are together
    n_finished = 0
    for run in runs:
        # The run that stands for all trials has other values than they, so it is not looked up.
        if n_trials == 1 and _is_finished(run.config):
            n_finished += 1
            continue
        groups.setdefault(repr(_find_work(run.config)), []).append(run)
    from slimdown.runs.planning import plan_run  # imports torch

    plans: list[RunPlan] = []
    measured_bases: set[str] = set()  # in earlier plans: the model, and what it is asked
    for group in groups.values():
        config = group[0].config
        title = run_name(group[0].model, group[0].overrides)
        plan = plan_run(config, title, tries=tries, n_equal=n_trials * len(group))
        base = repr((config.model, config.quantization, config.benchmark, config.evaluation))
        if base in measured_bases:  # the answers of an earlier run are reused: they take no time
            parts = [replace(part, is_shared=part.part == "base") for part in plan.parts]
            plan = replace(plan, parts=parts)
        measured_bases.add(base)
        plans.append(plan)
    return PlannedCommand(tuple(plans), n_finished)


def _is_finished(config: RunConfig) -> bool:
    """Whether the record has a finished run of these settings; it makes no record."""
    with suppress(TrackingError):
        store.open_store(config.tracking, must_exist=True)
        return find_finished(config, run_key(config)) is not None
    return False


def _find_work(config: RunConfig) -> RunConfig:
    """Return the settings with those replaced that change no amount of work, such as the seed."""
    train = replace(config.train, learning_rate=1.0)
    lora = replace(config.lora, r=1, lora_alpha=1, lora_dropout=0.0)
    return replace(config, seed=0, train=train, lora=lora)
