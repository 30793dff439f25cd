"""A run's results -> `report.html`: one page that holds all it needs, to be opened, printed or sent to someone.

What is said is worked out here, as text; how it looks is in `pages/`. A model's words go through the templates'
escaping like everything else, so markup in an answer is shown and never run.
"""

from collections.abc import Iterator
from itertools import groupby
from math import isfinite, isnan
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from slimdown.guarding.redaction import redact
from slimdown.judging.anatomy import EXPLANATIONS, Anatomy, Choices, Example
from slimdown.judging.changes import BenchmarkChange, Change, Changes, Verdict
from slimdown.judging.findings import Findings
from slimdown.judging.paired import Difference, Estimate
from slimdown.measuring.answers import Sample
from slimdown.settings.schema import Role
from slimdown.showing import plots
from slimdown.showing.console import bound, paper, short_metric, shown_name, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from slimdown.training.fine_tune import TrainResult

LONGEST = 1200  # characters of a text on the page; the samples hold all of it
UNDEFINED = "undefined"
_SIGNS = {Verdict.retained: "=", Verdict.forgotten: "↓", Verdict.improved: "↑", Verdict.undecided: "?"}
# Settings that say what was done; the rest stands folded below them.
_MAIN_SETTINGS = {
    "model": ("model.id", "model.revision", "model.dtype"),
    "quantization": ("quantization.load_in_", "quantization.bnb_4bit_quant_type"),
    "rows": ("dataset.",),
    "adapter": ("lora.",),
    "training": ("train.",),
    "seed": ("seed",),
}
# Control characters have no place in HTML; their pictures do. Tab and newline stay.
_PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}


def page(
    name: str, run_id: str, findings: Findings, settings: dict[str, object], environment: dict[str, object]
) -> str:
    """The findings as one HTML page that loads nothing from anywhere.

    Args:
        name: what the run is called.
        run_id: the record that it belongs to.
        findings: what is shown.
        settings: every setting by its dotted key.
        environment: versions and machine.
    """
    report, training = findings.changes, findings.training
    main, others = _settings(settings)
    return render(
        "report.html.j2",
        name=visible(redact(name)),
        run_id=run_id,
        headline=_headline(report, training),
        sentences=[minus(sentence) for sentence in summary(report)],
        rows=list(_rows(report)),
        tests=[_test(name, b) for name, b in report.benchmarks.items()],
        margins=_listed(f"{100 * m:g}" for m in sorted({b.margin for b in report.benchmarks.values()})),
        n_benchmarks=len(report.benchmarks),
        any_target=any(b.role is Role.target for b in report.benchmarks.values()),
        forest=inline(plots.forest(report)),
        answers=inline(plots.answers(report)),
        curve=training and inline(plots.training_curve(training.history, *_losses(training))),
        anatomies=[_anatomy(n, report.benchmarks[n], found) for n, found in findings.anatomies.items()],
        training=_training(training) if training else None,
        settings=main,
        other_settings=others,
        environment=[(key, _value(key, value)) for key, value in environment.items()],
        costs=[(_cost_name(key), _value(key, value)) for key, value in findings.costs.items()],
    )


