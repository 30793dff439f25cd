"""The order in which a benchmark's questions are asked, and the blocks that they are asked in.

Both depend on the questions alone. Base and tuned model, stopped early or not, get the same blocks,
so that half precision rounds alike. No torch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from math import ceil, sqrt

FIRST_BLOCK = 32  # questions; fewer seldom decide anything
GROWTH = 1.4  # of all asked so far, so at most two sevenths are asked in vain


def block_ends(n: int) -> tuple[int, ...]:
    """How many of `n` questions have been asked after each block; the last is `n`.

    A last block that would hold few questions is joined to the one before.

    >>> block_ends(20), block_ends(100)
    ((20,), (32, 45, 63, 100))
    """
    ends, size = [], FIRST_BLOCK
    while size * sqrt(GROWTH) < n:
        ends.append(size)
        size = ceil(size * GROWTH)
    return (*ends, n)


def order_questions(questions: Mapping[str, Sequence[str]]) -> list[tuple[str, int]]:
    """Put questions in the order in which they are asked.

    Each task is shuffled by its content, and the tasks are dealt out so that the first questions,
    however many, hold each task in proportion to its size. Where a task begins in its turn depends
    on its name: if all began halfway, the first questions would come from large tasks only.

    Args:
        questions: By task, the text of each question, in the harness's order.

    Returns:
        Task and place in it of each question.
    """
    placed = []
    for task, texts in questions.items():
        shuffled = sorted((_hash(task, text), place) for place, text in enumerate(texts))
        begin = int(_hash(task, "")[:13], 16) / 16**13
        placed += [
            ((rank + begin) / len(texts), digest, task, place)
            for rank, (digest, place) in enumerate(shuffled)
        ]
    return [(task, place) for _, _, task, place in sorted(placed)]


def _hash(task: str, text: str) -> str:
    # Salted: stats/holdout.py splits the same questions by a hash of its own, independent of this.
    return hashlib.sha256(f"order\n{task}\n{text}".encode()).hexdigest()
