"""Write the questions that a fine-tuning lost in the form of own questions, to ask them again.

What a log says of a question is its prompt, what is right, and both answers. So a rule for its
answers is taken only if it finds the base's answer right and the tuned model's wrong, as the
benchmark did. A question that no rule of own questions fits is left out.

Own questions are those that a user writes into a file, see docs/benchmarks.md. The rule of a row
says what is right (`answer`) and how an answer is compared with it (`score`).
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from slimdown.evaluation.results import FLAT_MESSAGES, Metric, Sample
from slimdown.judging.pairing import Pair
from slimdown.scoring.contains import Contains
from slimdown.scoring.numeric import Numeric, is_number
from slimdown.scoring.question_files import read_row
from slimdown.scoring.refusal import Refusal
from slimdown.scoring.score import EXACT
from slimdown.scoring.scores import is_right, name_scores, read_answer
from slimdown.scoring.tool_call import ToolCall
from slimdown.utils.errors import DataError

# Metrics that compare an answer with the target; IFEval's and the like check something else.
_COMPARES = re.compile(
    r".*match.*|flexible_accuracy|q?p?em|acc(uracy)?|score|includes|exact|pattern|answer|right"
)
BY_LENGTH = "choices_by_length"  # the kind of choices that acc_norm ranks
UNCUT = "_uncut"  # the end of the kinds whose answers must not be cut at an empty line


@dataclass(frozen=True)
class LostQuestions:
    """Lost questions, as rows of files of own questions."""

    rows: dict[str, list[dict[str, Any]]]  # by kind; each kind needs a file of its own
    left_out: dict[str, int]  # by benchmark, those that own questions cannot express


def collect_lost_questions(
    pairs: Mapping[str, Pair], conditions: Mapping[str, str], is_chat: bool
) -> LostQuestions:
    """Collect the questions that the base answered correctly and the tuned model did not.

    Args:
        pairs: Both models' answers by benchmark, to questions that are not held out. The
            benchmark's primary metric says whether an answer is right.
        conditions: Those under which the base was asked.
        is_chat: Whether prompts went through a chat template: an answer then ends where the model
            ends it, and may hold empty lines.

    Returns:
        The questions as rows of own questions, and how many questions no row can express.
    """
    rows, left_out = dict[str, list[dict[str, Any]]](), Counter[str]()  # by kind; by benchmark
    has_clusters = any(sample.cluster for pair in pairs.values() for sample in pair.base.samples)
    is_flat = conditions.get(FLAT_MESSAGES) == "true"  # the log wrote messages as one text
    for name, pair in pairs.items():
        # If several answers were drawn to a question, only the first one's text is recorded.
        first = pair.with_first_answers
        metric = pair.base.benchmark.metric
        for base, tuned in zip(first.base.samples, first.tuned.samples, strict=True):
            is_lost = base.is_right(metric) and not tuned.is_right(metric)
            if not is_lost:
                continue
            question = _write_question(base.prompt, is_flat)
            # By default, own questions cut the answer to a text at its first empty line. They do
            # not cut the answer to messages.
            is_text = "messages" not in question
            row = _write_row(question, base, tuned, metric, end="\n\n" if is_text else "")
            is_uncut = row is None and is_text and is_chat
            if is_uncut:
                # A rule may still fit the whole answer of a chat, beyond its empty lines. Such a
                # question must be asked without the cut. The rules of other questions may fit the
                # cut answer alone, so the two are of different kinds, in different files.
                row = _write_row(question, base, tuned, metric, end="")
            if row is None:  # no rule fits
                left_out[name] += 1
                continue
            if has_clusters:  # each row needs one then; a question without one is its own cluster
                row["cluster"] = base.unit
            kind = _name_kind(row, metric) + (UNCUT if is_uncut else "")
            rows.setdefault(kind, []).append(row)
    return LostQuestions(rows, dict(left_out))


def _name_kind(row: dict[str, Any], metric: str) -> str:
    """Name the kind of a row: rows of one kind fit into one file of own questions."""
    kind = "refusals" if row.get("score") == Refusal.name else "written"
    if "choices" in row:
        kind = BY_LENGTH if "norm" in metric else "choices"
    return f"{kind}_of_chats" if "messages" in row else kind


def _write_question(prompt: str, is_flat: bool) -> dict[str, Any]:
    """Write a prompt as a question: as messages if the log holds them, otherwise as a text.

    Args:
        prompt: A text, or the messages as JSON.
        is_flat: Whether the log has written messages as one text, each behind its role.
    """
    try:
        messages = json.loads(prompt) if prompt.startswith("[{") else None
        turns = [{key: turn[key] for key in ("role", "content")} for turn in messages or ()]
    except (ValueError, LookupError, TypeError):  # a text that begins like messages
        turns = []
    if is_flat and not turns:
        turns = [{"role": "user", "content": prompt}]
        if re.search(r"(?:\A|\n\n)(?:system|assistant|tool|user): ", prompt):
            # Several messages, which cannot be told apart. `read_row` refuses this role, so the
            # question will be left out.
            turns = [{"role": "unknown", "content": ""}]
    return {"messages": turns} if turns else {"question": prompt}


def _write_row(
    question: dict[str, Any], base: Sample, tuned: Sample, metric: str, end: str
) -> dict[str, Any] | None:
    """Write a question with the first rule that judges both answers as the benchmark did.

    Args:
        question: What is asked, under the key "question" or "messages".
        base: The base's answer, which the rule must find right.
        tuned: The tuned model's answer, which the rule must find wrong.
        metric: The metric by which the benchmark judged them.
        end: The text at which answers are cut; empty: they are not cut.

    Returns:
        A row of own questions: the question and the keys of the rule. None if no rule fits.
    """
    if base.choices:
        if base.target not in base.choices:
            return None
        if "question" in question:  # own questions put a space between a question and a choice
            question = {"question": question["question"].removesuffix(" ")}
        rules = [{"choices": list(base.choices), "answer": base.choices.index(base.target)}]
    else:
        rules = list(_list_rules(base.target, Metric(metric).name))
    for rule in rules:
        row: dict[str, Any] = question | rule
        try:
            read = read_row(row, EXACT)
            json.dumps(row, ensure_ascii=False).encode()  # raises at half of a surrogate pair
            # Own questions rank choices as the benchmark did, so no answer needs a check.
            if base.choices or (_finds(read, base, end) and not _finds(read, tuned, end)):
                return row
        except (DataError, UnicodeEncodeError):  # no file of own questions can hold this row
            continue
    return None


def _list_rules(target: str, metric: str) -> Iterator[dict[str, Any]]:
    """Yield the rules that may fit a written answer, the strictest first.

    A rule holds the keys of a row that say what is right: `answer`, a text or a list of texts of
    which any is right, and `score`, how an answer is compared with it. Without `score` the answer
    must be exactly this text.

    Args:
        target: What is right, as the log holds it.
        metric: The metric of the log. It is the name of a score if the log is one of own questions.
            There are no rules if it does not compare an answer with a target.
    """
    answer = target.rsplit("####", 1)[-1].strip()  # GSM8K writes its solution before this mark
    answers: list[Any] = answer.split(" | ")  # which stands between several right answers
    if metric == ToolCall.name:
        answers = [json.loads(call) for call in answers if _is_json(call)]
    accepted = answers[0] if len(answers) == 1 else answers
    if metric in (Contains.name, Numeric.name):
        scores = [metric]
    elif metric in name_scores() and metric != EXACT:
        yield {"answer": accepted, "score": metric}  # no other score judges in this way
        return
    elif _COMPARES.fullmatch(metric):  # also EXACT
        scores = [EXACT, Numeric.name, Contains.name]
    else:
        return
    if EXACT in scores:
        yield {"answer": accepted}
    if Numeric.name in scores and all(map(is_number, answers)):
        yield {"answer": accepted, "score": Numeric.name}
    if Contains.name in scores:
        if re.fullmatch("[A-Z]", answer):  # nearly every text contains a given letter
            accepted = f"answer is {answer}"
        yield {"answer": accepted, "score": Contains.name}


def _is_json(call: str) -> bool:
    try:
        return bool(json.loads(call))
    except ValueError:
        return False


def _finds(row: dict[str, Any], sample: Sample, end: str) -> bool:
    """Whether a row's rule finds an answer right if it is cut as own questions cut it."""
    rule = json.loads(row["rule"])
    text = sample.response.split(end)[0] if end else sample.response
    cut_texts = [text]
    if rule["score"] == EXACT and end and "\n" not in row["answer"]:
        cut_texts.append(text.split("\n")[0])  # as in a file whose rows are all exact
    return all(is_right(rule, read_answer(rule, cut_text)) for cut_text in cut_texts)
