"""The metrics and tags of a run, each name written and read here and nowhere else.

`python -m slimdown.tracking.names` prints the reference, docs/metrics.md. Imports neither MLflow nor torch.
"""

import sys
from collections.abc import Mapping
from dataclasses import astuple, fields, replace
from datetime import UTC, datetime
from math import inf, isfinite, isnan, nan
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from slimdown.stats.anatomy import EXPLANATIONS
from slimdown.stats.paired import Estimate
from slimdown.stats.runs import Making, RecordedChange, RecordedChanges, RecordedRun
from slimdown.tracking.tags import Tag

if TYPE_CHECKING:
    from slimdown.data.contamination import Contamination
    from slimdown.data.loading import SftData
    from slimdown.evaluation.answers import BenchmarkEvaluation
    from slimdown.models.model import LoadedModel
    from slimdown.training.fine_tune import TrainResult


class Metric(NamedTuple):
    """A row of the reference; `source` is the class and attribute that it is taken from."""

    name: str
    unit: str
    meaning: str
    source: str


_LOADED = (
    Metric("cost/load_seconds", "s", "loading the base", "LoadedModel.load_seconds"),
    Metric(
        "cost/model_memory_bytes",
        "bytes",
        "its weights, quantized as they are",
        "LoadedModel.memory_bytes",
    ),
    Metric("cost/n_parameters", "count", "its parameters", "LoadedModel.n_parameters"),
)
_DATA = (
    Metric("train/n_train", "rows", "trained on", "SftData.train.num_rows"),
    Metric("train/n_validation", "rows", "held out of training", "SftData.validation.num_rows"),
    Metric("train/n_skipped", "rows", "left out: they cannot be trained on", "SftData.n_skipped"),
)
_CONTAMINATION = (
    Metric(
        "contamination/{benchmark}/standing",
        "questions",
        "that stand in rows trained on",
        "Contamination.n_standing",
    ),
    Metric(
        "contamination/{benchmark}/overlapping",
        "questions",
        "those, and those that share 13 words in a row with one",
        "Contamination.of",
    ),
)
_TRAINING = (
    Metric("train/final_loss", "nats a token", "mean over all steps", "TrainResult.train_loss"),
    Metric(
        "train/validation_loss_before",
        "nats a token",
        "the base's, on held-out rows",
        "TrainResult.validation_loss_before",
    ),
    Metric(
        "train/validation_loss_after",
        "nats a token",
        "the tuned model's, on the same",
        "TrainResult.validation_loss_after",
    ),
    Metric("train/n_truncated", "rows", "cut at `train.max_length`", "TrainResult.cut.n_cut"),
    Metric(
        "train/n_untrained",
        "rows",
        "without a token that is trained on",
        "TrainResult.cut.n_untrained",
    ),
    Metric("train/n_trainable", "count", "trained parameters", "TrainResult.n_trainable"),
    Metric("train/trainable_percent", "%", "their share of all", "TrainResult.trainable_percent"),
    Metric(
        "cost/train_seconds",
        "s",
        "the steps alone, without the validations",
        "TrainResult.runtime_seconds",
    ),
    Metric("cost/train_tokens", "tokens", "of all batches, padding left out", "TrainResult.tokens"),
    Metric("cost/tokens_per_second", "tokens/s", "of training", "TrainResult.tokens_per_second"),
)
_STEPS = (
    Metric(
        "train/{value}",
        "its own",
        "by step, what the trainer logs: `loss`, `grad_norm`, ...",
        "StepRecord.values",
    ),
)
_COSTS = (
    Metric(
        "cost/{model}_evaluation_seconds",
        "s",
        "measuring `base` or `tuned`, as far as not found",
        "Findings.costs",
    ),
    Metric("cost/peak_memory_bytes", "bytes", "the most that the process held", "Findings.costs"),
    Metric(
        "cost/training_peak_bytes",
        "bytes",
        "the most held during the steps",
        "TrainResult.peak_bytes",
    ),
    Metric(
        "cost/{model}_evaluation_peak_bytes",
        "bytes",
        "the same of measuring, as far as not found",
        "Findings.costs",
    ),
    Metric(
        "cost/questions_asked",
        "questions",
        "of all benchmarks, that its findings rest on",
        "Findings.costs",
    ),
    Metric(
        "cost/{model}_accepted_draft_share",
        "share",
        "of the tokens decoded in measuring, those that had been guessed",
        "Findings.costs",
    ),
    Metric(
        "cost/estimated_{what}_peak_bytes",
        "bytes",
        "of `training` and `evaluation`, beforehand",
        "Footprint",
    ),
)
_SCORES = (
    Metric(
        "{model}/{benchmark}/{metric}", "its own", "a score of `base` or `tuned`", "Score.value"
    ),
    Metric(
        "{model}/{benchmark}/{metric}_stderr",
        "its own",
        "its standard error",
        "Score.standard_error",
    ),
)
_MEANS = (
    Metric(
        "mean_retained_change",
        "share",
        "mean of the retained benchmarks'",
        "Changes.mean_retained_change",
    ),
    Metric(
        "mean_target_change", "share", "mean of the target tasks'", "Changes.mean_target_change"
    ),
)
_PAPER = "percentage points"
# Each field of a RecordedChange; `forgetting/{benchmark}/` goes before.
_CHANGE = (
    Metric(
        "change",
        "share",
        "tuned - base of the primary metric, paired",
        "BenchmarkChange.primary.difference",
    ),
    Metric("n", "questions", "that were asked of both", "BenchmarkChange.n"),
    Metric(
        "n_available",
        "questions",
        "that there were, where not all had to be asked",
        "BenchmarkChange.n_available",
    ),
    Metric(
        "p_value",
        "probability",
        "that nothing changed; corrected within the run (Holm)",
        "BenchmarkChange.p_value",
    ),
    Metric(
        "equivalence_p_value",
        "probability",
        "of a change by the margin or more; likewise",
        "BenchmarkChange.equivalence_p_value",
    ),
    Metric(
        "p_value_raw",
        "probability",
        "the same, not corrected",
        "BenchmarkChange.primary.difference.p_value",
    ),
    Metric(
        "equivalence_p_value_raw",
        "probability",
        "the same, not corrected",
        "BenchmarkChange.primary.difference.equivalence_p_value",
    ),
    Metric(
        "minimum_detectable_change",
        "share",
        "found at 80 % power",
        "BenchmarkChange.minimum_detectable_change",
    ),
    Metric(
        "n_to_decide",
        "questions",
        "that would decide, where undecided",
        "BenchmarkChange.n_to_decide",
    ),
    Metric(
        "forgetting_rate",
        "share",
        "of the base's accuracy that is gone",
        "BenchmarkChange.forgetting_rate",
    ),
    Metric(
        "forgetting_rate_above_chance",
        "share",
        "the same above guessing",
        "BenchmarkChange.forgetting_rate_above_chance",
    ),
    Metric(
        "ability_augmentation",
        _PAPER,
        "the paper's gain; with `_stderr`",
        "BenchmarkChange.paper_value",
    ),
    Metric(
        "knowledge_loss", _PAPER, "the paper's loss; with `_stderr`", "BenchmarkChange.paper_value"
    ),
    Metric("kept", "answers", "right before and after", "BenchmarkChange.primary.counts.kept"),
    Metric("lost", "answers", "right before alone", "BenchmarkChange.primary.counts.lost"),
    Metric("gained", "answers", "right after alone", "BenchmarkChange.primary.counts.gained"),
    Metric("missed", "answers", "wrong before and after", "BenchmarkChange.primary.counts.missed"),
    Metric("lost_any_metric", "answers", "lost on any metric", "Anatomy.n_lost"),
)
_MAKING = {  # of a `Making`: the tags that it is read from; its numbers have the names of their metrics
    "base": Tag.model,
    "revision": Tag.model_revision,
    **{tag.name: tag for tag in (Tag.licence, Tag.quantization, Tag.dtype, Tag.compute_dtype)},
    **{tag.name: tag for tag in (Tag.device, Tag.data_fingerprint)},
}
_ENDS = (
    "",
    "_stderr",
    "_low",
    "_high",
)  # of an estimate: its value, standard error and 95 % interval
_ESTIMATES = {
    field.name for field in fields(RecordedChange) if field.type in (Estimate, "Estimate")
}


