"""`numeric`: the answer's last number is the right one."""

import re
from collections.abc import Mapping
from math import inf, isclose, isfinite
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
    r"""Read the last number of a text, with these exceptions; None if there is none.

    The sentence behind "####" or "the answer is" comes first. If it begins with a number, this one
    counts, unless "=" or "is" follows. Otherwise a result behind "=" comes before later numbers.
    Digits come before words ("8 is the right one"). Words are known up to twenty. "18 out of 20" is
    18. A range and a choice are no number, nor is "12,5", which countries read differently.

    >>> read_number("It has eight legs."), read_number("So $1,000.50 in all"), read_number("-50%")
    (8.0, 1000.5, -50.0)
    >>> read_number("The answer is 3 1/2. Ask me 2 more!"), read_number("3 × 10^8 m/s")
    (3.5, 300000000.0)
    >>> read_number("none"), read_number("It has 1-8 legs"), read_number("9, not 8")
    (None, None, 9.0)
    """
    text = _write_plainly(text)
    *before, last = _ANSWER_IS.split(text)
    behind = last.strip() if before else ""  # what stands behind "the answer is"
    sentence = re.split(r"[.!?](?=\s|$)|\n", behind, maxsplit=1)[0]
    if beginning := _BEGINS_WITH_NUMBER.match(sentence):
        sentence = beginning[0]
    parts = [part for part in (sentence, behind, text) if _has_number(part)]
    return _read_last(_cut_behind_result(parts[0])) if parts else None


def is_number(text: str) -> bool:
    """Return whether a text holds one number, or names one as the answer.

    >>> is_number("$1,000"), is_number("3 1/2"), is_number("1 000"), is_number("12,5")
    (True, True, False, False)
    """
    text = _write_plainly(text)
    return read_number(text) is not None and (
        _ANSWER_IS.search(text) is not None or len(_IN_DIGITS.findall(text)) < 2
    )


def _write_plainly(text: str) -> str:
    """Write the numbers of a text plainly: 1/2 and 3e8, without currency and "out of 20"."""
    # "3½" gets a space, and "10⁸" becomes "10^8".
    text = re.sub(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])", " ", text)
    raised = "[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+"
    text = re.sub(rf"(?<=\d)\u207b?{raised}", lambda sign: f"^{fold(sign[0])}", text)
    # "3 × 10^8" becomes "3e8", and "2^3" becomes "8".
    text = re.sub(r"(?<=\d) ?(?:[x*×·]|\\times|\\cdot) ?(?=10 ?(?:\^|\*\*))", "*", fold(text))
    text = re.sub(r"(?<=\d)\*10 ?(?:\^|\*\*) ?[{(]?(-?\d+)[})]?", r"e\1", text)
    text = re.sub(r"[a-z]*[$€£¥]", "", text)  # currency: "US$5"
    text = _POWER.sub(_write_power, text)
    text = re.sub(r"(?<![\d*])\*+|\*+(?![\d*])", "", text)  # emphasis: "**8**"
    text = re.sub(r"\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)
    # Numbers that are no answer: "not 8", "as of 2024", and the total of "18/20 points".
    number = rf"-?(?:[\d.,]*\d|{_WORDS.replace(' ', '|')})\b"
    text = re.sub(rf"\b(?:not|instead of|rather than) {number}", "", text)
    text = re.sub(r"(\d+)/\d+(?= (?:correct|right|points?|marks?|questions?)\b)", r"\1", text)
    text = re.sub(r"\bas of \d{4}\b", "", text)
    # "1.5 million" becomes "1500000".
    text = re.sub(
        rf"((?<![\w.,])(?:{_DECIMAL})) (thousand|million|billion|trillion)\b",
        lambda match: f"{float(match[1].replace(',', '')) * _SCALES[match[2]]:.15g}",
        text,
    )
    total = r"%? \(?(?:out )?of (?:the |a total of )?\d[\d,]*\b\)?"  # of "18 out of 20"
    return re.sub(rf"(?<![\d/.,])(\d[\d,]*)(?:{total})+", r"\1", text)


def _write_power(power: re.Match[str]) -> str:
    try:
        return f"{float(power[1]) ** int(power[2]):.15g}"
    except (OverflowError, ZeroDivisionError):
        return "1e999"  # no finite number


def _cut_behind_result(text: str) -> str:
    """Cut off what follows the last result: "36 - 5 = 31, so 2 boxes are full" ends at 31.

    A result is a number behind "=". It is looked for in the last sentence that has a number.
    """
    ends = [0, *(end.end() for end in re.finditer(r"[.!?]\s|\n", text)), len(text)]
    for begin, end in zip(ends[-2::-1], ends[:0:-1], strict=True):
        if _has_number(text[begin:end]):
            results = list(_RESULT.finditer(text, begin, end))
            return text[: results[-1].end()] if results else text
    return text


def _has_number(text: str) -> bool:
    return bool(_IN_DIGITS.search(text) or _IN_WORDS.search(text))


def _read_last(text: str) -> float | None:
    """Read the last number in digits, or else in words.

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
    # "12'500", and the exponent of "x^2"
    is_part = re.search(r"\d[.,'_٫٬]$|\^[{(]?-?$", before) or re.match(r"[.,'_٫٬]\d", after)
    # "12 500", which some countries write for 12,500
    is_group = re.search(r"(?<!\d)\d{1,3} $", before) and re.fullmatch(r"\d{3}", last[0])
    if is_part or is_group or _OTHER_END.search(before):
        return None
    # Either a fraction, perhaps with a whole number before it ("3 1/2"), or a decimal number.
    minus, whole, numerator, denominator, decimal = last.groups("")
    number = float((decimal or whole or "0").replace(",", ""))
    if denominator:
        number += float(numerator) / float(denominator) if float(denominator) else inf
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
