"""What falls to each of the processes that ask together: whole batches, as one process would make them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, TypeVar

from lm_eval.models import huggingface
from lm_eval.models.utils import Collator

from slimdown.evaluation.engine.packing import Question, longest_first, take_rows
from slimdown.utils import distributed as processes

_K = TypeVar("_K")
_V = TypeVar("_V")


def own_questions(
    groups: Sequence[tuple[int, list[Question]]], budget: int, least_width: int
) -> list[list[Question]]:
    """Of each group the questions that this process asks.

    groups: the tokens of a preamble, and the questions behind it.
    budget, least_width: those of `take_rows`, the latter of rows behind a preamble.
    """
    if processes.count() == 1:
        return [questions for _, questions in groups]
    batches: list[tuple[int, list[Question]]] = []
    for n_preamble, questions in groups:
        waiting = longest_first(questions, n_preamble)
        while waiting:
            rows, waiting = take_rows(waiting, n_preamble, budget, least_width if n_preamble else 0)
            batch = [question for row in rows for question in row]
            batches.append((sum(question.n_tokens(n_preamble) for question in batch), batch))
    own = {
        id(question) for i in processes.share([n for n, _ in batches]) for question in batches[i][1]
    }
    return [[question for question in questions if id(question) in own] for _, questions in groups]


class SharedCollator(Collator):  # type: ignore[misc]  # lm_eval is untyped
    """HFLM's batches, of which it yields this process's; where answers are put in order, it takes in the others'."""

    def get_batched(
        self, n: int = 1, batch_fn: Callable[[int, Iterable[Any]], int] | None = None
    ) -> Iterator[Any]:
        """The batches, longest texts first."""
        batches = list(super().get_batched(n, batch_fn))
        starts = list(pairwise(accumulate(map(len, batches), initial=0)))
        own = processes.share([sum(len(request[-2]) for request in batch) for batch in batches])
        self._own = [position for i in own for position in range(*starts[i])]
        yield from (batches[i] for i in own)

    def get_original(self, newarr: Sequence[Any]) -> list[Any]:
        """The answers to all requests."""
        order = self._reorder_indices  # by contexts it holds what was asked here, else all
        mine = (
            order if self._group_by == "contexts" else [order[position] for position in self._own]
        )
        answers = merged(processes.gathered(dict(zip(mine, newarr, strict=True))))
        return [answers[i] for i in range(len(self))]


@contextmanager
def batches_shared_out() -> Iterator[None]:
    """Inside, HFLM shares its batches out where several processes make a run: it has no place to say so (0.4.13)."""
    if processes.count() > 1:
        huggingface.Collator = SharedCollator
    try:
        yield
    finally:
        huggingface.Collator = Collator


def merged(parts: Iterable[dict[_K, _V]]) -> dict[_K, _V]:
    """All entries in one."""
    return {key: value for part in parts for key, value in part.items()}