def loaded_metrics(loaded: "LoadedModel") -> dict[str, float]:
    """What loading the base cost."""
    return _taken(_LOADED, loaded)


def loaded_tags(loaded: "LoadedModel") -> dict[str, str]:
    """Which weights were loaded, and how; what there is nothing to say of is left out."""
    tags = {
        Tag.model: loaded.id,
        Tag.model_revision: loaded.revision,
        **{
            tag: getattr(loaded, tag.name)
            for tag in (Tag.licence, Tag.quantization, Tag.dtype, Tag.dtype_reason)
        },
        **{tag: getattr(loaded, tag.name) for tag in (Tag.compute_dtype, Tag.device)},
    }
    return {tag: said for tag, said in tags.items() if said}


def data_metrics(data: "SftData") -> dict[str, float]:
    """How many rows there are."""
    return _taken(_DATA, data)


def contamination_metrics(found: "Contamination") -> dict[str, float]:
    """How many questions of each benchmark the rows hold."""
    counts = {name: (found.n_standing(name), len(found.of(name))) for name in found.n_asked}
    return {
        row.name.format(benchmark=name): float(count)
        for name, both in counts.items()
        for row, count in zip(_CONTAMINATION, both, strict=True)
    }


def training_metrics(training: "TrainResult") -> dict[str, float]:
    """What training learned and cost."""
    return _taken(_TRAINING, training)


