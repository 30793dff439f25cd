"""Names and words that several generators share."""

import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

_WORDS: dict[str, list[str]] = tomllib.loads(
    (Path(__file__).parent / "facts" / "words.toml").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Person:
    """Somebody a story is about."""

    name: str
    pronoun: str


PEOPLE = tuple(
    [Person(name, "He") for name in _WORDS["he"]] + [Person(name, "She") for name in _WORDS["she"]]
)
COUNTED = tuple(_WORDS["counted"])
LISTED = tuple(sorted({*COUNTED, *(person.name for person in PEOPLE), *_WORDS["listed"]}))


def pick_person(rng: random.Random) -> Person:
    """Anybody."""
    return rng.choice(PEOPLE)
