"""`contains`: the answer names the right words, and no forbidden ones."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import category

from slimdown.scoring.score import Rule, Score, fold, to_text
from slimdown.utils.errors import DataError

# Scripts without spaces between words, or with endings joined to them: each sign is a word.
_SIGN = "[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
# Vowel signs of Hindi and the like, which belong to the letter before them, and are no \w.
_VOWELS = "".join(char for char in map(chr, range(0x300, 0xFE00)) if category(char) in ("Mn", "Mc"))
_LETTER = rf"(?!{_SIGN})\w[{_VOWELS}]*"
_WORD = re.compile(rf"(?<!\w)-?\d+(?:[.,:/]\d+)*(?!\w)|{_SIGN}|(?:{_LETTER})+[+#]*|[,.;:!?]")
_MARK = "(?: [,.;:!?])*"
_ITEM = "[^ ,.;:!?]+(?: [^ ,.;:!?]+)?"  # of a list: one word or two
_NEAR = 100  # characters that are looked at on both sides of an answer
# In the patterns below, <> stands for the answer.
_LINK = "the|an?|in|at|on|to|be|been|is|was|it|s|that|this|if|think|believe|say|know|sure|really"
# Between "not" and an answer: "I do not think that it is Paris", "not Jane Austen", "not made of".
_LINKS = (
    rf"(?: (?:{_LINK}))*(?: (?!only|just|merely|but|and|or|because|until|for|by)[^ ,.;:!?]+)?"
    r"(?: of)?"
)
_DENIALS = (
    rf" (?:not|never|neither|nor|cannot|no longer|far from|except|i doubt){_LINKS} <>",
    rf" (?:any(?:thing|one|body|where) but|(?:instead|rather) (?:of|than)){_LINKS} <>",
    rf"(?<!thing)(?<!none) other than{_LINKS} <>",
    rf" (?:people|many|some|others)(?: \w+)? (?:say|think|believe|guess|claim|assume){_LINKS} <>",
    r"<> (?:is|are|was|were|ai) (?:not|never|no longer) (?!only|just|merely)",
    r"<>(?: [,:])?(?: which)?(?: (?:is|are|was|were|would be))?"
    r"(?: (?:definitely|clearly|simply|the|an?))* (?:wrong|incorrect|false|mistaken) ",
    r"<> \? no (?!doubt)",
    # Named in passing: "Rome, because Paris is in France", "January, followed by February"
    r" , (?:because(?! of)|as(?! (?:an?|the|you|i|we|always|usual))|followed by)"
    r"(?: [^ ,.;:!?]+)* <>",
)
_DENIED = re.compile("|".join(_DENIALS))
_CHOICE = re.compile(
    rf"<>(?:(?: , {_ITEM})+(?: ,)?)? or |, <>(?: ,)? or |"
    rf"(?:(?<! ,) or|, {_ITEM}(?: ,)? or)(?: (?:the|an?))? <>"
)


def contains_answer(text: str, accepted: Sequence[str], forbidden: Sequence[str] = ()) -> bool:
    """Return whether a text names an accepted answer in whole words, and no forbidden one.

    Neither counts where it is denied ("not Paris", "Paris is wrong"). In a choice ("Paris or Rome")
    an accepted answer counts only if the other side is accepted, too; a forbidden one counts.

    Args:
        text: What the model wrote.
        accepted: Any of these makes the answer right.
        forbidden: Any of these makes it wrong.

    >>> [contains_answer(text, ["Paris"]) for text in ("It's paris.", "Parisian", "not Paris")]
    [True, False, False]
    >>> contains_answer("Paris or Rome", ["Paris"]), contains_answer("8.5 or so", ["8"])
    (False, False)
    """
    words = _write_words(text)
    if any(_find_mentions(answer, text, words) for answer in forbidden):
        return False
    patterns = {_write_pattern(answer) for answer in accepted}
    for answer in accepted:
        # An answer of signs alone has an empty pattern, which would match anywhere.
        others = "|".join(patterns - {"", _write_pattern(answer)})
        # A mention is the text around one place of the answer, with <> for the answer itself.
        for mention in _find_mentions(answer, text, words):
            is_choice = _CHOICE.search(mention)
            # A choice is right if another accepted answer is beside this one.
            if not is_choice or (others and re.search(rf" (?:{others}) ", mention)):
                return True
    return False


def _find_mentions(answer: str, text: str, words: str) -> list[str]:
    """Find the places where a text names an answer and does not deny it.

    Args:
        answer: An accepted or a forbidden answer.
        text: What the model wrote.
        words: What `_write_words` returns for the text.

    Returns:
        For each place, up to `_NEAR` characters of the words before it and after it, with <> for
        the answer, such as " it is <> or rome  ". `_DENIED` and `_CHOICE` match this form.
    """
    pattern = _write_pattern(answer)
    if not pattern:  # the answer has no words, only signs such as "+"
        return ["<>"] if fold(answer) in fold(text) else []
    mentions = []
    for place in re.finditer(rf"(?<= ){pattern}(?= )", words):
        before = words[max(0, place.start() - _NEAR) : place.start()]
        after = words[place.end() : place.end() + _NEAR]
        mentions.append(f"{before}<>{after} ")  # the space ends a word that may have been cut
    return [mention for mention in mentions if not _DENIED.search(mention)]


def _write_words(text: str) -> str:
    """Write a text's words and marks with spaces between them, without case and other signs."""
    text = re.sub(r"n't\b", " not", fold(text).replace("_", " "))
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=[^\W\d])\s?/\s?(?=[^\W\d])", " or ", text)
    return f" {' '.join(_WORD.findall(text))} "


def _write_pattern(answer: str) -> str:
    """Write a pattern of an answer's words, with any marks between them."""
    words = [word for word in _write_words(answer).split() if word not in ",.;:!?"]
    return f"{_MARK} ".join(map(re.escape, words))


class Contains(Score):
    """Right if the answer names an accepted text and no forbidden one."""

    name = "contains"
    description = (
        "it names the right one in whole words (upper and lower case do not matter), and nothing "
        'that the row lists in `forbidden`. It does not deny the right one ("not Paris"). It does '
        'not leave it open ("Paris or Rome").'
    )

    def list_extras(self, accepted: Sequence[str], record: Mapping[str, Any]) -> Rule:
        """Read the forbidden texts."""
        forbidden = record.get("forbidden") or []
        is_list = isinstance(forbidden, list)
        if not is_list or not all(isinstance(text, str) and to_text(text) for text in forbidden):
            wanted = f"must be a list of texts and is for score=contains, got {forbidden!r}"
            raise DataError(f"forbidden {wanted}"[:200])
        for answer in accepted:
            if contains_answer(answer, accepted) > contains_answer(answer, accepted, forbidden):
                problem = f"forbidden holds a part of the right answer {answer[:60]!r}"
                raise DataError(f"{problem}, which is then always wrong; take this part out")
        return {"forbidden": forbidden, "tools": None}

    def is_right(self, read: str, rule: Rule) -> bool:
        """Look for the accepted and the forbidden texts."""
        return contains_answer(read, rule["accepted"], rule["forbidden"])
