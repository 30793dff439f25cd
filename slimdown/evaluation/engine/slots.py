"""The keys and values of rows that are decoded side by side, which come and go and grow."""

from __future__ import annotations

import math
from mmap import ACCESS_COPY, mmap
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from slimdown.evaluation.engine.forward import repeated

# Columns are looked at in so many at once: oneDNN keeps 0.2 MB for each shape that it multiplies.
ROUND = 64


def zeros(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Zeros, since what a mask hides still enters attention, times zero, and NaN times zero is NaN.

    On a CPU no memory stands behind them until they are written, and all of it is given back with them. What malloc
    gives a tensor of some megabytes is memory that activations have used before and will want again.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    memory = mmap(-1, math.prod(shape) * like.itemsize, access=ACCESS_COPY)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)


class SlotLayer(DynamicLayer):  # type: ignore[misc]  # Any, as all of transformers
    """One layer's keys and values of all slots, [slots, heads, columns, dim], written in place."""

    def __init__(self, slots: Slots, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.slots = slots
        self.keys, self.values = (
            zeros(states, (slots.n_slots, states.shape[1], slots.n_columns, states.shape[3]))
            for states in (keys, values)
        )

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write each row's tokens behind its last and return all rows up to the longest."""
        rows, columns, width = self.slots.rows, self.slots.columns, self.slots.width
        self.keys[rows, :, columns] = key_states.transpose(1, 2).flatten(0, 1)
        self.values[rows, :, columns] = value_states.transpose(1, 2).flatten(0, 1)
        return self.keys[: self.slots.n_active, :, :width], self.values[
            : self.slots.n_active, :, :width
        ]


class Slots(DynamicCache):  # type: ignore[misc]
    """A cache of at most `n_slots` rows that come and go; the active ones lie in front, without gaps.

    They are as long as a row may become: what grows leaves holes behind that nothing fits into.
    """

    def __init__(self, n_slots: int, n_columns: int) -> None:
        super().__init__()
        self.layers: list[Any]
        self.n_slots, self.n_columns = n_slots, n_columns
        self.rows = self.columns = torch.empty(0, dtype=torch.long)
        self.n_active = self.width = 0

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All that the layer's tokens may see."""
        keys, values = self._layer(layer_idx, key_states, value_states).update(
            key_states, value_states
        )
        return keys, values

    def _layer(self, index: int, keys: torch.Tensor, values: torch.Tensor) -> SlotLayer:
        if index == len(self.layers):
            self.layers.append(SlotLayer(self, keys, values))
        layer: SlotLayer = self.layers[index]
        return layer

    def take(self, index: int, slot: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put what layer `index` made of new rows into the slots from this one on."""
        layer, end, width = self._layer(index, keys, values), slot + len(keys), keys.shape[2]
        layer.keys[slot:end, :, :width] = keys
        layer.values[slot:end, :, :width] = values

    def move(self, to: int, slot: int, length: int) -> None:
        """Copy the first `length` tokens of one slot into another."""
        for layer in self.layers:
            layer.keys[to, :, :length] = layer.keys[slot, :, :length]
            layer.values[to, :, :length] = layer.values[slot, :, :length]

    def aim(self, rows: torch.Tensor, columns: torch.Tensor, n_active: int) -> torch.Tensor:
        """Set where tokens go, which may be of shape [rows, tokens]; returns what they may see, [..., width].

        What lies behind a row's last token, of a draft that was wrong, is written anew before it is seen.
        """
        self.rows, self.columns, self.n_active = rows.flatten(), columns.flatten(), n_active
        self.width = min(self.n_columns, -(-(int(columns.max()) + 1) // ROUND) * ROUND)
        return torch.arange(self.width, device=columns.device) <= columns[..., None]


class Incoming(DynamicCache):  # type: ignore[misc]
    """The cache of rows that begin, behind `known` repeated: a layer's share goes into the slots as it is made."""

    def __init__(self, slots: Slots, slot: int, known: DynamicCache | None, n_rows: int) -> None:
        super().__init__()
        self.slots, self.slot = slots, slot
        if known is not None:
            self.layers = repeated(known, n_rows).layers

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All that the layer's tokens may see."""
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self.slots.take(layer_idx, self.slot, keys, values)
        layer = self.layers[layer_idx]
        layer.keys, layer.values = keys.new_empty(0), values.new_empty(0)
        return keys, values
