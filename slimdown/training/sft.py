"""TRL's `SFTTrainer` with our settings, and the callback that reports, checkpoints and watches."""

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch.nn import functional
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from slimdown.config.schema import OnProgress, RunConfig, TrainConfig
from slimdown.models.causal import get_inner_model, learns_prompt
from slimdown.training.result import StepLog
from slimdown.training.tokenizing import IGNORED, TokenizedRows
from slimdown.utils.distributed import broadcast_from_main
from slimdown.utils.errors import ModelError

Watch = Callable[[float, float], None]
"""Gets the share of steps taken and the validation loss at each quarter; may raise to stop."""

# float16 knows nothing below 6e-8, where most of a mean loss's gradients are. A power of two rounds
# nothing else. The Trainer's own GradScaler comes with autocast, in which base and adapter would
# compute otherwise than they are measured.
_GRADIENT_SCALE = 2.0**12
_USED_BEFORE = ("max_length", "completion_only_loss", "assistant_only_loss")  # by tokenizing
_NOT_TRL = ("engine", "checkpoint_minutes", *_USED_BEFORE)


class PlainLossTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, which can take the loss from the model's own logits and in float16.

    TRL's fused head multiplies the last hidden states by the head's weight itself: it ignores what
    a model does to its logits then, and without Triton scores every position twice.
    """

    takes_plain_loss = False
    enlarges_gradients = False

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, in nats a trained token."""
        if self.takes_plain_loss:
            labels = inputs["labels"]
            target = labels[:, 1:]
            places = (target != IGNORED).any(0).nonzero().flatten()
            target = target[:, places]
            arguments = {key: value for key, value in inputs.items() if key != "labels"}
            forward = get_inner_model(self.accelerator.unwrap_model(model)).forward
            takes_places = "logits_to_keep" in inspect.signature(forward).parameters
            if takes_places and not learns_prompt(self.model):
                arguments["logits_to_keep"] = places
            logits = model(**arguments, use_cache=False).logits
            if logits.shape[1] != len(places):  # prompt tuning puts logits before the row's own
                logits = logits[:, places + logits.shape[1] - labels.shape[1]]
            total = functional.cross_entropy(
                logits.float().flatten(0, 1), target.flatten(), reduction="sum"
            )
            n_own = (target != IGNORED).sum()
            if num_items_in_batch is None:
                loss = total / n_own.clamp(min=1)
            else:  # the tokens of all processes, over which DDP takes the mean
                loss = total * self.accelerator.num_processes / num_items_in_batch
        else:
            stock: Any = super().compute_loss
            loss = stock(model, inputs, num_items_in_batch=num_items_in_batch)
        if self.enlarges_gradients and loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * _GRADIENT_SCALE)
        return loss


class TrainingPath(NamedTuple):
    """How batches lie and where their loss comes from."""

    is_padding_free: bool = False  # a batch is one row, inside `attention_within_rows`
    takes_plain_loss: bool = False  # from the model's own logits


