"""The metrics and tags of a run, written and read by these names; docs/metrics.md explains each."""

from enum import StrEnum
from math import isfinite, nan
from typing import TYPE_CHECKING

from slimdown.config.benchmark_config import Role
from slimdown.report.columns import collect_metrics
from slimdown.report.formatting import drop_shared_beginning
from slimdown.report.verdict_styles import find_style

if TYPE_CHECKING:
    from slimdown.judging.findings import Findings


_LOSSES_FIRST = "↓?↑=·"
DESCRIPTION = "mlflow.note.content"  # MLflow shows this tag on a run's page
USER = "mlflow.user"


class Tag(StrEnum):
    """A tag of a run, or what its metrics and params begin with."""

    kind = "slimdown.kind"
    run_key = "slimdown.run_key"
    settings = "slimdown.settings"  # the digest of settings.json
    host = "slimdown.host"
    sweep = "slimdown.sweep"
    headline = "slimdown.headline"
    verdict = "slimdown.verdict"  # the sign of each verdict; a param would be an axis of plots
    name = "slimdown.name"  # the setting; a run of a sweep is called more than that
    note = "slimdown.note"
    model = "slimdown.model"
    model_files = "slimdown.model_files"  # the folder of what the run trained
    model_key = "slimdown.model_key"  # of a logged model: equal ones are one model
    dataset = "slimdown.dataset"
    origin = "slimdown.origin"
    error = "slimdown.error"
    checked = "slimdown.checked"  # the scales of its model that held-out questions judged
    scaled = "slimdown.scaled"  # when `slimdown scale` began to measure it
    evaluation = "slimdown.evaluation."
    change = "change/"  # begins the name of a metric


def collect_finding_metrics(findings: "Findings") -> dict[str, float]:
    """Return scores, changes and costs of a run; MLflow groups them by what precedes the slash.

    `learned` is the mean change of the targets in points, `kept` that of the retained, both
    without what may not be claimed about; `kept_low` and `kept_high` are the ends of its interval.
    `learned_loss` is how far the loss on held-out rows fell, in nats per token.
    """
    metrics = collect_metrics(findings)
    for name, role in (("learned", Role.target), ("kept", Role.retained)):
        mean = findings.mean_change(role)
        values = {name: mean.value}
        if role is Role.retained:
            values |= {"kept_low": mean.low, "kept_high": mean.high}
        metrics |= {key: round(100 * value, 2) for key, value in values.items()}
    if training := findings.training:
        fall = training.validation_loss_before - training.validation_loss_after
        metrics["learned_loss"] = round(fall, 4)
    evaluations = [one for one in (findings.base, findings.tuned) if one]
    metrics["cost/evaluation_seconds"] = sum(one.seconds for one in evaluations)
    peaks = [one.peak_bytes for one in (*evaluations, findings.training) if one]
    metrics["cost/peak_memory_bytes"] = max(filter(isfinite, peaks), default=nan)
    return {key: value for key, value in metrics.items() if isfinite(value)}


def describe_verdicts(findings: "Findings") -> str:
    """Return the sign of each verdict in one line, losses first: `math ↓ cs ?`.

    Names lose what all of them begin with.
    """
    short = drop_shared_beginning(findings.benchmarks)
    shown = [
        f"{short[name]} {find_style(one.verdict).sign}" for name, one in findings.benchmarks.items()
    ]
    return " ".join(sorted(shown, key=lambda text: _LOSSES_FIRST.index(text[-1])))


def describe_headline(findings: "Findings") -> str:
    """Return change and verdict of each benchmark in one line: `gsm8k -29.8 forgotten; ...`."""
    rows = [
        (n, 100 * b.primary.difference.value, f" {b.verdict.value}" if b.verdict else "")
        for n, b in findings.benchmarks.items()
    ]
    return "; ".join(f"{name} {change:+.1f}{verdict}" for name, change, verdict in rows)
