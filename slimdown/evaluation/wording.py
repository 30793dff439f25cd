"""The words of the questions themselves, as the harness's tasks have them: to be looked for in what is trained on."""

import re
from collections.abc import Iterator
from typing import Any

from slimdown.config.schema import BenchmarkConfig
from slimdown.data.contamination import Question, spaced_words


def worded(tasks: dict[str, Any], chosen: dict[str, BenchmarkConfig]) -> dict[str, list[Question]]:
    """By benchmark, what will be asked, without templates and worked examples.

    Args:
        tasks: what `load_tasks` returned for `chosen`.
        chosen: settings by benchmark name.
    """
    return {
        name: [
            Question(f"{task.config.task} {i}", _texts(task, doc), tuple(_answers(task, doc)))
            for task in loaded["tasks"].values()
            for i, doc in task.doc_iterator(rank=0, limit=chosen[name].limit, world_size=1)
        ]
        for name, loaded in tasks.items()
    }


def _texts(task: Any, doc: dict[str, Any]) -> tuple[str, ...]:
    """The texts of the row that the prompt is made of; the prompt, where it is made of none."""
    prompt = task.doc_to_text(doc)
    fields = {spaced_words(text): text for text in doc.values() if isinstance(text, str)}
    if (
        not isinstance(prompt, str) or not spaced_words(prompt).strip()
    ):  # the number of a choice, or all is the answer
        return (max(fields.values(), key=len, default=""),)
    asked = spaced_words(prompt)
    used = [
        words for words in fields if words in asked and len(words.strip()) > 1
    ]  # a single one is a choice's letter
    return tuple(
        fields[one] for one in used if not any(one in other for other in used if other != one)
    ) or (prompt,)


def _answers(task: Any, doc: dict[str, Any]) -> Iterator[str]:
    """The right answers; for the number of a choice that is a letter, what it stands for in a list of the row.

    A letter that is to be generated is left out: it stands for a choice too, and in most texts.
    """
    targets = task.doc_to_target(doc)
    choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else []
    if all(len(choice) == 1 for choice in choices):
        lists = (
            value
            for value in doc.values()
            if isinstance(value, list) and len(value) == len(choices)
        )
        choices = next(lists, [""] * len(choices))
    for target in targets if isinstance(targets, list) else [targets]:
        if isinstance(target, int) and choices:
            yield str(choices[target])
        elif not re.fullmatch(r"\W*[^\W\d]\W*", str(target)):
            yield str(target)
