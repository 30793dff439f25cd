"""Render every lost and gained answer, base and tuned side by side, as one page: `answers.html`.

The page holds its answers as JSON. Its script, `pages/answers.js`, shows them as text, a few at a
time, so that thousands open at once and nothing that a model wrote becomes markup.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from math import fsum
from statistics import fmean
from typing import Any

from markupsafe import Markup

from slimdown.config.benchmark_config import CHOICE_PROBABILITY
from slimdown.evaluation.results import Metric, Sample
from slimdown.evaluation.right_choice import compute_probabilities
from slimdown.judging.findings import BenchmarkChange, Findings
from slimdown.judging.losses import Example, find_cause, find_changed_answers
from slimdown.judging.pairing import Pair
from slimdown.report import pages, text
from slimdown.report.formatting import format_value, visible
from slimdown.utils.secrets import redact_leaf

MOST_SHOWN = 2000  # answers of a benchmark
_MOST_BYTES = 4_700_000  # of all answers
_LENGTH = 2000  # characters of a text
_WORD = re.compile(r"\w+|\s+|[^\w\s]+")
_LEAST_SHARED = 0.15  # where two texts share less of the longer one, everything would be marked
# JSON in a page must neither end its element nor, in an old browser, a line of a script.
_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class _Change:
    """One answer that was lost or gained."""

    key: str  # what its link names
    benchmark: int
    is_lost: bool
    cause: str  # of a loss, where it is known
    subject: str  # empty where the benchmark has only one
    example: Example
    p_loss: float | None  # by how much the probability of the right choice fell
    clarity: float  # the larger, the clearer the loss or the gain


def name_answers_page(page: str) -> str:
    """Name the page of answers beside a report.

    >>> name_answers_page("page.html"), name_answers_page("page")
    ('page.answers.html', 'page.answers.html')
    """
    return f"{re.sub('[.]html?$', '', page, flags=re.IGNORECASE)}.answers.html"


def render_answers_page(findings: Findings, name: str, report: str, place: str) -> str:
    """Render the answers that a fine-tuning lost and gained.

    Args:
        findings: With the answers that were judged; answers to held-out questions are not shown.
        name: What the run is called.
        report: The file name of the report, which lies beside the page.
        place: Where whole texts are, such as a folder's name.

    Returns:
        The page, smaller than 5 MB. It shows the clearest changes of each benchmark, cuts long
        texts, and says what it leaves out.
    """
    pairs = findings.pairs
    changes = {
        benchmark: list(_list_changes(i, benchmark, pair.with_first_answers))
        for i, (benchmark, pair) in enumerate(pairs.items())
    }
    answers_by_benchmark = _fit_answers(changes, findings.benchmarks)
    counts: list[dict[str, Any]] = []
    for benchmark, benchmark_changes in changes.items():
        answers = answers_by_benchmark[benchmark]
        n_lost = sum(change.is_lost for change in benchmark_changes)
        n_lost_shown = sum(answer["lost"] for answer in answers)
        lost = (n_lost, n_lost_shown)
        gained = (len(benchmark_changes) - n_lost, len(answers) - n_lost_shown)
        counts.append({"name": benchmark, "lost": lost, "gained": gained})
    all_answers = [answer for benchmark in pairs for answer in answers_by_benchmark[benchmark]]
    data: dict[str, Any] = {
        "benchmarks": [visible(benchmark) for benchmark in pairs],
        "causes": {cause: heading for cause, (heading, _) in text.CAUSES.items()},
        "answers": sorted(all_answers, key=lambda answer: not answer["lost"]),  # the losses first
    }
    return pages.render(
        "answers.html.j2",
        name=redact_leaf(name),
        report=report,
        place=place,
        part=findings.part,
        counts=counts,
        longest=_LENGTH if any(map(_is_cut, data["answers"])) else 0,  # 0: no text is cut
        n_changed=sum(map(len, changes.values())),
        n_shown=len(data["answers"]),
        has_choices=any("choices" in answer for answer in data["answers"]),
        # `acc_norm` takes the choice that is likeliest per character, and the page says so.
        by_length=[
            n for n, b in findings.benchmarks.items() if Metric(b.metric).name == "acc_norm"
        ],
        data=Markup(_write_json(data)),
    )


def _is_cut(answer: dict[str, Any]) -> bool:
    lengths = [answer["prompt"][1], answer["target"][1], *answer.get("more", ())]
    lengths += [choice[1] for choice in answer.get("choices", ())]
    return any(length > 0 for length in lengths)


def _write_json(value: Any) -> str:
    packed = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return packed.translate(_ESCAPES)


def _fit_answers(
    changes: Mapping[str, Sequence[_Change]], benchmarks: Mapping[str, BenchmarkChange]
) -> dict[str, list[dict[str, Any]]]:
    """Write the first answers of each benchmark, as many as there is room for on the page.

    Every benchmark has the same room. What one with few changes does not need is for the others.
    """
    written = dict[str, list[dict[str, Any]]]()
    room = _MOST_BYTES
    for name in sorted(changes, key=lambda name: len(changes[name])):
        share = room // (len(changes) - len(written))
        written[name] = []
        for change in changes[name][:MOST_SHOWN]:
            answer = _write_answer(change, benchmarks[name])
            n_bytes = len(_write_json(answer).encode())
            share -= n_bytes
            if share < 0:
                break
            room -= n_bytes
            written[name].append(answer)
    return written


def _list_changes(number: int, name: str, pair: Pair) -> Iterator[_Change]:
    """Yield a benchmark's lost answers, then its gained ones, each with the clearest first.

    `number` is the place of the benchmark `name` among those of the page.
    """
    changed = find_changed_answers(pair)
    metric = pair.base.benchmark.metric
    subjects = {sample.category or sample.task for sample in pair.base.samples}
    has_tasks = len({sample.task for sample in pair.base.samples}) > 1

    def describe(example: Example, is_lost: bool) -> _Change:
        """Describe one lost or gained answer, and how clear the change is.

        The clarity is the change of the right choice's probability. Without choices, it is the
        change of the mean of the answer's scores.
        """
        base, tuned = example.base, example.tuned
        falls = {key: score - tuned.scores.get(key, 0.0) for key, score in base.scores.items()}
        p_loss = falls.get(CHOICE_PROBABILITY)
        clarity = fsum(falls.values()) / max(1, len(falls)) if p_loss is None else p_loss
        cause = find_cause(example, metric) if is_lost and changed.has_causes else ""
        subject = (base.category or base.task) if len(subjects) > 1 else ""
        place = "-".join([name, *([base.task] if has_tasks else []), str(base.doc_id)])
        return _Change(
            key=visible(place),
            benchmark=number,
            is_lost=is_lost,
            cause=cause,
            subject=visible(subject),
            example=example,
            p_loss=p_loss,
            clarity=clarity if is_lost else -clarity,
        )

    # An answer can be lost by a further metric and gained by the primary one. Then it is gained.
    gained_ids = {id(example.base) for example in changed.gained}
    lost = [describe(e, is_lost=True) for e in changed.lost if id(e.base) not in gained_ids]
    gained = [describe(e, is_lost=False) for e in changed.gained]
    for changes in (lost, gained):
        yield from sorted(changes, key=lambda change: -change.clarity)


def _write_answer(change: _Change, benchmark: BenchmarkChange) -> dict[str, Any]:
    """Write one answer of both models as JSON for the page's script.

    A text that may be cut comes with the number of characters that are missing.
    """
    base, tuned = change.example.base, change.example.tuned
    answer: dict[str, Any] = {
        "key": change.key,
        "benchmark": change.benchmark,
        "lost": change.is_lost,
        "cause": change.cause,
        "subject": change.subject,
        "fall": change.p_loss,
        # A prompt is cut at its beginning, because the question is at its end.
        "prompt": [visible(base.prompt[-_LENGTH:], multiline=True), len(base.prompt) - _LENGTH],
        "target": _cut(base.target),
        "scores": [_describe_scores(sample, benchmark) for sample in (base, tuned)],
        "right": [sample.is_right(benchmark.metric) for sample in (base, tuned)],
    }
    if base.choices:
        shares = [_weigh_choices(sample, benchmark.metric) for sample in (base, tuned)]
        answer["choices"] = []
        for i, choice in enumerate(base.choices):
            percentages = [round(100 * share[i], 1) if share else None for share in shares]
            answer["choices"].append([*_cut(choice), *percentages])
        answer["right_choice"] = _find_choice(base, base.target)
        answer["taken"] = [_find_choice(s, s.answers.get(benchmark.metric)) for s in (base, tuned)]
        return answer
    responses = [_cut(sample.response) for sample in (base, tuned)]
    answer["texts"] = mark_difference(responses[0][0], responses[1][0])
    answer["more"] = [n_missing for _, n_missing in responses]
    answer["words"] = [len(sample.response.split()) for sample in (base, tuned)]
    return answer


def _weigh_choices(sample: Sample, metric: str) -> list[float]:
    """Return each choice's share, so that the largest is the one that the metric takes.

    For `acc_norm` a choice's log-likelihood is divided by its length, as the harness does it, and
    multiplied by the mean length.
    """
    likelihoods = list(sample.log_likelihoods)
    if Metric(metric).name == "acc_norm":
        lengths = [max(1, len(choice)) for choice in sample.choices]
        mean_length = fmean(lengths)
        pairs = zip(likelihoods, lengths, strict=True)
        likelihoods = [value * mean_length / length for value, length in pairs]
    return list(compute_probabilities(likelihoods))


def _cut(value: str) -> tuple[str, int]:
    """Return the beginning of a text, and how many characters more it has; below 0: it is whole."""
    return visible(value[:_LENGTH], multiline=True), len(value) - _LENGTH


def _describe_scores(sample: Sample, benchmark: BenchmarkChange) -> str:
    """Say how each metric read and scored an answer."""
    parts, whole = list[str](), sample.response.strip()
    for metric in benchmark.changes:
        if (score := sample.scores.get(metric)) is not None:
            read = "" if sample.choices else sample.answers.get(metric, "")
            quoted = f"read as “{read[:80]}”, " if read.strip() not in ("", whole) else ""
            word = {1.0: "right", 0.0: "wrong"}.get(score, format_value(float(score)))
            parts.append(f"{text.shorten_metric(metric, benchmark)}: {quoted}{word}")
    return visible("; ".join(parts))


def _find_choice(sample: Sample, choice: str | None) -> int:
    return sample.choices.index(choice) if choice in sample.choices else -1


def mark_difference(base: str, tuned: str) -> tuple[list[str], list[str]]:
    """Split two texts by words into parts that are equal and parts that are not, in turn.

    Returns:
        The parts of each text. The first one is equal in both texts, and may be empty. If the texts
        have next to nothing in common, each text is one part.

    >>> mark_difference("there are 9 pens", "there are 18 pens")
    (['there are ', '9', ' pens'], ['there are ', '18', ' pens'])
    >>> mark_difference("it is four", "No.")
    (['it is four'], ['No.'])
    """
    before, after = _WORD.findall(base), _WORD.findall(tuned)
    # Marks and spaces alone are no match, but they belong to one of words beside them.
    matcher = SequenceMatcher(lambda word: not word[0].isalnum(), before, after)
    blocks = matcher.get_matching_blocks()
    n_shared = sum(len(word) for begin, _, n in blocks for word in before[begin : begin + n])
    if n_shared <= _LEAST_SHARED * max(len(base), len(tuned)):
        return [base], [tuned]
    changes = matcher.get_opcodes()  # equal and unequal parts, in turn
    begins_equal = changes[0][0] == "equal"
    base_parts = [] if begins_equal else [""]
    tuned_parts = [] if begins_equal else [""]
    for _, base_begin, base_end, tuned_begin, tuned_end in changes:
        base_parts.append("".join(before[base_begin:base_end]))
        tuned_parts.append("".join(after[tuned_begin:tuned_end]))
    return base_parts, tuned_parts
