"""The keys and values of rows that are decoded side by side, which come and go and grow."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from slimdown.measuring.engine.forward import repeated

ROOM = 128  # columns by which slots grow: seldom, because what is given back is not soon taken again


class SlotLayer(DynamicLayer):  # type: ignore[misc]  # Any, as all of transformers
    """One layer's keys and values of all slots, [slots, heads, columns, dim], written in place; columns are added."""

    def __init__(self, slots: Slots, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.slots = slots
        self.keys, self.values = (
            states.new_empty(slots.n_slots, states.shape[1], 0, states.shape[3]) for states in (keys, values)
        )

    def reserve(self, n_columns: int) -> None:
        """Have room for so many in each slot."""
        if n_columns > self.keys.shape[2]:
            more = -(-n_columns // ROOM) * ROOM - self.keys.shape[2]
            # Zeros: what a mask hides still enters attention, times zero, and NaN times zero is NaN.
            self.keys, self.values = (functional.pad(states, (0, 0, 0, more)) for states in (self.keys, self.values))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write each row's tokens behind its last and return all rows up to the longest."""
        rows, columns, width = self.slots.rows, self.slots.columns, self.slots.width
        self.reserve(width)
        self.keys[rows, :, columns] = key_states.transpose(1, 2).flatten(0, 1)
        self.values[rows, :, columns] = value_states.transpose(1, 2).flatten(0, 1)
        return self.keys[: self.slots.n_active, :, :width], self.values[: self.slots.n_active, :, :width]


class Slots(DynamicCache):  # type: ignore[misc]
    """A cache of at most `n_slots` rows that come and go; the active ones lie in front, without gaps."""

    def __init__(self, n_slots: int) -> None:
        super().__init__()
        self.layers: list[Any]
        self.n_slots = n_slots
        self.rows = self.columns = torch.empty(0, dtype=torch.long)
        self.n_active = self.width = 0

    def take(self, index: int, n_active: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put what layer `index` made of new rows behind the active ones."""
        if index == len(self.layers):
            self.layers.append(SlotLayer(self, keys, values))
        layer, end, width = self.layers[index], n_active + len(keys), keys.shape[2]
        layer.reserve(width + 1)
        layer.keys[n_active:end, :, :width] = keys
        layer.values[n_active:end, :, :width] = values

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
        self.width = int(columns.max()) + 1
        return torch.arange(self.width, device=columns.device) <= columns[..., None]


class Incoming(DynamicCache):  # type: ignore[misc]
    """The cache of rows that begin, behind `known` repeated: a layer's share goes into the slots as it is made."""

    def __init__(self, slots: Slots, n_active: int, known: DynamicCache | None, n_rows: int) -> None:
        super().__init__()
        self.slots, self.n_active = slots, n_active
        if known is not None:
            self.layers = repeated(known, n_rows).layers

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All that the layer's tokens may see."""
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self.slots.take(layer_idx, self.n_active, keys, values)
        layer = self.layers[layer_idx]
        layer.keys, layer.values = keys.new_empty(0), values.new_empty(0)
        return keys, values
