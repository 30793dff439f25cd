"""The table of scores: those of slimdown, and those that other packages add by entry points."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from slimdown.scoring.contains import Contains
from slimdown.scoring.json_schema import Json
from slimdown.scoring.language import Language
from slimdown.scoring.numeric import Numeric
from slimdown.scoring.pattern import Regex
from slimdown.scoring.refusal import Refusal
from slimdown.scoring.score import Rule, Score
from slimdown.scoring.tool_call import ToolCall
from slimdown.utils.errors import ConfigError, DataError
from slimdown.utils.extensions import add_extensions, list_added_choices

OWN: tuple[type[Score], ...] = (Score, Contains, Regex, Numeric, Refusal, ToolCall, Json, Language)


def name_scores() -> list[str]:
    """Return the name of every score; no package is imported."""
    return [*(kind.name for kind in OWN), *list_added_choices("score")]


@cache
def list_scores() -> dict[str, Score]:
    """Return every score by name.

    Raises:
        ConfigError: An extension, a package that adds a score, is broken.
    """
    own = {kind.name: kind for kind in OWN}
    wanted = "a subclass of slimdown.scoring.score.Score"  # what a message asks for

    def is_score_class(added: Any) -> bool:
        return isinstance(added, type) and issubclass(added, Score)

    classes = add_extensions("slimdown.scores", own, is_score_class, wanted)
    for name, kind in classes.items():
        if kind.name != name:
            problem = f"the score {kind.__module__}.{kind.__name__} has the name {kind.name!r}"
            raise ConfigError(f"{problem}, and its entry point {name!r}; give both one name")
    return {name: kind() for name, kind in classes.items()}


def find_score(name: str) -> Score:
    """Return a score by its name.

    Raises:
        DataError: There is no such score.
    """
    if (score := list_scores().get(name)) is None:
        raise DataError(f"score {name[:60]!r} is none of {', '.join(list_scores())}")
    return score


def read_answer(rule: Rule, text: str, phrases: Sequence[str] = (), tokenizer: Any = None) -> str:
    """Read what an answer to a question says, see `Score.read`."""
    return find_score(rule["score"]).read(text, rule, phrases, tokenizer)


def is_right(rule: Rule, read: str) -> bool:
    """Return whether what was read in an answer to a question is right, see `Score.is_right`."""
    return find_score(rule["score"]).is_right(read, rule)
