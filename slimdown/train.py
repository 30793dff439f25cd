"""LoadedModel and SftData -> `FineTuned`: a LoRA adapter trained by TRL's `SFTTrainer`, and its training record.

The only module that knows TRL. Seeds for itself before it makes the adapter and before it takes the first step, so
that nothing measured or computed before can change what it does.
"""

import hashlib
import json
import logging
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from slimdown.config import LoraConfig, OnProgress, TrainConfig, UserError
from slimdown.data import SftData
from slimdown.dequantize import asked, dequantized, dequantizes
from slimdown.model import LoadedModel, context_window


@dataclass(frozen=True)
class StepRecord:
    """What the trainer said after one step."""

    step: int
    values: dict[str, float]  # loss, learning_rate, grad_norm, mean_token_accuracy, ...


@dataclass(frozen=True)
class TrainResult:
    """What training did and what it cost."""

    adapter_dir: Path
    adapter_digest: str  # of its weights
    steps: int
    tokens: int  # of all training batches, padding left out
    train_loss: float  # mean over all steps
    validation_loss_before: float  # nats a token, on the held-out rows
    validation_loss_after: float
    n_trainable: int
    trainable_percent: float
    runtime_seconds: float  # of the steps alone, without the two validations
    tokens_per_second: float
    history: tuple[StepRecord, ...]


@dataclass(frozen=True)
class FineTuned:
    """The tuned model, base and adapter in one, and its training record."""

    loaded: LoadedModel
    result: TrainResult


