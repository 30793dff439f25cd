"""TRL's `SFTTrainer` with our settings, and the callback that reports and checkpoints."""

import inspect
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import transformers
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
from slimdown.training.tokenizing import SETTINGS, TokenizedRows
from slimdown.utils.distributed import broadcast_from_main
from slimdown.utils.errors import ModelError
from slimdown.utils.progress import OnProgress

# float16 has no numbers below 6e-8, where most gradients of a mean loss are. A power of two as
# factor adds no rounding. The Trainer's own GradScaler comes with autocast, in which base and
# adapter would compute differently than when they are measured.
_GRADIENT_SCALE = 2.0**12
_DIVERGENCE_ROWS = 32  # on a CPU two forwards of all rows take as long as both validations
_KEPT_FACTS = ("kept_step", "n_tokens_before", "stopped", "history")
_log = logging.getLogger(__name__)
_LOGGED = ("loss", "learning_rate", "grad_norm")
_OURS = ("engine", "checkpoint_minutes", "stop_on_forgetting")
_NOT_TRL = (*_OURS, "look_steps", "look_questions", "packing", *SETTINGS)


class PlainLossTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with the loss of the model's own logits, and with float16.

    TRL's fused head multiplies the last hidden states by the head's weight itself. It ignores what
    a model does to its logits afterwards, and without Triton it scores every position twice.
    """

    takes_plain_loss = True
    enlarges_gradients = False
    mitigation = Mitigation()  # what is added to the loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a batch, in nats a trained token."""
        if self.takes_plain_loss:
            loss = self._compute_plain_loss(model, inputs, kwargs.get("num_items_in_batch"))
        else:
            stock: Any = super().compute_loss
            loss = stock(model, inputs, *args, **kwargs)
        if self.enlarges_gradients and loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * _GRADIENT_SCALE)
        return loss

    def _compute_plain_loss(self, model: Any, inputs: Any, n_tokens: Any) -> Any:
        """Compute the loss of the logits, with what a mitigation adds in rows that it compares.

        Args:
            model: The model, in its wrapper.
            inputs: The batch.
            n_tokens: The trained tokens of a step, in the batches of all processes; None: those of
                this batch.
        """
        compared = self.mitigation.choose_compared(inputs) if model.training else {}
        predict = self._open_batch(model, inputs)
        if compared:
            # Not through DDP's wrapper: other processes may have no such row in their batch.
            own = self.accelerator.unwrap_model(model)
            # This comes first: it switches the adapter's gradients off and on again.
            with eval_mode(own), disabled_adapters(own):
                of_base = self._open_batch(own, compared)()
        predicted = predict()
        nats = functional.cross_entropy(
            predicted.logits.float(), predicted.target, reduction="none"
        ).sum()
        if compared:
            nats = nats + self.mitigation.measure_loss(predicted, of_base)
        if n_tokens is None:
            return nats / (predicted.target != IGNORED).sum().clamp(min=1)
        return nats * self.accelerator.num_processes / n_tokens  # DDP takes their mean

    def validate(self, compares: bool = False) -> tuple[float, float]:
        """Compute the loss on the held-out rows; several processes share the batches.

        `evaluate` takes the mean over batches. Before `train` it also marks the model as prepared,
        and accelerate then does not wrap it in DDP: each process would train a model of its own
        (https://github.com/huggingface/accelerate/blob/v1.10.0/src/accelerate/accelerator.py).

        Args:
            compares: Whether to compare with the base, which is available beside an adapter.

        Returns:
            The loss in nats a trained token, and the mean divergence of the model's distribution
            from the base's on the first rows, which is said to foretell forgetting (Shenfeld et al.
            2025, RL's Razor, arXiv 2509.04259); nan where they are not compared.
        """
        rows, size = list(cast(Any, self.eval_dataset)), self.args.per_device_eval_batch_size
        sums, model = torch.zeros(4, device=self.args.device), cast(Any, self.model).eval()
        for start in range(0, len(rows), size)[self.args.process_index :: self.args.world_size]:
            inputs = self._prepare_inputs(self.data_collator(rows[start : start + size]))
            predict = self._open_batch(model, inputs)
            with torch.no_grad():
                own = predict()
                is_trained = own.target != IGNORED
                nats = functional.cross_entropy(own.logits.float(), own.target, reduction="sum")
                sums[:2] += torch.stack([nats, is_trained.sum()])
                if compares and start < _DIVERGENCE_ROWS:
                    with disabled_adapters(model):
                        base_logits = predict().logits[is_trained]
                    nats = measure_divergence(base_logits, own.logits[is_trained]).sum()
                    sums[2:] += torch.stack([nats, is_trained.sum()])
        loss, n_tokens, divergence, n_compared = self.accelerator.reduce(sums).tolist()
        return loss / max(1, n_tokens), divergence / n_compared if n_compared else math.nan

    def get_batch_samples(self, epoch_iterator: Any, *args: Any) -> Any:
        """Return the batches of a step; repeated rows carry no loss."""
        return super().get_batch_samples(map(self._ignore_repeated, epoch_iterator), *args)

    def _ignore_repeated(self, batch: Any) -> Any:
        """Remove labels of rows that accelerate repeats to fill the last batches of an epoch."""
        size, state = self.args.per_device_train_batch_size, self.accelerator.gradient_state
        if self.args.world_size > 1 and state.end_of_dataloader and state.remainder > 0:
            row = torch.arange(len(batch["labels"]), device=batch["labels"].device)[:, None]
            if "position_ids" in batch:  # one row after another
                row = (batch["position_ids"] == 0).cumsum(1) - 1
            is_repeated = row + size * self.args.process_index >= state.remainder
            batch["labels"] = batch["labels"].masked_fill(is_repeated, IGNORED)
        return batch

    def _open_batch(self, model: Any, inputs: Any) -> Callable[[], Predictions]:
        """Take the labels out of a batch; return a function that predicts them."""
        labels = inputs.pop("labels")
        following = labels[:, 1:]
        places = (following != IGNORED).any(0).nonzero().flatten()  # where any row has a label
        forward = get_inner_model(self.accelerator.unwrap_model(model)).forward
        takes_places = "logits_to_keep" in inspect.signature(forward).parameters
        if takes_places and not learns_prompt(self.model):
            inputs["logits_to_keep"] = places
        target = following[:, places].flatten()

        def predict() -> Predictions:
            logits = model(**inputs, use_cache=False).logits
            if logits.shape[1] != len(places):  # prompt tuning puts logits before the row's own
                logits = logits[:, places + logits.shape[1] - labels.shape[1]]
            return Predictions(logits.flatten(0, 1), unmark_labels(target), find_marked(target))

        return predict


