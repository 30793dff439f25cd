"""The order in which a benchmark's questions are asked. It depends on the questions alone."""

import hashlib
from collections.abc import Mapping


def order_questions(questions: Mapping[str, Mapping[int, str]]) -> list[tuple[str, int]]:
    """Put questions in the order in which they are asked.

    Each task is shuffled by its content, and the tasks are dealt out so that the first questions,
    however many, hold each task in proportion to its size. Where a task begins in its turn depends
    on its name: if all began halfway, the first questions would come from large tasks only.

    Args:
        questions: By task and number, the text of each question.

    Returns:
        Task and number of each question.
    """
    placed = []
    for task, texts in questions.items():
        shuffled = sorted((_hash(task, text), number) for number, text in texts.items())
        begin = int(_hash(task, "")[:13], 16) / 16**13
        placed += [
            ((rank + begin) / len(texts), digest, task, number)
            for rank, (digest, number) in enumerate(shuffled)
        ]
    return [(task, number) for _, _, task, number in sorted(placed)]


def _hash(task: str, text: str) -> str:
    # Salted: judging/holdout.py splits the same questions by a hash that is independent of this.
    return hashlib.sha256(f"order\n{task}\n{text}".encode()).hexdigest()
