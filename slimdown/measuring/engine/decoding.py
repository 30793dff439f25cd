"""Greedy decoding of many prompts: finished rows leave, the next prompts take their place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from slimdown.measuring.engine.attention import attending_to
from slimdown.measuring.engine.forward import (
    attention_masks,
    cache_argument,
    is_out_of_memory,
    logits_at,
    measuring,
    plain,
    preamble_cache,
    repeated,
    virtual_tokens,
)
from slimdown.measuring.engine.packing import Tokens, group_by_preamble
from slimdown.measuring.parts import Parts
from slimdown.preparing.memory import release_memory

# Decoding costs little per row and much per step, so many rows decode together: the cache may hold
# this many times the tokens that one forward may. More decodes faster and holds more memory.
CACHE_TOKENS_PER_BUDGET = 4
# Rows that are decoded to their end before the next begin, for each that decodes at once: what a killed measurement
# need not repeat. Towards the end of a part fewer rows decode together.
PART = 16


@dataclass
class Row:
    """A prompt on its way: the `indices` it was given under, its tokens, those decoded so far."""

    indices: list[int]
    prompt: Tokens
    preamble: Tokens
    n_apart: int  # tokens whose keys and values are not in its slot: a preamble held once for all rows
    new: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.new]

    @property
    def n_cached(self) -> int:
        """Tokens whose keys and values lie in its slot: all but the newest and those held apart."""
        return len(self.prompt) + len(self.new) - 1 - self.n_apart


class SlotLayer(DynamicLayer):  # type: ignore[misc]  # Any, as all of transformers
    """One layer's keys and values of all rows, [slots, heads, capacity, dim], written in place."""

    def __init__(self, slots: Slots, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.slots = slots
        # Zeros: what a mask hides still enters attention, times zero, and NaN times zero is NaN.
        self.keys, self.values = (
            states.new_zeros(slots.n_slots, states.shape[1], slots.capacity, states.shape[3])
            for states in (keys, values)
        )

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token per row behind its last and return all rows up to the longest."""
        rows, columns, width = self.slots.rows, self.slots.columns, self.slots.width
        self.keys[rows, :, columns] = key_states[:, :, 0]
        self.values[rows, :, columns] = value_states[:, :, 0]
        return self.keys[: len(rows), :, :width], self.values[: len(rows), :, :width]


class Slots(DynamicCache):  # type: ignore[misc]
    """A cache of `n_slots` rows that come and go; the active ones lie in front, without gaps."""

    def __init__(self, n_slots: int, capacity: int) -> None:
        super().__init__()
        self.layers: list[Any]
        self.n_slots, self.capacity = n_slots, capacity
        self.rows = self.columns = torch.empty(0, dtype=torch.long)
        self.width = 0

    def fill(self, slot: int, source: DynamicCache, row: int, length: int) -> None:
        """Copy the first `length` tokens of a row of `source` into `slot`."""
        if not self.layers:
            self.layers = [SlotLayer(self, layer.keys, layer.values) for layer in source.layers]
        for mine, theirs in zip(self.layers, source.layers, strict=True):
            mine.keys[slot, :, :length] = theirs.keys[row, :, :length]
            mine.values[slot, :, :length] = theirs.values[row, :, :length]

    def aim(self, columns: torch.Tensor) -> torch.Tensor:
        """Set where each active row writes next; returns what it may see, [rows, 1, 1, width]."""
        self.rows, self.columns = torch.arange(len(columns), device=columns.device), columns
        self.width = int(columns.max()) + 1
        return (torch.arange(self.width, device=columns.device) <= columns[:, None])[:, None, None]


class GreedyDecoder:
    """Decodes prompts greedily on a causal LM; those of one with virtual tokens begin with them.

    merging: rows attend to their preamble once together (`attention.py`), and no slot holds it.
    `is_finished` sees the new tokens of rows and says which have met a stop string; `finished` is
    called with a prompt's index and its new tokens as soon as they are complete. What is in `parts` is not decoded.
    """

    def __init__(
        self,
        model: Any,
        token_budget: int,
        max_new_tokens: int,
        eos_token_ids: Collection[int],
        is_finished: Callable[[Sequence[list[int]]], list[bool]],
        finished: Callable[[int, list[int]], None],
        merging: bool = False,
        parts: Parts | None = None,
    ) -> None:
        self.parts = parts or Parts()
        self.model, self.device = model, model.device
        self.token_budget, self.max_new_tokens = token_budget, max_new_tokens
        self.eos_token_ids = eos_token_ids
        self.is_finished, self.finished = is_finished, finished
        self.merging = merging
        self._preamble: tuple[Tokens, DynamicCache | None] = ((), None)

    def run(self, prompts: Sequence[Tokens]) -> int:
        """Decode every prompt; returns the token budget, halved each time memory ran out."""
        by_prompt: dict[Tokens, list[int]] = {}
        for index, prompt in enumerate(prompts):
            by_prompt.setdefault(prompt, []).append(index)
        rows = [
            Row(by_prompt[prompt], prompt, preamble, len(preamble) if self.merging else 0)
            for preamble, group in group_by_preamble(by_prompt, len(virtual_tokens(self.model)))
            for prompt in sorted(group, key=len, reverse=True)
        ]
        self.capacity = max(len(row.prompt) - row.n_apart for row in rows) + self.max_new_tokens
        size = PART * self._n_slots(len(rows))
        for part in (rows[i : i + size] for i in range(0, len(rows), size)):
            asked = [row.indices for row in part]
            if (kept := self.parts.take(asked)) is None:
                self._decode(part)
                self.parts.put(asked, [row.new for row in part])
                continue
            for row, new in zip(part, kept, strict=True):
                for index in row.indices:
                    self.finished(index, new)
        return self.token_budget

    def _decode(self, rows: Sequence[Row]) -> None:
        waiting = deque(rows)
        active: list[Row] = []
        slots = self._slots(len(rows))
        while waiting or active:
            try:
                if batch := self._admitted(waiting, active, slots.n_slots):
                    logits = self.prefill(batch, slots, len(active))
                    for _ in batch:
                        waiting.popleft()
                    active += batch
                else:
                    logits = self.step(active, slots)
                for row, token in zip(active[-len(logits) :], logits.float().argmax(-1).tolist(), strict=True):
                    row.new.append(token)
                self._retire(slots, active)
            except RuntimeError as error:
                if not is_out_of_memory(error) or slots.n_slots == 1:
                    raise
                self.token_budget = max(1, self.token_budget // 2)
                # Rows keep the tokens they have; only keys and values are computed again.
                waiting.extendleft(reversed(active))
                active, fewer = [], max(1, slots.n_slots // 2)
            else:
                continue
            self._preamble = ((), None)
            del slots
            release_memory()
            slots = self._slots(fewer)

    def _n_slots(self, most: int) -> int:
        return max(1, min(most, CACHE_TOKENS_PER_BUDGET * self.token_budget // self.capacity))

    def _slots(self, most: int) -> Slots:
        return Slots(self._n_slots(most), self.capacity)

    def _admitted(self, waiting: Sequence[Row], active: Sequence[Row], n_slots: int) -> list[Row]:
        """The rows to start now: none while fewer slots are free than half a forward's worth."""
        n_free = n_slots - len(active)
        if not waiting or not n_free:
            return []
        preamble = waiting[0].preamble
        if self.merging and active and active[0].preamble != preamble:
            return []  # rows that decode together attend to one preamble
        batch: list[Row] = []
        width = 0
        for row in islice(waiting, n_slots):
            # A preamble that is not held apart counts: each of the rows that start together repeats its keys.
            width = max(width, len(row.tokens) - row.n_apart)
            if batch and (row.preamble != preamble or width * (len(batch) + 1) > self.token_budget):
                break
            batch.append(row)
        return batch[:n_free] if n_free * 2 >= len(batch) else []

    def prefill(self, batch: Sequence[Row], slots: Slots, n_active: int) -> torch.Tensor:
        """Put `batch` into `slots` behind the active rows; logits [rows, vocabulary] of its next tokens."""
        preamble = batch[0].preamble
        n_shared, n_rows = len(preamble), len(batch)
        width = max(len(row.tokens) for row in batch) - n_shared
        input_ids = torch.zeros(n_rows, width, dtype=torch.long)
        lengths = [len(row.tokens) for row in batch]
        for r, row in enumerate(batch):
            input_ids[r, : lengths[r] - n_shared] = torch.tensor(row.tokens[n_shared:])
        cache = DynamicCache()
        inputs: dict[str, Any] = {}
        if preamble:
            known = self._known(preamble)
            positions = torch.arange(n_shared, n_shared + width, device=self.device)[None]
            own = torch.ones(n_rows, 1, width, width, dtype=torch.bool, device=self.device).tril_()
            inputs["position_ids"] = positions.expand(n_rows, -1)
            inputs["attention_mask"] = attention_masks(self.model, own, positions, positions, n_shared, self.merging)
            if not self.merging:
                cache = repeated(known, n_rows)
        # Padding sits on the right, where causal attention keeps it out of sight without a mask.
        last = torch.tensor([r * width + n - n_shared - 1 for r, n in enumerate(lengths)])
        input_ids = input_ids.to(self.device)
        inputs |= cache_argument(self.model, cache) | {"use_cache": True}
        with self._attending(preamble):
            logits = logits_at(plain(self.model), last.to(self.device), input_ids=input_ids, **inputs)
        for r, row in enumerate(batch):
            slots.fill(n_active + r, cache, r, lengths[r] - row.n_apart)
        return logits

    def _known(self, preamble: Tokens) -> DynamicCache:
        """The keys and values of a preamble, kept until another one comes."""
        if self._preamble[0] != preamble:
            self._preamble = (preamble, preamble_cache(self.model, preamble, self.device, self.token_budget))
        assert self._preamble[1] is not None
        return self._preamble[1]

    def _attending(self, preamble: Tokens) -> AbstractContextManager[None]:
        """Inside, rows attend to a preamble that no slot holds."""
        return attending_to(self.model, self._known(preamble)) if preamble and self.merging else nullcontext()

    def step(self, active: Sequence[Row], slots: Slots) -> torch.Tensor:
        """Feed each active row its newest token; logits [rows, vocabulary] of the one after it."""
        columns = torch.tensor([row.n_cached for row in active], device=self.device)
        allowed = slots.aim(columns)
        n_apart = active[0].n_apart
        keys = torch.arange(n_apart, n_apart + slots.width, device=self.device)[None]
        positions = columns[:, None] + n_apart
        mask = attention_masks(self.model, allowed, positions, keys, n_apart, n_apart > 0)
        with self._attending(active[0].preamble):
            logits: torch.Tensor = plain(self.model)(
                input_ids=torch.tensor([[row.new[-1]] for row in active], device=self.device),
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **cache_argument(self.model, slots),
            ).logits[:, -1]
        return logits

    def _retire(self, slots: Slots, active: list[Row]) -> None:
        stopped = self.is_finished([row.new for row in active])
        for i in reversed(range(len(active))):
            row = active[i]
            at_eos = row.new[-1] in self.eos_token_ids
            if not (stopped[i] or at_eos or len(row.new) >= self.max_new_tokens):
                continue
            for index in row.indices:
                self.finished(index, row.new)
            last = active.pop()
            if last is not row:  # the last row moves into the gap
                active[i] = last
                slots.fill(i, slots, len(active), last.n_cached)


def decoded(model: Any, prompt: Tokens, max_new_tokens: int) -> list[int]:
    """The tokens that greedy decoding puts behind one prompt, up to the model's end of text."""
    new: list[int] = []
    eos = model.generation_config.eos_token_id
    decoder = GreedyDecoder(
        model,
        token_budget=len(prompt),
        max_new_tokens=max_new_tokens,
        eos_token_ids=eos if isinstance(eos, list) else [eos],
        is_finished=lambda rows: [False] * len(rows),
        finished=lambda index, tokens: new.extend(tokens),
    )
    with measuring(model):
        decoder.run([(*virtual_tokens(model), *prompt)])
    return new


class StopStrings:
    """Whether decoded rows end in one of `stops`, by the harness's own test.

    HFLM looks for a stop string in the text of a row's last few tokens, special tokens included:
    as many as the string itself encodes to, and two more.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.by_lookback: dict[int, list[str]] = {}
        for stop in stops:
            n_tokens = len(tokenizer.encode(stop, add_special_tokens=False)) + 2
            self.by_lookback.setdefault(n_tokens, []).append(stop)

    def __call__(self, rows: Sequence[list[int]]) -> list[bool]:
        """For each row of new tokens, whether it has just met a stop string."""
        found = [False] * len(rows)
        for n_tokens, stops in self.by_lookback.items():
            texts = self.tokenizer.batch_decode([row[-n_tokens:] for row in rows])
            for i, text in enumerate(texts):
                found[i] = found[i] or any(stop in text for stop in stops)
        return found
