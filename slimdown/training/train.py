"""LoadedModel and SftData -> `FineTuned`: a LoRA adapter trained by TRL's `SFTTrainer`, and its training record.

The only module that knows TRL. Seeds for itself before it makes the adapter and before it takes the first step, so
that nothing measured or computed before can change what it does.
"""

import hashlib
import json
import logging
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from slimdown.guarding.errors import UserError
from slimdown.measuring.rows_apart import attention_by_row
from slimdown.measuring.validation import validation_loss
from slimdown.preparing.data import SftData
from slimdown.preparing.dequantize import asked, dequantized, dequantizes
from slimdown.preparing.identity import digest, identify
from slimdown.preparing.model import LoadedModel, context_window
from slimdown.settings.schema import LoraConfig, OnProgress, TrainConfig
from slimdown.training.lean import padding_free_collator, trainer_class


@dataclass(frozen=True)
class StepRecord:
    """What the trainer said after one step."""

    step: int
    values: dict[str, float]  # loss, learning_rate, grad_norm, mean_token_accuracy, ...


@dataclass(frozen=True)
class CutRows:
    """What `train.max_length` leaves out of the training rows."""

    max_length: int  # tokens
    n_rows: int
    n_cut: int  # longer than that
    n_lost: int  # of which nothing of the completion is left
    longest: int  # tokens

    def __str__(self) -> str:
        lost = f" ({self.n_lost} of them lose their whole answer)" if self.n_lost else ""
        return (
            f"train.max_length={self.max_length} cuts {self.n_cut:,} of {self.n_rows:,} rows{lost}; "
            f"the longest has {self.longest:,} tokens"
        )


@dataclass(frozen=True)
class TrainResult:
    """What training did and what it cost."""

    adapter_dir: Path
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
    cut: CutRows


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
    before: float | None = None,
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
        before: the base's validation loss, where it is known.
        on_step: told of each step.
        on_progress: told how many steps are done.

    Raises:
        UserError: settings that this model cannot be trained with, or a loss that is no longer a number.
    """
    import peft
    import transformers
    from trl import SFTConfig

    _silence_transformers()
    check_settings(base, lora, config)
    cut = check_rows(base, data, config)
    if before is None:
        before = validation_loss(base, base.model, data.validation, config, dequantize)
    _check_number(before, "validation loss", "before the first step", None, config, base)
    transformers.set_seed(seed)
    model = peft.get_peft_model(base.model, adapter_config(lora))
    history: list[StepRecord] = []

    class Record(transformers.TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if "loss" in logs:  # not the closing summary, nor a validation
                values = {k: float(v) for k, v in logs.items() if isinstance(v, (int, float))}
                history.append(StepRecord(state.global_step, values))
                on_step(history[-1])
                where = f"at step {state.global_step} of {state.max_steps}"
                for name in ("loss", "grad_norm"):
                    _check_number(values.get(name, 0.0), name, where, values.get("learning_rate"), config, base)
                on_progress(state.global_step, state.max_steps, f"loss {values['loss']:.3f}")

    arguments = SFTConfig(
        output_dir=str(folder / "trainer"),
        num_train_epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
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
    trainer = trainer_class(base)(
        model=model,
        args=arguments,
        train_dataset=data.train,
        processing_class=base.tokenizer,
        callbacks=[Record()],
        data_collator=padding_free_collator(base),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    # TRL casts the adapters of a quantized base to bfloat16 (trl 1.16, sft_trainer.py, after the QLoRA paper), where
    # Adam's small updates are rounded away and a reload in another dtype gives other logits. To be deleted when
    # peft#2889 lets get_peft_model's `autocast_adapter_dtype` decide.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    transformers.set_seed(seed)  # nothing above must move the order of the rows
    with attention_by_row(base), dequantized(model) if _dequantizes(base, dequantize) else nullcontext():
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
    after = validation_loss(base, model, data.validation, config, dequantize)
    _check_number(after, "validation loss", "after the last step", None, config, base)
    model.eval()
    n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapter_dir = _save_adapter(model, base, folder / "adapter")
    adapter = hashlib.sha256((adapter_dir / "adapter_model.safetensors").read_bytes()).hexdigest()
    weights = digest([base.identity["weights"], adapter])
    tokens = int(history[-1].values.get("num_tokens", 0)) if history else 0
    return FineTuned(
        loaded=replace(base, model=model, identity=identify(model, base.tokenizer, weights)),
        result=TrainResult(
            adapter_dir=adapter_dir,
            steps=outcome.global_step,
            tokens=tokens,
            train_loss=float(outcome.training_loss),
            validation_loss_before=before,
            validation_loss_after=after,
            n_trainable=n_trainable,
            trainable_percent=100 * n_trainable / base.n_parameters,
            runtime_seconds=seconds,
            tokens_per_second=tokens / seconds,
            history=tuple(history),
            cut=cut,
        ),
    )


def check_settings(base: LoadedModel, lora: LoraConfig, config: TrainConfig) -> None:
    """Return in silence where this model can be trained so; asked before hours go into measuring it.

    Raises:
        UserError: target modules that it lacks, examples longer than its window, an adapter larger than the model, an
            optimizer or a schedule that cannot be used here.
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
    check_rank(base, lora)
    check_optimizer(config, base.device)