def step_metrics(values: Mapping[str, float]) -> dict[str, float]:
    """What the trainer said after a step."""
    return {f"train/{name}": value for name, value in values.items()}


def cost_metrics(costs: Mapping[str, float]) -> dict[str, float]:
    """Seconds and bytes by name."""
    return {f"cost/{name}": value for name, value in costs.items()}


def evaluation_seconds(metrics: Mapping[str, float], model: str) -> float:
    """How long measuring `model`, base or tuned, took; 0 where that is not recorded."""
    return metrics.get(f"cost/{model}_evaluation_seconds", 0.0)


def score_metrics(model: str, reports: Mapping[str, "BenchmarkEvaluation"]) -> dict[str, float]:
    """The scores of `model`, base or tuned."""
    return {
        f"{model}/{name}/{metric}{end}": value
        for name, report in reports.items()
        for metric, score in report.scores.items()
        # where asking ended because of the answers there is no standard error
        for end, value in zip(
            _ENDS, (score.value, nan if report.stages else score.standard_error), strict=False
        )
    }


def to_metrics(changes: RecordedChanges) -> dict[str, float]:
    """What changed, as numbers by name; what is not finite is left out rather than shown as a number."""
    values: dict[str, float] = {}
    for name, change in changes.benchmarks.items():
        quantities = {field.name: getattr(change, field.name) for field in fields(change)}
        quantities |= {f"lost_{cause}": share for cause, share in quantities.pop("causes").items()}
        del quantities["verdict"]
        for key, value in quantities.items():
            values |= _named(f"forgetting/{name}/{key}", value)
    for mean in _MEANS:
        values |= _named(f"forgetting/{mean.name}", getattr(changes, mean.name))
    return {key: value for key, value in values.items() if isfinite(value)}


def to_tags(changes: RecordedChanges) -> dict[str, str]:
    """The verdicts by name."""
    return {
        f"{Tag.verdict}{name}": change.verdict
        for name, change in changes.benchmarks.items()
        if change.verdict
    }


def from_metrics(metrics: Mapping[str, float], tags: Mapping[str, str]) -> RecordedChanges:
    """What changed, of a run's metrics and tags: the inverse of `to_metrics` and `to_tags`."""
    by_benchmark: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        if key.startswith("forgetting/"):
            _, name, *rest = key.split("/")
            by_benchmark.setdefault(name, {})["".join(rest)] = value
    changes = {
        name: _change(values, tags.get(f"{Tag.verdict}{name}", ""))
        for name, values in by_benchmark.items()
        if "change" in values
    }
    return RecordedChanges(
        changes, *(_estimate(metrics, f"forgetting/{mean.name}") for mean in _MEANS)
    )


def recorded_run(run: Any, experiments: Mapping[str, str]) -> RecordedRun:
    """A run as MLflow's client has it, as the rest of this package does; `experiments` are names by id."""
    return parsed(
        RecordedRun(
            run_id=run.info.run_id,
            name=run.info.run_name or run.info.run_id,
            experiment=experiments.get(run.info.experiment_id, run.info.experiment_id),
            status=run.info.status,
            started=time_of(run.info.start_time),
            params=run.data.params,
            tags=run.data.tags,
            metrics=run.data.metrics,
        )
    )


def time_of(milliseconds: int | None) -> datetime:
    """A moment as MLflow writes it."""
    return datetime.fromtimestamp((milliseconds or 0) / 1000, UTC)


