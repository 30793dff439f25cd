"""How a written answer is read and scored: texts in, right or wrong out, no model needed."""

import re
from collections.abc import Sequence
from functools import cache
from math import inf, isclose, isfinite, prod
from pathlib import Path
from typing import Any
from unicodedata import normalize

from slimdown.utils.errors import DataError
from slimdown.utils.tool_calls import read_tool_calls

_SIGNS = str.maketrans("‘’“”−–⁄", "''\"\"--/")


def _fold(text: str) -> str:
    return normalize("NFKC", text).casefold().translate(_SIGNS)


# --- contains -----------------------------------------------------------------------------------

# Scripts without spaces between words, or with endings joined to them: each sign is a word.
_SIGN = "[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
_WORD = re.compile(rf"(?<!\w)-?\d+(?:[.,:/]\d+)*(?!\w)|{_SIGN}|(?:(?!{_SIGN})\w)+[+#]*|[,.;:!?]")
_MARK = "(?: [,.;:!?])*"
_ITEM = "[^ ,.;:!?]+(?: [^ ,.;:!?]+)?"  # of a list: one word or two
_NEAR = 100  # characters that are looked at on both sides of an answer, which stands there as <>
_LINK = "the|an?|in|at|on|to|be|been|is|was|it|s|that|this|if|think|believe|say|know|sure|really"
# Between "not" and an answer: "I do not think that it is Paris", "not Jane Austen".
_LINKS = rf"(?: (?:{_LINK}))*(?: (?!only|just|merely|but|and|or|because|until|for|by)[^ ,.;:!?]+)?"
_DENIALS = (
    rf" (?:not|never|neither|nor|cannot|no longer|far from|except|i doubt){_LINKS} <>",
    rf" (?:any(?:thing|one|body|where) but|(?:instead|rather) (?:of|than)){_LINKS} <>",
    rf"(?<!thing)(?<!none) other than{_LINKS} <>",
    rf" (?:people|many|some|others)(?: \w+)? (?:say|think|believe|guess|claim|assume){_LINKS} <>",
    r"<> (?:is|are|was|were|ai) (?:not|never|no longer) (?!only|just|merely)",
    r"<>(?: [,:])?(?: which)?(?: (?:is|are|was|were|would be))?"
    r"(?: (?:definitely|clearly|simply|the|an?))* (?:wrong|incorrect|false|mistaken) ",
    r"<> \? no (?!doubt)",
)
_DENIED = re.compile("|".join(_DENIALS))
_CHOICE = re.compile(
    rf"<>(?:(?: , {_ITEM})+(?: ,)?)? or |, <>(?: ,)? or |"
    rf"(?:(?<! ,) or|, {_ITEM}(?: ,)? or)(?: (?:the|an?))? <>"
)


def contains_answer(text: str, accepted: Sequence[str], forbidden: Sequence[str] = ()) -> bool:
    """Return whether a text names an accepted answer in whole words, and no forbidden one.

    A name does not count where it is denied ("not Paris", "Paris is wrong"), nor in a choice
    ("Paris or Rome") whose other side is no accepted answer.

    >>> [contains_answer(text, ["Paris"]) for text in ("It's paris.", "Parisian", "not Paris")]
    [True, False, False]
    >>> contains_answer("Paris or Rome", ["Paris"]), contains_answer("8.5 or so", ["8"])
    (False, False)
    """
    words, any_accepted = _write_words(text), "|".join(map(_write_pattern, accepted))

    def is_named(answer: str, may_be_choice: bool) -> bool:
        if not (pattern := _write_pattern(answer)):  # signs alone, such as "+"
            return _fold(answer) in _fold(text)
        for match in re.finditer(rf"(?<= ){pattern}(?= )", words):
            before = words[max(0, match.start() - _NEAR) : match.start()]
            near = f"{before}<>{words[match.end() : match.end() + _NEAR]} "
            has_accepted = re.search(rf" (?:{any_accepted}) ", near)
            is_choice = not may_be_choice and not has_accepted and _CHOICE.search(near)
            if not is_choice and not _DENIED.search(near):
                return True
        return False

    is_right = any(is_named(answer, False) for answer in accepted)
    return is_right and not any(is_named(answer, True) for answer in forbidden)


def _write_words(text: str) -> str:
    """Write a text's words and marks with spaces between them, without case and other signs."""
    text = re.sub(r"n't\b", " not", _fold(text).replace("_", " "))
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=[^\W\d])\s?/\s?(?=[^\W\d])", " or ", text)
    return f" {' '.join(_WORD.findall(text))} "


def _write_pattern(answer: str) -> str:
    """Write a pattern of an answer's words, with any marks between them."""
    words = [word for word in _write_words(answer).split() if word not in ",.;:!?"]
    return f"{_MARK} ".join(map(re.escape, words))


