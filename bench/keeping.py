"""Show what each mitigation taught and lost beside the plain fine-tuning, by its scale and rate.

    python -m bench.keeping --experiment keeping [--tracking-uri URI] [--figure FILE.png]

Reads runs that docs/studies/keeping.md names, of equal questions and seeds. Who learns more usually
loses more, so only rows that learned about as much say which one keeps. The last lines say how well
the divergence from the base foretells the loss.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from mlflow import MlflowClient

from slimdown.comparison.run_comparison import average_seeds
from slimdown.comparison.run_records import RunRecord
from slimdown.comparison.trials import measure_learning
from slimdown.config.benchmark_config import Role
from slimdown.config.tracking_config import TrackingConfig, default_store
from slimdown.judging.findings import Findings
from slimdown.report.formatting import format_points
from slimdown.report.tables import Cell, make_table, write_table
from slimdown.tracking.run_reader import find_runs
from slimdown.tracking.store import open_store

# Each has its colour and mark in every picture.
_KINDS = ("rate", "replay", "self_replay and distance", "kl", "self_replay")
_FEWEST = 10  # runs that a correlation is drawn from


def describe(run: RunRecord) -> str:
    """Name what a run did beside the plain fine-tuning."""
    parts = [run.params.get(f"keep.{key}", "") for key in ("name", "share", "weight")]
    shown = [part for part in parts if part not in ("", "none")]
    return " ".join(shown) or f"rate {float(run.params['train.learning_rate']):g}"


def measure(findings: Findings) -> tuple[float, float]:
    """Return what was learned and lost, means of the benchmarks in points."""
    lost = -findings.mean_change(Role.retained).value
    return 100 * measure_learning(findings), 100 * lost


def read_curve(client: MlflowClient, run: RunRecord) -> dict[float, tuple[float, float]]:
    """Return what a run had learned and lost at each scale that `slimdown scale` measured."""
    curve = {}
    for file in client.list_artifacts(run.run_id, "scales"):
        findings = json.loads(Path(client.download_artifacts(run.run_id, file.path)).read_text())
        curve[float(Path(file.path).stem)] = measure(Findings.from_dict(findings))
    return curve


def foretell(runs: list[RunRecord], seed: int = 0) -> str:
    """Say how much of the mean loss the divergence from the base explains, over the runs."""
    points = np.array(
        [
            (run.findings.training.base_divergence, -run.findings.mean_change(Role.retained).value)
            for run in runs
            if run.findings and run.findings.training
        ]
    )
    if len(points) < _FEWEST:
        return f"{len(points)} runs are too few to foretell by"
    generator = np.random.default_rng(seed)
    drawn = [points[generator.integers(len(points), size=len(points))] for _ in range(2000)]
    explained = [float(np.corrcoef(sample.T)[0, 1] ** 2) for sample in (points, *drawn)]
    low, high = np.nanquantile(explained[1:], [0.025, 0.975])
    interval = f"{explained[0]:.2f} [{low:.2f}, {high:.2f}]"
    return f"R2 of the loss on the divergence, {len(points)} runs: {interval}"


def draw(
    groups: dict[str, dict[str, RunRecord]],
    curves: list[dict[float, tuple[float, float]]],
    file: str,
) -> None:
    """Draw what each group learned against what it lost, beside the plain runs' mean curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    common = sorted(set.intersection(*map(set, curves))) if curves else []
    base = np.zeros(2)  # at scale 0 nothing is learned or lost
    line = [base, *(np.mean([curve[scale] for curve in curves], axis=0) for scale in common)]
    axes.plot(*np.transpose(line), color="#8c8c8c", label="plain, by scale")
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, runs in groups.items():
        kind = name.split(" ")[0]
        if kind == "self_replay" and name.count(" ") == 2:
            kind += " and distance"
        by_seed = [measure(run.findings) for run in runs.values() if run.findings]
        learned, lost = np.mean(by_seed, axis=0)
        points[kind].append((float(learned), float(lost)))
    for kind, own in sorted(points.items()):
        i = _KINDS.index(kind)
        label = "plain, by learning rate" if kind == "rate" else kind
        axes.plot(*zip(*sorted(own), strict=True), f"{'os^DX'[i]}--C{i}", label=label)
    axes.set_xlabel("learned: mean rise of the target, points")
    axes.set_ylabel("lost: mean fall of the retained benchmarks, points")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--tracking-uri", default=default_store())
    parser.add_argument("--figure")
    options = parser.parse_args()
    tracking = TrackingConfig(uri=options.tracking_uri, experiment=options.experiment)
    runs = [r for r in find_runs(tracking, [options.experiment], with_findings=True) if r.findings]
    groups: dict[str, dict[str, RunRecord]] = defaultdict(dict)
    for run in runs:
        groups[describe(run)][run.params["seed"]] = run
    records = []
    for name, by_seed in sorted(groups.items()):
        findings = [run.findings for run in by_seed.values()]
        learned = list(map(measure_learning, findings))
        record = {"means": name, "seeds": len(by_seed), "learned": float(np.mean(learned))}
        for benchmark, change in findings[0].benchmarks.items():
            if change.role is Role.retained:
                mean = average_seeds([found.benchmarks[benchmark] for found in findings])
                record[benchmark] = Cell(" ".join(format_points(mean)))
        records.append(record)
    print(write_table(make_table("", records, {"learned": lambda x: f"{x:.3f}"}), "markdown"))
    alike = [run for run in runs if run.params["keep.name"] in ("none", "kl")]
    print("all:", foretell(runs))
    print("plain and keep=kl:", foretell(alike))
    if options.figure:
        client = open_store(tracking, must_exist=True)
        curves = [curve for run in runs if (curve := read_curve(client, run))]
        draw(dict(groups), curves, options.figure)


if __name__ == "__main__":
    main()