def check_rank(base: LoadedModel, lora: LoraConfig) -> None:
    """Check that the adapter is smaller than the model, for which adapters are made.

    Raises:
        UserError: with both sizes and the largest `lora.r` that is.
    """
    is_all = list(lora.target_modules) == ["all-linear"]
    per_rank = sum(
        module.in_features + module.out_features
        for name, module in base.model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (is_all or any(name == w or name.endswith(f".{w}") for w in lora.target_modules))
    )
    if lora.r * per_rank > base.n_parameters:
        raise UserError(
            f"lora.r={lora.r}: the adapter would have {lora.r * per_rank:,} parameters, and {base.id} has "
            f"{base.n_parameters:,}; the largest adapter that is smaller has lora.r={base.n_parameters // per_rank}"
        )


def check_optimizer(config: TrainConfig, device: str) -> None:
    """Check that this device can take a step with the optimizer and the schedule, by taking one.

    Raises:
        UserError: one that needs another package or device, or settings that there are none for here.
    """
    import transformers

    # more than the 4,096 numbers below which optimizers of 8 bits use 32
    parameter = torch.nn.Parameter(torch.zeros(64, 128, device=device))
    parameter.grad = torch.zeros_like(parameter)
    here: dict[str, Any] = {"report_to": "none", "use_cpu": device == "cpu"}
    setting = f"train.optim={config.optim}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(folder, optim=config.optim, **here)
            kind, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(arguments)
            optimizer = kind([parameter], **settings)
            optimizer.step()
            setting = f"train.lr_scheduler_type={config.lr_scheduler_type}"
            schedule = {"lr_scheduler_type": config.lr_scheduler_type, "warmup_steps": config.warmup_steps}
            transformers.TrainingArguments(folder, **schedule, **here)  # which refuses some schedules by themselves
        transformers.get_scheduler(config.lr_scheduler_type, optimizer, 1, 10)
    except Exception as error:  # each optimizer is somebody else's code
        reason = " ".join(str(error).split())[:200]
        sure = "optim=adamw_torch" if "optim" in setting else "lr_scheduler_type=linear"
        raise UserError(f"{setting} cannot be used here: {reason}; train.{sure} can everywhere") from None


def check_rows(base: LoadedModel, data: SftData, config: TrainConfig) -> CutRows:
    """What `max_length` cuts off the training rows; asked before hours go into measuring the base.

    Raises:
        UserError: no completion is left of the training or of the held-out rows.
    """
    parts = {
        "training": _cut(base.tokenizer, data.train, config),
        "held-out": _cut(base.tokenizer, data.validation, config),
    }
    for name, cut in parts.items():
        if cut.n_lost == cut.n_rows:
            window = context_window(base.model)
            keeps = f"train.max_length={cut.longest} keeps every row whole"
            if window is not None and cut.longest > window:
                keeps = f"{base.id} takes up to {window}, and shorter prompts need fewer"
            raise UserError(
                f"train.max_length={config.max_length} cuts the whole completion off each of the {cut.n_rows:,} {name} "
                f"rows, so there is nothing to learn; the longest has {cut.longest:,} tokens: {keeps}"
            )
    return parts["training"]


def _cut(tokenizer: Any, rows: Any, config: TrainConfig) -> CutRows:
    """Counted as TRL tokenizes and cuts: prompt and completion in one, the end cut off."""
    texts = [prompt + completion for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True)]
    lengths = [len(ids) for ids in tokenizer(texts, return_attention_mask=False)["input_ids"]]
    cut = [i for i, length in enumerate(lengths) if length > config.max_length]
    prompts = tokenizer([rows[i]["prompt"] for i in cut], return_attention_mask=False)["input_ids"] if cut else []
    n_lost = sum(len(prompt) >= config.max_length for prompt in prompts)
    return CutRows(config.max_length, len(texts), len(cut), n_lost, max(lengths))


def _check_number(
    value: float, name: str, where: str, learning_rate: float | None, config: TrainConfig, base: LoadedModel
) -> None:
    if isfinite(value):
        return
    exact = "" if base.dtype == "float32" else f", or model.dtype=float32 (now {base.dtype})"
    raise UserError(
        f"training came to an end {where}: the {name} is {value}"
        + (f" at a learning rate of {learning_rate:g}" if learning_rate is not None else "")
        + f" (train.learning_rate={config.learning_rate:g}), and nothing is measured after that. Try a smaller "
        f"train.learning_rate, e.g. {min(config.learning_rate / 10, 2e-3):g}, more train.warmup_steps (now "
        f"{config.warmup_steps:g}), a smaller train.max_grad_norm (now {config.max_grad_norm:g}){exact}"
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


def adapter_config(lora: LoraConfig) -> Any:
    """PEFT's config of the adapter that `lora` asks for."""
    import peft

    wanted = list(lora.target_modules)
    return peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules="all-linear" if wanted == ["all-linear"] else wanted,
        task_type="CAUSAL_LM",
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
