"""TRL's `SFTTrainer` with our settings, and the callback that reports and checkpoints."""

import inspect
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from accelerate.utils import send_to_device
from torch.nn import functional
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from slimdown.config.engines import ENGINES
from slimdown.config.mitigation import Mitigation
from slimdown.config.schema import RunConfig, TrainConfig
from slimdown.models.causal import (
    disabled_adapters,
    eval_mode,
    get_inner_model,
    get_own_adapter,
    learns_prompt,
    restore_weights,
)
from slimdown.training.divergence import measure_divergence
from slimdown.training.labels import IGNORED, Predictions, find_marked, unmark_labels
from slimdown.training.result import StepLog
from slimdown.training.tokenizing import TOKENIZING_SETTINGS, TokenizedRows
from slimdown.utils.distributed import broadcast_from_main
from slimdown.utils.errors import ModelError
from slimdown.utils.progress import OnProgress
from slimdown.utils.tested_versions import LibraryError, describe_change, require_names

# Most gradients of a mean loss are below 6e-8, the smallest number of float16, so the gradient is
# enlarged on its way back. A power of two adds no rounding. The Trainer's own GradScaler needs
# autocast, in which base and adapter would compute differently than when they are measured.
_GRADIENT_SCALE = 2.0**12
_DIVERGENCE_ROWS = 32  # the base needs a forward of its own: on a CPU as long as a validation
_KEPT_FACTS = ("kept_step", "n_tokens_before", "stopped", "history")
_log = logging.getLogger(__name__)
_LOGGED = ("loss", "learning_rate", "grad_norm")
# Settings of `train` that are slimdown's own, and not TRL's.
_OURS = {"engine", "checkpoint_minutes", "stop_on_forgetting", "look_steps", "look_questions"}


class PlainLossTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with the loss of the model's own logits; it can train in float16.

    TRL's fused head multiplies the last hidden states by the head's weight itself. It ignores what
    a model does to its logits afterwards, and without Triton it scores every position twice.
    """

    takes_plain_loss = True  # False: the loss is TRL's
    enlarges_gradients = False
    mitigation = Mitigation()

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a batch, in nats per trained token."""
        if self.takes_plain_loss:
            loss = self._compute_plain_loss(model, inputs, kwargs.get("num_items_in_batch"))
        else:
            stock: Any = super().compute_loss
            loss = stock(model, inputs, *args, **kwargs)
        if self.enlarges_gradients and loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * _GRADIENT_SCALE)
        return loss

    def _compute_plain_loss(self, model: Any, inputs: Any, n_tokens: Any) -> Any:
        """Compute the loss of the logits, with what the mitigation adds to it while training.

        Args:
            model: The model, possibly inside DDP's wrapper.
            inputs: The batch.
            n_tokens: How many tokens a step trains, in the batches of all processes; None: only
                the tokens of this batch are counted.

        Returns:
            The loss in nats per trained token.
        """
        compared = self.mitigation.choose_compared(inputs) if model.training else {}
        if compared:
            # DDP's wrapper waits for all processes, and others may have nothing to compare.
            unwrapped = self.accelerator.unwrap_model(model)
            # The base computes without gradients, because of `eval_mode`. It comes first, because
            # `disabled_adapters` switches the gradients of the adapter off and on again.
            with eval_mode(unwrapped), disabled_adapters(unwrapped):
                base_predicted = self._predict(unwrapped, compared)
        predicted = self._predict(model, inputs)
        nats = functional.cross_entropy(
            predicted.logits.float(), predicted.target, reduction="none"
        ).sum()
        if compared:
            # The base has predicted all rows of the batch, or only those that the mitigation has
            # marked. Then `measure_loss` takes the same rows from `predicted`, by `is_replayed`.
            nats = nats + self.mitigation.measure_loss(predicted, base_predicted)
        if n_tokens is None:
            return nats / (predicted.target != IGNORED).sum().clamp(min=1)
        return nats * self.accelerator.num_processes / n_tokens  # DDP takes the processes' mean

    def validate(self, compares: bool = False) -> tuple[float, float]:
        """Compute the loss on the held-out rows; several processes share the batches.

        The model is in evaluation mode afterwards.

        The Trainer's own `evaluate` does not serve. It takes the mean over batches. Before `train`
        it also marks the model as prepared, and accelerate then does not wrap it in DDP: each
        process would train a model of its own
        (https://github.com/huggingface/accelerate/blob/v1.10.0/src/accelerate/accelerator.py).

        Args:
            compares: Whether to compare with the base, by switching the adapter off.

        Returns:
            The loss in nats per trained token. And the mean divergence of the model's distribution
            from the base's on the first rows; nan if they are not compared. This divergence is
            said to foretell forgetting (Shenfeld et al. 2025, RL's Razor, arXiv 2509.04259).
        """
        rows = list(cast(Any, self.eval_dataset))
        size = self.args.per_device_eval_batch_size
        model = cast(Any, self.model).eval()
        loss_sums = torch.zeros(2, device=self.args.device)  # nats, tokens
        divergence_sums = torch.zeros(2, device=self.args.device)  # nats, tokens
        starts = range(0, len(rows), size)
        for start in starts[self.args.process_index :: self.args.world_size]:
            batch = self.data_collator(rows[start : start + size])
            inputs = send_to_device(batch, self.args.device)
            with torch.no_grad():
                tuned = self._predict(model, inputs)
                is_trained = tuned.target != IGNORED
                nats = functional.cross_entropy(tuned.logits.float(), tuned.target, reduction="sum")
                loss_sums += torch.stack([nats, is_trained.sum()])
                if compares and start < _DIVERGENCE_ROWS:
                    with disabled_adapters(model):
                        base = self._predict(model, inputs)
                    base_logits, logits = base.logits[is_trained], tuned.logits[is_trained]
                    divergence = measure_divergence(base_logits, logits).sum()
                    divergence_sums += torch.stack([divergence, is_trained.sum()])
        sums = self.accelerator.reduce(torch.cat([loss_sums, divergence_sums])).tolist()
        total_nats, n_tokens, total_divergence, n_compared = sums
        mean_divergence = total_divergence / n_compared if n_compared else math.nan
        return total_nats / max(1, n_tokens), mean_divergence

    def get_batch_samples(self, epoch_iterator: Any, *args: Any) -> Any:
        """Return the batches of a step, in which repeated rows carry no loss."""
        return super().get_batch_samples(map(self._ignore_repeated, epoch_iterator), *args)

    def _ignore_repeated(self, batch: Any) -> Any:
        """Remove the labels of rows that accelerate repeats to fill an epoch's last batches."""
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return batch
        labels = batch["labels"]
        row_number = torch.arange(len(labels), device=labels.device)[:, None]
        if "position_ids" in batch:  # rows lie end to end, and each begins at position 0
            row_number = (batch["position_ids"] == 0).cumsum(1) - 1
        n_before = self.args.per_device_train_batch_size * self.args.process_index
        is_repeated = n_before + row_number >= state.remainder
        return batch | {"labels": labels.masked_fill(is_repeated, IGNORED)}

    def _predict(self, model: Any, inputs: Mapping[str, Any]) -> Predictions:
        """Return what a model predicts at the places where any row of a batch has a label."""
        labels = inputs["labels"][:, 1:]  # the token at a place predicts the next one
        places = (labels != IGNORED).any(0).nonzero().flatten()
        target = labels[:, places].flatten()
        arguments = {name: value for name, value in inputs.items() if name != "labels"}
        forward = get_inner_model(self.accelerator.unwrap_model(model)).forward
        takes_places = "logits_to_keep" in inspect.signature(forward).parameters
        if takes_places and not learns_prompt(self.model):
            arguments["logits_to_keep"] = places
        logits = model(**arguments, use_cache=False).logits
        if logits.shape[1] != len(places):  # prompt tuning puts logits before the row's own
            logits = logits[:, places + logits.shape[1] - inputs["labels"].shape[1]]
        return Predictions(logits.flatten(0, 1), unmark_labels(target), find_marked(target))


