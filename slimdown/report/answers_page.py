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
_WORD = re.compile(r"\w+|\s+|[^\w\s]+")  # a word, spaces, or punctuation
_LEAST_SHARED = 0.15  # of the longer text; if two texts share less, nearly all would be marked
# JSON in a page must neither end its element nor, in an old browser, a line of a script.
_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class _Change:
    """One answer that was lost or gained."""

    key: str  # what its link names
    benchmark: int  # its place among the benchmarks of the page, from 0
    is_lost: bool
    cause: str  # a key of `text.CAUSES`; empty of a gain, and where the cause is not known
    subject: str  # empty where the benchmark has only one
    example: Example
    p_loss: float | None  # how far the right choice's probability fell; None: not scored by it
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
        findings: With `pairs`, the answers that were judged. No others are shown, so none to
            questions that were held out.
        name: What the run is called.
        report: The file name of the report, which lies beside the page.
        place: Where whole texts are, such as a folder's name.

    Returns:
        The page, smaller than 5 MB. It shows the clearest changes of each benchmark, cuts long
        texts, and says what it leaves out.
    """
    pairs, benchmarks = findings.pairs, findings.benchmarks
    changes = {
        # If several answers were drawn to a question, only the first one's text is recorded.
        benchmark: list(_list_changes(number, benchmark, pair.with_first_answers))
        for number, (benchmark, pair) in enumerate(pairs.items())
    }
    answers_by_benchmark = _fit_answers(changes, benchmarks)
    counts: list[dict[str, Any]] = []
    for benchmark, benchmark_changes in changes.items():
        answers = answers_by_benchmark[benchmark]
        n_lost = sum(change.is_lost for change in benchmark_changes)
        n_lost_shown = sum(answer["lost"] for answer in answers)
        # For both kinds, how many there are, and how many of them the page shows.
        lost = (n_lost, n_lost_shown)
        gained = (len(benchmark_changes) - n_lost, len(answers) - n_lost_shown)
        counts.append({"name": benchmark, "lost": lost, "gained": gained})
    all_answers = [answer for benchmark in pairs for answer in answers_by_benchmark[benchmark]]
    all_answers.sort(key=lambda answer: not answer["lost"])  # the losses first
    data = {
        "benchmarks": [visible(benchmark) for benchmark in pairs],
        "causes": {cause: heading for cause, (heading, _) in text.CAUSES.items()},
        "answers": all_answers,
    }
    return pages.render(
        "answers.html.j2",
        name=redact_leaf(name),
        report=report,
        place=place,
        part=findings.part,
        counts=counts,
        longest=_LENGTH if any(map(_is_cut, all_answers)) else 0,  # 0: no text is cut
        n_changed=sum(map(len, changes.values())),
        n_shown=len(all_answers),
        has_choices=any("choices" in answer for answer in all_answers),
        # `acc_norm` takes the choice that is likeliest per character, and the page says so.
        by_length=[n for n, b in benchmarks.items() if Metric(b.metric).name == "acc_norm"],
        data=Markup(_write_json(data)),
    )


def _is_cut(answer: dict[str, Any]) -> bool:
    """Whether any text of an answer that `_write_answer` wrote is cut."""
    missing = [answer["prompt"][1], answer["target"][1], *answer.get("more", ())]
    return any(missing) or any(choice[1] for choice in answer.get("choices", ()))


def _write_json(value: Any) -> str:
    packed = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return packed.translate(_ESCAPES)


def _fit_answers(
    changes: Mapping[str, Sequence[_Change]], benchmarks: Mapping[str, BenchmarkChange]
) -> dict[str, list[dict[str, Any]]]:
    """Write the first answers of each benchmark, as many as there is room for on the page.

    Every benchmark has the same room. What one with few changes does not need is for the others.

    Args:
        changes: The changes of each benchmark; the first ones are written.
        benchmarks: The findings on each benchmark.

    Returns:
        The answers by benchmark, as `_write_answer` writes them.
    """
    written = dict[str, list[dict[str, Any]]]()
    room = _MOST_BYTES  # what the benchmarks that are not written yet share
    # The benchmark with the fewest changes comes first, so that the others get what it leaves.
    for name in sorted(changes, key=lambda name: len(changes[name])):
        n_benchmarks_left = len(changes) - len(written)
        share = room // n_benchmarks_left
        written[name] = []
        for change in changes[name][:MOST_SHOWN]:
            answer = _write_answer(change, benchmarks[name])
            n_bytes = len(_write_json(answer).encode())
            if n_bytes > share:
                break
            share -= n_bytes
            room -= n_bytes
            written[name].append(answer)
    return written


def _list_changes(number: int, name: str, pair: Pair) -> Iterator[_Change]:
    """Yield a benchmark's lost answers, then its gained ones; of both, the clearest come first.

    Args:
        number: The place of the benchmark among those of the page, from 0.
        name: The benchmark.
        pair: Both models' answers to it, one to each question.
    """
    changed = find_changed_answers(pair)
    metric = pair.base.benchmark.metric
    subjects = {sample.category or sample.task for sample in pair.base.samples}
    has_tasks = len({sample.task for sample in pair.base.samples}) > 1

    def describe(example: Example, is_lost: bool) -> _Change:
        """Describe one lost or gained answer, and how clear the change is.

        It is as clear as the change of the right choice's probability is large. Without that, the
        change of the mean of the answer's scores counts.
        """
        base, tuned = example.base, example.tuned
        # By metric, how far the score fell; below 0 if it rose.
        falls = {key: score - tuned.scores.get(key, 0.0) for key, score in base.scores.items()}
        p_loss = falls.get(CHOICE_PROBABILITY)
        fall = fsum(falls.values()) / max(1, len(falls)) if p_loss is None else p_loss
        cause = find_cause(example, metric) if is_lost and changed.has_causes else ""
        subject = (base.category or base.task) if len(subjects) > 1 else ""
        # Question numbers are unique only within a task, such as "colors-subject1-17".
        task_parts = [base.task] if has_tasks else []
        key = "-".join([name, *task_parts, str(base.doc_id)])
        return _Change(
            key=visible(key),
            benchmark=number,
            is_lost=is_lost,
            cause=cause,
            subject=visible(subject),
            example=example,
            p_loss=p_loss,
            clarity=fall if is_lost else -fall,  # a gain is clear if the score rose far
        )

    # An answer can be lost by a further metric and gained by the primary one. Then it is gained.
    # Both lists hold the same samples. These cannot be hashed, so they are found by their ids.
    gained_ids = {id(example.base) for example in changed.gained}
    lost = [describe(e, is_lost=True) for e in changed.lost if id(e.base) not in gained_ids]
    gained = [describe(e, is_lost=False) for e in changed.gained]
    for changes in (lost, gained):
        yield from sorted(changes, key=lambda change: -change.clarity)


def _write_answer(change: _Change, benchmark: BenchmarkChange) -> dict[str, Any]:
    """Write one answer of both models as JSON for the page's script, `pages/answers.js`.

    Args:
        change: The lost or gained answer.
        benchmark: The findings on its benchmark.

    Returns:
        The fields that every answer has, and those of its kind. "prompt" and "target" are pairs of
        the text and the number of its characters that are cut off. A list for both models has the
        base's value first.

        Multiple choice: "choices" (of each the text, the number of characters cut off, and both
        models' probabilities in percent or None); "right_choice" and "taken", indices of choices,
        see `_find_choice`.

        Generated answers: "texts", see `mark_difference`; "more", the number of characters that are
        cut off; and "words", the number of words of the whole text.
    """
    base, tuned = change.example.base, change.example.tuned
    answer: dict[str, Any] = {
        "key": change.key,
        "benchmark": change.benchmark,
        "lost": change.is_lost,
        "cause": change.cause,
        "subject": change.subject,
        "fall": change.p_loss,  # how far the right choice's probability fell
        # A prompt is cut at its beginning, because the question is at its end.
        "prompt": [visible(base.prompt[-_LENGTH:], multiline=True), _count_cut(base.prompt)],
        "target": _cut(base.target),
        "scores": [_describe_scores(sample, benchmark) for sample in (base, tuned)],
        "right": [sample.is_right(benchmark.metric) for sample in (base, tuned)],
    }
    if base.choices:
        probabilities = [_weigh_choices(sample, benchmark.metric) for sample in (base, tuned)]
        answer["choices"] = []
        for i, choice in enumerate(base.choices):
            # A model's list is empty if its log-likelihoods are unknown.
            percentages = [round(100 * p[i], 1) if p else None for p in probabilities]
            answer["choices"].append([*_cut(choice), *percentages])
        answer["right_choice"] = _find_choice(base, base.target)
        answer["taken"] = [_find_choice(s, s.answers.get(benchmark.metric)) for s in (base, tuned)]
        return answer
    responses = (base.response, tuned.response)
    answer["texts"] = mark_difference(_cut(base.response)[0], _cut(tuned.response)[0])
    answer["more"] = [_count_cut(response) for response in responses]
    answer["words"] = [len(response.split()) for response in responses]
    return answer


def _weigh_choices(sample: Sample, metric: str) -> list[float]:
    """Compute the probability that a model gives each choice, among all choices of the question.

    The likeliest choice is the one that the metric takes. So for `acc_norm`, which takes the choice
    that is likeliest per character, each log-likelihood is divided by the choice's length. It is
    then multiplied by the mean length of the choices. Otherwise all would be near 0, and the
    probabilities nearly equal.

    Returns:
        The probabilities by choice, which sum to 1. Empty if they cannot be computed, see
        `compute_probabilities`.
    """
    if Metric(metric).name != "acc_norm":
        return compute_probabilities(sample.log_likelihoods)
    lengths = [max(1, len(choice)) for choice in sample.choices]
    mean_length = fmean(lengths)
    pairs = zip(sample.log_likelihoods, lengths, strict=True)
    return compute_probabilities([value * mean_length / length for value, length in pairs])


def _cut(value: str) -> tuple[str, int]:
    """Return the beginning of a text, and how many of its characters are cut off."""
    return visible(value[:_LENGTH], multiline=True), _count_cut(value)


def _count_cut(value: str) -> int:
    return max(0, len(value) - _LENGTH)


def _describe_scores(sample: Sample, benchmark: BenchmarkChange) -> str:
    """Say how each metric read and scored an answer: "strict: read as “4”, right; ..."."""
    parts = list[str]()
    response = sample.response.strip()
    for metric in benchmark.changes:
        score = sample.scores.get(metric)
        if score is None:
            continue
        # What the metric's filter took from a generated answer. If it took all, nothing is quoted.
        extracted = "" if sample.choices else sample.answers.get(metric, "")
        is_quoted = extracted.strip() not in ("", response)
        quoted = f"read as “{extracted[:80]}”, " if is_quoted else ""
        result = {1.0: "right", 0.0: "wrong"}.get(score, format_value(float(score)))
        parts.append(f"{text.shorten_metric(metric, benchmark)}: {quoted}{result}")
    return visible("; ".join(parts))


def _find_choice(sample: Sample, choice: str | None) -> int:
    """Return the index of a choice; -1 if it is not among the sample's choices."""
    return sample.choices.index(choice) if choice in sample.choices else -1


def mark_difference(base: str, tuned: str) -> tuple[list[str], list[str]]:
    """Split two texts by words into parts that are equal and parts that are not, in turn.

    Returns:
        The parts of each text, equally many of both. The first part, the third and so on are equal
        in both texts; the first may be empty. The others differ, and may be empty in one text. If
        the texts have next to nothing in common, each text is one part.

    >>> mark_difference("there are 9 pens", "there are 18 pens")
    (['there are ', '9', ' pens'], ['there are ', '18', ' pens'])
    >>> mark_difference("it is four", "No.")
    (['it is four'], ['No.'])
    """
    before, after = _WORD.findall(base), _WORD.findall(tuned)
    # Punctuation and spaces match only beside words that match. Alone they say nothing.
    matcher = SequenceMatcher(lambda word: not word[0].isalnum(), before, after)
    n_shared = 0  # characters
    for block in matcher.get_matching_blocks():
        n_shared += sum(map(len, before[block.a : block.a + block.size]))
    if n_shared <= _LEAST_SHARED * max(len(base), len(tuned)):
        return [base], [tuned]
    changes = matcher.get_opcodes()  # equal and unequal parts, in turn; an unequal one may be first
    begins_equal = changes[0][0] == "equal"
    base_parts = [] if begins_equal else [""]
    tuned_parts = [] if begins_equal else [""]
    for _, base_begin, base_end, tuned_begin, tuned_end in changes:
        base_parts.append("".join(before[base_begin:base_end]))
        tuned_parts.append("".join(after[tuned_begin:tuned_end]))
    return base_parts, tuned_parts
