"""In which order a benchmark's questions are asked in stages, and how far each stage goes.

Both depend on the questions alone, never on a run's seed: two runs that stop early were asked the same questions first,
and whatever stage one of them has made the other finds.
"""

import hashlib
from collections.abc import Mapping, Sequence
from math import ceil, sqrt

FIRST = 32  # questions: fewer seldom decide anything, and leave slots and batches empty
GROWTH = (
    1.4  # of all asked so far, from stage to stage: what is asked in vain is at most two sevenths
)


def stages_of(n: int) -> tuple[int, ...]:
    """How many of `n` questions have been asked after each stage; the last is `n`.

    A last stage that would hold few questions is joined to the one before.

    >>> stages_of(20), stages_of(100)
    ((20,), (32, 45, 63, 100))
    """
    stages, size = [], FIRST
    while size * sqrt(GROWTH) < n:
        stages.append(size)
        size = ceil(size * GROWTH)
    return (*stages, n)


def order_of(questions: Mapping[str, Sequence[str]]) -> list[tuple[str, int]]:
    """Task and place in it of each question, in the order in which a benchmark's questions are asked.

    Each task's are shuffled by their content, and the tasks dealt out so that the first questions, however many, hold
    each in proportion to its size. Where in its turn a task begins depends on its name: did all begin halfway, the
    first questions would come from large tasks only, and speak of these.

    Args:
        questions: of each task, what each question is, in the harness's order: any text of its content.
    """
    placed = []
    for task, texts in questions.items():
        shuffled = sorted((_digest(task, text), place) for place, text in enumerate(texts))
        begin = int(_digest(task, "")[:13], 16) / 16**13
        placed += [
            ((rank + begin) / len(texts), digest, task, place)
            for rank, (digest, place) in enumerate(shuffled)
        ]
    return [(task, place) for _, _, task, place in sorted(placed)]


def _digest(task: str, text: str) -> str:
    # Salted: holdout.py splits the same questions by their own digest, and neither may say anything of the other.
    return hashlib.sha256(f"order\n{task}\n{text}".encode()).hexdigest()
