"""LoadedModel and SftData -> `Tuned`: an adapter trained by TRL's `SFTTrainer`, and its training record.

Seeds for itself before it makes the adapter and before it takes the first step, so that nothing measured or computed
before can change what it does.
"""

import hashlib
import logging
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from slimdown.guarding.errors import UserError
from slimdown.measuring.rows_apart import attention_by_row
from slimdown.measuring.validation import validation_loss
from slimdown.preparing.contamination import Contamination
from slimdown.preparing.data import SftData
from slimdown.preparing.dequantize import dequantized, dequantizes
from slimdown.preparing.identity import digest, identify
from slimdown.preparing.model import LoadedModel
from slimdown.settings.method import MethodConfig
from slimdown.settings.schema import LoraConfig, OnProgress, TrainConfig
from slimdown.training.adapters import adapter_config, save_adapter
from slimdown.training.checks import CutRows, check_rows, check_settings
from slimdown.training.lean import padding_free_collator, trainer_class

OnStep = Callable[["StepRecord"], None]
CheckNumber = Callable[..., None]


@dataclass(frozen=True)
class StepRecord:
    """What the trainer said after one step."""

    step: int
    values: dict[str, float]  # loss, learning_rate, grad_norm, mean_token_accuracy, ...


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
    contamination: Contamination = field(default_factory=Contamination)  # by the questions that are asked


@dataclass(frozen=True)
class Tuned:
    """A tuned model, and how it was trained where that was done here."""

    model: LoadedModel
    training: TrainResult | None


