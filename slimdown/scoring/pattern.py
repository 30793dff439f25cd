"""`regex`: a pattern is found in the answer."""

import re
from collections.abc import Mapping
from math import prod
from typing import Any

from slimdown.scoring.score import Rule, Score
from slimdown.utils.errors import DataError

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


class Regex(Score):
    """Right if the pattern is found."""

    name = "regex"
    description = "the pattern is found in it"
    takes_lists = False
    names_answers = False

    def check_answer(self, answer: Any, record: Mapping[str, Any]) -> str:
        """Check that the pattern can be searched."""
        text = super().check_answer(answer, record)
        check_pattern(text)
        return text

    def is_right(self, read: str, rule: Rule) -> bool:
        """Search the pattern."""
        return _finds_pattern(rule["accepted"][0], read, _PATTERN_SECONDS)
