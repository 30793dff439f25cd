"""What a generator hands on: one example, and the split that its key belongs to."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

BUCKETS = 8


class Split(StrEnum):
    """Where an example may be used: it is in exactly one of the three."""

    TEST = "test"
    DEV = "dev"
    TRAIN = "train"


@dataclass(frozen=True)
class Item:
    """One example: the text a model reads, the text it should write, and the benchmark's columns.

    A completion starts with the space that separates it from its prompt, so that its first word is
    the same token as in running text.
    """

    kind: str
    split: Split
    prompt: str
    completion: str
    columns: dict[str, object] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The whole example, as it stands in a training text."""
        return self.prompt + self.completion


Maker = Callable[[random.Random], Item]


def hash_key(*key: object) -> int:
    """A number that depends on the key alone, on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big")


def split_by_key(*key: object) -> Split:
    """The split of an example that is held out by its key: one bucket each for test and dev."""
    bucket = hash_key(*key) % BUCKETS
    return {0: Split.TEST, 1: Split.DEV}.get(bucket, Split.TRAIN)


def draw(maker: Maker, rng: random.Random, split: Split) -> Item:
    """The next example of the maker that belongs to the split."""
    for _ in range(100_000):
        item = maker(rng)
        if item.split is split:
            return item
    raise RuntimeError(f"{maker.__name__} makes nothing for the {split} split")


def draw_distinct(maker: Maker, rng: random.Random, split: Split, n: int) -> list[Item]:
    """`n` examples of the split, each with its own prompt."""
    found: dict[str, Item] = {}
    for _ in range(200 * n):
        if len(found) == n:
            return list(found.values())
        item = draw(maker, rng, split)
        found.setdefault(item.prompt, item)
    raise RuntimeError(f"{maker.__name__} has only {len(found)} of {n} examples for {split}")
