"""Compare every mitigation with the plain fine-tuning's curves over scale and rate.

    python -m bench.keeping --experiment keeping [--tracking-uri URI] [--figure FILE.png]

Reads runs that docs/studies/keeping.md names, of equal questions and seeds: what each mitigation
taught and lost. Who learns more usually loses more, so only rows that learned about as much say
which one keeps. The last lines say how well the divergence from the base foretells the loss.
"""

import argparse
from collections import defaultdict

import numpy as np

from slimdown.comparison.equal_learning import LearningCurve, build_curve
from slimdown.comparison.run_comparison import average_seeds
from slimdown.comparison.run_records import RunRecord
from slimdown.comparison.trials import measure_learning
from slimdown.config.schema import Role, TrackingConfig, default_store
from slimdown.report.formatting import format_points
from slimdown.report.tables import Cell, make_table, write_table
from slimdown.tracking.run_reader import find_runs, read_scales
from slimdown.utils.errors import TrackingError

# Each has its colour and mark in every picture.
_KINDS = (
    "rate",
    "replay",
    "self_replay and distance",
    "kl",
    "mask",
    "by chance",
    "self_replay",
)
_FEWEST = 10  # runs that a correlation is drawn from


def describe(run: RunRecord) -> str:
    """Name what a run did beside the plain fine-tuning."""
    keys = ("keep.name", "keep.share", "keep.max_perplexity", "keep.random", "keep.weight")
    parts = [run.params.get(key, "") for key in keys]
    shown = [part for part in parts if part not in ("", "none", "False")]
    rate = f"rate {float(run.params['train.learning_rate']):g}"
    return " ".join(shown).replace("True", "by chance") or rate


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
    groups: dict[str, dict[str, RunRecord]], curves: dict[str, LearningCurve], file: str
) -> None:
    """Draw what each group learned against what it lost, beside the plain runs' curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    common = set.intersection(*(set(curve.scales.tolist()) for curve in curves.values()))
    learned, lost = [], []
    for scale in sorted(common):
        at_scale = [(curve, curve.scales.tolist().index(scale)) for curve in curves.values()]
        learned.append(100 * np.mean([curve.learned[i] for curve, i in at_scale]))
        changes = [c[i].mean() for curve, i in at_scale for c in curve.retained.values()]
        lost.append(-100 * np.mean(changes))
    axes.plot(learned, lost, color="#8c8c8c", label="plain, by scale")
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, runs in groups.items():
        kind = "by chance" if "by chance" in name else name.split(" ")[0]
        kind += " and distance" * (kind == "self_replay" and name.count(" ") == 2)
        findings = [run.findings for run in runs.values() if run.findings]
        losses = [one.mean_change(Role.retained).value for one in findings]
        learned = np.mean([measure_learning(one) for one in findings])
        points[kind].append((100 * float(learned), -100 * float(np.mean(losses))))
    labels = {"rate": "plain, by learning rate", "by chance": "mask drawn by chance"}
    for kind, own in sorted(points.items()):
        i = _KINDS.index(kind)
        look = f"{'os^DvP*X'[i]}--C{i}"
        axes.plot(*zip(*sorted(own), strict=True), look, label=labels.get(kind, kind))
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
    curves = {}
    for run in runs:
        groups[describe(run)][run.params["seed"]] = run
        try:
            points = read_scales(tracking, run)
        except TrackingError:
            continue
        curves[run.params["seed"]] = build_curve(points)
    records = []
    for name, of_seeds in sorted(groups.items()):
        findings = [run.findings for run in of_seeds.values()]
        learned = [measure_learning(one) for one in findings]
        record = {"means": name, "seeds": len(of_seeds), "learned": float(np.mean(learned))}
        for benchmark, change in findings[0].benchmarks.items():
            if change.role is Role.retained:
                mean = average_seeds([one.benchmarks[benchmark] for one in findings])
                record[benchmark] = Cell(" ".join(format_points(mean)))
        records.append(record)
    print(write_table(make_table("", records, {"learned": lambda x: f"{x:.3f}"}), "markdown"))
    alike = [run for run in runs if run.params["keep.name"] in ("none", "kl")]
    print("all:", foretell(runs))
    print("plain and keep=kl:", foretell(alike))
    if options.figure:
        draw(dict(groups), curves, options.figure)


if __name__ == "__main__":
    main()