def _build_arguments(model: Any, rows: TokenizedRows, config: RunConfig, folder: Path) -> SFTConfig:
    """Build TRL's arguments from the settings, and from what slimdown sets itself."""
    settings = asdict(config.train)
    settings |= settings.pop("args")  # further options of TRL's, which win over the settings
    # Packing and the settings of tokenizing have been used up already.
    not_passed = {*_OURS, "packing", *TOKENIZING_SETTINGS}
    settings = {name: value for name, value in settings.items() if name not in not_passed}
    settings["gradient_checkpointing"] = bool(settings["gradient_checkpointing"])
    if any(name.startswith("torch_compile") for name in settings):
        settings["tf32"] = False  # compiling would switch it on in the whole process
    arguments = SFTConfig(
        str(folder),
        **settings,
        padding_free=rows.is_padding_free,
        # "group_by_length" would begin each fifty steps with the longest rows.
        train_sampling_strategy="random",
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a diverged run must say so
        include_num_input_tokens_seen="all" if rows.is_padding_free else "non_padding",
        report_to="none",
        save_total_limit=1,
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
        router_aux_loss_coef=0.0,  # no loss that balances experts: Unsloth's would add it
        max_length=None,  # rows are cut already
        save_strategy="no",  # `TrainingCallback` asks for checkpoints
        bf16=False,  # without autocast base and adapter compute in their own dtypes
    )
    arguments.mixed_precision = "no"  # else `accelerate launch` could switch autocast on
    require_names(arguments, "transformers", "_n_gpu")
    arguments._n_gpu = min(arguments.n_gpu, 1)  # no DataParallel where one process sees several
    return arguments


def build_trainer(
    model: Any, tokenizer: Any, rows: TokenizedRows, config: RunConfig, folder: Path
) -> Any:
    """Return a trainer for a model: TRL's `SFTTrainer` with slimdown's loss and mitigation.

    The trained weights of an adapter become float32. On a model that computes in float16, their
    gradients are enlarged on the way back and divided again, see `_GRADIENT_SCALE`.

    Args:
        model: A model with weights to train.
        tokenizer: The base's.
        rows: Tokenized and cut. If they are padding-free, make and use the trainer inside
            `attention_within_rows`.
        config: The checked settings.
        folder: Where checkpoints go.

    Raises:
        ValueError: TRL or the Trainer refuses a setting; others of their errors are possible.
    """
    arguments = _build_arguments(model, rows, config, folder)
    has_own_adapter = get_own_adapter(model) is not None
    if has_own_adapter:
        # The Trainer refuses a 4-bit model without an adapter. It does not know an adapter of
        # slimdown's own, but it asks this attribute.
        model._hf_peft_config_loaded = True
    # TRL changes the settings of a router (which chooses among experts) in the model's config. They
    # are put back, because the config is saved with the model.
    model_settings = vars(get_inner_model(model).config.get_text_config())
    router_settings = {name: value for name, value in model_settings.items() if "router" in name}
    try:
        trainer = PlainLossTrainer(
            model=model,
            args=arguments,
            processing_class=tokenizer,
            train_dataset=rows.train,
            eval_dataset=rows.validation,
        )
    except ValueError as error:
        if has_own_adapter and "quantized" in str(error):  # the attribute is not asked any more
            change = describe_change("transformers", "_hf_peft_config_loaded")
            raise LibraryError(change) from error
        raise
    model_settings.update(router_settings)
    trainer.mitigation = config.keep
    trainer.remove_callback(transformers.PrinterCallback)
    if has_own_adapter or hasattr(model, "peft_config"):
        # Quantized layers have a dtype of their own in which they compute.
        layer_dtypes = [getattr(module, "compute_dtype", None) for module in model.modules()]
        is_half = torch.float16 in (model.dtype, *layer_dtypes)
        # Unsloth's trainer has a scaler of its own.
        trainer.enlarges_gradients = is_half and trainer.accelerator.scaler is None
        for parameter in [p for p in model.parameters() if p.requires_grad]:
            # TRL 1.16 casts a quantized base's adapters to bfloat16, where Adam's small updates
            # are rounded away. To be deleted when peft#2889 lets `autocast_adapter_dtype` decide.
            parameter.data = parameter.data.float()
            if trainer.enlarges_gradients:
                parameter.register_hook(lambda gradient: gradient / _GRADIENT_SCALE)
    return trainer


