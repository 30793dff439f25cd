"""Tokens that a row may go on with, guessed without a model: from another's answer, its prompt and what it has written.

A guess costs nothing but its place in a forward, and never changes an answer: what the model does not say itself is
dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from math import log

from slimdown.evaluation.engine.packing import Tokens

# How many tokens must agree before a place for what follows it to be a guess: the longest agreement counts.
SIZES = 3, 2
LONGEST = 32
# Tokens of one forward whose products take as long as reading the weights for them: fewer cost nothing besides.
FREE_TOKENS = {"cpu": 24}
FREE_TOKENS_ELSEWHERE = 64
# Of a guess's tokens, right and wrong ones, as if seen before, and what each later token leaves of their weight.
BEFORE = {True: (4.0, 1.0), False: (1.0, 1.0)}  # guessed from another's answer; from the row itself
MEMORY = 0.9


class Draft:
    """Guesses what one row goes on with, and how far to trust it.

    prompt: the tokens that the row begins with. answer: those that another model put behind them; may be empty.
    free_tokens: of `FREE_TOKENS`.
    """

    def __init__(
        self, prompt: Tokens, answer: Sequence[int] = (), free_tokens: int = FREE_TOKENS["cpu"]
    ) -> None:
        self._free_tokens = free_tokens
        self._text: list[int] = []
        self._ends: dict[
            Tokens, int
        ] = {}  # in the row's own text: where each few tokens ended last
        self.extend(prompt)
        start = prompt[-SIZES[0] :]
        self._answer = [*start, *answer]
        self._places: dict[Tokens, list[int]] = {}  # in the answer: where each few tokens end
        for end in range(len(start), len(self._answer)):
            for n in SIZES:
                self._places.setdefault(tuple(self._answer[max(0, end - n) : end]), []).append(end)
        self._ahead = len(start) - len(
            prompt
        )  # of a place in the answer against the same in the row
        self._seen = dict(BEFORE)
        self._guessed: list[int] = []
        self._is_known = False

    def guess(self, n_rows: int, most: int) -> list[int]:
        """Up to `most` tokens, as many as are worth their place in a forward of `n_rows` rows."""
        self._guessed = self._found()
        right, wrong = self._seen[self._is_known]
        # A token that is right saves its row's share of reading the weights.
        least, rate = n_rows / (n_rows + self._free_tokens), right / (right + wrong)
        return self._guessed[: min(most, int(log(least) / log(rate)))]

    def extend(self, new: Sequence[int]) -> None:
        """Take in what the row went on with, and whether it was guessed."""
        for token in new:
            for n in SIZES:
                if len(self._text) >= n:
                    self._ends[tuple(self._text[-n:])] = len(self._text)
            self._text.append(token)

    def learn(self, new: Sequence[int]) -> None:
        """Take in what the row went on with, and how much of it the guess had, drafted or not."""
        n_right = sum(
            1
            for _ in takewhile(
                lambda pair: pair[0] == pair[1], zip(self._guessed, new, strict=False)
            )
        )
        right, wrong = self._seen[self._is_known]
        for _ in range(n_right):
            right, wrong = right * MEMORY + 1, max(wrong * MEMORY, 0.02)
        if n_right < min(len(self._guessed), len(new)):
            right, wrong = right * MEMORY, wrong * MEMORY + 1
        self._seen[self._is_known] = right, wrong
        self.extend(new)

    def _found(self) -> list[int]:
        """What followed where the row's last tokens stood before: the longest agreement, in the answer if there."""
        for n in SIZES:
            tail, length = tuple(self._text[-n:]), len(self._text)
            if places := self._places.get(tail):
                place = min(places, key=lambda place: abs(place - length - self._ahead))
                self._is_known, self._ahead = True, place - length
                return self._answer[place : place + LONGEST]
            if end := self._ends.get(tail):
                self._is_known = False
                period = self._text[end:]  # what repeats itself does so without end
                return (period * -(-LONGEST // len(period)))[:LONGEST]
        return []