def build_arguments(config: RunConfig, folder: Path, **ours: Any) -> SFTConfig:
    """Build TRL's arguments from the settings, and from what slimdown sets itself."""
    settings = asdict(config.train)
    settings |= settings.pop("args")
    settings = {name: value for name, value in settings.items() if name not in _NOT_TRL}
    settings["gradient_checkpointing"] = bool(settings["gradient_checkpointing"])
    if any(name.startswith("torch_compile") for name in settings):
        settings["tf32"] = False  # compiling would switch it on in the whole process
    # Rows are cut already, `TrainingCallback` asks for checkpoints, and without autocast base and
    # adapter compute in their own dtypes.
    ours |= {"max_length": None, "save_strategy": "no", "bf16": False}
    arguments = SFTConfig(str(folder), **settings, **ours)
    arguments.mixed_precision = "no"  # else `accelerate launch` could switch autocast on
    return arguments


def build_trainer(
    model: Any, tokenizer: Any, rows: TokenizedRows, config: RunConfig, folder: Path
) -> Any:
    """Build a trainer on tokenized rows; trained weights are float32, unless they are the base's.

    Args:
        model: A model with weights to train.
        tokenizer: The base's.
        rows: Tokenized and cut; if they are padding-free, call it in `attention_within_rows`.
        config: The checked settings.
        folder: Where checkpoints go.
    """
    arguments = build_arguments(
        config,
        folder,
        padding_free=rows.is_padding_free,
        train_sampling_strategy="random",  # by length each fifty steps begin with the longest rows
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
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # no DataParallel where one process sees several
    has_own_adapter = get_own_adapter(model) is not None
    if has_own_adapter:
        model._hf_peft_config_loaded = True  # the Trainer takes no bare 4-bit model
    data = {"train_dataset": rows.train, "eval_dataset": rows.validation}
    settings = vars(get_inner_model(model).config.get_text_config())
    router = {name: value for name, value in settings.items() if "router" in name}
    trainer = PlainLossTrainer(model=model, args=arguments, processing_class=tokenizer, **data)
    settings.update(router)  # TRL writes what it trains with into the config, which is saved
    trainer.mitigation = config.keep
    trainer.remove_callback(transformers.PrinterCallback)
    if has_own_adapter or hasattr(model, "peft_config"):
        layers = [getattr(module, "compute_dtype", None) for module in model.modules()]
        # Unsloth's trainer has a scaler of its own.
        is_half = torch.float16 in (model.dtype, *layers)
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
    n_tokens_before: float = 0.0  # tokens of the checkpoint that it resumes from
    saved_at: float = field(default_factory=time.monotonic)
    stopped: str = ""  # why it ended early
    kept_step: int | None = None  # of the weights that it has then
    is_stopping: bool = False  # by a signal, once a checkpoint is written

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
        if self.checkpoint_seconds < math.inf and state.global_step < state.max_steps:
            is_due = time.monotonic() - self.saved_at >= self.checkpoint_seconds
            is_due, self.is_stopping = broadcast_from_main((is_due, self.is_stopping))
            if is_due or self.is_stopping:
                control.should_save, self.saved_at = True, time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a training that a signal stopped, now that its checkpoint is written."""
        if self.is_stopping:
            raise KeyboardInterrupt

    def save(self, file: Path, model: Any, *cost: float) -> None:
        """Write the trained weights and the history, whole or not at all; `load` returns `cost`."""
        facts = {name: getattr(self, name) for name in _KEPT_FACTS}
        trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save((facts | {"kept": trained}, cost), draft := file.with_suffix(".draft"))
        draft.replace(file)

    def load(self, file: Path, model: Any) -> tuple[float, ...]:
        """Put what `save` wrote into a model, pass on the steps again, and return the cost."""
        with torch.serialization.safe_globals([StepLog]):
            facts, cost = torch.load(file, map_location="cpu", weights_only=True)
        restore_weights(model, facts.pop("kept"))
        vars(self).update(facts)
        for log in self.history:
            self.on_step(log)
        return tuple(cost)

    @contextmanager
    def stop_after_step(self) -> Iterator[None]:
        """Inside, Ctrl-C and SIGTERM end a training with checkpoints once the next one is written.

        A second signal ends it at once. A launcher's handlers and ignored signals stay as they are.
        """

        def stop(*_: Any) -> None:
            if self.is_stopping:
                raise KeyboardInterrupt
            self.is_stopping = True
            _log.warning(
                "Stopping after this step, which is kept. Press Ctrl-C again to stop at once."
            )

        is_able = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if self.checkpoint_seconds < math.inf else ()
        ours = [n for n in numbers if is_able and signal.getsignal(n) is signal.default_int_handler]
        try:
            for number in ours:
                signal.signal(number, stop)
            yield
        finally:
            for number in ours:
                signal.signal(number, signal.default_int_handler)

    def log_step(self, step: int, n_steps: int, logs: dict[str, Any]) -> None:
        """Pass on one step.

        Raises:
            ModelError: Its loss or gradient is not finite.
        """
        if "loss" not in logs:  # a validation, or the closing summary
            return
        values = {name: float(logs[name]) for name in _LOGGED if name in logs}
        values["num_tokens"] = float(logs.get("num_input_tokens_seen", 0))
        self.history.append(log := StepLog(step, values))
        self.on_step(log)
        skips_steps = ENGINES[self.config.engine].skips_steps and self.dtype == "float16"
        for name, value in values.items():
            if not math.isfinite(value) and not (skips_steps and name == "grad_norm"):
                raise ModelError(
                    f"training ended at step {step}: the {name} is {value} in {self.dtype}. Try a "
                    f"smaller train.learning_rate (now {self.config.learning_rate:g}), more "
                    f"train.warmup_steps (now {self.config.warmup_steps:g}), or model.dtype=float32"
                )
        self.on_progress(step, n_steps, f"loss {values['loss']:.3f}")
