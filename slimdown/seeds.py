"""Several seeds of one configuration -> how sure their mean change is, and where the doubt comes from.

Another set of questions would have given other scores (question noise), another seed another model (training noise).
More questions cure only the one, more seeds only the other; which is larger says what to buy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from slimdown.config import TrackingConfig, UserError
from slimdown.paired import Noise, seed_noise
from slimdown.samples import EvalReport
from slimdown.store import RecordedRun, read_evaluation


@dataclass(frozen=True)
class SeedsChange:
    """What all seeds of a configuration say of one benchmark's primary metric."""

    benchmark: str
    metric: str
    n: int  # questions
    noise: Noise


def seeds_changes(pairs: Sequence[tuple[EvalReport, EvalReport]]) -> list[SeedsChange]:
    """The mean change on each benchmark with the noise of questions and of training apart.

    Args:
        pairs: base and tuned evaluation, one pair a seed.

    Raises:
        ValueError: seeds that were not asked the same questions; names the benchmark.
    """
    first = pairs[0][0].benchmarks
    found = []
    for name, asked in first.items():
        metric = asked.benchmark.metric
        questions = [sample.prompt_hash for sample in asked.samples]
        rows = []
        for base, tuned in pairs:
            for report in (base, tuned):
                there = report.benchmarks.get(name)
                if there is None or [sample.prompt_hash for sample in there.samples] != questions:
                    raise ValueError(f"{name}: the seeds were not asked the same questions")
            before, after = (report.benchmarks[name].scores_of(metric) for report in (base, tuned))
            rows.append([y - x for x, y in zip(before, after, strict=True)])
        noise = seed_noise(rows, asked.clusters)
        within = replace(noise.mean, low=max(-1.0, noise.mean.low), high=min(1.0, noise.mean.high))  # scores are shares
        found.append(SeedsChange(name, metric, len(questions), replace(noise, mean=within)))
    return found


def read_seeds(store: TrackingConfig, runs: Sequence[RecordedRun]) -> list[SeedsChange]:
    """`seeds_changes` of recorded runs that differ only in their seed.

    Raises:
        UserError: a run whose samples are gone, or seeds that were not asked the same questions.
    """
    try:
        return seeds_changes([(read_evaluation(store, r, "base"), read_evaluation(store, r, "tuned")) for r in runs])
    except ValueError as error:
        raise UserError(f"{error}; compare runs of one configuration that differ only in seed") from None
