"""The labels of rows: which tokens carry no loss, and which rows a mitigation has marked.

The Trainer passes only tokens and labels to the loss, so the labels carry the mark. It counts all
labels but -100 as trained, and no token has a number below 0. So token n of a marked row has the
label -101 - n.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

IGNORED = -100  # the label of a token that is not trained on
_MARK = IGNORED - 1


@dataclass(frozen=True)
class Predictions:
    """What a model predicts in a batch, at the places where a row has a label.

    Attributes:
        logits: [rows x places, vocabulary].
        target: [rows x places], the right token, without its mark; or `IGNORED`.
        is_replayed: [rows x places], whether the token is in a row that a mitigation marked.
    """

    logits: Any
    target: Any
    is_replayed: Any


def mark_labels(labels: Iterable[int]) -> list[int]:
    """Mark the labels of a row, or unmark them; ignored ones stay as they are."""
    return [label if label == IGNORED else _MARK - label for label in labels]


def find_marked(labels: Any) -> Any:
    """Return which labels of a tensor are marked."""
    return labels < IGNORED


def unmark_labels(labels: Any) -> Any:
    """Return a tensor of labels without marks."""
    return labels.where(labels >= IGNORED, _MARK - labels)
