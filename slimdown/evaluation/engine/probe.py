"""What sharing work does to a model's logits, beside what other rows in a batch do to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch

from slimdown.evaluation.engine.decoding import GreedyDecoder, Row
from slimdown.evaluation.engine.forward import logits_at, packed_logits, preamble_cache
from slimdown.evaluation.engine.packing import ROW_TOKENS, Question, Tokens, pack
from slimdown.evaluation.engine.slots import Slots

STEPS = 3  # tokens that are put behind each probed prompt: what it decodes, and a draft

Scored = tuple[Tokens, int]  # a row of tokens, and how many of its last ones predict what is scored


class Probe:
    """Made-up questions and prompts of very different lengths, the longest of `longest` tokens.

    Errors are those of the worst predicted token: the mean distance of its logits from those of its
    row computed alone, in standard deviations of these. What is asked in packed rows lies in a row
    wider than any that a benchmark is asked in, behind strangers.
    """

    def __init__(self, model: Any, longest: int) -> None:
        self.model = model
        vocabulary = model.get_input_embeddings().weight.shape[0]
        self.tokens = tuple((7 + 31 * i * i) % vocabulary for i in range(longest))
        self.preamble = self.tokens[: longest // 2]
        self.contexts = self.tokens[: longest - STEPS], self.tokens[: longest // 2 + 1]
        self.answers = self.tokens[:4], self.tokens[4:5]
        rows = [
            (context + answer[:-1], len(answer))
            for context in self.contexts
            for answer in self.answers
        ]
        self.rows: list[Scored] = rows
        self.alone = [self._plain([row])[0] for row in rows]

    def batch_error(self) -> float:
        """What a batch's shape does without sharing: the same rows side by side."""
        return self._error(self._plain(self.rows))

    def sharing_error(self, merging: bool) -> float:
        """What shared rows and shared decoding do; `merging` as in `packed_logits`."""
        return max(self._scoring_error(merging), self._decoding_error(merging))

    def _scoring_error(self, merging: bool) -> float:
        """What packed rows do, behind a preamble held once and, unless `merging`, without one as well."""
        cache = preamble_cache(self.model, self.preamble, self.model.device, len(self.preamble))
        behind = self._packed(len(self.preamble), cache, merging)
        return behind if merging else max(behind, self._packed(0, None, False))

    def _decoding_error(self, merging: bool) -> float:
        """What decoding side by side does, from prompts as far apart in length as they can be."""
        decoder = GreedyDecoder(
            self.model,
            len(self.preamble),
            STEPS,
            [],
            lambda rows: [],
            lambda index, new: None,
            merging,
        )
        n_apart = len(self.preamble) if merging else 0
        rows = [Row([], context, self.preamble, n_apart) for context in self.contexts]
        slots, drafts = (
            Slots(len(rows), len(self.tokens) + STEPS),
            (self.tokens[: STEPS - 1], self.tokens[:1]),
        )
        found = torch.split(decoder.prefill(rows, slots, 0), 1)
        error = 0.0
        for fed in (
            drafts,
            ((), ()),
        ):  # what is dropped of a draft must not be seen by the step that follows
            for row, logits in zip(rows, found, strict=True):
                row.new.append(int(logits[0].argmax()))
            found = torch.split(decoder.step(rows, slots, fed), [1 + len(draft) for draft in fed])
            for row, draft, logits in zip(rows, fed, found, strict=True):
                alone = self._plain([((*row.tokens, *draft), len(logits))])[0]
                error = max(error, distance(logits, alone))
        return error

    def _packed(self, n_preamble: int, cache: Any, merging: bool) -> float:
        long, short = (
            Question(context, {answer: [2 * c + a] for a, answer in enumerate(self.answers)})
            for c, context in enumerate(self.contexts)
        )
        stranger = Question(
            self.preamble[:n_preamble] + self.tokens[::-1][: ROW_TOKENS // 4],
            {self.answers[1]: [-1]},
        )
        strangers = [stranger] * -(-ROW_TOKENS // stranger.n_tokens(n_preamble))
        packed = pack([[*strangers, short], [long, stranger]], n_preamble)
        logits = packed_logits(self.model, packed, cache, merging)
        found = {
            asked_by[0]: logits[packed.slot[packed.answer == k].to(logits.device)]
            for k, asked_by in enumerate(packed.requests)
        }
        return self._error([found[i] for i in range(len(self.rows))])

    def _plain(self, rows: Sequence[Scored]) -> list[torch.Tensor]:
        """Logits [scored tokens, vocabulary] of each of `rows`, padded on the right as HFLM pads them."""
        width = max(len(tokens) for tokens, _ in rows)
        kept = [
            r * width + i
            for r, (tokens, n) in enumerate(rows)
            for i in range(len(tokens) - n, len(tokens))
        ]
        input_ids = self._tensor([[*tokens, *[0] * (width - len(tokens))] for tokens, _ in rows])
        logits = logits_at(self.model, self._tensor(kept), input_ids=input_ids, use_cache=False)
        return list(torch.split(logits, [n for _, n in rows]))

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, device=self.model.device)

    def _error(self, found: Sequence[torch.Tensor]) -> float:
        return max(distance(mine, alone) for mine, alone in zip(found, self.alone, strict=True))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The mean distance of the worst token's logits, both [tokens, vocabulary], in standard deviations."""
    expected = expected.float()
    return float(((found.float() - expected).abs().mean(-1) / expected.std(-1)).max())


@contextmanager
def in_float32(model: Any) -> Iterator[bool]:
    """The model computing in float32, and back without loss; whether that changed anything.

    float32 holds every number of the narrower formats. 4-bit weights stay what they are.
    """
    tensors = [
        (tensor, tensor.dtype)
        for tensor in chain(model.parameters(), model.buffers())
        if tensor.dtype in (torch.bfloat16, torch.float16) and not hasattr(tensor, "quant_state")
    ]
    layers = [
        (layer, layer.compute_dtype)
        for layer in model.modules()
        if getattr(layer, "compute_dtype", None)
    ]
    try:
        for tensor, _ in tensors:
            tensor.data = tensor.data.float()
        for layer, _ in layers:
            layer.compute_dtype = torch.float32
        yield bool(tensors) or any(dtype != torch.float32 for _, dtype in layers)
    finally:
        for tensor, dtype in tensors:
            tensor.data = tensor.data.to(dtype)
        for layer, dtype in layers:
            layer.compute_dtype = dtype
