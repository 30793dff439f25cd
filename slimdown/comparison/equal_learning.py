"""Compare groups of runs at equal learning: what each lost at the same level of learning.

Runs that learned more have usually lost more, so unequal learning hides which group keeps more.
Each run has a curve over its scale (`slimdown scale`). It is compared where it had learned the most
that every run reaches. Only the target's questions tell how much was learned: their noise, times
the slope of the loss there, is part of every interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from slimdown.comparison.scaling import ScaledFindings
from slimdown.config.schema import Role
from slimdown.stats.seeds import SeedMean, split_noise
from slimdown.stats.sequential import Floats
from slimdown.utils.errors import ConfigError

_NEAR = 0.5  # standard errors of what was learned


@dataclass(frozen=True)
class LearningCurve:
    """One run at growing scales, beginning with the base."""

    scales: Floats  # [scales]; the first is 0
    targets: dict[str, Floats]  # by target task, [scales, questions], weighted changes
    retained: dict[str, Floats]  # by retained benchmark, likewise
    question_hashes: dict[str, str]

    @property
    def learned(self) -> Floats:
        """The mean change of the target tasks at each scale."""
        means: Floats = np.mean([of.mean(axis=1) for of in self.targets.values()], axis=0)
        return means

    def at(self, level: float) -> tuple[float, dict[str, list[Floats]]]:
        """Return the smallest scale at which this level is learned, and the changes there.

        Args:
            level: Above 0, and at most what the run learned at any scale.

        Returns:
            The interpolated scale. Then, for each retained benchmark, the change of each question,
            followed by how far each target task's questions move the loss at this level. The slope
            is the steepest of the neighbouring steps: one step alone gives too small a slope where
            the loss grows faster than the learning.
        """
        learned, upper = self.learned, self._find_upper(level)
        share = float((level - learned[upper - 1]) / (learned[upper] - learned[upper - 1]))
        mix = np.array([1 - share, share])

        def read(changes: Floats) -> Floats:
            return np.asarray(mix @ changes[upper - 1 : upper + 1])

        near = slice(max(0, upper - 2), upper + 2)
        risen = np.diff(learned[near])
        parts = {}
        for name, changes in self.retained.items():
            slopes = np.diff(changes.mean(axis=1)[near])[risen > 0] / risen[risen > 0]
            slope = max(slopes, key=abs) / len(self.targets)
            deviations = [of - of.mean() for of in map(read, self.targets.values())]
            parts[name] = [read(changes), *(-slope * of for of in deviations)]
        return float(read(self.scales)), parts

    def find_scale_to_measure(self, level: float) -> float | None:
        """Return the scale to measure before the run can be compared at a level; None: none.

        A line between two scales is wrong where learning is fast. So one measured scale must have
        learned the level to within half a standard error of the target's questions.
        """
        upper, learned = self._find_upper(level), self.learned
        for i in {max(1, upper - 1), upper}:
            variances = [of[i].var() / len(of[i]) for of in self.targets.values()]
            error = float(np.sqrt(np.sum(variances))) / len(self.targets)
            if abs(learned[i] - level) <= _NEAR * error + 1e-12:
                return None
        scale = float(f"{self.at(level)[0]:.4g}")
        return None if scale in self.scales else scale

    def _find_upper(self, level: float) -> int:
        """Return the index of the first scale that reaches the level, which is above 0."""
        return int(np.argmax(self.learned >= level))


@dataclass(frozen=True)
class EqualLearning:
    """What one group of runs lost where it had learned as much as every other group."""

    value: str  # of the setting
    n_runs: int
    scale: float  # mean over the runs
    changes: dict[str, SeedMean]  # by retained benchmark, from the base
    # the same relative to the first group, seed by seed; empty if their seeds differ
    from_first: dict[str, SeedMean]


def build_curve(points: Sequence[ScaledFindings]) -> LearningCurve:
    """Build a run's curve.

    Args:
        points: Of scales above 0, on the same questions.

    Raises:
        ConfigError: There is no target task: nothing says how sure the learning is.
    """
    ordered = sorted(points, key=lambda point: point.scale)
    benchmarks = ordered[0].findings.benchmarks

    changes: dict[Role, dict[str, Floats]] = {role: {} for role in Role}
    for name, benchmark in benchmarks.items():
        differences = [p.findings.benchmarks[name].primary.difference for p in ordered]
        rows = [d.observations for d in differences]
        changes[benchmark.role][name] = np.array([np.zeros_like(rows[0]), *rows])
    if not changes[Role.target]:
        advice = "benchmark.NAME.role=target names one"
        raise ConfigError(f"--at-equal-learning needs a target task in each run; {advice}")
    scales = np.array([0.0, *(point.scale for point in ordered)])
    hashes = {name: benchmark.question_hash for name, benchmark in benchmarks.items()}
    return LearningCurve(scales, changes[Role.target], changes[Role.retained], hashes)


def find_common_level(curves: Sequence[LearningCurve]) -> float:
    """Return the highest level that every run has learned.

    It is 0 if one learned nothing, or if runs were asked different questions.
    """
    if any(curve.question_hashes != curves[0].question_hashes for curve in curves):
        return 0.0
    return max(0.0, min((float(curve.learned.max()) for curve in curves), default=0.0))


def compare_at_equal_learning(
    groups: Mapping[str, Mapping[str, LearningCurve]],
) -> tuple[float, list[EqualLearning]]:
    """Compare groups at the highest level that every run of every group has learned.

    Args:
        groups: By value of a setting, then by seed, the curve of a run. Each curve has a scale near
            the common level (`LearningCurve.find_scale_to_measure`).

    Returns:
        The common level of learning, and each group there; 0 and nothing if a run learned
        nothing, or if runs were asked different questions.
    """
    level = find_common_level([curve for group in groups.values() for curve in group.values()])
    if not level:
        return 0.0, []
    first: dict[str, dict[str, list[Floats]]] = {}  # by seed, then by benchmark
    rows = []
    for value, group in groups.items():
        at_level = {seed: curve.at(level) for seed, curve in group.items()}
        parts = {seed: of_run for seed, (_, of_run) in at_level.items()}
        changes, from_first = {}, {}
        for name in next(iter(parts.values())):
            changes[name] = _average([of_run[name] for of_run in parts.values()])
            if parts.keys() == first.keys():
                pairs = [zip(parts[seed][name], first[seed][name], strict=True) for seed in parts]
                from_first[name] = _average([[x - y for x, y in pair] for pair in pairs])
        scale = float(np.mean([scale for scale, _ in at_level.values()]))
        rows.append(EqualLearning(value, len(group), scale, changes, from_first))
        first = first or parts
    return level, rows


def _average(runs: Sequence[Sequence[Floats]]) -> SeedMean:
    """Average runs. One run gets no interval: none would hold, as its level is a guess, too."""
    parts = [np.array(rows) for rows in zip(*runs, strict=True)]
    return split_noise(*parts) if len(runs) > 1 else SeedMean(float(parts[0].mean()), nan, nan, nan)
