"""Fit the forward passes of a step to a card: rows at once, and whether activations are kept.

A step takes the same rows however they are split, so results change by rounding alone, and no key
depends on the card.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch

from slimdown.config.schema import RunConfig, TrainConfig
from slimdown.models.training_estimate import estimate_training
from slimdown.training.tokenizing import TokenizedRows

_USABLE = 0.85  # of a card's memory; the driver, the allocator and the estimate's error take more


@dataclass(frozen=True)
class Forwards:
    """How one training step is split into forward passes.

    Attributes:
        rows: The rows that go through the model at once.
        number: How many forward passes make the step.
        recomputes: Whether activations are computed again instead of being kept in memory (gradient
            checkpointing).
    """

    rows: int
    number: int
    recomputes: bool

    def describe(self) -> str:
        """Describe them in a few words."""
        forwards = "1 forward" if self.number == 1 else f"{self.number} forwards"
        rows = "1 row" if self.rows == 1 else f"{self.rows} rows"
        again = ", activations computed again" if self.recomputes else ""
        return f"{forwards} of {rows}{again}"

    def differ_from(self, train: TrainConfig) -> bool:
        """Return whether a step is split in another way than the settings say."""
        is_split = self.rows < train.per_device_train_batch_size
        return is_split or self.recomputes is not bool(train.gradient_checkpointing)

    def apply(self, train: TrainConfig) -> TrainConfig:
        """Return the settings with which TRL splits its steps like this."""
        eval_batch_size = train.per_device_eval_batch_size
        if self.rows < train.per_device_train_batch_size:  # the card has no room for more
            eval_batch_size = min(eval_batch_size, self.rows)
        return replace(
            train,
            per_device_train_batch_size=self.rows,
            gradient_accumulation_steps=self.number,
            per_device_eval_batch_size=eval_batch_size,
            gradient_checkpointing=self.recomputes,
        )


def choose_forwards(
    config: RunConfig, outline: Any, dtype: torch.dtype, rows: TokenizedRows, card_bytes: int | None
) -> Forwards:
    """Choose how a step is split into forward passes: as few as fit in the card's memory.

    Args:
        config: The settings. Batch size times accumulation steps in `train` are the rows of a step,
            which stay the same.
        outline: The base without its weights, see `load_outline`.
        dtype: The dtype of the weights that are not quantized.
        rows: The longest of them decide.
        card_bytes: The whole memory of the card; None: there is no card, and nothing is split.

    Returns:
        The first of these that fits: all rows of the step at once; fewer rows at once; all or
        fewer rows with activations computed again, which takes a third more time. If nothing fits,
        one row at once. If the memory cannot be estimated, nothing is split.
    """
    train = config.train
    candidates = _list_candidates(config)
    if card_bytes is None or len(candidates) == 1:
        return candidates[0]
    lengths = sorted(map(len, rows.train["input_ids"]), reverse=True)
    for forwards in candidates:
        # The estimate multiplies rows by a length: here that of the longest rows, on average.
        longest = lengths[: forwards.rows]
        row_length = ceil(sum(longest) / len(longest))
        if train.args.get("packing"):
            row_length = train.max_length
        split_train = replace(forwards.apply(train), max_length=row_length)
        needed = estimate_training(replace(config, train=split_train), outline, dtype)
        if needed is None or needed.n_bytes <= _USABLE * card_bytes:
            return forwards
    return candidates[-1]


def _list_candidates(config: RunConfig) -> list[Forwards]:
    """List forwards that take the rows of one step, those that need the most memory first."""
    train = config.train
    size = train.per_device_train_batch_size

    def split(recomputes: bool) -> list[Forwards]:
        sizes = [rows for rows in range(size, 0, -1) if size % rows == 0]
        n_rows = size * train.gradient_accumulation_steps
        return [Forwards(rows, n_rows // rows, recomputes) for rows in sizes]

    may_choose = train.gradient_checkpointing is None and config.method.facts.takes_checkpointing
    if not may_choose:  # the user has decided, or the method cannot recompute activations
        return split(bool(train.gradient_checkpointing))
    # Computing activations again takes a third more time. Forwards of one row take even longer. So
    # one row at once with its activations kept is no candidate: recomputing comes before it.
    keeping = [forwards for forwards in split(recomputes=False) if forwards.rows > 1]
    return keeping + split(recomputes=True)


def apply_forwards(config: RunConfig, forwards: Forwards | None) -> tuple[RunConfig, str]:
    """Return the settings with which TRL splits steps like this, and how, in a few words.

    The words are empty where the settings are unchanged.
    """
    if forwards is None or not forwards.differ_from(config.train):
        return config, ""
    return replace(config, train=forwards.apply(config.train)), forwards.describe()
