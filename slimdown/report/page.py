"""Findings -> `report.html`: one page that holds all it needs, to be opened, printed or sent to someone.

What is said is worked out here, as text; how it looks is in `pages/`. A model's words go through the templates'
escaping like everything else, so markup in an answer is shown and never run.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from slimdown.config.schema import Role
from slimdown.evaluation.answers import Sample
from slimdown.report import numbers, plots, words
from slimdown.report.findings import findings_table, tests_table
from slimdown.report.pages import render
from slimdown.stats.anatomy import EXPLANATIONS, Anatomy, Example
from slimdown.stats.changes import BenchmarkChange
from slimdown.stats.findings import Findings
from slimdown.utils.redaction import redact

if TYPE_CHECKING:
    from slimdown.training.fine_tune import TrainResult

LONGEST = 1200  # characters of a text on the page; the samples hold all of it
# Settings that say what was done; the rest stands folded below them.
_MAIN_SETTINGS = {
    "model": ("model.id", "model.revision", "model.dtype", "tuned"),
    "quantization": ("quantization.load_in_", "quantization.bnb_4bit_quant_type"),
    "rows": ("dataset.",),
    "method": ("method.", "lora."),
    "training": ("train.",),
    "tuned": ("tuned",),
    "seed": ("seed",),
}


def page(
    findings: Findings,
    name: str,
    run_id: str = "",
    settings: Mapping[str, object] | None = None,
    environment: Mapping[str, object] | None = None,
) -> str:
    """The findings as one HTML page that loads nothing from anywhere.

    Args:
        findings: what is shown.
        name: what they are called.
        run_id: the record that they belong to, if to any.
        settings: every setting by its dotted key.
        environment: versions and machine.
    """
    changes, training = findings.changes, findings.training
    main, others = _settings(settings or {})
    return render(
        "report.html.j2",
        name=redact(name),
        run_id=run_id,
        headline=list(_headline(findings)),
        summary=words.summary(changes),
        results=findings_table(findings),
        tests=tests_table(findings),
        stopped=words.STOPPED if changes.in_stages else "",
        margins=" or ".join(
            f"{100 * m:g}" for m in sorted({b.margin for b in changes.benchmarks.values()})
        ),
        forest=plots.forest(changes),
        answers=plots.answers(changes),
        curve=training and plots.training_curve(training.history, *_losses(training)),
        anatomies=[
            _anatomy(n, changes.benchmarks[n], found) for n, found in findings.anatomies.items()
        ],
        training=list(_training(findings)),
        settings=main,
        other_settings=others,
        environment=[(key, _value(key, value)) for key, value in (environment or {}).items()],
        costs=[(_cost_name(key), _value(key, value)) for key, value in findings.costs.items()],
        rest="in samples/" if run_id else "left out here",
    )


def _headline(findings: Findings) -> Iterator[dict[str, str]]:
    changes = findings.changes
    for role, change, said, kind in (
        (Role.target, changes.mean_target_change, "learned", "target task"),
        (Role.retained, changes.mean_retained_change, "kept or lost", "retained benchmark"),
    ):
        if n := sum(b.role is role for b in changes.benchmarks.values()):
            value, interval = numbers.points(change)
            yield {
                "name": f"{said}: mean change of {numbers.plural(n, kind)}",
                "value": value if value == numbers.UNDEFINED else f"{value} points",
                "note": f"95 % interval {interval or numbers.UNDEFINED}",
            }
    if training := findings.training:
        yield {
            "name": "validation loss",
            "value": " → ".join(numbers.number(loss, ".3f") for loss in _losses(training)),
            "note": f"nats a token, in {numbers.plural(training.steps, 'step')}",
        }


def _losses(training: "TrainResult") -> tuple[float, float]:
    return training.validation_loss_before, training.validation_loss_after


def _anatomy(name: str, benchmark: BenchmarkChange, found: Anatomy) -> dict[str, Any]:
    """What became of the answers that one benchmark had right before."""
    causes = [
        {
            "title": EXPLANATIONS[cause.name].partition(": ")[0],
            "meaning": EXPLANATIONS[cause.name].partition(": ")[2],
            "count": f"{cause.count:,}",
            "share": numbers.percent(cause.share),
            "width": f"{100 * cause.share.value:.1f}",
            "example": _example(cause.example, benchmark) if cause.example else None,
        }
        for cause in found.causes
        if cause.share
    ]
    return {
        "name": words.benchmark_name(name, benchmark.role),
        "lost": words.lost(found),
        "causes": causes if found.n_lost else [],
        "moves": [words.leads(found.choices), words.position(found.choices)]
        if found.choices
        else [],
        "gained": _example(found.gained, benchmark) if found.gained else None,
    }


def _example(example: Example, benchmark: BenchmarkChange) -> dict[str, Any]:
    """One question with both answers."""
    base, tuned = example.base, example.tuned
    return {
        "task": base.task,
        "doc_id": base.doc_id,
        "prompt": base.prompt[-LONGEST:],
        "n_cut": max(0, len(base.prompt) - LONGEST),
        "target": base.target,
        "sides": [_side("base", base, benchmark), _side("tuned", tuned, benchmark)],
        "choices": _choice_rows(base, tuned),
    }


def _side(model: str, sample: Sample, benchmark: BenchmarkChange) -> dict[str, Any]:
    """One model's answer."""
    text = sample.answers.get(benchmark.metric, "") if sample.choices else sample.response
    readings = [
        {
            "metric": words.short_metric(metric, benchmark),
            "answer": "" if sample.choices else sample.answers.get(metric, "")[:80],
            "score": {1.0: "right", 0.0: "wrong"}.get(
                sample.scores[metric], numbers.number(sample.scores[metric], "g")
            ),
        }
        for metric in benchmark.changes
        if metric in sample.scores
    ]
    return {
        "model": model,
        "text": text[:LONGEST],
        "n_cut": max(0, len(text) - LONGEST),
        "right": sample.scores[benchmark.metric] == 1,
        "readings": readings,
    }


