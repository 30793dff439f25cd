"""The order in which a benchmark's questions are asked. It depends on the questions alone."""

import hashlib
from collections.abc import Mapping, Sequence


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
    # Salted: judging/holdout.py splits the same questions by a hash that is independent of this.
    return hashlib.sha256(f"order\n{task}\n{text}".encode()).hexdigest()
