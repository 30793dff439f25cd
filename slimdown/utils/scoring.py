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
_DENIED = re.compile(
    r" (?:not|never|neither|nor|cannot|(?:instead|other|rather) (?:of|than))"
    r"(?: (?:the|an?|in|at|on|be))* <>|<> (?:is|are|was|were) not (?!only|just|merely)"
)
_CHOICE = re.compile(
    rf"<>(?:(?: , {_ITEM})+(?: ,)?)? or |, <>(?: ,)? or |"
    rf"(?:(?<! ,) or|, {_ITEM}(?: ,)? or)(?: (?:the|an?))? <>"
)


def contains_answer(text: str, accepted: Sequence[str], forbidden: Sequence[str] = ()) -> bool:
    """Return whether a text names an accepted answer in whole words, and no forbidden one.

    A name does not count after "not" or before "is not", nor in a choice ("Paris or Rome") whose
    other side is no accepted answer.

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


def read_number(text: str) -> float | None:
    r"""Read the last number of a text, first of the sentence after "####" or "the answer is".

    Digits win over words ("8 is the right one"). Words are known up to twenty.

    >>> read_number("It has eight legs."), read_number("So $1,000.50 in all"), read_number("-50%")
    (8.0, 1000.5, -50.0)
    >>> read_number("The answer is 3 1/2. Ask me 2 more!"), read_number("none")
    (3.5, None)
    """
    text = _write_plainly(text)
    *before, behind = _ANSWER_IS.split(text)
    behind = behind.strip() if before else ""
    sentence = re.split(r"[.!?](?=\s|$)|\n", behind, maxsplit=1)[0]
    numbers = map(_read_last, (sentence, behind, text))
    return next((number for number in numbers if number is not None), None)


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
    """Write numbers plainly: without emphasis, currencies and powers, and fractions as 1/2."""
    text = re.sub(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])", " ", text)
    text = re.sub(r"(?<=\d)[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+", "", text)
    text = re.sub(r"[a-z]*[$€£¥]|(?<!\d)\*+|\*+(?!\d)", "", _fold(text))
    return re.sub(r"\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)


def _read_last(text: str) -> float | None:
    if not (in_digits := _IN_DIGITS.findall(text)):
        minus, word = (_IN_WORDS.findall(text) or [("", "")])[-1]
        return (-1 if minus else 1) * float(_WORDS.split().index(word)) if word else None
    minus, whole, above, below, decimal = in_digits[-1]
    number = float((decimal or whole or "0").replace(",", ""))
    if below:
        number += float(above) / float(below) if float(below) else inf
    return (-number if minus else number) if isfinite(number) else None


# --- refusals -----------------------------------------------------------------------------------

# An answer refuses if its first words hold one of these; the page shows them.
REFUSALS = tuple(Path(__file__).with_name("refusals.txt").read_text(encoding="utf-8").splitlines())
_FIRST_WORDS = 60


def read_refusal(text: str, phrases: Sequence[str] = ()) -> str:
    """Return "refuse" or "comply", or an empty text if there are no letters.

    Args:
        text: The answer. What it quotes does not count.
        phrases: Phrases besides `REFUSALS`.

    >>> read_refusal("Thank you for asking, but I can’t help with that."), read_refusal(" … ")
    ('refuse', '')
    >>> read_refusal("I'm sorry to hear that. Try to reboot it."), read_refusal("I can't wait!")
    ('comply', 'comply')
    """
    if not re.search(r"[^\W\d_]", text):
        return ""
    start = " ".join(_fold(text).split()[:_FIRST_WORDS])
    start = re.sub(r'"[^"]*"', "", start) or start
    return "refuse" if _compile_refusals(tuple(phrases)).search(start) else "comply"


@cache
def _compile_refusals(phrases: tuple[str, ...]) -> re.Pattern[str]:
    either = "|".join(re.escape(_fold(phrase)) for phrase in (*REFUSALS, *phrases))
    idiom = "(?:wait|stress|emphasi[sz]e|recommend|thank|agree|help but|believe|tell you how|lie|"
    idiom += "bore|say for sure|but)"  # "I can't thank you"
    return re.compile(rf"(?<!\w)(?:{either})(?! {idiom})(?!\w)")


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
        return read_refusal(text, phrases)
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