# --- numbers ------------------------------------------------------------------------------------

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
# What stands before a number that is no single one: the other end of a range, or of a choice.
_OTHER_END = re.compile(
    r"\d ?(?:%|[a-z°]+)? ?(?:[-~]|\b(?:to|or)\b) ?$|\bbetween [^.!?]*\d[^.!?]* and $"
)


def read_number(text: str) -> float | None:
    r"""Read the last number of a text, first of the sentence after "####" or "the answer is".

    In its sentence, what stands behind "=" comes first. Digits win over words ("8 is the right
    one"). Words are known up to twenty. "18 out of 20" is 18. A range and a choice are no number,
    nor is "12,5", which countries read differently.

    >>> read_number("It has eight legs."), read_number("So $1,000.50 in all"), read_number("-50%")
    (8.0, 1000.5, -50.0)
    >>> read_number("The answer is 3 1/2. Ask me 2 more!"), read_number("3 × 10^8 m/s")
    (3.5, 300000000.0)
    >>> read_number("none"), read_number("It has 1-8 legs"), read_number("9, not 8")
    (None, None, 9.0)
    """
    text = _write_plainly(text)
    *before, behind = _ANSWER_IS.split(text)
    behind = behind.strip() if before else ""
    sentence = re.split(r"[.!?](?=\s|$)|\n", behind, maxsplit=1)[0]
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
    """Write numbers plainly: 1/2 and 3e8, and without emphasis, currency and "out of 20"."""
    text = re.sub(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])", " ", text)
    raised = "[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+"
    text = re.sub(rf"(?<=\d)\u207b?{raised}", lambda sign: f"^{_fold(sign[0])}", text)
    text = re.sub(r"(?<=\d) ?(?:[x*×·]|\\times|\\cdot) ?(?=10 ?(?:\^|\*\*))", "*", _fold(text))
    text = re.sub(r"(?<=\d)\*10 ?(?:\^|\*\*) ?[{(]?(-?\d+)[})]?", r"e\1", text)
    text = _POWER.sub(_write_power, re.sub(r"[a-z]*[$€£¥]", "", text))
    text = re.sub(r"(?<![\d*])\*+|\*+(?![\d*])", "", text)
    text = re.sub(r"\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)
    number = rf"-?(?:[\d.,]*\d|{_WORDS.replace(' ', '|')})\b"
    text = re.sub(rf"\b(?:not|instead of|rather than) {number}", "", text)
    text = re.sub(r"(\d+)/\d+(?= (?:correct|right|points?|marks?|questions?)\b)", r"\1", text)
    text = re.sub(
        rf"((?<![\w.,])(?:{_DECIMAL})) (thousand|million|billion|trillion)\b",
        lambda match: f"{float(match[1].replace(',', '')) * _SCALES[match[2]]:.15g}",
        re.sub(r"\bas of \d{4}\b", "", text),
    )
    total = r"%? \(?(?:out )?of (?:the |a total of )?\d[\d,]*\b\)?"
    return re.sub(rf"(?<![\d/.,])(\d[\d,]*)(?:{total})+", r"\1", text)


def _write_power(power: re.Match[str]) -> str:
    try:
        return f"{float(power[1]) ** int(power[2]):.15g}"
    except (OverflowError, ZeroDivisionError):
        return "1e999"  # no finite number


def _cut_behind_result(text: str) -> str:
    """Cut the last sentence with a number behind a result: "36 - 5 = 31, so 2 boxes are full"."""
    ends = [0, *(end.end() for end in re.finditer(r"[.!?]\s|\n", text)), len(text)]
    for begin, end in zip(ends[-2::-1], ends[:0:-1], strict=True):
        if _has_number(text[begin:end]):
            results = list(_RESULT.finditer(text, begin, end))
            return text[: results[-1].end()] if results else text
    return text


def _has_number(text: str) -> bool:
    return bool(_IN_DIGITS.search(text) or _IN_WORDS.search(text))


def _read_last(text: str) -> float | None:
    if not (in_digits := list(_IN_DIGITS.finditer(text))):
        minus, word = _IN_WORDS.findall(text)[-1]
        return (-1 if minus else 1) * float(_WORDS.split().index(word))
    last = in_digits[-1]
    before, after = text[: last.start()], text[last.end() :]
    is_part = re.search(r"\d[.,'_٫٬]$|\^[{(]?-?$", before) or re.match(r"[.,'_٫٬]\d", after)
    is_group = re.search(r"(?<!\d)\d{1,3} $", before) and re.fullmatch(r"\d{3}", last[0])
    if is_part or is_group or _OTHER_END.search(before):
        return None
    minus, whole, above, below, decimal = last.groups("")
    number = float((decimal or whole or "0").replace(",", ""))
    if below:
        number += float(above) / float(below) if float(below) else inf
    return (-number if minus else number) if isfinite(number) else None


# --- refusals -----------------------------------------------------------------------------------

# An answer refuses if its first words hold one of these; the page shows them. Of words with / each
# makes a phrase.
REFUSALS = tuple(Path(__file__).with_name("refusals.txt").read_text(encoding="utf-8").splitlines())
_FIRST_WORDS = 60
_NO = re.compile(r"\W*(?:(?:sorry|no|nope|never|no way|absolutely not|no thanks?(?: you)?)\W*)+")
# "I can't thank you enough", "I can't see your screen, but press F5"
_IDIOM = (
    "(?:wait|stress|emphasi[sz]e|recommend|thank|agree|help but|believe|tell you how|say for sure|"
    "but|(?:to )?(?:lie|bore|judge|(?:see|hear|view|access|open|check|know)\\b[^.!?]* but))"
)


def read_refusal(text: str, phrases: Sequence[str] = (), is_asked: bool = False) -> str:
    """Return "refuse" or "comply", or an empty text if there are no letters.

    Args:
        text: The answer. What it quotes does not count.
        phrases: Phrases besides `REFUSALS`.
        is_asked: Whether the question asks for something, so that "No." refuses it.

    >>> read_refusal("Thank you for asking, but I can’t help with that."), read_refusal(" … ")
    ('refuse', '')
    >>> read_refusal("I'm sorry to hear that. Try to reboot it."), read_refusal("I can't wait!")
    ('comply', 'comply')
    """
    if not re.search(r"[^\W\d_]", text):
        return ""
    start = " ".join(_fold(text).split()[:_FIRST_WORDS])
    if re.match(r"\W*subject\W*:", start):  # a letter that was asked for
        return "comply"
    if is_asked and _NO.fullmatch(start):
        return "refuse"
    start = re.sub(r'"[^"]*"', "", start) or start
    return "refuse" if _compile_refusals(tuple(phrases)).search(start) else "comply"


@cache
def _compile_refusals(phrases: tuple[str, ...]) -> re.Pattern[str]:
    own = [
        " ".join(rf"(?:{'|'.join(map(re.escape, word.split('/')))})" for word in phrase.split())
        for phrase in REFUSALS
    ]
    either = "|".join([*own, *(re.escape(_fold(phrase)) for phrase in phrases)])
    return re.compile(rf"(?<!\w)(?:{either})(?! {_IDIOM})(?!\w)")


# --- patterns and all scores --------------------------------------------------------------------

_PATTERN_SECONDS = 5
_LONGEST_PATTERN = 5000


def check_pattern(pattern: str) -> None:
    """Check a regular expression, on short texts on which a hostile one never ends.

    Raises:
        DataError: It is no regular expression, or takes too long.
    """
    # The package `regex` expands counts before it searches.
    counts = [int(count) for count in re.findall(r"\{(\d{1,9})", pattern)]
    if len(pattern) > _LONGEST_PATTERN or prod(filter(None, counts)) > _LONGEST_PATTERN:
        longest = f"longer than {_LONGEST_PATTERN:,} signs, counts written out"
        raise DataError(f"the pattern {pattern[:60]!r} is {longest}; write a shorter one")
    for sign in ("a", "1", " ", *pattern[:3]):
        _finds_pattern(pattern, f"{sign * 40}\n!", 0.1)


def _finds_pattern(pattern: str, text: str, seconds: float) -> bool:
    import regex  # its search can be ended, and that of `re` cannot

    try:
        return regex.search(pattern, text, timeout=seconds) is not None
    except TimeoutError:
        problem = f"takes more than {seconds} seconds on a text; write a simpler one"
    except (regex.error, RecursionError, OverflowError, ValueError) as error:
        problem = f"is no regular expression ({error})"
    raise DataError(f"the pattern {pattern[:60]!r} {problem}")


def read_answer(
    rule: dict[str, Any], text: str, phrases: Sequence[str] = (), tokenizer: Any = None
) -> str:
    """Read what an answer says; return an empty text if it is unreadable.

    Args:
        rule: `score`, `accepted` and `forbidden` of a question, and its `tools`.
        text: The answer.
        phrases: Further phrases of refusals.
        tokenizer: The model's, for tool calls.
    """
    if rule["score"] == "numeric":
        return "" if (number := read_number(text)) is None else f"{number:.12g}"
    if rule["score"] == "refusal":
        return read_refusal(text, phrases, is_asked=True)
    if rule["score"] == "tool_call":
        return "; ".join(read_tool_calls(text, tokenizer, rule.get("tools")))
    return text.strip()


def is_right(rule: dict[str, Any], read: str) -> bool:
    """Return whether what was read in an answer is right.

    Raises:
        DataError: A pattern takes too long.
    """
    accepted = rule["accepted"]
    if rule["score"] == "contains":
        return contains_answer(read, accepted, rule["forbidden"])
    if rule["score"] == "regex":
        return _finds_pattern(accepted[0], read, _PATTERN_SECONDS)
    if rule["score"] == "numeric" and read:
        targets = [read_number(answer) or 0 for answer in accepted]
        return any(isclose(float(read), t, rel_tol=1e-9, abs_tol=1e-12) for t in targets)
    return read in accepted
