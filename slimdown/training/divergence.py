"""How far a model is from its base, in nats a token."""

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

    It is the Kullback-Leibler divergence of the tuned from the base's distribution. `target` leaves
    the right tokens out (after arXiv 2605.29498), so that their own likelihood is free to grow.

    Args:
        base_logits: The logits of the base, [tokens, vocabulary].
        logits: The same of the tuned model.
        target: [tokens], the right token of each; None leaves nothing out.

    Returns:
        [tokens]
    """
    if len(logits) > _TOKENS:
        parts = [part.split(_TOKENS) for part in (base_logits, logits, target) if part is not None]
        # Both softmaxes of each part are computed again for its gradient, not kept.
        compute = partial(
            checkpoint, measure_divergence, use_reentrant=False, preserve_rng_state=False
        )
        return torch.cat([compute(*part) for part in zip(*parts, strict=True)])
    models = [base_logits.float(), logits.float()]
    if target is not None:
        models = [one.scatter(-1, target[:, None], _IMPOSSIBLE) for one in models]
    of_base, of_tuned = (one.log_softmax(-1) for one in models)
    return functional.kl_div(of_tuned, of_base, reduction="none", log_target=True).sum(-1)
