"""Fit the forwards of a step to a card: rows at once, and whether activations are kept.

A step takes the same rows however they are split, so results change by rounding alone, and no key
depends on the card.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch

from slimdown.config.schema import RunConfig, TrainConfig
from slimdown.models.training_estimate import estimate_training
from slimdown.training.tokenizing import TokenizedRows
from slimdown.utils.files import write_atomically

_USABLE = 0.85  # of a card's memory; the driver, the allocator and the estimate's error take more
_FILE = "forwards.json"


@dataclass(frozen=True)
class Forwards:
    """The forwards of one step.

    Attributes:
        rows: Rows at once.
        number: Forwards of a step.
        checkpoints: Whether activations are computed again instead of being kept.
    """

    rows: int
    number: int
    checkpoints: bool

    def describe(self) -> str:
        """Describe them in a few words."""
        again = ", activations computed again" * self.checkpoints
        forwards, rows = f"{self.number} forward", f"{self.rows} row"
        parts = (text + "s" * (not text.startswith("1 ")) for text in (forwards, rows))
        return " of ".join(parts) + again

    def differ_from(self, train: TrainConfig) -> bool:
        """Whether they are not the forwards that the settings name."""
        is_split = self.rows < train.per_device_train_batch_size
        return is_split or self.checkpoints is not bool(train.gradient_checkpointing)

    def apply(self, train: TrainConfig) -> TrainConfig:
        """Return the settings with which TRL takes such steps."""
        is_split = self.rows < train.per_device_train_batch_size
        held_out = train.per_device_eval_batch_size
        return replace(
            train,
            per_device_train_batch_size=self.rows,
            gradient_accumulation_steps=self.number,
            per_device_eval_batch_size=min(held_out, self.rows) if is_split else held_out,
            gradient_checkpointing=self.checkpoints,
        )


def choose_forwards(
    config: RunConfig, outline: Any, dtype: torch.dtype, rows: TokenizedRows, card_bytes: int | None
) -> Forwards:
    """Choose the forwards of a step: as few as fit.

    Args:
        config: The settings; those of `train` name a step as it is meant.
        outline: The base without its weights.
        dtype: Of what is not quantized.
        rows: The longest of them decide.
        card_bytes: The whole memory of the card; None: there is none, and nothing is split.

    Returns:
        The first that fits, of: the whole step, less rows at once, the same with activations
        computed again (a third more time); else the smallest.
    """
    train, candidates = config.train, list(_list_candidates(config))
    if card_bytes is None or len(candidates) == 1:
        return candidates[0]
    lengths = sorted(map(len, rows.train["input_ids"]), reverse=True)
    for one in candidates:
        longest = lengths[: one.rows]
        mean = train.max_length if train.args.get("packing") else ceil(sum(longest) / len(longest))
        shaped = replace(config, train=replace(one.apply(train), max_length=mean))
        needed = estimate_training(shaped, outline, dtype)
        if needed is None or needed.n_bytes <= _USABLE * card_bytes:
            return one
    return candidates[-1]


def _list_candidates(config: RunConfig) -> Iterator[Forwards]:
    """Yield forwards that take one step's rows, those that need the most memory first."""
    train, asked = config.train, config.train.gradient_checkpointing
    size = train.per_device_train_batch_size
    divisors = [n for n in range(size, 0, -1) if size % n == 0]
    can_check = config.method.facts.takes_checkpointing
    for checkpoints in (False, True) if asked is None and can_check else (bool(asked),):
        for n in divisors:
            # Recomputing costs a third; so do forwards of one row.
            if checkpoints or asked is not None or n > 1 or not can_check:
                yield Forwards(n, train.gradient_accumulation_steps * size // n, checkpoints)


def keep_forwards(folder: Path, choose: Callable[[], Forwards]) -> Forwards:
    """Return the forwards that a run began with; one that begins keeps what is chosen.

    Args:
        folder: The run's folder of checkpoints.
        choose: Returns the forwards for this card.
    """
    if kept := read_forwards(folder):
        return kept
    forwards = choose()
    write_atomically(folder / _FILE, json.dumps(vars(forwards)))
    return forwards


def apply_forwards(config: RunConfig, forwards: Forwards | None) -> tuple[RunConfig, str]:
    """Return the settings with which TRL takes such steps, and a few words on them."""
    if forwards is None or not forwards.differ_from(config.train):
        return config, ""
    return replace(config, train=forwards.apply(config.train)), forwards.describe()


def read_forwards(folder: Path) -> Forwards | None:
    """Return the forwards that a run began with; None where none were chosen."""
    file = folder / _FILE
    return Forwards(**json.loads(file.read_text())) if file.is_file() else None
