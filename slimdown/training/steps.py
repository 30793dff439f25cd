"""TRL's trainer with our settings, and the steps that it takes: the same here and in the process of `unsloth.py`."""

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import wraps
from math import nan
from pathlib import Path
from typing import Any

import torch

from slimdown.config.schema import TrainConfig
from slimdown.models.memory import is_out_of_memory, peak_memory
from slimdown.training.checkpoints import Keeping, agreed_checkpoint, dtype_of
from slimdown.utils.disk import Interim
from slimdown.utils.distributed import missing_told
from slimdown.utils.errors import SlimdownError

Note = Callable[[int, int, dict[str, float]], None]
"""Told of each step: which, of how many, and what the trainer said after it (loss, learning_rate, grad_norm, ...)."""
# float16 knows nothing below 6e-8, where most of a mean loss's gradients are: of 768 tokens they came out wrong by 44 %
# and, so enlarged, by 0.5 % (docs/gpu.md). A power of two: nothing else is rounded.
GRADIENT_SCALE = 2.0**12
_OURS = (
    "engine",
    "assistant_only_loss",
    "checkpoint_minutes",
)  # not of `SFTConfig`, or not handed to it


@dataclass(frozen=True)
class Steps:
    """What the steps came to."""

    n: int
    train_loss: float  # mean over all of them
    seconds: float
    peak_bytes: float = nan  # the most that was held meanwhile


def trainer_for(
    model: Any,
    tokenizer: Any,
    rows: Any,
    config: TrainConfig,
    seed: int,
    folder: Path,
    device: str,
    kind: Any,
    collator: Any = None,
) -> Any:
    """A trainer of `kind`, TRL's `SFTTrainer` or a class of it; what it prints and draws is switched off.

    Args:
        model: PEFT's, its adapter to be trained.
        tokenizer: the base's.
        rows: columns `input_ids` and `labels`.
        config: steps, batches, learning rate.
        seed: of the order of the rows.
        folder: where the trainer may write.
        device: cpu, cuda or mps.
        kind: the class.
        collator: makes a batch of rows; None: TRL's own.
    """
    import transformers
    from trl import SFTConfig

    silence_transformers()
    arguments = SFTConfig(
        **{name: value for name, value in asdict(config).items() if name not in _OURS},
        dataset_kwargs={"skip_prepare_dataset": True},
        output_dir=str(folder / "trainer"),
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a diverged run must say so
        report_to="none",  # recording/ is the one place that logs
        save_strategy="no",
        disable_tqdm=True,  # on_progress draws the bar
        use_cpu=device == "cpu",
        bf16=False,  # no autocast: base and adapter compute in the dtypes they have
        fp16=False,
    )
    arguments._n_gpu = min(
        arguments.n_gpu, 1
    )  # a process by itself would draw a batch for each GPU that it sees
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=collator,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    # TRL casts the adapters of a quantized base to bfloat16 (trl 1.16, sft_trainer.py, after the QLoRA paper), where
    # Adam's small updates are rounded away and a reload in another dtype gives other logits. To be deleted when
    # peft#2889 lets get_peft_model's `autocast_adapter_dtype` decide.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if trainer.model.dtype == torch.float16 or any(
        getattr(module, "compute_dtype", None) == torch.float16
        for module in trainer.model.modules()
    ):
        _enlarge_gradients(trainer)
    return trainer


def _enlarge_gradients(trainer: Any) -> None:
    """Have gradients computed `GRADIENT_SCALE` times as large as they are, and made as they are before they are summed.

    The Trainer does so in autocast only (transformers 5.24), where base and adapter would compute otherwise than they
    are measured.
    """
    compute_loss = trainer.compute_loss

    @wraps(compute_loss)
    def compute_enlarged(*args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(*args, **kwargs)
        if isinstance(loss, torch.Tensor) and loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * GRADIENT_SCALE)  # type: ignore[no-untyped-call]
        return loss

    trainer.compute_loss = compute_enlarged
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: gradient / GRADIENT_SCALE)


def take_steps(
    trainer: Any,
    config: TrainConfig,
    seed: int,
    device: str,
    note: Note,
    interim: Interim | None = None,
) -> Steps:
    """The steps of `trainer`, `note` told of each; from the last checkpoint in `interim`, and with more to come.

    Raises:
        SlimdownError: they do not fit in memory.
    """
    import transformers

    begun = agreed_checkpoint(interim, dtype_of(trainer.model)) if interim else None
    keeping = Keeping(trainer, interim, begun) if interim else None
    losses: list[float] = []

    class Noting(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            if begun:  # TRL (1.16) counts from zero
                trainer._total_train_tokens = int(begun.history[-1].get("num_tokens", 0))

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any
        ) -> None:
            if "loss" in logs:  # not the closing summary, nor a validation
                values = {
                    key: float(value)
                    for key, value in logs.items()
                    if isinstance(value, (int, float))
                }
                losses.append(values["loss"])
                note(state.global_step, state.max_steps, values)
                if keeping:
                    keeping.after_step(state.global_step, state.max_steps)

    trainer.add_callback(Noting())
    for step, values in enumerate(begun.history if begun else [], start=1):
        losses.append(values["loss"])
        note(step, begun.of if begun else 0, values)
    transformers.set_seed(seed)  # nothing before must move the order of the rows
    started = time.perf_counter()
    try:
        with peak_memory(device) as peak, missing_told():
            if begun and begun.step == begun.of:  # transformers (5.24) would take one step more
                trainer._load_from_checkpoint(str(begun.folder))
            else:
                trainer.train(resume_from_checkpoint=str(begun.folder) if begun else None)
            peak_bytes = peak()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise SlimdownError(
            f"training does not fit in the memory of {device}: halve train.per_device_train_batch_size "
            f"(now {config.per_device_train_batch_size}) and double train.gradient_accumulation_steps, or set "
            "train.gradient_checkpointing=true"
        ) from None
    seconds = time.perf_counter() - started + (begun.seconds if begun else 0.0)
    return Steps(len(losses), sum(losses) / len(losses), seconds, peak_bytes)


def silence_transformers() -> None:
    """Keep to the end of the process what libraries say of each other from a person's console."""
    # "The tokenizer has new PAD/BOS/EOS tokens that differ from the model config": aligning them is what we want.
    # transformers 5.24 renames gradient_checkpointing, which trl 1.16 sets and peft 0.21 reads. To be deleted when they
    # follow.
    warnings.filterwarnings("ignore", r".*gradient_checkpointing` is deprecated", FutureWarning)
    # So does peft 0.21 in place of `cache`.
    warnings.filterwarnings("ignore", r".*past_key_values` is deprecated", FutureWarning)
    logging.getLogger("transformers.utils.generic").setLevel(logging.ERROR)
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
