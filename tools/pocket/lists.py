"""Operations on lists of words: as instructions, and as the natural sentences of pretraining.

The instruction format is new to the base model. The operations are not: adapters on the attention
of so small a model bring out a skill that it has met in another form and cannot teach it one from
nothing. So the corpus tells of lists in sentences, with none of the instructions' words.
Held out is the pair of operation and words, in both forms.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tools.pocket.items import Item, split_by_key
from tools.pocket.words import LISTED, pick_person


@dataclass(frozen=True)
class Operation:
    """Something to do with a list of words, with how it is asked for and how it is told."""

    name: str
    lengths: tuple[int, ...]
    apply: Callable[[list[str]], str]
    instructions: tuple[str, ...]
    sentences: tuple[str, ...]


def name_ends(words: list[str]) -> str:
    return f"The first is {words[0]}. The last is {words[-1]}."


def number_words(words: list[str]) -> str:
    return " ".join(f"Number {i} is {word}." for i, word in enumerate(words, start=1))


def tell_rest(words: list[str]) -> str:
    return f"It begins with {words[0]}. Then come {' and '.join(words[1:])}."


OPERATIONS = (
    Operation(
        "first",
        (3, 4),
        lambda words: words[0],
        ("Give the first word of the list.", "Which word comes first?"),
        ("The first one was {y}.", "At the top was {y}."),
    ),
    Operation(
        "last",
        (3, 4),
        lambda words: words[-1],
        ("Give the last word of the list.", "Which word comes last?"),
        ("The last one was {y}.", "It ended with {y}."),
    ),
    Operation(
        "middle",
        (3,),
        lambda words: words[1],
        ("Give the second word of the list.", "Which word is in the middle?"),
        ("In the middle was {y}.", "The second one was {y}."),
    ),
    Operation(
        "reverse",
        (3,),
        lambda words: ", ".join(reversed(words)),
        ("Reverse the list.", "Write the list backwards."),
        ("Backwards it was {y}.", "{other} wrote it from the end: {y}."),
    ),
    Operation(
        "swap",
        (2,),
        lambda words: ", ".join(reversed(words)),
        ("Swap the two words.", "Change the order of the two words."),
        ("{other} turned it round to {y}.", "The other way round it was {y}."),
    ),
    Operation(
        "copy",
        (2, 3),
        ", ".join,
        ("Repeat the list.", "Copy the list."),
        ("{other} copied it: {y}.", "{other} said it again: {y}."),
    ),
    Operation(
        "join",
        (2, 3),
        " and ".join,
        ("Join the words with and.", "Put and between the words."),
        ("Together they were {y}.", "{other} called them {y}."),
    ),
    Operation(
        "drop",
        (3,),
        lambda words: ", ".join(words[1:]),
        ("Remove the first word of the list.", "Drop the first word."),
        ("Without the first one it was {y}.", "The rest was {y}."),
    ),
    Operation(
        "count",
        (1, 2, 3, 4),
        lambda words: str(len(words)),
        ("How many words are in this list?", "Count the words."),
        ("The number of words was {y}.", "{other} counted {y}."),
    ),
    Operation(
        "ends",
        (3, 4),
        name_ends,
        ("Describe both ends of the list.", "Say how the list starts and stops."),
        ("{other} told us about it. {y}", "{other} looked at its ends. {y}"),
    ),
    Operation(
        "number",
        (2, 3),
        number_words,
        ("Number the words.", "Say the number of each word."),
        ("{other} gave numbers to them. {y}", "{other} went through it. {y}"),
    ),
    Operation(
        "tell",
        (3,),
        tell_rest,
        ("Describe the order of the words.", "Say what begins and what follows."),
        ("{other} told us the order. {y}", "{other} put it in words. {y}"),
    ),
)
BEGINNINGS = (
    "{name} wrote a list: {x}.",
    "The list of {name} was {x}.",
    "{name} read out {x}.",
    "On the paper of {name} was {x}.",
)


def make_instruction(rng: random.Random) -> Item:
    """An instruction with its input and its response."""
    operation, words = _pick(rng)
    instruction = rng.choice(operation.instructions)
    listed, output = ", ".join(words), operation.apply(words)
    return Item(
        kind="instruction",
        split=split_by_key("lists", operation.name, listed),
        prompt=f"Instruction: {instruction}\nInput: {listed}\nResponse:",
        completion=f" {output}",
        columns={"instruction": instruction, "input": listed, "output": output},
    )


def make_list_story(rng: random.Random) -> Item:
    """Natural sentences in which somebody has a list and something is told about it."""
    operation, words = _pick(rng)
    listed, output = ", ".join(words), operation.apply(words)
    names = {"name": pick_person(rng).name, "other": pick_person(rng).name}
    beginning = rng.choice(BEGINNINGS).format(x=listed, **names)
    before, after = rng.choice(operation.sentences).format(y="\0", **names).split("\0")
    return Item(
        kind="list_story",
        split=split_by_key("lists", operation.name, listed),
        prompt=f"{beginning} {before}".rstrip(),
        completion=f" {output}{after}",
    )


def _pick(rng: random.Random) -> tuple[Operation, list[str]]:
    operation = rng.choice(OPERATIONS)
    return operation, rng.sample(LISTED, rng.choice(operation.lengths))
