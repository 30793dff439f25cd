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
    name = "slimdown.name"  # the setting; MLflow's name of a sweep's run holds more
    note = "slimdown.note"
    model = "slimdown.model"
    model_files = "slimdown.model_files"  # the folder of what the run trained
    model_key = "slimdown.model_key"  # of a logged model: equal ones are one model
    dataset = "slimdown.dataset"
    origin = "slimdown.origin"
    error = "slimdown.error"
    checked = "slimdown.checked"  # the scales of its model that were judged on held-out questions
    scaled = "slimdown.scaled"  # when `slimdown scale` began to measure it
    evaluation = "slimdown.evaluation."
    change = "change/"  # begins the name of a metric


def collect_finding_metrics(findings: "Findings") -> dict[str, float]:
    """Return scores, changes and costs of a run; those that are not finite are left out.

    MLflow groups the metrics by the part of the name before the slash.

    - `change/NAME` and the like are the numbers of one benchmark, see `collect_metrics`.
    - `learned` is the mean change of the target benchmarks, in percentage points.
    - `kept` is the mean change of the retained benchmarks; `kept_low` and `kept_high` are the ends
      of its confidence interval. A mean is left out if the run has no benchmark of its role.
    - `learned_loss` is how far the loss on held-out rows fell, in nats per token.
    - `cost/evaluation_seconds` is the time that both models took to answer, together.
    - `cost/peak_memory_bytes` is the most memory that the evaluations or the training held.
    """
    metrics = collect_metrics(findings)
    learned = findings.mean_change(Role.target)
    kept = findings.mean_change(Role.retained)
    mean_changes = {"learned": learned.value, "kept": kept.value}  # from -1 to 1
    mean_changes |= {"kept_low": kept.low, "kept_high": kept.high}
    metrics |= {name: round(100 * change, 2) for name, change in mean_changes.items()}
    if training := findings.training:
        fall = training.validation_loss_before - training.validation_loss_after
        metrics["learned_loss"] = round(fall, 4)
    evaluations = [evaluation for evaluation in (findings.base, findings.tuned) if evaluation]
    metrics["cost/evaluation_seconds"] = sum(evaluation.seconds for evaluation in evaluations)
    peaks = [evaluation.peak_bytes for evaluation in evaluations]
    if findings.training:
        peaks.append(findings.training.peak_bytes)
    metrics["cost/peak_memory_bytes"] = max(filter(isfinite, peaks), default=nan)
    return {key: value for key, value in metrics.items() if isfinite(value)}


def describe_verdicts(findings: "Findings") -> str:
    """Return the sign of each verdict in one line, losses first: `math ↓ cs ?`.

    Names lose what all of them begin with.
    """
    names = list(findings.benchmarks)
    short = dict(zip(names, drop_shared_beginning(names, "_"), strict=True))
    signs = {name: find_style(b.verdict).sign for name, b in findings.benchmarks.items()}
    ordered = sorted(signs, key=lambda name: _LOSSES_FIRST.index(signs[name]))
    return " ".join(f"{short[name]} {signs[name]}" for name in ordered)


def describe_headline(findings: "Findings") -> str:
    """Return change and verdict of each benchmark in one line: `gsm8k -29.8 forgotten; ...`."""
    changes = []
    for name, benchmark in findings.benchmarks.items():
        verdict = f" {benchmark.verdict.value}" if benchmark.verdict else ""
        changes.append(f"{name} {100 * benchmark.primary.difference.value:+.1f}{verdict}")
    return "; ".join(changes)
