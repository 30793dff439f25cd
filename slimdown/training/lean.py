"""TRL's trainer on a CPU, without the work that is for nothing: no padding, no beginning twice, the same loss.

Without Triton, TRL's fused head (trl 1.16, kernels/chunked_logprob.py) scores every position, padding and prompts
included, computes the logits a second time for the gradient, and multiplies the gradient in float32 whatever the dtype.
To be deleted when it scores only labels there and its second product keeps the dtype. Measured in
docs/studies/training-speed.md.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any

import torch
from torch.nn import functional

from slimdown.data.tokens import IGNORED
from slimdown.evaluation.engine.forward import virtual_tokens
from slimdown.evaluation.rows_apart import laid, tells_rows_apart
from slimdown.models.model import LoadedModel


class SummedLoss(torch.autograd.Function):
    """The summed negative log-likelihood of `labels`, and how many are the most likely token.

    The gradient is computed in the same pass, chunk by chunk, so that the logits are made once and never kept.
    `times`: how often each label counts, where not once.
    """

    CHUNK = 512  # tokens: 50 MB of logits in bfloat16 with a vocabulary of 49,152
    AT_ONCE = 2**22  # numbers that are computed with in float32: what a processor's cache holds

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        times: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        loss = hidden.new_zeros((), dtype=torch.float32)
        hits = labels.new_zeros(())
        times = torch.ones_like(labels) if times is None else times
        n_at_once = max(1, SummedLoss.AT_ONCE // len(weight))
        for start in range(0, len(labels), SummedLoss.CHUNK):
            part = slice(start, start + SummedLoss.CHUNK)
            logits = functional.linear(hidden[part], weight)
            split = (
                torch.split(one, n_at_once)
                for one in (logits, labels[part, None], times[part, None])
            )
            for few, target, n in zip(*split, strict=True):
                chances = few.float()
                likeliest = chances.argmax(-1, keepdim=True)
                own, highest = chances.gather(-1, target), chances.gather(-1, likeliest)
                total = chances.sub_(highest).exp_().sum(-1, keepdim=True)
                hits += (n * (likeliest == target)).sum()
                loss -= (n * (own - highest - total.log())).sum()
                if gradient is None and of_weight is None:
                    continue
                # of the logits: the predicted chances less the labels
                few.copy_(chances.div_(total).scatter_add_(-1, target, -torch.ones_like(own)))
            if gradient is not None:
                torch.matmul(logits, weight, out=gradient[part])
                gradient[part] *= times[part, None]
            if of_weight is not None:
                of_weight.addmm_(logits.T, hidden[part] * times[part, None])
        ctx.mark_non_differentiable(hits)
        ctx.save_for_backward(gradient, of_weight)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        of_inputs = [
            None if one is None else one * gradients[0].to(one.dtype) for one in ctx.saved_tensors
        ]
        return *of_inputs, None, None


def trainer_class(base: LoadedModel, model: Any) -> Any:
    """TRL's trainer of `model`, on a CPU with a loss that does no work for nothing."""
    from trl import SFTTrainer

    head = base.model.get_output_embeddings()
    settings = base.model.config.get_text_config()
    # A head that scales or caps its logits, or a router with a loss of its own, stays with TRL.
    special = (
        "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling",
        "output_router_logits", "logits_soft_cap", "logits_mup_width_multiplier", "softcap",
    )  # fmt: skip
    if (
        base.device != "cpu"
        or virtual_tokens(model)
        or head.bias is not None
        or any(getattr(settings, name, None) for name in special)
    ):
        return SFTTrainer

    # What the rows of a batch begin alike with is computed once, unless chance strikes each row alone.
    is_laid, draws = (
        tells_rows_apart(base, model),
        _draws(settings, *getattr(model, "peft_config", {}).values()),
    )

    class LeanTrainer(SFTTrainer):  # type: ignore[misc]
        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:  # of a training step, or in the midst of training; validation.py is for the rest
            labels = inputs.pop("labels")
            causal = self.accelerator.unwrap_model(model)
            causal = causal.get_base_model() if hasattr(causal, "get_base_model") else causal
            mask = inputs.get("attention_mask")
            n_tokens = labels.numel() if mask is None else int(mask.sum())
            n_scored = int((labels[:, 1:] != IGNORED).sum())
            inputs, place, target, times = _once(
                inputs, labels, is_laid and not (model.training and draws)
            )

            def forward(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
                hidden = causal.base_model(**inputs, use_cache=False).last_hidden_state.flatten(
                    0, 1
                )
                weight = causal.get_output_embeddings().weight
                return SummedLoss.apply(hidden[place], weight, target, times)  # type: ignore[no-any-return, no-untyped-call]

            with _forward_of(causal, forward):
                loss, hits = model(
                    **inputs
                )  # DDP around it averages gradients of what went through itself alone
            if not model.training:
                return loss / max(n_scored, 1)
            counts = torch.tensor([int(hits), n_scored, n_tokens], device=self.accelerator.device)
            n_hits, n_scored, n_tokens = self.accelerator.reduce(
                counts, "sum"
            ).tolist()  # of all processes
            self._total_train_tokens += n_tokens
            metrics = self._metrics["train"]
            metrics["mean_token_accuracy"].append(n_hits / max(n_scored, 1))
            metrics["num_tokens"] = [self._total_train_tokens]
            n_items = max(int(n_scored if num_items_in_batch is None else num_items_in_batch), 1)
            return (
                loss * self.accelerator.num_processes / n_items
            )  # DDP takes the mean over processes

    return LeanTrainer


def _draws(*configs: Any) -> bool:
    """Whether a model or an adapter of this config drops or shakes numbers by chance in training."""
    values = (item for config in configs for item in config.to_dict().items())
    return any(
        value
        for name, value in values
        if re.search("drop|jitter", name) and isinstance(value, float)
    )


def _once(
    inputs: dict[str, Any], labels: torch.Tensor, is_laid: bool
) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A batch with what its rows begin alike with laid once, and what is scored of it.

    Args:
        inputs: TRL's, padded or not.
        labels: [rows, tokens], those of the first column without a meaning.
        is_laid: whether rows lie end to end, and may share.

    Returns:
        What the model is given; of each label that counts the flat place of what predicts it, the label itself, and how
        many rows have both there, where not one.
    """
    scored = labels[:, 1:] != IGNORED
    place = torch.arange(labels.numel(), device=labels.device).view_as(labels)[:, :-1][scored]
    target = labels[:, 1:][scored]
    if not is_laid:
        return inputs, place, target, None
    ids, positions = inputs["input_ids"][0].tolist(), inputs["position_ids"][0]
    begins = (positions == 0).nonzero().flatten().tolist()
    tokens, at, places = laid([ids[start:end] for start, end in pairwise([*begins, len(ids)])])
    lies = list(chain.from_iterable(places))
    counted = Counter(zip((lies[i] for i in place.tolist()), target.tolist(), strict=True))
    place, target = torch.tensor([*counted], dtype=torch.long).view(-1, 2).T
    inputs = {"input_ids": torch.tensor([tokens]), "position_ids": torch.tensor([at])}
    return inputs, place, target, torch.tensor([*counted.values()], dtype=torch.long)


@contextmanager
def _forward_of(model: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, `forward` is what a call of the model comes to, with whatever is wrapped around it."""
    usual = vars(model).get("forward")
    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        vars(model).update({} if usual is None else {"forward": usual})


def padding_free_collator(
    base: LoadedModel, model: Any
) -> Callable[[list[dict[str, Any]]], dict[str, Any]] | None:
    """Batches as one long row without padding, positions and boundaries beside it; None: TRL's own, padded."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    if not tells_rows_apart(base, model):
        return None
    collator: Any = DataCollatorForLanguageModeling(base.tokenizer.pad_token_id, padding_free=True)
    return collator  # type: ignore[no-any-return]