def build_trainer(
    model: Any,
    tokenizer: Any,
    rows: TokenizedRows,
    config: RunConfig,
    folder: Path,
    path: TrainingPath,
) -> Any:
    """Build a trainer on tokenized rows; what is trained is float32, unless it is the base's own.

    Args:
        model: With something to train.
        tokenizer: The base's.
        rows: Tokenized and cut.
        config: The checked settings.
        folder: Where checkpoints go.
        path: What the trial found to be right.
    """
    settings = {name: value for name, value in asdict(config.train).items() if name not in _NOT_TRL}
    arguments = SFTConfig(
        str(folder),
        **settings,
        max_length=None,  # rows are cut
        padding_free=path.is_padding_free,
        train_sampling_strategy="random" if path.is_padding_free else "group_by_length",
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a diverged run must say so
        include_num_input_tokens_seen="all" if path.is_padding_free else "non_padding",
        prediction_loss_only=True,
        report_to="none",
        save_strategy="no",  # see `TrainingCallback`
        save_total_limit=1,
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
        bf16=False,  # no autocast: base and adapter compute in the dtypes that they have
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # no DataParallel where one process sees several
    # The mark of adapters that transformers adds itself: the Trainer takes no bare 4-bit model.
    if is_bottleneck := hasattr(model, "bottleneck_adapter"):
        model._hf_peft_config_loaded = True
    data = {"train_dataset": rows.train, "eval_dataset": rows.validation}
    trainer = PlainLossTrainer(model=model, args=arguments, processing_class=tokenizer, **data)
    if is_bottleneck:
        del model._hf_peft_config_loaded
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.takes_plain_loss = path.takes_plain_loss
    if is_bottleneck or hasattr(model, "peft_config"):
        layers = [getattr(module, "compute_dtype", None) for module in model.modules()]
        trainer.enlarges_gradients = torch.float16 in (model.dtype, *layers)
        for parameter in [p for p in model.parameters() if p.requires_grad]:
            # TRL 1.16 casts a quantized base's adapters to bfloat16, where Adam's small updates
            # are rounded away. To be deleted when peft#2889 lets `autocast_adapter_dtype` decide.
            parameter.data = parameter.data.float()
            if trainer.enlarges_gradients:
                parameter.register_hook(lambda gradient: gradient / _GRADIENT_SCALE)
    return trainer


class TrainingCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Hands on what each step logged, ends what is no number, asks for checkpoints and watches."""

    def __init__(
        self,
        config: TrainConfig,
        dtype: str,
        on_log: Callable[[StepLog], None],
        on_progress: OnProgress,
        watch: Watch | None = None,
        saves: bool = False,
    ) -> None:
        self.history: list[StepLog] = []
        self.n_tokens_before = 0.0  # of the checkpoint that the training goes on from
        self._config, self._dtype, self._watch = config, dtype, watch
        self._on_log, self._on_progress = on_log, on_progress
        self._seconds = 60 * (config.checkpoint_minutes or math.inf) if saves else math.inf
        self._saved_at = time.monotonic()
        self._random_state: torch.Tensor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Repeat the steps of the checkpoint that the training goes on from."""
        for logs in state.log_history:
            self.log_step(logs["step"], state.max_steps, logs)
        self.n_tokens_before = float(state.num_input_tokens_seen)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand on a step."""
        self.log_step(state.global_step, state.max_steps, kwargs["logs"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint where it is time, and for a validation at each quarter."""
        is_due = self._seconds < math.inf and state.global_step < state.max_steps
        if is_due and broadcast_from_main(time.monotonic() - self._saved_at >= self._seconds):
            control.should_save, self._saved_at = True, time.monotonic()
        quarters = [round(share * state.max_steps) for share in (0.25, 0.5, 0.75)]
        if self._watch and state.global_step in quarters:
            # A DataLoader draws a seed; dropout must not see that anybody watches.
            control.should_evaluate, self._random_state = True, torch.get_rng_state()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell whoever watches."""
        if self._watch and self._random_state is not None:
            torch.set_rng_state(self._random_state)
            self._random_state = None
            self._watch(state.global_step / state.max_steps, kwargs["metrics"]["eval_loss"])

    def log_step(self, step: int, n_steps: int, logs: dict[str, Any]) -> None:
        if "loss" not in logs:  # a validation, or the closing summary
            return
        numbers = {k: float(v) for k, v in logs.items() if isinstance(v, (int, float))}
        hidden = ("step", "epoch", "train_runtime", "train_tokens_per_second")
        values = {name: value for name, value in numbers.items() if name not in hidden}
        if "num_input_tokens_seen" in values:  # unlike TRL's num_tokens it goes on after a resume
            values["num_tokens"] = values.pop("num_input_tokens_seen")
        self.history.append(StepLog(step, values))
        self._on_log(self.history[-1])
        for name in ("loss", "grad_norm"):
            check_finite(values.get(name, 0.0), name, f"at step {step}", self._config, self._dtype)
        self._on_progress(step, n_steps, f"loss {values['loss']:.3f}")


def check_finite(value: float, name: str, place: str, config: TrainConfig, dtype: str) -> None:
    """End a training whose loss or gradient is no number, with what to try.

    Raises:
        ModelError: It is none.
    """
    if not math.isfinite(value):
        raise ModelError(
            f"training ended {place}: the {name} is {value} in {dtype}. Try a smaller "
            f"train.learning_rate (now {config.learning_rate:g}), more train.warmup_steps (now "
            f"{config.warmup_steps:g}), or model.dtype=float32"
        )
