"""What measuring a model will hold at its peak, counted on a model without numbers."""

from typing import Any

import torch
from torch.nn import functional

from slimdown.config.schema import EvaluationConfig
from slimdown.evaluation.engine.decoding import CACHE_TOKENS_PER_BUDGET, GreedyDecoder, Row
from slimdown.evaluation.engine.forward import logits_at, measuring, plain
from slimdown.evaluation.engine.packing import ROW_TOKENS, token_budget
from slimdown.evaluation.engine.sharing import why_not_by_rule
from slimdown.evaluation.engine.slots import Slots
from slimdown.models.memory import LiveBytes

# Of the tokens of a forward, those whose logits are asked for: of the longest rows of HellaSwag two thirds are endings.
SCORED_SHARE = 2 / 3
STOCK_TOKENS = 1024  # of a row on HFLM's own path: five worked examples and a question


def evaluation_peak(model: Any, config: EvaluationConfig, device: str) -> int:
    """Bytes of all tensors at the peak of an evaluation.

    Args:
        model: on the meta device, an adapter on it or not, 4-bit layers dequantized or not.
        config: the token budget, or the batch of the stock path.
        device: that it will be measured on.
    """
    known = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapters = list(getattr(model, "peft_config", {}).values())
    model = plain(model)  # virtual tokens are few beside the rows
    with LiveBytes(model) as live, measuring(model):
        if why_not_by_rule(known, adapters):
            _ask_stock(model, config)
        else:
            budget = config.token_budget or token_budget(device)
            _score(model, budget)
            _decode(model, budget)
    return live.peak


def _ask_stock(model: Any, config: EvaluationConfig) -> None:
    """As HFLM does: the logits of all positions, and their log-softmax beside them."""
    window = (
        getattr(model.config.get_text_config(), "max_position_embeddings", None) or STOCK_TOKENS
    )
    inputs, mask = _rows(config.batch_size, min(STOCK_TOKENS, window))
    functional.log_softmax(model(**inputs, attention_mask=mask, use_cache=False).logits, dim=-1)


def _score(model: Any, budget: int) -> None:
    """As `scoring.py` does with a budget of tokens: rows of questions, logits where they are asked for."""
    width = min(ROW_TOKENS, budget)
    inputs, mask = _rows(max(1, budget // width), width)
    kept = torch.zeros(int(budget * SCORED_SHARE), dtype=torch.long, device="meta")
    logits_at(model, kept, **inputs, attention_mask=mask, use_cache=False)


def _decode(model: Any, budget: int) -> None:
    """As `decoding.py` does: a cache of several budgets, and a forward that fills it."""
    width = min(ROW_TOKENS // 2, budget)
    decoder = GreedyDecoder(model, budget, width, [], lambda rows: [], lambda index, new: None)
    slots = Slots(max(1, CACHE_TOKENS_PER_BUDGET * budget // (2 * width)), 2 * width)
    decoder.prefill([Row([], (0,) * width, (), 0)] * max(1, budget // width), slots, 0)


def _rows(n_rows: int, width: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    ids = torch.zeros(n_rows, width, dtype=torch.long, device="meta")
    return {"input_ids": ids, "position_ids": ids}, torch.ones(
        n_rows, 1, width, width, dtype=torch.bool, device="meta"
    )