def _choice_rows(base: Sample, tuned: Sample) -> list[dict[str, Any]]:
    """Each choice with both models' log-likelihoods; empty where the answer is text."""
    if not base.choices or not len(base.choices) == len(base.log_likelihoods) == len(
        tuned.log_likelihoods
    ):
        return []
    return [
        {
            "letter": chr(ord("A") + i) if i < 26 else str(i + 1),
            "text": choice[:LONGEST],
            "right": choice == base.target,
            "base": numbers.number(base.log_likelihoods[i], ".2f"),
            "tuned": numbers.number(tuned.log_likelihoods[i], ".2f"),
        }
        for i, choice in enumerate(base.choices)
    ]


def _training(findings: Findings) -> Iterator[tuple[str, str]]:
    if training := findings.training:
        share, speed = (
            numbers.number(training.trainable_percent, ".2f"),
            numbers.number(training.tokens_per_second, ",.0f"),
        )
        yield "steps", f"{training.steps:,}"
        yield "tokens", f"{training.tokens:,}"
        yield "rows cut", str(training.cut) if training.cut.is_worth_telling else "none"
        yield "questions in the rows", "; ".join(training.contamination.told) or "none"
        yield "trained parameters", f"{training.n_trainable:,} ({share} %)"
        yield "mean training loss", numbers.number(training.train_loss, ".3f")
        yield "time", f"{numbers.duration(training.runtime_seconds)}, {speed} tokens/s"


_Pairs = list[tuple[str, str]]


def _settings(settings: Mapping[str, object]) -> tuple[list[tuple[str, _Pairs]], _Pairs]:
    """The settings that matter by group, and all others."""
    grouped: dict[str, _Pairs] = {group: [] for group in (*_MAIN_SETTINGS, "")}
    for key, value in settings.items():
        group = next(
            (group for group, starts in _MAIN_SETTINGS.items() if key.startswith(starts)), ""
        )
        grouped[group].append((key, _value(key, value)))
    others = grouped.pop("")
    return [(group, pairs) for group, pairs in grouped.items() if pairs], others


def _cost_name(key: str) -> str:
    return key.removesuffix("_seconds").removesuffix("_bytes").replace("_", " ")


def _value(key: str, value: object) -> str:
    """A setting, a version or a cost as a person reads it."""
    if value is None:
        return numbers.NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(_value("", v) for v in value)
    if isinstance(value, int | float):
        if key.endswith("_seconds"):
            return numbers.duration(value)
        if key.endswith("_bytes"):
            return f"{numbers.number(value / 2**30, '.2f')} GiB"
        return f"{value}" if isinstance(value, int) else numbers.number(value, "g")
    return redact(str(value))
