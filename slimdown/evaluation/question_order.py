"""The order in which a benchmark's questions are asked. It depends on the questions alone."""

import hashlib
from collections.abc import Mapping


def order_questions(questions: Mapping[str, Mapping[int, str]]) -> list[tuple[str, int]]:
    """Put questions in the order in which they are asked.

    The questions of each task are shuffled by a hash of their texts. Then they are spread evenly
    from 0 to 1, so that the first questions, however many, hold each task in proportion to its
    size. The place of a task's first question depends on its name. If all tasks began halfway
    through their first step, the first questions would come from large tasks only.

    Args:
        questions: By task and by the question's number in it, the text of the question.

    Returns:
        Task and number of each question.
    """
    placed = []  # place, hash, task and number of each question
    for task, texts in questions.items():
        shuffled = sorted((_hash(task, text), number) for number, text in texts.items())
        offset = int(_hash(task, "")[:13], 16) / 16**13  # from 0 to 1
        for rank, (digest, number) in enumerate(shuffled):
            place = (rank + offset) / len(texts)
            placed.append((place, digest, task, number))
    return [(task, number) for _place, _digest, task, number in sorted(placed)]


def _hash(task: str, text: str) -> str:
    # Salted: judging/holdout.py splits the same questions by a hash that is independent of this.
    return hashlib.sha256(f"order\n{task}\n{text}".encode()).hexdigest()
