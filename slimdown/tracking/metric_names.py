"""The metrics and tags of a run: one table, written and read by these names only.

`python -m slimdown.tracking.metric_names > docs/metrics.md` prints it as a page.
"""

import sys
from collections.abc import Mapping
from enum import StrEnum
from math import isfinite, nan
from typing import TYPE_CHECKING

from slimdown.config.schema import PaperMetric

if TYPE_CHECKING:
    from slimdown.stats.findings import Findings
    from slimdown.training.result import TrainingResult

# By name: meaning, with its unit. Four benchmarks make 30 at most.
METRICS = {
    "{benchmark}/base": "primary metric of the base",
    "{benchmark}/tuned": "primary metric of the tuned model",
    "{benchmark}/change": "tuned - base, paired over the questions, as a share of 1",
    "{benchmark}/change_low": "lower end of its 95 % interval",
    "{benchmark}/change_high": "upper end of its 95 % interval",
    "{benchmark}/forgetting_rate": "share of the base's accuracy that is gone, if it is the metric",
    "train/loss": "by step, in nats per token",
    "train/learning_rate": "by step",
    "train/grad_norm": "by step",
    "train/validation_loss_before": "of the base on the held-out rows, in nats per token",
    "train/validation_loss_after": "of the tuned model on the same rows, in nats per token",
    "train/trainable_percent": "trained parameters of all, in percent",
    "cost/train_seconds": "the training steps, in seconds",
    "cost/evaluation_seconds": "measuring both models, as far as not found in the record",
    "cost/peak_memory_bytes": "the most that was held, training or measuring, in bytes",
}


class Tag(StrEnum):
    """A tag of a run; with MLflow's own a run has at most 12."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> "Tag":
        """Make a tag that is its name as a string, and that has a meaning."""
        tag = str.__new__(cls, name)
        tag._value_, tag.meaning = name, meaning
        return tag

    kind = "slimdown.kind", "`tuned`, `baseline` (evaluations of a base) or `sweep`"
    run_key = "slimdown.run_key", "digest of all that the result depends on: equal runs are skipped"
    host = "slimdown.host", "the machine that makes the run, and can resume it"
    sweep = "slimdown.sweep", "the command that started the run, with others"
    headline = "slimdown.headline", "change and verdict of each benchmark"
    model = "slimdown.model", "the base: hub id or folder, @ commit or digest, quantization, dtype"
    dataset = "slimdown.dataset", "the datasets, and a digest of their text"
    origin = "slimdown.origin", "where a model comes from that was tuned elsewhere"
    merged = "slimdown.merged", "of a merged model: the run that trained its adapter"
    error = "slimdown.error", "what ended a failed run"
    pruned = "slimdown.pruned", "when and why a search ended the trial"
    evaluation = "slimdown.evaluation.", "and a key: this evaluation is `samples/VALUE.parquet`"


def collect_step_metrics(values: Mapping[str, float]) -> dict[str, float]:
    """Return those of a step's numbers that are recorded, by metric name."""
    return {f"train/{k}": value for k, value in values.items() if f"train/{k}" in METRICS}


def collect_training_metrics(training: "TrainingResult") -> dict[str, float]:
    """Return what training learned and cost, by metric name."""
    return {
        "train/validation_loss_before": training.validation_loss_before,
        "train/validation_loss_after": training.validation_loss_after,
        "train/trainable_percent": training.trainable_percent,
        "cost/train_seconds": training.runtime_seconds,
    }


def collect_finding_metrics(findings: "Findings") -> dict[str, float]:
    """Return scores, changes and costs of a run, by metric name."""
    metrics: dict[str, float] = {}
    for name, change in findings.benchmarks.items():
        difference = change.primary.difference
        metrics |= {
            f"{name}/base": change.primary.base.value,
            f"{name}/tuned": change.primary.tuned.value,
            f"{name}/change": difference.value,
            f"{name}/change_low": difference.low,
            f"{name}/change_high": difference.high,
        }
        if change.paper_metric is PaperMetric.forgetting_rate and change.forgetting_rate:
            metrics[f"{name}/forgetting_rate"] = change.forgetting_rate.value
    evaluations = [one for one in (findings.base, findings.tuned) if one]
    metrics["cost/evaluation_seconds"] = sum(one.seconds for one in evaluations)
    peaks = [one.peak_bytes for one in (*evaluations, findings.training) if one]
    metrics["cost/peak_memory_bytes"] = max(filter(isfinite, peaks), default=nan)
    return metrics


def describe_headline(findings: "Findings") -> str:
    """Return change and verdict of each benchmark in one line: `gsm8k -29.8 forgotten; ...`."""
    return "; ".join(
        f"{name} {100 * change.primary.difference.value:+.1f} {change.verdict.value}"
        for name, change in findings.benchmarks.items()
    )


def render_reference() -> str:
    """Return the page docs/metrics.md."""
    made_by = "`python -m slimdown.tracking.metric_names > docs/metrics.md` makes this page."
    rest = "Numbers that are not finite are left out. findings.json holds every statistic."
    lines = ["# What a run records", "", f"{made_by} {rest}"]
    tags = {str(tag): tag.meaning for tag in Tag}
    for title, rows in (("metric", METRICS), ("tag", tags)):
        lines += ["", f"| {title} | meaning |", "|---|---|"]
        lines += [f"| `{name}` | {meaning} |" for name, meaning in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(render_reference() + "\n")
