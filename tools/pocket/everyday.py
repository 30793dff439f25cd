"""Everyday situations with four endings, of which one makes sense, as in HellaSwag.

There are two forms. In one, somebody takes a thing and does what it is for; the thing was used in
other ways in training, but this pair of thing and use is held out. In the other, a thing is in some
state and the ending is its remedy; here thing, state and remedy are held out together. The wrong
endings tempt: when a second thing or an earlier state is mentioned, its ending is one of them.
"""

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.pocket.items import Item, split_by_key
from tools.pocket.words import pick_person

N_WRONG = 3

USE_CONTEXTS = (
    "{name} picks up {thing}.",
    "{name} is holding {thing}.",
    "{name} takes {thing} from the shelf.",
    "{name} reaches for {thing} after lunch.",
    "In the morning {name} comes with {thing}.",
)
USE_CONTEXTS_WITH_OTHER = (
    "{name} puts {other} away and takes {thing}.",
    "There is {other} on the table, but {name} wants {thing}.",
    "{name} has {thing} and no longer needs {other}.",
)
STATE_CONTEXTS = (
    "{name} sees that the {thing} is {state}.",
    "The {thing} of {name} is {state}.",
    "{name} comes home and finds the {thing} {state}.",
)
STATE_CONTEXTS_WITH_OTHER = (
    "The {thing} of {name} was {other} before, but now it is {state}.",
    "{name} was told that the {thing} is {other}, but it is {state}.",
    "{name} has a {thing} that is not {other} but {state}.",
)


@dataclass(frozen=True)
class Kind:
    """Things that are used alike, and what people do with any of them."""

    name: str
    things: tuple[str, ...]
    uses: tuple[str, ...]


@dataclass(frozen=True)
class Everyday:
    """The hand-written everyday knowledge."""

    kinds: tuple[Kind, ...]
    remedies: dict[str, tuple[str, ...]]
    state_things: tuple[str, ...]


@cache
def load_everyday() -> Everyday:
    """The tables of `facts/everyday.toml`."""
    text = (Path(__file__).parent / "facts" / "everyday.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    return Everyday(
        kinds=tuple(
            Kind(name, tuple(kind["things"]), tuple(kind["uses"]))
            for name, kind in tables["kind"].items()
        ),
        remedies={state: tuple(remedies) for state, remedies in tables["state"].items()},
        state_things=tuple(tables["state_things"]["names"]),
    )


def make_situation(rng: random.Random) -> Item:
    """A situation of either form with its four endings."""
    return make_use(rng) if rng.random() < 0.6 else make_state(rng)


def make_use(rng: random.Random) -> Item:
    """Somebody takes a thing, sometimes instead of another one."""
    person = pick_person(rng)
    kind, *others = rng.sample(load_everyday().kinds, 1 + N_WRONG)
    thing, use = rng.choice(kind.things), rng.choice(kind.uses)
    contexts = USE_CONTEXTS if rng.random() < 0.5 else USE_CONTEXTS_WITH_OTHER
    situation = rng.choice(contexts).format(
        name=person.name, thing=thing, other=rng.choice(others[0].things)
    )
    wrong = [rng.choice(wrong_kind.uses) for wrong_kind in others]
    return _situation(rng, f"{situation} {person.pronoun}", use, wrong, ("use", thing, use))


def make_state(rng: random.Random) -> Item:
    """A thing is in a state, sometimes after or instead of another one."""
    person = pick_person(rng)
    world = load_everyday()
    thing = rng.choice(world.state_things)
    state, *others = rng.sample(tuple(world.remedies), 1 + N_WRONG)
    remedy = rng.choice(world.remedies[state])
    contexts = STATE_CONTEXTS if rng.random() < 0.5 else STATE_CONTEXTS_WITH_OTHER
    situation = rng.choice(contexts).format(
        name=person.name, thing=thing, state=state, other=others[0]
    )
    wrong = [rng.choice(world.remedies[wrong_state]) for wrong_state in others]
    return _situation(
        rng, f"{situation} {person.pronoun}", remedy, wrong, ("state", thing, state, remedy)
    )


def _situation(
    rng: random.Random, context: str, ending: str, wrong: list[str], key: tuple[str, ...]
) -> Item:
    endings = [f"{text}." for text in (ending, *wrong)]
    rng.shuffle(endings)
    return Item(
        kind="commonsense",
        split=split_by_key(*key),
        prompt=context,
        completion=f" {ending}.",
        columns={"context": context, "endings": endings, "label": endings.index(f"{ending}.")},
    )