def render(template: str, **values: object) -> str:
    """The page that a template of `slimdown/showing/pages/` makes of the values, all of them escaped.

    Filters: `visible` shows control characters as pictures. A value that the template lacks is an error.
    """
    pages = Environment(
        loader=PackageLoader("slimdown.showing", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters["visible"] = visible
    return pages.get_template(template).render(**values)


def inline(figure: "Figure") -> Markup:
    """The figure as markup to put into a page."""
    return Markup(plots.svg(figure))  # matplotlib escapes the texts that it writes


def visible(text: object) -> str:
    r"""The text as a page can hold it: control characters as their pictures, broken characters as a mark.

    >>> visible("a\x00b\n")
    'a␀b\n'
    """
    return str(text).replace("\r\n", "\n").translate(_PICTURES).encode("utf-8", "replace").decode()


def minus(text: str) -> str:
    """The text with true minus signs before its numbers.

    >>> minus("fell (-3.1 points), p-value 0.2, top-5")
    'fell (−3.1 points), p-value 0.2, top-5'
    """
    return "".join(
        "\N{MINUS SIGN}" if c == "-" and text[i + 1 : i + 2].isdigit() and (i == 0 or text[i - 1] in " ([") else c
        for i, c in enumerate(text)
    )


def _number(value: float, form: str = ".1f") -> str:
    """The number, or a word where there is none."""
    if isnan(value):
        return UNDEFINED
    if not isfinite(value):
        return "unbounded"
    return minus(f"{value:{form}}")


def _interval(low: float, high: float, form: str = ".1f") -> str:
    if isnan(low) or isnan(high):
        return "interval undefined"
    above = _number(high, form) if isfinite(high) else "no upper bound"
    below = _number(low, form) if isfinite(low) else "no lower bound"
    return f"[{below}, {above}]"


def _percent(estimate: Estimate) -> tuple[str, str]:
    """A share in percent, and its interval."""
    return f"{_number(100 * estimate.value)} %", _interval(100 * estimate.low, 100 * estimate.high)


def _points(d: "Difference | Estimate") -> tuple[str, str]:
    """A change in points, and its interval."""
    return _number(100 * d.value, "+.1f"), _interval(100 * d.low, 100 * d.high, "+.1f")


def _score(estimate: Estimate) -> tuple[str, str]:
    """A score in percent, and its standard error."""
    error = "" if isnan(estimate.standard_error) else f"± {_number(100 * estimate.standard_error)}"
    return _number(100 * estimate.value), error


def _listed(words: Any) -> str:
    return " or ".join(words)


def _plural(n: int, one: str) -> str:
    return f"{n:,} {one}" if n == 1 else f"{n:,} {one}s"


def _headline(report: Changes, training: "TrainResult | None") -> list[dict[str, str]]:
    found = []
    for role, change, words in (
        (Role.target, report.mean_target_change, "learned: mean change of"),
        (Role.retained, report.mean_retained_change, "kept or lost: mean change of"),
    ):
        if n := sum(b.role is role for b in report.benchmarks.values()):
            value, interval = _points(change)
            kind = "target task" if role is Role.target else "retained benchmark"
            shown = UNDEFINED if value == UNDEFINED else f"{value} points"
            found.append({"name": f"{words} {_plural(n, kind)}", "value": shown, "note": f"95 % interval {interval}"})
    if training:
        before, after = _losses(training)
        found.append(
            {
                "name": "validation loss",
                "value": f"{_number(before, '.3f')} → {_number(after, '.3f')}",
                "note": f"nats a token, in {_plural(training.steps, 'step')}",
            }
        )
    return found


def _losses(training: "TrainResult") -> tuple[float, float]:
    return training.validation_loss_before, training.validation_loss_after


def _rows(report: Changes) -> Iterator[dict[str, Any]]:
    """The rows of the table of results, one a metric, the primary one first."""
    for name, benchmark in report.benchmarks.items():
        for metric, change in benchmark.changes.items():
            primary = metric == benchmark.metric
            yield {
                "primary": primary,
                "name": shown_name(name, benchmark) if primary else "",
                "metric": short_metric(metric, benchmark),
                "n": f"{benchmark.n:,}",
                "base": _score(change.base),
                "tuned": _score(change.tuned),
                "change": _points(change.difference),
                "rate": _rate(benchmark) if primary else ("", ""),
                "paper": _paper(benchmark) if primary else ("", ""),
                "verdict": benchmark.verdict.value,
                "sign": _SIGNS[benchmark.verdict],
            }


def _rate(benchmark: BenchmarkChange) -> tuple[str, str]:
    """The forgetting rate above chance, or what is known of it."""
    return _rate_of(benchmark, benchmark.forgetting_rate_above_chance, "chance" if benchmark.chance else "0")


def _rate_of(benchmark: BenchmarkChange, found: Estimate | None, zero: str) -> tuple[str, str]:
    if benchmark.role is Role.target:
        return "–", ""
    if found is None or isnan(found.value):
        return minus(bound(found)), f"base not shown above {zero}"
    return _percent(found)


def _paper(benchmark: BenchmarkChange) -> tuple[str, str]:
    """The paper's metric as it prints it, and the paired interval."""
    if (value := benchmark.paper_value) is None:
        return "", ""
    shown = minus(paper(benchmark))
    if isnan(value.low) or isnan(value.high):
        return shown, ""
    if benchmark.paper_metric == "forgetting_rate":
        return shown, _interval(100 * value.low, 100 * value.high)
    return shown, _interval(value.low, value.high, "+.1f")


def _test(name: str, benchmark: BenchmarkChange) -> dict[str, Any]:
    """What the verdict of one benchmark rests on."""
    smallest = _number(100 * benchmark.minimum_detectable_change)
    change: Change = benchmark.primary
    decides = f"{benchmark.n_to_decide:,}" if benchmark.n_to_decide else "not known"
    return {
        "name": shown_name(name, benchmark),
        "base": _interval(100 * change.base.low, 100 * change.base.high),
        "tuned": _interval(100 * change.tuned.low, 100 * change.tuned.high),
        "test": change.difference.test
        + (f", for {change.difference.population}" if change.difference.n_groups else ""),
        "t_test": _p(change.difference.t_test_p_value),
        "p": _p(benchmark.p_value),
        "equivalence": _p(benchmark.equivalence_p_value),
        "margin": f"{100 * benchmark.margin:g}",
        "smallest": smallest,
        "decides": decides if benchmark.verdict is Verdict.undecided else "–",
        "unpaired": _number(100 * change.unpaired_standard_error),
        "raw": _rate_of(benchmark, benchmark.forgetting_rate, "0"),
        "chance": f"{100 * benchmark.chance:g}",
    }


def _p(value: float) -> str:
    if isnan(value):
        return UNDEFINED
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _anatomy(name: str, benchmark: BenchmarkChange, found: Anatomy) -> dict[str, Any]:
    """What became of the answers that one benchmark had right before."""
    causes = []
    for cause in found.causes:
        title, _, meaning = EXPLANATIONS[cause.name].partition(": ")
        share = cause.share or Estimate(0.0, 0.0, 0.0, 0.0)
        causes.append(
            {
                "title": title,
                "meaning": meaning,
                "count": f"{cause.count:,}",
                "share": _percent(share),
                "width": f"{100 * share.value:.1f}",
                "example": _example(cause.example, benchmark) if cause.example else None,
            }
        )
    if not found.n_right:
        told = "No answer was right before, so none could be lost."
    elif not found.n_lost:
        told = f"None of {_plural(found.n_right, 'right answer')} was lost."
    else:
        told = f"Of {_plural(found.n_right, 'answer')} that were right before, {found.n_lost:,} were lost"
        told += f" ({_number(100 * found.n_lost / found.n_right)} %)."
        if not causes:
            told += " Why is not known: a question has several right choices."
    return {
        "name": shown_name(name, benchmark),
        "told": told,
        "causes": causes if found.n_lost else [],
        "moves": list(_moves(found.choices)) if found.choices else [],
        "gained": _example(found.gained, benchmark) if found.gained else None,
    }


def _moves(moved: Choices) -> Iterator[str]:
    """How the choices moved, in sentences."""
    if not isnan(moved.median_lead_before) and not isnan(moved.median_lead_after):
        side = "is behind by" if moved.median_lead_after < 0 else "still leads by"
        yield (
            f"In the lost answers the right choice led by {_number(moved.median_lead_before, '.2f')} nats before and "
            f"{side} {_number(abs(moved.median_lead_after), '.2f')} after (medians)."
        )
    letter = chr(ord("A") + moved.position)
    (before, low_high), (after, low_high_after) = _percent(moved.share_before), _percent(moved.share_after)
    taken = (
        f"choice {letter}: {before} of all questions before, 95 % interval {low_high}, and {after} after, "
        f"{low_high_after}; it is right in {_number(100 * moved.share_right)} %."
    )
    if moved.collapsed:
        yield f"The tuned model moved to one position, {taken}"
    else:
        yield f"No move to one position is shown. Taken most often is {taken}"


def _example(example: Example, benchmark: BenchmarkChange) -> dict[str, Any]:
    """One question with both answers."""
    base, tuned = example.base, example.tuned
    prompt, cut = base.prompt, ""
    if len(prompt) > LONGEST:
        cut = f"{len(prompt) - LONGEST:,} characters before this are in samples/"
        prompt = prompt[-LONGEST:]
    return {
        "task": base.task,
        "doc_id": base.doc_id,
        "prompt": prompt,
        "prompt_cut": cut,
        "target": base.target,
        "sides": [_side("base", base, benchmark), _side("tuned", tuned, benchmark)],
        "choices": _choice_rows(base, tuned),
    }


def _side(model: str, sample: Sample, benchmark: BenchmarkChange) -> dict[str, Any]:
    """One model's answer."""
    text, cut = sample.response, ""
    if sample.choices:
        text = sample.answers.get(benchmark.metric, "")
    if len(text) > LONGEST:
        cut, text = f"{len(text) - LONGEST:,} more characters are in samples/", text[:LONGEST]
    return {
        "model": model,
        "text": text,
        "cut": cut,
        "right": sample.scores[benchmark.metric] == 1,
        "readings": [
            {
                "metric": short_metric(metric, benchmark),
                "answer": "" if sample.choices else sample.answers.get(metric, "")[:80],
                "score": {1.0: "right", 0.0: "wrong"}.get(sample.scores[metric], _number(sample.scores[metric], "g")),
            }
            for metric in benchmark.changes
            if metric in sample.scores
        ],
    }


def _choice_rows(base: Sample, tuned: Sample) -> list[dict[str, Any]]:
    """Each choice with both models' log-likelihoods; empty where the answer is text."""
    if not base.choices or not len(base.choices) == len(base.log_likelihoods) == len(tuned.log_likelihoods):
        return []
    return [
        {
            "letter": chr(ord("A") + i) if i < 26 else str(i + 1),
            "text": choice[:LONGEST],
            "right": choice == base.target,
            "base": _number(base.log_likelihoods[i], ".2f"),
            "tuned": _number(tuned.log_likelihoods[i], ".2f"),
        }
        for i, choice in enumerate(base.choices)
    ]


def _training(training: "TrainResult") -> list[tuple[str, str]]:
    return [
        ("steps", f"{training.steps:,}"),
        ("tokens", f"{training.tokens:,}"),
        ("rows cut", str(training.cut) if training.cut.n_cut else "none"),
        ("trained parameters", f"{training.n_trainable:,} ({_number(training.trainable_percent, '.2f')} %)"),
        ("mean training loss", _number(training.train_loss, ".3f")),
        ("time", f"{_seconds(training.runtime_seconds)}, {_number(training.tokens_per_second, ',.0f')} tokens/s"),
    ]


def _settings(settings: dict[str, object]) -> tuple[list[tuple[str, list[tuple[str, str]]]], list[tuple[str, str]]]:
    """The settings that matter by group, and all others."""

    def group(key: str) -> str:
        return next((g for g, starts in _MAIN_SETTINGS.items() if key.startswith(starts)), "")

    grouped = {g: [(k, _value(k, settings[k])) for k in keys] for g, keys in _by(settings, group)}
    main = [(g, grouped[g]) for g in _MAIN_SETTINGS if g in grouped]
    return main, grouped.get("", [])


def _by(keys: Any, group: Any) -> Iterator[tuple[str, list[str]]]:
    for name, members in groupby(sorted(keys, key=group), group):
        yield name, list(members)


def _cost_name(key: str) -> str:
    return key.removesuffix("_seconds").removesuffix("_bytes").replace("_", " ")


def _seconds(value: float) -> str:
    if not isfinite(value):
        return UNDEFINED
    if value < 120:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _value(key: str, value: object) -> str:
    """A setting, a version or a cost as a person reads it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(_value("", v) for v in value)
    if isinstance(value, int | float):
        if key.endswith("_seconds"):
            return _seconds(value)
        if key.endswith("_bytes"):
            return f"{_number(value / 2**30, '.2f')} GiB"
        return f"{value}" if isinstance(value, int) else _number(value, "g")
    return visible(redact(str(value)))
