"""The metrics and tags of a run, written and read by these names; docs/metrics.md explains each."""

from enum import StrEnum
from math import isfinite, nan
from typing import TYPE_CHECKING

from slimdown.report.columns import collect_metrics

if TYPE_CHECKING:
    from slimdown.judging.findings import Findings


DESCRIPTION = "mlflow.note.content"  # MLflow shows this tag on a run's page


class Tag(StrEnum):
    """A tag of a run, or what its metrics and params begin with."""

    kind = "slimdown.kind"
    run_key = "slimdown.run_key"
    settings = "slimdown.settings"  # the digest of settings.json
    host = "slimdown.host"
    sweep = "slimdown.sweep"
    headline = "slimdown.headline"
    model = "slimdown.model"
    dataset = "slimdown.dataset"
    origin = "slimdown.origin"
    error = "slimdown.error"
    checked = "slimdown.checked"  # the scales of its model that held-out questions judged
    scaled = "slimdown.scaled"  # when `slimdown scale` began to measure it
    evaluation = "slimdown.evaluation."
    change = "change/"  # begins the name of a metric
    verdict = "verdict/"  # begins a param: its column can be sorted, unlike a tag's


def collect_finding_metrics(findings: "Findings") -> dict[str, float]:
    """Return scores, changes and costs of a run; MLflow groups them by what precedes the slash."""
    metrics = collect_metrics(findings)
    evaluations = [one for one in (findings.base, findings.tuned) if one]
    metrics["cost/evaluation_seconds"] = sum(one.seconds for one in evaluations)
    peaks = [one.peak_bytes for one in (*evaluations, findings.training) if one]
    metrics["cost/peak_memory_bytes"] = max(filter(isfinite, peaks), default=nan)
    return metrics


def describe_headline(findings: "Findings") -> str:
    """Return change and verdict of each benchmark in one line: `gsm8k -29.8 forgotten; ...`."""
    rows = [(n, b.primary.difference.value, b.verdict) for n, b in findings.benchmarks.items()]
    return "; ".join(f"{name} {100 * d:+.1f} {verdict.value}" for name, d, verdict in rows)
