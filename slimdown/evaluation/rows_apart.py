"""Rows laid end to end without padding, each attending within itself, on a CPU.

What rows begin alike with, as those of one template do, is laid and computed once. Positions tell how rows lie: where
they do not go on by one, another row begins, and the tokens before its first position are those of the row before.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch

from slimdown.evaluation.engine.forward import virtual_tokens
from slimdown.evaluation.engine.packing import n_common
from slimdown.models.model import LoadedModel

NAME = "slimdown_by_row"
# Fewer tokens in common are not worth it: a row that begins within another's attends under a mask.
LEAST_COMMON = 8
# Tokens that a row sees at most where its shares of attention are held, in training: more would take much memory.
SHORT = 256


def tells_rows_apart(base: LoadedModel, model: Any = None) -> bool:
    """Whether rows laid end to end can be told apart: by attention over all that came before, and by nothing else.

    Args:
        base: the model, which decides how rows attend.
        model: PEFT's around it, where there is one: its virtual tokens stand before a whole batch's rows, not in them.
    """
    kinds = set(
        getattr(base.model.config.get_text_config(), "layer_types", None) or ["full_attention"]
    )
    window = getattr(base.model.config.get_text_config(), "sliding_window", None)
    attention = (
        base.model._supports_attention_backend and base.model.config._attn_implementation == "sdpa"
    )
    plain = (
        attention and not base.model._is_stateful and kinds == {"full_attention"} and window is None
    )
    return base.device == "cpu" and bool(plain) and not virtual_tokens(model)


@contextmanager
def attention_by_row(
    base: LoadedModel, model: Any = None, lengths: Sequence[int] = ()
) -> Iterator[None]:
    """The model attending within each row of a batch without padding; on leaving it attends as before.

    torch's attention on a CPU takes a mask but skips nothing that it hides, and a batch's rows hide most of it.

    Args:
        base: the model.
        model: PEFT's around it, where there is one.
        lengths: of the rows, where no tensor can be asked where they begin: on the meta device.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    starts = [0, *accumulate(lengths)]
    pieces = [
        _Piece([(start, end)]) for start, end in pairwise(starts)
    ]  # of the batch that is computed

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (
            "position_ids" in kwargs and not lengths
        ):  # what every trl gives; the boundaries themselves came with 1.16
            pieces[:] = _pieces(kwargs["position_ids"][0])

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: None, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        if not pieces:
            raise RuntimeError("nobody told where the rows of this batch begin")
        kwargs |= {"is_causal": True}

        def of(piece: _Piece) -> torch.Tensor:
            states = query[:, :, slice(*piece.seen[-1])], piece.of(key), piece.of(value)
            is_short = (
                states[1].shape[2] <= SHORT and query.device.type == "cpu"
            )  # and not on the meta device
            # It rounds more than torch's own: what is measured is not computed so.
            if (
                is_short
                and query.dtype is torch.bfloat16
                and torch.is_grad_enabled()
                and not kwargs.get("dropout")
            ):
                return attention_of_few(*states, piece.mask, kwargs.get("scaling"))
            mask = piece.mask[None, None] if len(piece.seen) > 1 else None
            return sdpa_attention_forward(module, *states, mask, **kwargs)[0]  # type: ignore[no-any-return]

        return torch.cat([of(piece) for piece in pieces], dim=1), None

    if not tells_rows_apart(base, model):
        yield
        return
    AttentionInterface.register(NAME, attend)
    usual = base.model.config._attn_implementation
    base.model.set_attn_implementation(NAME)
    # Either is called, by TRL's loss and by ours; OPT's head goes past `base_model` to the decoder in it.
    called = (base.model, base.model.base_model)
    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in called]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        base.model.set_attn_implementation(usual)


@dataclass(frozen=True)
class _Piece:
    """Tokens of a batch that lie together."""

    seen: list[
        tuple[int, int]
    ]  # where what their row begins with lies, and last where they lie themselves

    def of(self, states: torch.Tensor) -> torch.Tensor:
        """Keys or values [1, heads, tokens, dim] of what the tokens see."""
        parts = [states[:, :, start:end] for start, end in self.seen]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    @cached_property
    def mask(self) -> torch.Tensor:
        """A bool [own tokens, tokens seen], true where a token may look."""
        *before, n_own = (end - start for start, end in self.seen)
        return torch.ones(n_own, sum(before) + n_own, dtype=torch.bool).tril_(sum(before))


def _pieces(positions: torch.Tensor) -> list[_Piece]:
    """How the rows of a batch lie, by the positions [tokens] of its tokens.

    >>> [piece.seen for piece in _pieces(torch.tensor([0, 1, 2, 3, 2, 3, 0, 1]))]
    [[(0, 4)], [(0, 2), (4, 6)], [(6, 8)]]
    """
    begins = [0, *((positions.diff() != 1).nonzero().flatten() + 1).tolist(), len(positions)]
    pieces: list[_Piece] = []
    row: list[tuple[int, int]] = []  # where the tokens of the last one lie
    for start, end in pairwise(begins):
        before, left = [], int(positions[start])
        for at, to in row:
            if left > 0:
                before.append((at, min(to, at + left)))
                left -= to - at
        row = [*before, (start, end)]
        pieces.append(_Piece(row))
    return pieces


def attention_of_few(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Attention by its formula; what goes in and comes out is shaped as transformers' interface has it.

    torch's own multiplies bfloat16 in float32 on a CPU without AMX: of rows of 100 tokens it takes 1.5 to 2 times as
    long, and 3 times with its gradient. To be deleted when its products are in bfloat16 there.
    """
    (_, n_heads, n_own, dim), n_key_heads = query.shape, key.shape[1]
    together = query.reshape(n_key_heads, -1, dim)  # those that look at the same keys
    scores = torch.baddbmm(
        query.new_zeros(1, 1, 1),
        together,
        key[0].transpose(1, 2),
        beta=0,
        alpha=scaling or dim**-0.5,
    )
    seen = scores.view(n_key_heads, -1, *mask.shape).masked_fill(~mask, -torch.inf)
    shares = torch.softmax(seen, dim=-1).view_as(scores)
    return torch.bmm(shares, value[0]).view(1, n_heads, n_own, -1).transpose(1, 2)


def n_alike(row: Sequence[int], before: Sequence[int]) -> int:
    """With how many tokens a row begins that need not be laid again behind those of the row before."""
    n = n_common(row, before)
    return n if n >= LEAST_COMMON else 0


def laid(rows: Sequence[list[int]]) -> tuple[list[int], list[int], list[list[int]]]:
    """Rows end to end, those that begin alike behind each other: tokens and positions, and where each row's tokens lie.

    >>> laid([[*range(9)], [1, 2], [*range(8), 5]])[1:]
    ([0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 0, 1], [[0, 1, 2, 3, 4, 5, 6, 7, 9], [10, 11], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    """
    tokens: list[int] = []
    positions: list[int] = []
    places: list[list[int]] = [[] for _ in rows]
    before = -1
    for i in sorted(range(len(rows)), key=rows.__getitem__):
        n = n_alike(rows[i], rows[before]) if before >= 0 else 0
        places[i] = [*places[before][:n], *range(len(tokens), len(tokens) + len(rows[i]) - n)]
        tokens += rows[i][n:]
        positions += range(n, len(rows[i]))
        before = i
    return tokens, positions, places
