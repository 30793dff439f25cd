"""What runs cost on this machine, by which a plan tells the time: `costs.json` of each run.

A cost belongs to one part of a run: a benchmark of the base or of the tuned model, the training, or
the rest. See `Cost` and `Work`.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path

from slimdown.config.schema import RunConfig
from slimdown.evaluation.results import Cost, Work
from slimdown.tracking import provenance, store
from slimdown.tracking.metrics_and_tags import Tag
from slimdown.tracking.run_reader import find_runs
from slimdown.utils.errors import TrackingError

COSTS_FILE = "costs.json"
_MOST_RUNS = 10  # the newest runs on this machine that are read


@dataclass(frozen=True)
class Rates:
    """What the newest comparable run cost; empty where there is none."""

    costs: tuple[Cost, ...] = ()
    source: str = ""  # the run that cost this, or what tried it

    def find(self, cost: Cost) -> Cost | None:
        """Return what equal work did cost: the same benchmark's, else the largest of its kind."""
        known = [past for past in self.costs if past.work is cost.work and past.seconds > 0]
        same = [past for past in known if past.name == cost.name]
        return max(same or known, key=lambda past: past.seconds, default=None)


def write_costs(config: RunConfig, device: str, costs: Iterable[Cost]) -> str:
    """Write what the parts of a run cost, with the machine and the model, as JSON."""
    facts = {**_describe_speed(config, device), "keep": config.keep.name}
    return json.dumps({**facts, "costs": [asdict(cost) for cost in costs]})


def find_rates(config: RunConfig, device: str) -> Rates:
    """Find what each part of a run of this model cost here, in the newest run that has the part.

    Args:
        config: The settings of the run that is planned.
        device: The device that it computes on, such as `cuda`; another device has other speeds.

    Returns:
        The costs, in seconds and tokens; empty if no comparable run is finished on this machine.
    """
    made_here = f"tags.`{Tag.host}` = '{provenance.name_machine()}'"
    finished_here = f"{made_here} and attributes.status = 'FINISHED'"
    costs: dict[tuple[str, Work], Cost] = {}
    source = ""
    with suppress(TrackingError):  # if there is no record yet, nothing is known
        client = store.open_store(config.tracking, must_exist=True)
        for run in find_runs(config.tracking, filter_string=finished_here, n_newest=_MOST_RUNS):
            # A run of an earlier version has no such file, and the store may not answer.
            with suppress(Exception):
                file = Path(client.download_artifacts(run.run_id, COSTS_FILE))
                costs_in_run = _read_costs(file, config, device)
                if costs_in_run:
                    source = source or f"run {run.run_id[:8]}"  # the newest comparable run
                    # On the right, the costs of newer runs win over those of this run.
                    costs = costs_in_run | costs
    return Rates(tuple(costs.values()), source)


def _read_costs(file: Path, config: RunConfig, device: str) -> dict[tuple[str, Work], Cost]:
    """Read a run's costs, by the name of a benchmark and the kind of work.

    The base and the tuned model have the same names; the slower one's costs are returned. Nothing
    is returned if the run's speed cannot be compared, see `_describe_speed`. If the run had another
    mitigation (`keep`), its work of the kind `other` is left out: that includes what a mitigation
    prepares, such as rows that the base writes.

    Args:
        file: The run's `costs.json`, which `write_costs` wrote.
        config: The settings of the run that is planned.
        device: The device that it computes on.
    """
    recorded = json.loads(file.read_bytes())
    records = recorded.pop("costs")
    mitigation = recorded.pop("keep", "")
    # Without these two, `recorded` holds only what `_describe_speed` returned for that run.
    if recorded != _describe_speed(config, device):
        return {}
    costs = [Cost(**(record | {"work": Work(record["work"])})) for record in records]
    if mitigation != config.keep.name:
        costs = [cost for cost in costs if cost.work is not Work.other]
    # Of equal keys a dictionary keeps the last value, which is the slowest after sorting.
    costs.sort(key=lambda cost: cost.seconds)
    return {(cost.name, cost.work): cost for cost in costs}


def _describe_speed(config: RunConfig, device: str) -> dict[str, str]:
    """Name what decides the speed beside the machine."""
    return {
        "model": config.model.id,
        "quantization": config.quantization.name,
        "backend": config.evaluation.backend.value,
        "device": device,
    }


def estimate_seconds(cost: Cost, known: Cost | None) -> float:
    """Estimate the seconds of planned work from those of known work; nan if none is known.

    If both are of the same benchmark, the seconds grow with the number of questions, because the
    answers are as long as before. Otherwise they grow with the number of tokens: of answers, those
    that are written, and of all other work, those that are read.

    Args:
        cost: The planned work.
        known: Work of the same kind that was measured, from `Rates.find`.
    """
    if known is None:
        return nan
    # All trainings have the same, empty name, but their rows differ in length, so tokens count. The
    # rest of a run (`Work.other`) has that name, too. Its `n` is always 1: it takes as long again.
    has_same_questions = known.name == cost.name and cost.work is not Work.steps
    if has_same_questions:
        return known.seconds * cost.n / known.n
    if cost.work is Work.answers:
        # Answers are assumed to be as long as the known ones, or as long as the benchmark allows.
        n_written = min(known.new_tokens / known.n * cost.n, cost.new_tokens)
        return known.seconds * n_written / max(1, known.new_tokens)
    return known.seconds * cost.prompt_tokens / max(1, known.prompt_tokens)