def fine_tune(
    base: LoadedModel,
    data: SftData,
    method: MethodConfig,
    lora: LoraConfig,
    config: TrainConfig,
    seed: int,
    folder: Path,
    dequantize: str = "auto",
    before: float | None = None,
    on_step: OnStep = lambda record: None,
    on_progress: OnProgress = lambda done, total, note: None,
) -> Tuned:
    """Train an adapter on the base; `base.model` is wrapped in place and no longer the base afterwards.

    Args:
        base: the model, evaluated before or not; its weights are not changed.
        data: examples with `prompt` and `completion`, the end-of-sequence token included.
        method: what is trained.
        lora: the adapter's shape, where it is a LoRA.
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

    _silence_transformers()
    check_settings(base, method, lora, config)
    cut = check_rows(base, data, config)
    if before is None:
        before = validation_loss(base, base.model, data.validation, config, dequantize)
    check_number = partial(_check_number, base, config)
    check_number(before, "validation loss", "before the first step")
    transformers.set_seed(seed)
    model = peft.get_peft_model(base.model, adapter_config(method, lora))
    trainer = _trainer(base, model, data, config, seed, folder)
    history: list[StepRecord] = []
    trainer.add_callback(_recorder(history, check_number, on_step, on_progress))
    transformers.set_seed(seed)  # nothing above must move the order of the rows
    # A GPU unpacks as fast as it reads, and has better uses for memory.
    pays = dequantize.lower() != "auto" or base.device == "cpu"
    with attention_by_row(base), dequantized(model) if pays and dequantizes(model, dequantize) else nullcontext():
        outcome, seconds = _trained(trainer, base, config)
    after = validation_loss(base, model, data.validation, config, dequantize)
    check_number(after, "validation loss", "after the last step")
    model.eval()
    adapter_dir = save_adapter(model, base, folder / "adapter")
    adapter = hashlib.sha256((adapter_dir / "adapter_model.safetensors").read_bytes()).hexdigest()
    identity = identify(model, base.tokenizer, digest([base.identity["weights"], adapter]))
    training = _result(adapter_dir, outcome, seconds, (before, after), model, base, history, cut)
    return Tuned(replace(base, model=model, identity=identity), training)


def _result(
    adapter_dir: Path,
    outcome: Any,
    seconds: float,
    losses: tuple[float, float],
    model: Any,
    base: LoadedModel,
    history: list[StepRecord],
    cut: CutRows,
) -> TrainResult:
    n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    tokens = int(history[-1].values.get("num_tokens", 0)) if history else 0
    return TrainResult(
        adapter_dir=adapter_dir,
        steps=outcome.global_step,
        tokens=tokens,
        train_loss=float(outcome.training_loss),
        validation_loss_before=losses[0],
        validation_loss_after=losses[1],
        n_trainable=n_trainable,
        trainable_percent=100 * n_trainable / base.n_parameters,
        runtime_seconds=seconds,
        tokens_per_second=tokens / seconds,
        history=tuple(history),
        cut=cut,
    )


def _trainer(base: LoadedModel, model: Any, data: SftData, config: TrainConfig, seed: int, folder: Path) -> Any:
    """TRL's trainer with our settings; what it prints and draws is switched off."""
    import transformers
    from trl import SFTConfig

    arguments = SFTConfig(
        **asdict(config),
        output_dir=str(folder / "trainer"),
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a diverged run must say so
        report_to="none",  # recording/ is the one place that logs
        save_strategy="no",
        disable_tqdm=True,  # on_progress draws the bar
        use_cpu=base.device == "cpu",
        bf16=False,  # no autocast: base and adapter compute in the dtypes they have
        fp16=False,
    )
    trainer = trainer_class(base)(
        model=model,
        args=arguments,
        train_dataset=data.train,
        processing_class=base.tokenizer,
        data_collator=padding_free_collator(base),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    # TRL casts the adapters of a quantized base to bfloat16 (trl 1.16, sft_trainer.py, after the QLoRA paper), where
    # Adam's small updates are rounded away and a reload in another dtype gives other logits. To be deleted when
    # peft#2889 lets get_peft_model's `autocast_adapter_dtype` decide.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _trained(trainer: Any, base: LoadedModel, config: TrainConfig) -> tuple[Any, float]:
    """What the trainer says at its end, and the seconds that its steps took."""
    started = time.perf_counter()
    try:
        return trainer.train(), time.perf_counter() - started
    except torch.OutOfMemoryError:
        raise UserError(
            f"training does not fit in the memory of {base.device}: halve train.per_device_train_batch_size "
            f"(now {config.per_device_train_batch_size}) and double train.gradient_accumulation_steps, or set "
            "train.gradient_checkpointing=true"
        ) from None


def _recorder(history: list[StepRecord], check_number: CheckNumber, on_step: OnStep, on_progress: OnProgress) -> Any:
    """The trainer's callback that appends each step to `history`, hands it on, and ends what is no number."""
    import transformers

    class Recorder(transformers.TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if "loss" in logs:  # not the closing summary, nor a validation
                values = {k: float(v) for k, v in logs.items() if isinstance(v, (int, float))}
                history.append(StepRecord(state.global_step, values))
                on_step(history[-1])
                where = f"at step {state.global_step} of {state.max_steps}"
                for name in ("loss", "grad_norm"):
                    check_number(values.get(name, 0.0), name, where, values.get("learning_rate"))
                on_progress(state.global_step, state.max_steps, f"loss {values['loss']:.3f}")

    return Recorder()


def _check_number(
    base: LoadedModel, config: TrainConfig, value: float, name: str, where: str, learning_rate: float | None = None
) -> None:
    """End a training whose loss or gradient is no number, with what to try."""
    if isfinite(value):
        return
    exact = "" if base.dtype == "float32" else f", or model.dtype=float32 (now {base.dtype})"
    rate = "" if learning_rate is None else f" at a learning rate of {learning_rate:g}"
    raise UserError(
        f"training came to an end {where}: the {name} is {value}{rate} (train.learning_rate={config.learning_rate:g}), "
        f"and nothing is measured after that. Try a smaller train.learning_rate, e.g. "
        f"{min(config.learning_rate / 10, 2e-3):g}, more train.warmup_steps (now {config.warmup_steps:g}), a smaller "
        f"train.max_grad_norm (now {config.max_grad_norm:g}){exact}"
    )


def _silence_transformers() -> None:
    # "The tokenizer has new PAD/BOS/EOS tokens that differ from the model config": aligning them is what we want.
    # transformers 5.24 renames gradient_checkpointing; trl 1.16 still sets it. To be deleted when TRL follows.
    warnings.filterwarnings("ignore", r".*gradient_checkpointing` is deprecated", FutureWarning)
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
