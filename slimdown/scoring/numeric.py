"""`numeric`: the answer's last number is the right one."""

import re
from collections.abc import Mapping
from itertools import pairwise
from math import isclose, isfinite
from typing import Any

from slimdown.scoring.score import Rule, Score, fold
from slimdown.utils.errors import DataError

_WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_WORDS += " fifteen sixteen seventeen eighteen nineteen twenty"
_IN_WORDS = re.compile(
    rf"(?<![\w-])(?<!ty )(minus |negative )?({_WORDS.replace(' ', '|')})"
    r"(?![\w-]| (?:hundred|thousand|million))"
)
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:e[+-]?\d+)?|\.\d+"
_IN_DIGITS = re.compile(
    rf"(?<![\w.])((?<![)\]])-(?=[\d.]))?(?:(?:(\d+) )?(\d+)/(\d+)(?![\d/])|({_DECIMAL}))"
)
_ANSWER_IS = re.compile(r"####|\banswer(?: is|:)|\\boxed\{")
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_POWER = re.compile(r"(?<![\w.^])(\d+(?:\.\d+)?) ?(?:\^|\*\*) ?[{(]?(-?\d{1,4})[})]?(?![\w^])")
_SCALED = re.compile(rf"((?<![\w.,])(?:{_DECIMAL})) ({'|'.join(_SCALES)})\b")
_RESULT = re.compile(rf"= ?-?(?:{_DECIMAL})(?:/\d+)?(?! ?[-+*/x×÷^] ?[\d(])(?![\d.,]*\d)")
# "Answer: 14 weeks (and 2 days)", but not "Answer: 7 + 7 is 14", which goes on to the answer.
_BEGINS_WITH_NUMBER = re.compile(
    r"[^\w(]*(?:(?:about|around|approximately|roughly|exactly) )?"
    rf"(?:{_DECIMAL})(?:[ -]\d+/\d+|/\d+)?(?![\d.,]*\d)"
    r"(?! ?[-+*/x×÷^~=] ?[\d(]| (?:(?:to|or|and) )?\d)"
    r"(?!.*(?:=|\b(?:is|are|equals?|makes?|gives?|so)\b).*\d)"
)
# What stands before a number that is no single one: the other end of a range, or of a choice.
_OTHER_END = re.compile(
    r"\d ?(?:%|[a-z°]+)? ?(?:[-~]|\b(?:to|or)\b) ?$|\bbetween [^.!?]*\d[^.!?]* and $"
)


def read_number(text: str) -> float | None:
    """Read the number that a text gives as its answer, which usually is its last one.

    It is read in the first of these parts that has a number, in digits or as a word up to twenty:

    1. The sentence behind the last "####", "answer:" or "answer is". If it begins with a number
       ("14 weeks and 2 days"), only this beginning, unless "=" or "is" follows ("7 + 7 is 14").
    2. All that follows these words.
    3. The whole text.

    In that part, what follows a result behind "=" is cut off, and the last number of the rest is
    read. Numbers in digits come before words ("8 is the right one"). Of "18 out of 20" and "18, not
    20", only 18 counts.

    Returns:
        The number; None if there is none, or if it belongs to a range, to a choice, or to a number
        such as "12,5", which countries read differently.

    >>> read_number("It has eight legs."), read_number("So $1,000.50 in all"), read_number("-50%")
    (8.0, 1000.5, -50.0)
    >>> read_number("The answer is 3 1/2. Ask me 2 more!"), read_number("3 × 10^8 m/s")
    (3.5, 300000000.0)
    >>> read_number("none"), read_number("It has 1-8 legs"), read_number("9, not 8")
    (None, None, 9.0)
    """
    text = _write_plainly(text)
    parts = [text]
    if _ANSWER_IS.search(text):
        behind = _ANSWER_IS.split(text)[-1].strip()
        sentence = re.split(r"[.!?](?=\s|$)|\n", behind, maxsplit=1)[0]
        beginning = _BEGINS_WITH_NUMBER.match(sentence)
        parts = [beginning[0] if beginning else sentence, behind, text]
    part = next(filter(_has_number, parts), None)
    return _read_last(_cut_behind_result(part)) if part else None


def is_number(text: str) -> bool:
    """Return whether a text holds one number, or names one as the answer.

    >>> is_number("$1,000"), is_number("3 1/2"), is_number("1 000"), is_number("12,5")
    (True, True, False, False)
    """
    text = _write_plainly(text)
    is_clear = bool(_ANSWER_IS.search(text)) or len(_IN_DIGITS.findall(text)) < 2
    return is_clear and read_number(text) is not None


