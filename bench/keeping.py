"""Every means against forgetting beside the plain fine-tuning's curves over scale and rate.

    python -m bench.keeping --experiment keeping [--tracking-uri URI] [--figure FILE.png]

Reads runs that docs/studies/keeping.md names, of equal questions and seeds. A means is better only
where it loses less than the plain run of the same seed does at the scale where that has learned as
much; one that learned more than the plain run ever does is compared with its most. The last line
says how well the divergence from the base foretells the loss.
"""

import argparse
from collections import defaultdict

import numpy as np

from slimdown.config.schema import Role, TrackingConfig, default_store
from slimdown.report.formatting import format_points
from slimdown.report.tables import Cell, make_table, write_table
from slimdown.stats.equal_learning import LearningCurve, build_curve
from slimdown.stats.estimates import Estimate, to_weighted
from slimdown.stats.run_records import RunRecord
from slimdown.stats.seeds import average_seeds, split_noise
from slimdown.stats.trials import measure_learning
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


def compare_with_curve(
    runs: dict[str, RunRecord], curves: dict[str, LearningCurve], name: str
) -> list[Estimate]:
    """Return what the runs lost less than the plain run of their seed at equal learning.

    Over all seeds, or of each where two are too few to tell how others would differ; then the
    interval holds for other questions, and takes for known how much was learned.
    """
    differences = []
    for seed, run in sorted(runs.items()):
        curve, learned = curves.get(seed), measure_learning(run.findings)
        if curve is None:
            continue
        learned = min(max(learned, 0.0), float(curve.learned[-1]))
        change = run.changes[name].primary.difference
        differences.append(
            to_weighted(change.changes, change.sampling) - curve.at(learned)[1][name]
        )
    if len(differences) > 2:
        return [split_noise(np.array(differences))]
    estimates = []
    for one in differences:
        mean, error = float(one.mean()), float(one.std(ddof=1)) / len(one) ** 0.5
        estimates.append(Estimate(mean, error, mean - 1.96 * error, mean + 1.96 * error))
    return estimates


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
    grid = np.linspace(0, min(curve.learned[-1] for curve in curves.values()), 40)
    lost = []
    for learned in grid:
        changes = [curve.at(learned)[1] for curve in curves.values()]
        lost.append(-np.mean([np.mean([c.mean() for c in one.values()]) for one in changes]))
    axes.plot(100 * grid, 100 * np.array(lost), color="#8c8c8c", label="plain, by scale")
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
                beside = compare_with_curve(of_seeds, curves, benchmark)
                text = "; ".join(" ".join(format_points(one)) for one in beside)
                record[f"{benchmark} − plain's scale"] = Cell(text)
        records.append(record)
    print(write_table(make_table("", records, {"learned": lambda x: f"{x:.3f}"}), "markdown"))
    alike = [run for run in runs if run.params["keep.name"] in ("none", "kl")]
    print("all:", foretell(runs))
    print("plain and keep=kl:", foretell(alike))
    if options.figure:
        draw(dict(groups), curves, options.figure)


if __name__ == "__main__":
    main()
