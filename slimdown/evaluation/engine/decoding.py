"""Greedy decoding of many prompts: finished rows leave, the next prompts take their place.

What a row may go on with is guessed (`drafting.py`), and a forward says of several tokens whether they are right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import accumulate, islice, takewhile
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedTokenizerBase

from slimdown.evaluation.engine.attention import attending_to
from slimdown.evaluation.engine.drafting import FREE_TOKENS, FREE_TOKENS_ELSEWHERE, LONGEST, Draft
from slimdown.evaluation.engine.forward import (
    attention_masks,
    cache_argument,
    computes_in_float32,
    leads_by_little,
    logits_at,
    measuring,
    plain,
    preamble_cache,
    virtual_tokens,
)
from slimdown.evaluation.engine.packing import Tokens, group_by_preamble
from slimdown.evaluation.engine.slots import Incoming, Slots
from slimdown.evaluation.parts import Parts
from slimdown.models.memory import is_out_of_memory, release_memory

# Rows decode side by side: the cache may hold this many times the tokens that one forward may. With drafts, and prompts
# in the same forwards, twice as much took a tenth less time, 100 MB more on GSM8K (docs/studies/evaluation-speed.md).
CACHE_TOKENS_PER_BUDGET = 2
# Tokens of prompts that are computed in one forward, beside rows that decode, where each attends by itself: enough for
# products at full width, and few enough that what a layer makes of them fits a cache.
PIECE = 256
# Rows that are decoded to their end before the next begin, for each that decodes at once: what a killed measurement
# need not repeat. Towards the end of a part fewer rows decode together.
PART = 16


@dataclass
class Row:
    """A prompt on its way: the `indices` it was given under, its tokens, those decoded so far."""

    indices: list[int]
    prompt: Tokens
    preamble: Tokens
    n_apart: (
        int  # tokens whose keys and values are not in its slot: a preamble held once for all rows
    )
    new: list[int] = field(default_factory=list)
    n_cached: int = 0  # tokens whose keys and values lie in its slot
    n_seen: int = 0  # of the new ones, those that were looked at for an end
    draft: Draft | None = None  # from its second token on

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.new]

    @property
    def n_pending(self) -> int:
        """Tokens whose keys and values are still to be computed: of a row that decodes its newest."""
        return len(self.prompt) + len(self.new) - self.n_apart - self.n_cached


class GreedyDecoder:
    """Decodes prompts greedily on a causal LM; those of one with virtual tokens begin with them.

    merging: rows attend to their preamble once together (`attention.py`), and no slot holds it.
    `is_finished` sees the new tokens of rows and says which have met a stop string; `finished` is
    called with a prompt's index and its new tokens as soon as they are complete. What is in `parts` is not decoded.

    In float32 a row's tokens depend on the row alone: neither on what is decoded beside it nor on what was guessed.
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
        self.is_exact = computes_in_float32(model)
        self._free_tokens = FREE_TOKENS.get(self.device.type, FREE_TOKENS_ELSEWHERE)
        self.n_decoded = self.n_guessed = 0  # tokens, and those of them that were guessed

    def run(self, prompts: Sequence[Tokens], answers: Sequence[Sequence[int]] = ()) -> int:
        """Decode every prompt; returns the token budget, halved each time memory ran out.

        answers: tokens that another model put behind each prompt, if any: what of them is right comes sooner. They are
        used in float32 alone: elsewhere rounding would let them decide between tokens that are nearly as likely.
        """
        size = self.model.get_input_embeddings().weight.shape[0]
        self._answers = (
            [[token for token in answer if token < size] for answer in answers]
            if self.is_exact
            else []
        )
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
                batch = self._admitted(waiting, active, slots.n_slots)
                if batch and not self.merging:
                    logits = self.prefill(batch, slots, len(active))
                    self._take(batch, [[]] * len(batch), logits, slots, len(active))
                active += [waiting.popleft() for _ in batch]
                if self.merging or not batch:
                    drafts = self._drafts(active)
                    self._take(active, drafts, self.step(active, slots, drafts), slots, 0)
                self._retire(slots, active)
            except RuntimeError as error:
                least = (
                    self.token_budget == 1 or not self.merging
                )  # a prompt is computed whole, or in pieces
                if not is_out_of_memory(error) or (slots.n_slots == 1 and least):
                    raise
                self.token_budget = max(1, self.token_budget // 2)
                # Rows keep the tokens they have; only keys and values are computed again.
                for row in active:
                    row.n_cached = 0
                waiting.extendleft(reversed(active))
                active, fewer = [], max(1, slots.n_slots // 2)
            else:
                continue
            self._preamble = ((), None)
            slots.layers.clear()
            release_memory()
            slots = self._slots(fewer)
        slots.layers.clear()

    def _n_slots(self, most: int) -> int:
        return max(1, min(most, CACHE_TOKENS_PER_BUDGET * self.token_budget // self.capacity))

    def _slots(self, most: int) -> Slots:
        filled = (
            0 if self.merging else self._free_tokens
        )  # what fills up short rows goes beyond their ends
        return Slots(self._n_slots(most), self.capacity + filled)

    def _admitted(self, waiting: Sequence[Row], active: Sequence[Row], n_slots: int) -> list[Row]:
        """The rows to start now: none while fewer slots are free than half a forward's worth."""
        n_free = n_slots - len(active)
        if not waiting or not n_free:
            return []
        preamble = waiting[0].preamble
        if self.merging and active and active[0].preamble != preamble:
            return []  # rows that decode together attend to one preamble
        if self.merging:
            return [*takewhile(lambda row: row.preamble == preamble, islice(waiting, n_free))]
        batch: list[Row] = []
        width = 0
        for row in islice(waiting, n_slots):
            # A preamble that is not held apart counts: each of the rows that start together repeats its keys.
            width = max(width, len(row.tokens) - row.n_apart)
            if batch and (row.preamble != preamble or width * (len(batch) + 1) > self.token_budget):
                break
            batch.append(row)
        return batch[:n_free] if n_free * 2 >= len(batch) else []

    def prefill(self, batch: Sequence[Row], slots: Slots, slot: int) -> torch.Tensor:
        """Put `batch` into `slots` from this one on; logits [rows, vocabulary] of its next tokens."""
        if self.merging:
            found = []
            while any(row.n_pending for row in batch):
                found.append(self.step(batch, slots, [[]] * len(batch), slot))
            return torch.cat(found)
        preamble, n_shared, n_rows = batch[0].preamble, len(batch[0].preamble), len(batch)
        width = max(len(row.tokens) for row in batch) - n_shared
        input_ids = torch.zeros(n_rows, width, dtype=torch.long)
        lengths = [len(row.tokens) for row in batch]
        for r, row in enumerate(batch):
            input_ids[r, : lengths[r] - n_shared] = torch.tensor(row.tokens[n_shared:])
        inputs: dict[str, Any] = {}
        known = self._known(preamble) if preamble else None
        if preamble:
            positions = torch.arange(n_shared, n_shared + width, device=self.device)[None]
            own = torch.ones(n_rows, 1, width, width, dtype=torch.bool, device=self.device).tril_()
            inputs["position_ids"] = positions.expand(n_rows, -1)
            inputs["attention_mask"] = attention_masks(
                self.model, own, positions, positions, n_shared, False
            )
        # Padding sits on the right, where causal attention keeps it out of sight without a mask.
        last = torch.tensor([r * width + n - n_shared - 1 for r, n in enumerate(lengths)])
        input_ids = input_ids.to(self.device)
        inputs |= cache_argument(self.model, Incoming(slots, slot, known, n_rows)) | {
            "use_cache": True
        }
        logits = logits_at(plain(self.model), last.to(self.device), input_ids=input_ids, **inputs)
        for row in batch:
            row.n_cached += row.n_pending
        return logits

    def _known(self, preamble: Tokens) -> DynamicCache:
        """The keys and values of a preamble, kept until another one comes."""
        if self._preamble[0] != preamble:
            self._preamble = (
                preamble,
                preamble_cache(self.model, preamble, self.device, self.token_budget),
            )
        assert self._preamble[1] is not None
        return self._preamble[1]

    def step(
        self, rows: Sequence[Row], slots: Slots, drafts: Sequence[Sequence[int]], slot: int = 0
    ) -> torch.Tensor:
        """Feed the rows, which lie in `slots` from `slot` on, what is pending of each and its draft.

        Of prompts no more than a `PIECE` is fed. Logits [tokens, vocabulary] of what comes after the last pending token
        and each of the draft, row by row, of the rows of which nothing is pending any more.
        """
        n_apart, preamble = rows[0].n_apart, rows[0].preamble
        parts = self._parts(rows, drafts)
        asked = [
            len(draft) + 1 if 0 < n == row.n_pending else 0
            for row, n, draft in zip(rows, parts, drafts, strict=True)
        ]
        starts = [row.n_cached for row in rows]
        fed = [
            [*row.tokens[n_apart + start : n_apart + start + n], *draft]
            for row, start, n, draft in zip(rows, starts, parts, drafts, strict=True)
        ]
        ends = [start + len(tokens) for start, tokens in zip(starts, fed, strict=True)]
        if (
            self.merging
        ):  # all tokens are one row, which attention takes apart: nothing fills up short ones
            tokens = [[token for row in fed for token in row]]
            own = [[slot + r for r, row in enumerate(fed) for _ in row]]
            columns = [
                [c for start, end in zip(starts, ends, strict=True) for c in range(start, end)]
            ]
            positions, places = columns, [*accumulate(map(len, fed), initial=0)]
        else:
            width = max(map(len, fed))
            tokens = [row + [0] * (width - len(row)) for row in fed]
            own = [[slot + r] * width for r in range(len(fed))]
            columns = [[*range(start, start + width)] for start in starts]
            # What fills up a short row stays within the positions that the model has.
            positions = [
                [min(c, end - 1) for c in row] for row, end in zip(columns, ends, strict=True)
            ]
            places = [r * width for r in range(len(fed))]
        allowed = slots.aim(self._tensor(own), self._tensor(columns), slot + len(rows))[:, None]
        queries = self._tensor(positions) + n_apart
        keys = torch.arange(n_apart, n_apart + slots.width, device=self.device)[None]
        inputs = {
            "input_ids": self._tensor(tokens),
            "attention_mask": attention_masks(
                self.model, allowed, queries, keys, n_apart, self.merging
            ),
            "position_ids": queries,
            "use_cache": True,
        }
        ranges = [
            (slot + r, at, at + len(row), ends[r])
            for r, (at, row) in enumerate(zip(places, fed, strict=False))
            if row
        ]
        kept = [
            at + i
            for at, row, n in zip(places, fed, asked, strict=False)
            for i in range(len(row) - n, len(row))
        ]
        known = self._known(preamble) if preamble and self.merging else None
        inputs |= cache_argument(self.model, slots)
        with attending_to(self.model, known, ranges) if self.merging else nullcontext():
            logits = logits_at(plain(self.model), self._tensor(kept or [0]), **inputs)
        for row, n in zip(rows, parts, strict=True):
            row.n_cached += n
        return logits[: len(kept)]

    def _parts(self, rows: Sequence[Row], drafts: Sequence[Sequence[int]]) -> list[int]:
        """How many of its pending tokens each row is fed: as many in all, while prompts wait, as make a piece."""
        parts = [int(row.n_pending == 1) for row in rows]
        left = max(1, min(PIECE, self.token_budget) - sum(parts) - sum(map(len, drafts)))
        for r, row in enumerate(rows):
            if row.n_pending > 1:
                parts[r] = min(left, row.n_pending)
                left -= parts[r]
        return parts

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, device=self.device)

    def _drafts(self, active: Sequence[Row]) -> list[list[int]]:
        """What each row that decodes may go on with."""
        decoding = [row for row in active if row.new and row.n_pending == 1]
        # A draft that is right is followed by one more token; where short rows are filled up, none may be long.
        longest = LONGEST if self.merging else self._free_tokens // len(active)
        drafts: list[list[int]] = []
        for row in active:
            if not row.new or row.n_pending > 1:
                drafts.append([])
                continue
            if row.draft is None:
                answer = self._answers[row.indices[0]] if self._answers else ()
                row.draft = Draft(row.prompt, answer, self._free_tokens)
                row.draft.extend(row.new)
            drafts.append(
                row.draft.guess(len(decoding), min(longest, self.max_new_tokens - len(row.new) - 1))
            )
        return drafts

    def _take(
        self,
        rows: Sequence[Row],
        drafts: Sequence[Sequence[int]],
        logits: torch.Tensor,
        slots: Slots,
        slot: int,
    ) -> None:
        """Give each row, of which nothing is pending, what its draft is right about, and the token after it."""
        likeliest = logits.float().argmax(-1).tolist()
        found: list[list[int]] = []
        at = 0
        for r, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            found.append([])
            for i in range(0 if row.n_pending else len(draft) + 1):
                token = likeliest[at + i]
                if self.is_exact and leads_by_little(logits[at + i]):
                    token = self._alone(row, found[-1], slots, slot + r)
                found[-1].append(token)
                if i == len(draft) or token != draft[i]:
                    break
            at += 0 if row.n_pending else len(draft) + 1
        for row, new in zip(rows, found, strict=True):
            if row.n_pending:
                continue
            row.new += new
            row.n_cached += len(new) - 1
            self.n_decoded += len(new)
            self.n_guessed += len(new) - 1
            if row.draft is not None:
                row.draft.learn(new)

    def _alone(self, row: Row, new: Sequence[int], slots: Slots, slot: int) -> int:
        """What comes after the row and `new`, from forwards of nothing else, which leave the slot as it was."""
        ahead = Row([], row.prompt, row.preamble, row.n_apart, [*row.new, *new])
        return int(self.prefill([ahead], slots, slot).argmax(-1))

    def _retire(self, slots: Slots, active: list[Row]) -> None:
        ends = [
            (i, n) for i, row in enumerate(active) for n in range(row.n_seen + 1, len(row.new) + 1)
        ]
        stopped = self.is_finished([active[i].new[:n] for i, n in ends])
        lengths: dict[int, int] = {}  # of the rows that have ended
        for (i, n), stops in zip(ends, stopped, strict=True):
            if stops or active[i].new[n - 1] in self.eos_token_ids or n >= self.max_new_tokens:
                lengths.setdefault(i, n)
        for i in reversed(range(len(active))):
            row = active[i]
            row.n_seen = len(row.new)
            if i not in lengths:
                continue
            del row.new[lengths[i] :]
            row.draft = None  # of a prompt of 1,000 tokens 300 kB
            for index in row.indices:
                self.finished(index, row.new)
            last = active.pop()
            if last is not row:  # the last row moves into the gap
                active[i] = last
                slots.move(i, len(active), last.n_cached)


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