def fine_tune(
    base: LoadedModel,
    data: SftData,
    lora: LoraConfig,
    config: TrainConfig,
    seed: int,
    folder: Path,
    dequantize: str = "auto",
    on_step: Callable[[StepRecord], None] = lambda record: None,
    on_progress: OnProgress = lambda done, total, note: None,
) -> FineTuned:
    """Train an adapter on the base; `base.model` is wrapped in place and no longer the base afterwards.

    Args:
        base: the model, evaluated before or not; its weights are not changed.
        data: examples with `prompt` and `completion`, the end-of-sequence token included.
        lora: the adapter's shape.
        config: steps, batches, learning rate.
        seed: of the adapter's start and the order of the rows.
        folder: receives `adapter/` in PEFT's format.
        dequantize: whether to compute on the values of 4-bit weights instead of unpacking them at every step: true,
            false, or auto: on a CPU where memory allows. The weights come back untouched.
        on_step: told of each step.
        on_progress: told how many steps are done.

    Raises:
        UserError: settings that this model cannot be trained with.
    """
    import transformers
    from trl import SFTConfig

    _silence_transformers()
    check_settings(base, lora, config)
    transformers.set_seed(seed)
    model = _with_adapter(base, lora)
    history: list[StepRecord] = []

    class Record(transformers.TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if "loss" in logs:  # not the closing summary, nor a validation
                values = {k: float(v) for k, v in logs.items() if isinstance(v, (int, float))}
                history.append(StepRecord(state.global_step, values))
                on_step(history[-1])
                on_progress(state.global_step, state.max_steps, f"loss {values['loss']:.3f}")

    arguments = SFTConfig(
        output_dir=str(folder / "trainer"),
        num_train_epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=config.optim,
        max_length=config.max_length,
        completion_only_loss=config.completion_only_loss,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a diverged run must say so
        report_to="none",  # tracking.py is the one place that logs
        save_strategy="no",
        disable_tqdm=True,  # on_step draws the bar
        use_cpu=base.device == "cpu",
        bf16=False,  # no autocast: base and adapter compute in the dtypes they have
        fp16=False,
    )
    trainer = _trainer_class(base)(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=base.tokenizer,
        callbacks=[Record()],
        data_collator=_collator(base),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    # TRL casts the adapters of a quantized base to bfloat16 (trl 1.16, sft_trainer.py, after the QLoRA paper), where
    # Adam's small updates are rounded away and a reload in another dtype gives other logits. To be deleted when
    # peft#2889 lets get_peft_model's `autocast_adapter_dtype` decide.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    with _attention_by_row(base), dequantized(model) if _dequantizes(base, dequantize) else nullcontext():
        before = trainer.evaluate()["eval_loss"]
        transformers.set_seed(seed)  # the validation above must not move the order of the rows
        started = time.perf_counter()
        try:
            outcome = trainer.train()
        except torch.OutOfMemoryError:
            raise UserError(
                f"training does not fit in the memory of {base.device}: halve train.per_device_train_batch_size "
                f"(now {config.per_device_train_batch_size}) and double train.gradient_accumulation_steps, or set "
                "train.gradient_checkpointing=true"
            ) from None
        seconds = time.perf_counter() - started
        after = trainer.evaluate()["eval_loss"]
    model.eval()
    n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapter_dir = _save_adapter(model, base, folder / "adapter")
    weights = (adapter_dir / "adapter_model.safetensors").read_bytes()
    tokens = int(history[-1].values.get("num_tokens", 0)) if history else 0
    return FineTuned(
        loaded=replace(base, model=model),
        result=TrainResult(
            adapter_dir=adapter_dir,
            adapter_digest=hashlib.sha256(weights).hexdigest()[:32],
            steps=outcome.global_step,
            tokens=tokens,
            train_loss=float(outcome.training_loss),
            validation_loss_before=float(before),
            validation_loss_after=float(after),
            n_trainable=n_trainable,
            trainable_percent=100 * n_trainable / base.n_parameters,
            runtime_seconds=seconds,
            tokens_per_second=tokens / seconds,
            history=tuple(history),
        ),
    )


def check_settings(base: LoadedModel, lora: LoraConfig, config: TrainConfig) -> None:
    """Return in silence where this model can be trained so; asked before hours go into measuring it.

    Raises:
        UserError: target modules that it lacks, or examples longer than its window.
    """
    window = context_window(base.model)
    if window is not None and config.max_length > window:
        raise UserError(
            f"train.max_length={config.max_length} is beyond the {window} tokens that {base.id} was made for; "
            f"set train.max_length={window} or less"
        )
    # PEFT is content where one of the names is found, and leaves the others out in silence.
    linear = [name for name, module in base.model.named_modules() if isinstance(module, torch.nn.Linear)]
    absent = [w for w in lora.target_modules if not any(name == w or name.endswith(f".{w}") for name in linear)]
    if absent and list(lora.target_modules) != ["all-linear"]:
        there = sorted({name.rsplit(".", 1)[-1] for name in linear} - {"lm_head"})
        raise UserError(
            f"lora.target_modules: {base.id} has no {', '.join(absent)}; its linear layers are {', '.join(there)}"
        )


def peak_memory_bytes() -> int:
    """The most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes on Linux, bytes on macOS


def _dequantizes(base: LoadedModel, rule: str) -> bool:
    """Whether to compute on dequantized values; a GPU unpacks as fast as it reads, and has better uses for memory."""
    if rule.lower() == "auto" and base.device != "cpu":
        return False
    return dequantizes(base.model, asked(rule))


# --- less work for the same loss, on a CPU ------------------------------------------------------
#
# Without Triton, TRL's fused head (trl 1.16, kernels/chunked_logprob.py) scores every position, padding and prompts
# included, computes the logits a second time for the gradient, and multiplies the gradient in float32 whatever the
# dtype. To be deleted when it scores only labels there and its second product keeps the dtype.


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
        loss = hidden.new_zeros((), dtype=torch.float32)
        hits = labels.new_zeros(())
        for start in range(0, len(labels), SummedLoss.CHUNK):
            part = slice(start, start + SummedLoss.CHUNK)
            target = labels[part, None]
            logits = functional.linear(hidden[part], weight).float()
            hits += (logits.argmax(-1, keepdim=True) == target).sum()
            chances = functional.log_softmax(logits, dim=-1)
            loss -= chances.gather(-1, target).sum()
            if gradient is not None:  # of the logits: the predicted chances less the labels
                chances = chances.exp_().scatter_add_(-1, target, -torch.ones_like(target, dtype=chances.dtype))
                torch.matmul(chances.to(weight.dtype), weight, out=gradient[part])
        ctx.mark_non_differentiable(hits)
        ctx.save_for_backward(gradient)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None


def _trainer_class(base: LoadedModel) -> Any:
    """TRL's trainer, on a CPU with a loss that does no work for nothing."""
    from trl import SFTTrainer

    head = base.model.get_output_embeddings()
    settings = base.model.config.get_text_config()
    # A head that scales or caps its logits, or a router with a loss of its own, stays with TRL.
    special = (
        "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling",
        "output_router_logits",
    )  # fmt: skip
    if base.device != "cpu" or head.bias is not None or any(getattr(settings, name, None) for name in special):
        return SFTTrainer

    class LeanTrainer(SFTTrainer):  # type: ignore[misc]
        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if return_outputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            labels = inputs.pop("labels")[:, 1:]
            mode = "train" if model.training else "eval"
            causal = self.accelerator.unwrap_model(model).get_base_model()
            hidden = causal.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
            scored = labels != -100
            weight = causal.get_output_embeddings().weight
            loss, hits = SummedLoss.apply(hidden[scored], weight, labels[scored])  # type: ignore[no-untyped-call]
            n_scored = int(scored.sum())
            if mode == "train":
                mask = inputs.get("attention_mask")
                self._total_train_tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            metrics = self._metrics[mode]
            metrics["mean_token_accuracy"].append(int(hits) / max(n_scored, 1))
            metrics["num_tokens"] = [self._total_train_tokens]
            return loss / max(int(n_scored if num_items_in_batch is None else num_items_in_batch), 1)

    return LeanTrainer


def _tells_rows_apart(base: LoadedModel) -> bool:
    """Whether rows laid end to end can be told apart: by attention over all that came before, and by nothing else."""
    kinds = set(getattr(base.model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    window = getattr(base.model.config.get_text_config(), "sliding_window", None)
    attention = base.model._supports_attention_backend and base.model.config._attn_implementation == "sdpa"
    plain = attention and not base.model._is_stateful and kinds == {"full_attention"} and window is None
    return base.device == "cpu" and bool(plain)


def _collator(base: LoadedModel) -> Callable[[list[dict[str, Any]]], dict[str, Any]] | None:
    """Batches as one long row without padding, positions and boundaries beside it; None: TRL's own, padded."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    if not _tells_rows_apart(base):
        return None
    collator: Any = DataCollatorForLanguageModeling(base.tokenizer.pad_token_id, padding_free=True)
    return collator  # type: ignore[no-any-return]


@contextmanager
def _attention_by_row(base: LoadedModel) -> Iterator[None]:
    """The model attending within each row of a batch without padding; on leaving it attends as before.

    torch's attention on a CPU takes a mask but skips nothing that it hides, and a batch's rows hide most of it.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: None, *, cu_seq_lens_q: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        kwargs |= {"is_causal": True}
        rows = [
            sdpa_attention_forward(module, *(x[:, :, start:end] for x in (query, key, value)), None, **kwargs)[0]
            for start, end in pairwise(cu_seq_lens_q.tolist())
        ]
        return torch.cat(rows, dim=1), None

    if not _tells_rows_apart(base):
        yield
        return
    AttentionInterface.register("slimdown_by_row", attend)
    usual = base.model.config._attn_implementation
    base.model.set_attn_implementation("slimdown_by_row")
    try:
        yield
    finally:
        base.model.set_attn_implementation(usual)


def _with_adapter(base: LoadedModel, lora: LoraConfig) -> Any:
    import peft

    wanted = list(lora.target_modules)
    return peft.get_peft_model(
        base.model,
        peft.LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules="all-linear" if wanted == ["all-linear"] else wanted,
            task_type="CAUSAL_LM",
        ),
    )


def _save_adapter(model: Any, base: LoadedModel, folder: Path) -> Path:
    """Write the adapter as PEFT does, its base named by hub id and commit instead of a path of this machine."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = base.id
    config["revision"] = None if base.revision.startswith("sha256:") else base.revision
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder


def _silence_transformers() -> None:
    # "The tokenizer has new PAD/BOS/EOS tokens that differ from the model config": aligning them is what we want.
    # transformers 5.24 renames gradient_checkpointing; trl 1.16 still sets it. To be deleted when TRL follows.
    warnings.filterwarnings("ignore", r".*gradient_checkpointing` is deprecated", FutureWarning)
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
