"""Word problems whose answers are worked out step by step, as in GSM8K.

A problem is held out by its family and its numbers: the sums of a test problem never occur in a
training problem of the same family, whatever the names and things in it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tools.pocket.items import Item, Split, split_by_key
from tools.pocket.words import COUNTED, PEOPLE, Person

CONTAINERS = {
    "box": "boxes",
    "bag": "bags",
    "basket": "baskets",
    "shelf": "shelves",
    "jar": "jars",
    "drawer": "drawers",
    "crate": "crates",
    "tray": "trays",
}
GAINS = ("buys", "finds", "gets", "picks", "wins", "makes", "collects")
LOSSES = ("loses", "sells", "gives away", "breaks", "drops", "uses", "throws away")
STARTS = (
    "{name} has {n} {things}.",
    "{name} owns {n} {things}.",
    "At first {name} has {n} {things}.",
    "There are {n} {things} in the {box} of {name}.",
)
QUESTIONS = (
    "How many {things} does {name} have now?",
    "How many {things} are there now?",
    "How many {things} does {name} have in the end?",
)


@dataclass(frozen=True)
class Step:
    """One sum of a worked answer, with the words before it."""

    left: int
    operator: str
    right: int
    lead: str = ""

    @property
    def result(self) -> int:
        """What the sum comes to; divisions come out even."""
        return {
            "+": self.left + self.right,
            "-": self.left - self.right,
            "x": self.left * self.right,
            "/": self.left // self.right,
        }[self.operator]

    def written(self, unit: str) -> str:
        """The sentence of this step."""
        return f"{self.lead}{self.left} {self.operator} {self.right} = {self.result} {unit}."


@dataclass(frozen=True)
class Problem:
    """A question, its worked steps (the last one gives the answer), and what is counted."""

    question: str
    steps: tuple[Step, ...]
    unit: str


@dataclass(frozen=True)
class Scene:
    """Who and what a problem is about, with the numbers still to come."""

    rng: random.Random
    who: Person
    other: Person
    things: str
    box: str

    @property
    def boxes(self) -> str:
        return CONTAINERS[self.box]

    def start(self, n: int) -> str:
        text = self.rng.choice(STARTS)
        return text.format(name=self.who.name, n=n, things=self.things, box=self.box)

    def ask(self) -> str:
        return self.rng.choice(QUESTIONS).format(name=self.who.name, things=self.things)

    def gains(self, n: int, more: str = "more ") -> str:
        return f"{self.rng.choice(GAINS)} {n} {more}{self.things}"

    def loses(self, n: int) -> str:
        return f"{self.rng.choice(LOSSES)} {n} {self.things}"

    def filled(self, boxes: int, each: int) -> str:
        return f"{self.who.name} has {boxes} {self.boxes} with {each} {self.things} in each {self.box}."


def gain(s: Scene) -> Problem:
    x, y = s.rng.randint(2, 30), s.rng.randint(2, 20)
    question = f"{s.start(x)} {s.who.pronoun} {s.gains(y)}. {s.ask()}"
    return Problem(question, (Step(x, "+", y),), s.things)


def lose(s: Scene) -> Problem:
    x = s.rng.randint(5, 40)
    y = s.rng.randint(2, min(x - 1, 20))
    question = f"{s.start(x)} {s.who.pronoun} {s.loses(y)}. {s.ask()}"
    return Problem(question, (Step(x, "-", y),), s.things)


def groups(s: Scene) -> Problem:
    each, n = s.rng.randint(2, 9), s.rng.randint(2, 9)
    question = f"{s.filled(n, each)} How many {s.things} does {s.who.name} have?"
    if s.rng.random() < 0.5:
        question = f"Each {s.box} holds {each} {s.things}. {s.who.name} has {n} {s.boxes}. How many {s.things} is that in all?"
    return Problem(question, (Step(n, "x", each),), s.things)


def share(s: Scene) -> Problem:
    each, n = s.rng.randint(2, 9), s.rng.randint(2, 9)
    question = s.rng.choice(
        (
            f"{s.who.name} shares {each * n} {s.things} equally among {n} friends. "
            f"How many {s.things} does each friend get?",
            f"{s.who.name} puts {each * n} {s.things} into {n} {s.boxes} equally. "
            f"How many {s.things} are in each {s.box}?",
        )
    )
    return Problem(question, (Step(each * n, "/", n),), s.things)


def compare(s: Scene) -> Problem:
    x, y = s.rng.randint(2, 30), s.rng.randint(2, 20)
    question = (
        f"{s.who.name} has {x} {s.things}. {s.other.name} has {y} more {s.things} than "
        f"{s.who.name}. How many {s.things} does {s.other.name} have?"
    )
    return Problem(question, (Step(x, "+", y),), s.things)


def gain_twice(s: Scene) -> Problem:
    x, y, z = s.rng.randint(2, 20), s.rng.randint(2, 15), s.rng.randint(2, 15)
    first = Step(x, "+", y)
    question = f"{s.start(x)} {s.who.pronoun} {s.gains(y, '')} and then {s.rng.choice(GAINS)} {z} more. {s.ask()}"
    return Problem(question, (first, Step(first.result, "+", z, "Then ")), s.things)


def gain_then_lose(s: Scene) -> Problem:
    x, y = s.rng.randint(3, 20), s.rng.randint(2, 15)
    first = Step(x, "+", y)
    z = s.rng.randint(2, min(first.result - 1, 20))
    question = f"{s.start(x)} {s.who.pronoun} {s.gains(y)}. Then {s.who.pronoun.lower()} {s.loses(z)}. {s.ask()}"
    return Problem(question, (first, Step(first.result, "-", z, "Then ")), s.things)


def lose_then_gain(s: Scene) -> Problem:
    x = s.rng.randint(8, 30)
    y, z = s.rng.randint(2, min(x - 2, 20)), s.rng.randint(2, 15)
    first = Step(x, "-", y)
    question = f"{s.start(x)} {s.who.pronoun} {s.loses(y)}. Then {s.who.pronoun.lower()} {s.gains(z, '')}. {s.ask()}"
    return Problem(question, (first, Step(first.result, "+", z, "Then ")), s.things)


def groups_and_more(s: Scene) -> Problem:
    each, n, z = s.rng.randint(2, 9), s.rng.randint(2, 9), s.rng.randint(2, 15)
    first = Step(n, "x", each)
    question = f"{s.filled(n, each)} {s.who.pronoun} {s.gains(z)}. {s.ask()}"
    return Problem(question, (first, Step(first.result, "+", z, "Then ")), s.things)


def groups_and_less(s: Scene) -> Problem:
    each, n = s.rng.randint(2, 9), s.rng.randint(2, 9)
    first = Step(n, "x", each)
    z = s.rng.randint(1, min(first.result - 1, 20))
    question = f"{s.filled(n, each)} {s.who.pronoun} {s.loses(z)}. {s.ask()}"
    return Problem(question, (first, Step(first.result, "-", z, "Then ")), s.things)


def times_as_many(s: Scene) -> Problem:
    x, times = s.rng.randint(2, 12), s.rng.randint(2, 5)
    first = Step(times, "x", x, f"{s.other.name} has ")
    question = (
        f"{s.who.name} has {x} {s.things}. {s.other.name} has {times} times as many. "
        f"How many {s.things} do they have together?"
    )
    return Problem(question, (first, Step(first.result, "+", x, "Together ")), s.things)


def change_money(s: Scene) -> Problem:
    price, n = s.rng.randint(2, 9), s.rng.randint(2, 9)
    first = Step(n, "x", price)
    paid = first.result + s.rng.randint(1, 20)
    question = (
        f"A {s.box} costs {price} dollars. {s.who.name} buys {n} {s.boxes} and pays with {paid} "
        f"dollars. How many dollars are left?"
    )
    return Problem(question, (first, Step(paid, "-", first.result, "Then ")), "dollars")


def compare_and_add(s: Scene) -> Problem:
    x, y = s.rng.randint(2, 30), s.rng.randint(2, 20)
    first = Step(x, "+", y, f"{s.other.name} has ")
    question = (
        f"{s.who.name} has {x} {s.things}. {s.other.name} has {y} more {s.things} than "
        f"{s.who.name}. How many {s.things} do they have together?"
    )
    return Problem(question, (first, Step(first.result, "+", x, "Together ")), s.things)


def share_and_add(s: Scene) -> Problem:
    each, n, z = s.rng.randint(2, 9), s.rng.randint(2, 9), s.rng.randint(2, 15)
    first = Step(each * n, "/", n)
    question = (
        f"{s.who.name} shares {each * n} {s.things} equally among {n} friends. {s.other.name} is "
        f"one of the friends and already has {z} {s.things}. "
        f"How many {s.things} does {s.other.name} have now?"
    )
    return Problem(question, (first, Step(first.result, "+", z, "Then ")), s.things)


FAMILIES: tuple[Callable[[Scene], Problem], ...] = (
    gain,
    lose,
    groups,
    share,
    compare,
    gain_twice,
    gain_then_lose,
    lose_then_gain,
    groups_and_more,
    groups_and_less,
    times_as_many,
    change_money,
    compare_and_add,
    share_and_add,
)


def make_word_problem(rng: random.Random) -> Item:
    """A word problem with its worked answer, ending in `#### answer`."""
    who, friend = rng.sample(PEOPLE, 2)
    scene = Scene(rng, who, friend, rng.choice(COUNTED), rng.choice(tuple(CONTAINERS)))
    family = rng.choice(FAMILIES)
    problem = family(scene)
    sums = tuple((step.left, step.operator, step.right) for step in problem.steps)
    worked = " ".join(step.written(problem.unit) for step in problem.steps)
    answer = f"{worked}\n#### {problem.steps[-1].result}"
    return Item(
        kind="math",
        split=split_by_key("math", family.__name__, sums),
        prompt=f"Question: {problem.question}\nAnswer:",
        completion=f" {answer}",
        columns={"question": problem.question, "answer": answer},
    )


def make_drill(rng: random.Random) -> Item:
    """A line of six bare sums: the arithmetic that the word problems need."""
    sums = []
    for _ in range(6):
        operator = rng.choice("+-x/")
        if operator == "+":
            step = Step(rng.randint(2, 72), operator, rng.randint(1, 20))
        elif operator == "-":
            x = rng.randint(3, 90)
            step = Step(x, operator, rng.randint(1, min(x - 1, 20)))
        elif operator == "x":
            step = Step(rng.randint(2, 12), operator, rng.randint(2, 9))
        else:
            n = rng.randint(2, 9)
            step = Step(rng.randint(2, 9) * n, operator, n)
        sums.append(f" {step.left} {operator} {step.right} = {step.result}.")
    return Item("drill", Split.TRAIN, "Sums:", "".join(sums))
