"""TRL's trainer on a CPU, without the work that is for nothing: no padding, no unread logits, the same loss.

Without Triton, TRL's fused head (trl 1.16, kernels/chunked_logprob.py) scores every position, padding and prompts
included, computes the logits a second time for the gradient, and multiplies the gradient in float32 whatever the dtype.
To be deleted when it scores only labels there and its second product keeps the dtype. Measured in
docs/studies/training-speed.md.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from slimdown.measuring.engine.forward import virtual_tokens
from slimdown.measuring.rows_apart import tells_rows_apart
from slimdown.preparing.model import LoadedModel


class SummedLoss(torch.autograd.Function):
    """The summed negative log-likelihood of `labels`, and how many are the most likely token.

    The gradient is computed in the same pass, chunk by chunk, so that the logits are made once and never kept.
    """

    CHUNK = 512  # tokens: 100 MB of logits with a vocabulary of 49,152

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        loss = hidden.new_zeros((), dtype=torch.float32)
        hits = labels.new_zeros(())
        for start in range(0, len(labels), SummedLoss.CHUNK):
            part = slice(start, start + SummedLoss.CHUNK)
            target = labels[part, None]
            logits = functional.linear(hidden[part], weight).float()
            hits += (logits.argmax(-1, keepdim=True) == target).sum()
            chances = functional.log_softmax(logits, dim=-1)
            loss -= chances.gather(-1, target).sum()
            if gradient is None and of_weight is None:
                continue
            # of the logits: the predicted chances less the labels
            chances = chances.exp_().scatter_add_(-1, target, -torch.ones_like(target, dtype=chances.dtype))
            chances = chances.to(weight.dtype)
            if gradient is not None:
                torch.matmul(chances, weight, out=gradient[part])
            if of_weight is not None:
                of_weight.addmm_(chances.T, hidden[part])
        ctx.mark_non_differentiable(hits)
        ctx.save_for_backward(gradient, of_weight)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        of_inputs = [None if one is None else one * gradients[0].to(one.dtype) for one in ctx.saved_tensors]
        return *of_inputs, None


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

    class LeanTrainer(SFTTrainer):  # type: ignore[misc]
        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:  # of a training step, or in the midst of training; validation.py is for the rest
            labels = inputs.pop("labels")[:, 1:]
            causal = self.accelerator.unwrap_model(model)
            causal = causal.get_base_model() if hasattr(causal, "get_base_model") else causal
            scored = labels != -100

            def forward(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
                hidden = causal.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
                weight = causal.get_output_embeddings().weight
                return SummedLoss.apply(hidden[scored], weight, labels[scored])  # type: ignore[no-any-return, no-untyped-call]

            with _forward_of(causal, forward):
                loss, hits = model(**inputs)  # DDP around it averages gradients of what went through itself alone
            if not model.training:
                return loss / max(int(scored.sum()), 1)
            mask = inputs.get("attention_mask")
            n_tokens = inputs["input_ids"].numel() if mask is None else int(mask.sum())
            counts = torch.tensor([int(hits), int(scored.sum()), n_tokens], device=self.accelerator.device)
            n_hits, n_scored, n_tokens = self.accelerator.reduce(counts, "sum").tolist()  # of all processes
            self._total_train_tokens += n_tokens
            metrics = self._metrics["train"]
            metrics["mean_token_accuracy"].append(n_hits / max(n_scored, 1))
            metrics["num_tokens"] = [self._total_train_tokens]
            n_items = max(int(n_scored if num_items_in_batch is None else num_items_in_batch), 1)
            return loss * self.accelerator.num_processes / n_items  # DDP takes the mean over processes

    return LeanTrainer


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


def padding_free_collator(base: LoadedModel, model: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]] | None:
    """Batches as one long row without padding, positions and boundaries beside it; None: TRL's own, padded."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    if not tells_rows_apart(base, model):
        return None
    collator: Any = DataCollatorForLanguageModeling(base.tokenizer.pad_token_id, padding_free=True)
    return collator  # type: ignore[no-any-return]
