"""What runs cost on this machine, by which a plan tells the time: `costs.json` of each run."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path
from typing import Any

from slimdown.config.schema import RunConfig
from slimdown.evaluation.results import Cost, Work
from slimdown.tracking import provenance, store
from slimdown.tracking.metrics_and_tags import Tag
from slimdown.tracking.run_reader import find_runs
from slimdown.utils.errors import TrackingError

COSTS_FILE = "costs.json"
_MOST_RUNS = 10  # the newest on this machine, which are looked at


@dataclass(frozen=True)
class Rates:
    """What the newest comparable run cost; empty where there is none."""

    costs: tuple[Cost, ...] = ()
    source: str = ""  # which run, or `try`

    def find(self, cost: Cost) -> Cost | None:
        """Return what equal work did cost: the same benchmark's, else the largest of its kind."""
        known = [one for one in self.costs if one.work is cost.work and one.seconds > 0]
        same = [one for one in known if one.name == cost.name]
        return max(same or known, key=lambda one: one.seconds, default=None)


def write_costs(config: RunConfig, device: str, costs: Iterable[Cost]) -> str:
    """Write what the parts of a run cost, with the machine and the model, as JSON."""
    speed = _describe_speed(config, device)
    recorded = [asdict(cost) for cost in costs]
    return json.dumps({**speed, "keep": config.keep.name, "costs": recorded})


def find_rates(config: RunConfig, device: str) -> Rates:
    """Find what the newest run of this model on this machine cost; empty where there is none."""
    where = f"tags.`{Tag.host}` = '{provenance.name_machine()}' and attributes.status = 'FINISHED'"
    costs: dict[tuple[str, Work], Cost] = {}
    sources = list[str]()
    with suppress(TrackingError):  # there is no record yet
        client = store.open_store(config.tracking, must_exist=True)
        for run in find_runs(config.tracking, filter_string=where, n_newest=_MOST_RUNS):
            with suppress(Exception):  # an older run has no such file; a store may be silent
                folder = client.download_artifacts(run.run_id, COSTS_FILE)
                found = json.loads(Path(folder).read_bytes())
                read = sorted(map(_read_cost, found.pop("costs")), key=lambda cost: cost.seconds)
                if found.pop("keep", "") != config.keep.name:
                    # What a mitigation prepares, such as rows that the base writes, is in the rest.
                    read = [cost for cost in read if cost.work is not Work.other]
                if found != _describe_speed(config, device):
                    continue
                slowest: dict[tuple[str, Work], Cost] = {}  # of base and tuned model
                for cost in read:
                    slowest[cost.name, cost.work] = cost
                sources.append(run.run_id[:8])
                costs = slowest | costs  # the newest counts
    return Rates(tuple(costs.values()), f"run {sources[0]}" if sources else "")


def _describe_speed(config: RunConfig, device: str) -> dict[str, str]:
    """Name what decides the speed beside the machine."""
    about = {"model": config.model.id, "quantization": config.quantization.name}
    return about | {"backend": config.evaluation.backend.value, "device": device}


def _read_cost(record: dict[str, Any]) -> Cost:
    return Cost(**(record | {"work": Work(record["work"])}))


def estimate_seconds(cost: Cost, known: Cost | None) -> float:
    """Estimate how long work takes by what other work of its kind took; nan for none.

    The same benchmark is scaled by its questions, because its answers end as they did. Another one
    is scaled by tokens, and its answers are taken to be as long as it may write, at most.
    """
    if known is None:
        return nan
    if known.name == cost.name and known.work is not Work.steps:  # `other` is one piece, too
        return known.seconds * cost.n / known.n
    if cost.work is Work.answers:
        written = known.new_tokens / known.n * cost.n
        return known.seconds * min(written, cost.new_tokens) / max(1, known.new_tokens)
    return known.seconds * cost.prompt_tokens / max(1, known.prompt_tokens)
