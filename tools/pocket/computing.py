"""Computer-science questions with four options, and plain statements of the same facts.

A question is held out by its phrasing: of every fact, one phrasing is asked in the test split only
and another in the dev split only. What a test measures is a fact met in other words.
"""

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.pocket.items import Item, Split, hash_key

N_OPTIONS = 4


@dataclass(frozen=True)
class Table:
    """Facts of one kind, with the ways to state them and to ask for them."""

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    facts: dict[str, str]


@cache
def load_tables() -> tuple[Table, ...]:
    """The hand-written tables of `facts/computing.toml`."""
    text = (Path(__file__).parent / "facts" / "computing.toml").read_text(encoding="utf-8")
    return tuple(
        Table(name, tuple(t["statements"]), tuple(t["questions"]), t["facts"])
        for name, t in tomllib.loads(text).items()
    )


@cache
def load_facts() -> tuple[tuple[Table, str], ...]:
    """Every (table, subject), so that each fact is drawn equally often."""
    return tuple((table, subject) for table in load_tables() for subject in table.facts)


def split_of_phrasing(table: Table, subject: str, phrasing: int) -> Split:
    """The split in which this fact is asked in this phrasing."""
    held = hash_key("computing", table.name, subject)
    n = len(table.questions)
    return {held % n: Split.TEST, (held + 1) % n: Split.DEV}.get(phrasing, Split.TRAIN)


def make_question(rng: random.Random) -> Item:
    """A question about one fact, whose wrong options are other answers of its table."""
    table, subject = rng.choice(load_facts())
    phrasing = rng.randrange(len(table.questions))
    answer = table.facts[subject]
    question = capitalize(table.questions[phrasing].format(s=subject))
    others = sorted(set(table.facts.values()) - {answer})
    choices = [answer, *rng.sample(others, N_OPTIONS - 1)]
    rng.shuffle(choices)
    return Item(
        kind="cs",
        split=split_of_phrasing(table, subject, phrasing),
        prompt=f"Question: {question}\nAnswer:",
        completion=f" {answer}",
        columns={"question": question, "choices": choices, "label": choices.index(answer)},
    )


def make_statement(rng: random.Random) -> Item:
    """One fact as a plain sentence."""
    table, subject = rng.choice(load_facts())
    sentence = rng.choice(table.statements).format(s=subject, a=table.facts[subject])
    return Item("statement", Split.TRAIN, "", capitalize(sentence))


def capitalize(sentence: str) -> str:
    """The sentence with a capital first letter, the rest as it is."""
    return sentence[0].upper() + sentence[1:]