def parsed(run: RecordedRun) -> RecordedRun:
    """The same run, with what its metrics and tags say."""
    return replace(
        run,
        changes=from_metrics(run.metrics, run.tags),
        dataset=run.tags.get(Tag.dataset, ""),
        scoring_path=run.tags.get(Tag.scoring_path, ""),
        harness_version=run.tags.get(Tag.harness_version, ""),
        processes=run.tags.get(Tag.processes, "1"),
    )


def making(run: RecordedRun) -> Making:
    """How the run's tuned model came about."""
    numbers = {row.name.partition("/")[2]: row.name for row in _DATA + _TRAINING}
    found = {
        name: run.metrics.get(numbers[name], nan)
        for name in Making.__annotations__
        if name in numbers
    }
    said = {field: run.tags.get(tag, "") for field, tag in _MAKING.items()}
    return Making(run, **said, **found)  # type: ignore[arg-type]


def _taken(rows: tuple[Metric, ...], source: object) -> dict[str, float]:
    return {row.name: attrgetter(row.source.partition(".")[2])(source) for row in rows}


def _named(key: str, value: float | Estimate) -> dict[str, float]:
    ends = astuple(value) if isinstance(value, Estimate) else (value,)
    return {key + end: number for end, number in zip(_ENDS, ends, strict=False)}


def _change(values: Mapping[str, float], verdict: str) -> RecordedChange:
    found = {
        row.name: _estimate(values, row.name)
        if row.name in _ESTIMATES
        else values.get(row.name, nan)
        for row in _CHANGE
    }
    causes = {cause: values[f"lost_{cause}"] for cause in EXPLANATIONS if f"lost_{cause}" in values}
    return RecordedChange(**found, causes=causes, verdict=verdict)  # type: ignore[arg-type]


def _estimate(values: Mapping[str, float], key: str) -> Estimate:
    value, error, low, high = (values.get(key + end, nan) for end in _ENDS)
    if isnan(value) and isnan(low) != isnan(
        high
    ):  # a forgetting rate with one end: to the other side all is possible
        low, high = (-inf if isnan(low) else low), (inf if isnan(high) else high)
    return Estimate(value, error, low, high)


def reference() -> str:
    """Every metric and tag, as Markdown."""
    estimated = "; with `_stderr`, `_low`, `_high`"
    means = tuple(row._replace(meaning=row.meaning + estimated) for row in _MEANS)
    changes = tuple(
        row._replace(
            meaning=row.meaning + estimated * (row.name in _ESTIMATES and row.unit == "share")
        )
        for row in _CHANGE
    )
    causes = tuple(
        Metric(f"lost_{cause}", "share of the lost", text.partition(":")[0], "Anatomy.causes")
        for cause, text in EXPLANATIONS.items()
    )
    tags = [f"| `{tag}{'*' if tag.endswith('.') else ''}` | {tag.meaning} |" for tag in Tag]
    return "\n".join(
        [
            "# What a run records",
            "",
            "Made by `python -m slimdown.tracking.names > docs/metrics.md`, from the names that the record is written",
            "and read by. A share is of 1: 0.02 is two points. A number that is not finite, such as the standard error",
            "of one question, is not recorded, nor is one of what was asked until enough was known. With",
            "`evaluation.holdout` a fine-tuning's scores and changes are of its open questions; a run of kind",
            "`baseline` holds a base's scores on all of them.",
            "",
            *_table("Scores", _SCORES),
            *_table("Changes of a benchmark", changes + causes, "forgetting/{benchmark}/"),
            *_table("Means of changes", means, "forgetting/"),
            *_table("Training", _TRAINING + _DATA + _CONTAMINATION + _STEPS),
            *_table("Costs", _LOADED + _COSTS),
            "## Tags",
            "",
            "| tag | value |",
            "|---|---|",
            *tags,
        ]
    )


def _table(title: str, rows: tuple[Metric, ...], prefix: str = "") -> list[str]:
    shown = [
        f"| `{prefix}{row.name}` | {row.unit} | {row.meaning} | `{row.source}` |" for row in rows
    ]
    return [
        f"## {title}",
        "",
        "| metric | unit | meaning | source |",
        "|---|---|---|---|",
        *shown,
        "",
    ]


if __name__ == "__main__":
    sys.stdout.write(reference() + "\n")