@dataclass(eq=False)
class TrainingCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Passes on what each step logged, ends a training that diverges, and asks for checkpoints."""

    config: TrainConfig
    dtype: str
    on_step: Callable[[StepLog], None]
    on_progress: OnProgress
    checkpoint_seconds: float = math.inf
    history: list[StepLog] = field(default_factory=list)
    n_tokens_before: float = 0.0  # tokens up to the checkpoint that the training resumes from
    saved_at: float = field(default_factory=time.monotonic)
    stopped: str = ""  # why a watcher ended the training early
    kept_step: int | None = None  # the step whose weights the watcher put back
    is_stopping: bool = False  # a signal came; the training ends once a checkpoint is written

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pass on again the steps of the checkpoint that the training resumes from."""
        for logs in state.log_history:
            self.log_step(logs["step"], state.max_steps, logs)
        self.n_tokens_before = float(state.num_input_tokens_seen)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pass on a step."""
        self.log_step(state.global_step, state.max_steps, kwargs["logs"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint if one is due."""
        if self.checkpoint_seconds == math.inf or state.global_step >= state.max_steps:
            return
        is_due = time.monotonic() - self.saved_at >= self.checkpoint_seconds
        is_due, self.is_stopping = broadcast_from_main((is_due, self.is_stopping))
        if is_due or self.is_stopping:
            control.should_save = True
            self.saved_at = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a training that a signal stopped, now that its checkpoint is written."""
        if self.is_stopping:
            raise KeyboardInterrupt

    def save(self, file: Path, model: Any, seconds: float, peak_bytes: float) -> None:
        """Write the trained weights, the history and the cost, whole or not at all."""
        facts = {name: getattr(self, name) for name in _KEPT_FACTS}
        trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        torch.save((facts | {"kept": trained}, (seconds, peak_bytes)), draft)
        draft.replace(file)

    def load(self, file: Path, model: Any) -> tuple[float, float]:
        """Put what `save` wrote into a model, pass on the steps again, and return the cost.

        Returns:
            The seconds and the peak bytes that were saved.
        """
        with torch.serialization.safe_globals([StepLog]):
            facts, (seconds, peak_bytes) = torch.load(file, map_location="cpu", weights_only=True)
        restore_weights(model, facts.pop("kept"))
        vars(self).update(facts)
        for log in self.history:
            self.on_step(log)
        return seconds, peak_bytes

    @contextmanager
    def stop_after_step(self) -> Iterator[None]:
        """Make Ctrl-C and SIGTERM end a training after its current step, within this context.

        The training then writes a checkpoint before it ends. A second signal ends it at once. So
        does the first if the training writes no checkpoints. Handlers of a launcher stay as they
        are, and so do signals that are ignored.
        """

        def stop(*_: Any) -> None:
            if self.is_stopping:
                raise KeyboardInterrupt
            self.is_stopping = True
            _log.warning(
                "Stopping after this step, which is kept. Press Ctrl-C again to stop at once."
            )

        # Python lets only the main thread set handlers.
        is_main_thread = threading.current_thread() is threading.main_thread()
        writes_checkpoints = self.checkpoint_seconds != math.inf
        signals = [signal.SIGINT, signal.SIGTERM] if is_main_thread and writes_checkpoints else []
        # The command line gives SIGTERM the handler of Ctrl-C. Others are somebody else's.
        handled = [n for n in signals if signal.getsignal(n) is signal.default_int_handler]
        try:
            for number in handled:
                signal.signal(number, stop)
            yield
        finally:
            for number in handled:
                signal.signal(number, signal.default_int_handler)

    def log_step(self, step: int, n_steps: int, logs: dict[str, Any]) -> None:
        """Pass on what the trainer logged after a step.

        Raises:
            ModelError: The loss or the gradient is not finite.
        """
        if "loss" not in logs:  # a validation, or the closing summary
            return
        values = {name: float(logs[name]) for name in _LOGGED if name in logs}
        values["num_tokens"] = float(logs.get("num_input_tokens_seen", 0))
        log = StepLog(step, values)
        self.history.append(log)
        self.on_step(log)
        # In float16, some engines skip a step whose gradient overflows, and go on.
        skips_steps = ENGINES[self.config.engine].skips_steps and self.dtype == "float16"
        for name, value in values.items():
            is_skipped_step = skips_steps and name == "grad_norm"
            if not math.isfinite(value) and not is_skipped_step:
                raise ModelError(
                    f"training ended at step {step}: the {name} is {value} in {self.dtype}. Try a "
                    f"smaller train.learning_rate (now {self.config.learning_rate:g}), more "
                    f"train.warmup_steps (now {self.config.warmup_steps:g}), or model.dtype=float32"
                )
        self.on_progress(step, n_steps, f"loss {values['loss']:.3f}")
