"""The loss on held-out rows, without padding, gradients, or logits that nobody reads: TRL's number from less work.

Rows share a forward of as many tokens as an evaluation's, on dequantized values where memory allows; what they begin
alike with is computed once for those of a forward.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from slimdown.config.schema import TrainConfig
from slimdown.evaluation.engine.forward import logits_at, measuring, token_scores, virtual_tokens
from slimdown.evaluation.rows_apart import attention_by_row, laid, n_alike, tells_rows_apart
from slimdown.models.dequantize import dequantized, dequantizes
from slimdown.models.model import LoadedModel
from slimdown.utils import distributed as processes

_TOKENS = 2048  # of a forward, as for an evaluation on a CPU
_LOGITS = 2**27  # numbers held at once: 0.5 GB in float32


def validation_loss(
    loaded: LoadedModel, model: Any, rows: Any, config: TrainConfig, dequantize: str = "auto"
) -> float:
    """Nats a token on `rows`, as TRL's `SFTTrainer.evaluate` has them: the mean over its batches, weighted by rows.

    Args:
        loaded: the base, whose tokenizer and attention are used.
        model: what is measured: the base's model or PEFT's wrapper around it; handed back as it came.
        rows: columns `input_ids` and `labels`, the latter -100 where a token does not count.
        config: how many rows make one of TRL's batches.
        dequantize: whether to compute on the values of 4-bit weights: true, false, or auto, where memory allows.
    """
    both = zip(rows["input_ids"][:], rows["labels"][:], strict=True)
    tokenized = [
        (ids, labels) for ids, labels in both if any(label != -100 for label in labels[1:])
    ]
    summed, counted = torch.zeros(len(tokenized), dtype=torch.float64), torch.zeros(len(tokenized))
    padding = (
        None if tells_rows_apart(loaded, model) else loaded.tokenizer.pad_token_id
    )  # None: rows laid end to end
    # Virtual tokens that are embeddings have logits of their own; prefixes are keys and values, and have none.
    is_prefix = (
        getattr(getattr(model, "active_peft_config", None), "peft_type", "") == "PREFIX_TUNING"
    )
    n_before = 0 if is_prefix else len(virtual_tokens(model))
    unpacked = dequantized(model) if dequantizes(model, dequantize) else nullcontext()
    with attention_by_row(loaded, model), unpacked, measuring(model):
        budget = min(_TOKENS, _LOGITS // model.get_input_embeddings().weight.shape[0])
        forwards = list(_batches([ids for ids, _ in tokenized], budget, padding is not None))
        for members in (
            forwards[i] for i in processes.share([len(members) for members in forwards])
        ):
            batch = [tokenized[i] for i in members]
            inputs, owner, slot, target = _side_by_side(batch, padding, n_before)
            on_device = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            kept, of_kept = torch.unique(
                slot, return_inverse=True
            )  # where rows begin alike, they share their logits
            logits = logits_at(model, kept.to(model.device), **on_device, use_cache=False)
            scores, _ = token_scores(logits, of_kept, target)
            row = torch.tensor(members)[owner]
            summed.index_add_(0, row, -scores.double())
            counted.index_add_(0, row, torch.ones(len(row)))
    summed, counted = (
        torch.stack(processes.gathered(own)).sum(0) for own in (summed, counted)
    )  # zero elsewhere
    size = config.per_device_eval_batch_size
    batches = [slice(i, i + size) for i in range(0, len(tokenized), size)]
    means = [summed[batch].sum() / counted[batch].sum() * len(counted[batch]) for batch in batches]
    return float(sum(means) / len(tokenized))


def _batches(rows: Sequence[list[int]], budget: int, padded: bool) -> Iterator[list[int]]:
    """Indices of the rows of each forward, within `budget` tokens, or one alone.

    Padded ones are of like lengths, with padding included; of others those are together that begin alike.
    """
    batch: list[int] = []
    n_tokens = 0
    for i in sorted(range(len(rows)), key=lambda i: [-len(rows[i])] if padded else rows[i]):
        own = len(rows[batch[0]]) if batch and padded else len(rows[i])
        own -= n_alike(rows[i], rows[batch[-1]]) if batch and not padded else 0
        if batch and n_tokens + own > budget:
            yield batch
            batch, n_tokens, own = [], 0, len(rows[i])
        batch.append(i)
        n_tokens += own
    yield batch


def _side_by_side(
    batch: Sequence[tuple[list[int], list[int]]], padding: int | None, n_before: int = 0
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """The forward's inputs, and for each scored token its row, the flat position that predicts it, and itself.

    `n_before` positions stand before each row where it is padded.
    """
    longest = max(len(ids) for ids, _ in batch)
    if padding is None:
        tokens, positions, places = laid([ids for ids, _ in batch])
        inputs = {"input_ids": torch.tensor([tokens]), "position_ids": torch.tensor([positions])}
    else:
        starts = [i * (n_before + longest) + n_before for i in range(len(batch))]
        places = [list(range(start, start + longest)) for start in starts]
        inputs = {
            "input_ids": torch.tensor([ids + [padding] * (longest - len(ids)) for ids, _ in batch]),
            "attention_mask": torch.tensor(
                [[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in batch]
            ),
        }
    scored = [
        (row, place[at - 1], ids[at])
        for row, ((ids, labels), place) in enumerate(zip(batch, places, strict=True))
        for at in range(1, len(ids))
        if labels[at] != -100
    ]
    owner, slot, target = (torch.tensor(column) for column in zip(*scored, strict=True))
    return inputs, owner, slot, target
