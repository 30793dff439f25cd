"""How far a model is from its base, in nats per token."""

from functools import partial

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# The logit of a target token that is left out: finite, so that 0 times it is 0.
_IMPOSSIBLE = -1e9
_TOKENS = 64  # with probabilities in memory at once: those of a whole batch take gigabytes


def measure_divergence(
    base_logits: torch.Tensor, logits: torch.Tensor, target: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute how far a model is from its base, in nats, for each token.

    It is the Kullback-Leibler divergence of the tuned model's distribution from the base's.

    Args:
        base_logits: The logits of the base, [tokens, vocabulary].
        logits: The logits of the tuned model, [tokens, vocabulary].
        target: The right token at each place, [tokens]. It is left out of both distributions, so
            that its own likelihood is free to grow (after arXiv 2605.29498). None: no token is
            left out.

    Returns:
        The divergence at each place, [tokens].
    """
    if len(logits) > _TOKENS:
        # The function calls itself for a few tokens at a time, to save memory. `checkpoint` keeps
        # no softmax of such a part: it computes the part again for its gradient.
        measure_part = partial(
            checkpoint, measure_divergence, use_reentrant=False, preserve_rng_state=False
        )
        base_parts, tuned_parts = base_logits.split(_TOKENS), logits.split(_TOKENS)
        targets = [None] * len(tuned_parts) if target is None else target.split(_TOKENS)
        return torch.cat(list(map(measure_part, base_parts, tuned_parts, targets)))
    base_logits, logits = base_logits.float(), logits.float()
    if target is not None:
        base_logits = base_logits.scatter(-1, target[:, None], _IMPOSSIBLE)
        logits = logits.scatter(-1, target[:, None], _IMPOSSIBLE)
    base_log_p = base_logits.log_softmax(-1)
    tuned_log_p = logits.log_softmax(-1)
    return functional.kl_div(tuned_log_p, base_log_p, reduction="none", log_target=True).sum(-1)
