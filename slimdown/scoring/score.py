"""What a score is: how an answer is read, when it is right, and how a row is checked."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, ClassVar
from unicodedata import normalize

from slimdown.utils.errors import DataError
from slimdown.utils.row_files import is_visible

Rule = dict[str, Any]
"""How one question is scored, as JSON holds it: `score`, `accepted`, and what the score adds."""

EXACT = "exact"
"""The name of the score that rows have unless they say otherwise."""

_SIGNS = str.maketrans("‘’“”−–⁄", "''\"\"--/")


class Score:
    """How a written answer is read, and when it is right.

    A score is a subclass, and a row of the table in `scores.py`. It overrides what it does
    otherwise than `exact`, which this class is.

    Attributes:
        name: What `score` calls it.
        description: When an answer is right, for the documentation.
        takes_lists: Whether a row may have several right answers.
        is_of_whole_file: Whether all rows of a file have it.
        names_answers: Whether right answers are words that could stand in training rows.
    """

    name: ClassVar[str] = EXACT
    description: ClassVar[str] = (
        "it equals the right one, upper and lower case included; this is the default"
    )
    takes_lists: ClassVar[bool] = True
    is_of_whole_file: ClassVar[bool] = False
    names_answers: ClassVar[bool] = True

    def check_answer(self, answer: Any, record: Mapping[str, Any]) -> str:
        """Return a right answer of a row as a text, in the form in which a rule keeps it.

        Args:
            answer: As the row has it.
            record: The row.

        Raises:
            DataError: It is no such answer.
        """
        if not (text := to_text(answer)):
            raise DataError(f"answer is {answer!r}, and must be a text or a number"[:200])
        return text

    def list_extras(self, accepted: Sequence[str], record: Mapping[str, Any]) -> Rule:
        """Return what the rule of a row holds besides its right answers.

        Raises:
            DataError: The row has something that this score does not take, or that is wrong.
        """
        if forbidden := record.get("forbidden"):
            wanted = f"must be a list of texts and is for score=contains, got {forbidden!r}"
            raise DataError(f"forbidden {wanted} and score={self.name}"[:200])
        return {"forbidden": [], "tools": None}

    def categorize(self, accepted: Sequence[str]) -> str:
        """Return the kind of question that a row has; empty if all are of one kind."""
        return ""

    def read(
        self, text: str, rule: Rule, phrases: Sequence[str] = (), tokenizer: Any = None
    ) -> str:
        """Read what an answer says; return an empty text if it is unreadable.

        Args:
            text: The answer.
            rule: The question's.
            phrases: Further phrases of refusals.
            tokenizer: The model's.
        """
        return text.strip()

    def is_right(self, read: str, rule: Rule) -> bool:
        """Return whether what was read in an answer is right.

        Raises:
            DataError: A pattern takes too long.
        """
        return read in rule["accepted"]

    def write_right_answers(self, rule: Rule) -> list[str]:
        """Return the right answers as a model may write them; none if they are no words."""
        return list(rule["accepted"]) if self.names_answers else []


def check_right_answers(score: Score, rule: Rule) -> None:
    """Check that each right answer of a row is right by the row's own rule.

    Raises:
        DataError: Names the answer, and what was read in it.
    """
    for answer in score.write_right_answers(rule):
        read = score.read(answer, rule)
        if not score.is_right(read, rule):
            shown = f", which reads {read[:60]!r} in it" if read else ", which reads nothing in it"
            raise DataError(
                f"its own right answer {answer[:60]!r} is wrong by score={score.name}"
                f"{'' if read == answer else shown}; correct the answer, or choose another score"
            )


def to_text(value: Any) -> str:
    """Return a text without spaces around it, or a number as text; empty if nothing is visible."""
    # A whole number may be too large for a float.
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    is_number = is_whole or (isinstance(value, float) and isfinite(value))
    text = str(value).strip() if is_number or isinstance(value, str) else ""
    if "\0" in text:
        raise DataError("it holds a NUL character; take it out")
    return text if is_visible(text) else ""


def fold(text: str) -> str:
    """Return a text without case, in compatible characters, with plain quotes and dashes."""
    return normalize("NFKC", text).casefold().translate(_SIGNS)