def _write_plainly(text: str) -> str:
    """Write the numbers of a text in one form, such as 8, 1.5, 1/2 and 3e8, without currency.

    Numbers that are no answer are left out, such as the 8 of "not 8" and the 20 of "18 out of 20".
    The order of the steps matters: first numbers are written plainly, and then those that are no
    answer are found by this form.
    """
    # These two come before `fold`, which would make 31/2 of "3½", and 108 of "10⁸".
    text = re.sub(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])", " ", text)  # "3½": "3 ½"
    raised = "\u207b?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+"
    text = re.sub(rf"(?<=\d){raised}", lambda digits: f"^{fold(digits[0])}", text)  # "10⁸": "10^8"
    text = fold(text)  # "½": "1/2"; all letters are small from here on
    # "3 × 10^8": "3*10^8", and that becomes "3e8". `_POWER` below would write 10^8 out.
    text = re.sub(r"(?<=\d) ?(?:[x*×·]|\\times|\\cdot) ?(?=10 ?(?:\^|\*\*))", "*", text)
    text = re.sub(r"(?<=\d)\*10 ?(?:\^|\*\*) ?[{(]?(-?\d+)[})]?", r"e\1", text)
    text = re.sub(r"[a-z]*[$€£¥]", "", text)  # "US$5": "5"
    text = _POWER.sub(_write_power, text)  # "2^3" and "2**3": "8"
    # "**8**": "8". Asterisks are emphasis if no digit stands on one of their sides; those of "3*4"
    # stay. Those of "2 ** 3" would go, but `_POWER` has read them above.
    text = re.sub(r"(?<![\d*])\*+|\*+(?![\d*])", "", text)
    text = re.sub(r"\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)  # "\frac{1}{2}": "1/2"
    # Numbers that are no answer: "not 8", the total of "18/20 points", "as of 2024"
    number = rf"-?(?:[\d.,]*\d|{_WORDS.replace(' ', '|')})\b"
    text = re.sub(rf"\b(?:not|instead of|rather than) {number}", "", text)
    text = re.sub(r"(\d+)/\d+(?= (?:correct|right|points?|marks?|questions?)\b)", r"\1", text)
    text = re.sub(r"\bas of \d{4}\b", "", text)
    # "1.5 million": "1500000". It comes before totals, or "2 million of 3 million" would keep both.
    text = _SCALED.sub(_write_scaled, text)
    # "18 out of 20": "18". The total has several forms, and a second one may follow: "18 of 20 (of
    # the 30)".
    total = r"%? \(?(?:out )?of (?:the |a total of )?\d[\d,]*\b\)?"
    return re.sub(rf"(?<![\d/.,])(\d[\d,]*)(?:{total})+", r"\1", text)


def _write_scaled(scaled: re.Match[str]) -> str:
    """Write "1.5 million", a match of `_SCALED`, as "1500000"."""
    return f"{float(scaled[1].replace(',', '')) * _SCALES[scaled[2]]:.15g}"


def _write_power(power: re.Match[str]) -> str:
    """Write "2^3", a match of `_POWER`, as "8"."""
    try:
        return f"{float(power[1]) ** int(power[2]):.15g}"
    except (OverflowError, ZeroDivisionError):
        return "1e999"  # no finite number


def _cut_behind_result(text: str) -> str:
    """Cut off what follows the last result: "36 - 5 = 31, so 2 boxes are full" ends at 31.

    A result is a number behind "=". It is looked for in the last sentence that has a number.
    """
    ends = [sentence_end.end() for sentence_end in re.finditer(r"[.!?]\s|\n", text)]
    for begin, end in reversed(list(pairwise([0, *ends, len(text)]))):
        if _has_number(text[begin:end]):
            results = list(_RESULT.finditer(text, begin, end))
            return text[: results[-1].end()] if results else text
    return text


def _has_number(text: str) -> bool:
    return bool(_IN_DIGITS.search(text) or _IN_WORDS.search(text))


def _read_last(text: str) -> float | None:
    """Read the last number in digits or, if there is none, the last one in words.

    Args:
        text: What `_write_plainly` returned, with a number as `_has_number` finds it.

    Returns:
        None if the number is part of a longer one, of a range or of a choice, or is not finite.
    """
    if not (in_digits := list(_IN_DIGITS.finditer(text))):
        minus, word = _IN_WORDS.findall(text)[-1]
        number = float(_WORDS.split().index(word))  # the words stand in order, from zero
        return -number if minus else number
    last = in_digits[-1]
    before, after = text[: last.start()], text[last.end() :]
    # The last match is only the 500 of "12'500", the 1.2 of "1.2.3" (as no match begins behind a
    # point), or the exponent of "x^2".
    is_part = re.search(r"\d[.,'_٫٬]$|\^[{(]?-?$", before) or re.match(r"[.,'_٫٬]\d", after)
    # "12 500", which some countries write for 12,500
    is_group = re.search(r"(?<!\d)\d{1,3} $", before) and re.fullmatch(r"\d{3}", last[0])
    if is_part or is_group or _OTHER_END.search(before):
        return None
    # A group that matches nothing is "". Either `decimal` matches, or the parts of a fraction do.
    minus, whole, numerator, denominator, decimal = last.groups("")
    if decimal:
        number = float(decimal.replace(",", ""))  # a match has commas only between thousands
    elif float(denominator):
        number = float(whole or 0) + float(numerator) / float(denominator)  # such as "3 1/2"
    else:
        return None  # a division by zero
    return (-number if minus else number) if isfinite(number) else None


class Numeric(Score):
    """Right if the number that the answer ends with is an accepted one."""

    name = "numeric"
    description = (
        'its last number is right. If it says "####", "Answer:" or "the answer is", only the '
        "sentence behind these words counts; if that sentence begins with a number, this number "
        'counts. "18 out of 20" always counts as 18. A range such as "1 to 8" is no number.'
    )

    def check_answer(self, answer: Any, record: Mapping[str, Any]) -> str:
        """Check that the answer is one number."""
        text = super().check_answer(answer, record)
        if not is_number(text):
            problem = f"answer {text[:60]!r} is not one number, such as 12.5"
            raise DataError(f"score=numeric, and {problem}")
        return text

    def read(self, text: str, rule: Rule, *_: Any, **__: Any) -> str:
        """Read the last number."""
        return "" if (number := read_number(text)) is None else f"{number:.12g}"

    def is_right(self, read: str, rule: Rule) -> bool:
        """Compare numbers."""
        if not read:
            return False
        targets = [read_number(answer) or 0 for answer in rule["accepted"]]
        return any(isclose(float(read), t, rel_tol=1e-9, abs_tol=1e-12) for t in targets)
