"""Fine-tune a base with TRL: everything that can fail is tried before the base is measured."""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import send_to_device
from datasets import Dataset
from trl.data_utils import pack_dataset

from slimdown.config.engines import ENGINES
from slimdown.config.schema import RunConfig, TrainConfig
from slimdown.data.training_data import TrainingData
from slimdown.models.adapters import attach_adapter, save_adapter
from slimdown.models.base_model import LoadedModel
from slimdown.models.causal import disabled_adapters
from slimdown.models.device_memory import is_out_of_memory, list_int8_copies, measure_peak_memory
from slimdown.models.identity import identify_adapted
from slimdown.models.quiet import quiet_libraries
from slimdown.training.labels import IGNORED
from slimdown.training.padding_free import attention_within_rows, supports_padding_free
from slimdown.training.result import StepLog, TrainingResult
from slimdown.training.sft import TrainingCallback, build_trainer
from slimdown.training.step_splits import Forwards, apply_forwards
from slimdown.training.tokenizing import TokenizedRows, tokenize_rows
from slimdown.utils.distributed import broadcast_from_main, process_count, process_rank
from slimdown.utils.errors import ModelError, SlimdownError, describe_error
from slimdown.utils.hashing import hash_folder
from slimdown.utils.progress import OnProgress
from slimdown.utils.tested_versions import LibraryError, explain_library_change

# How far rounding moves a loss that is computed twice, as a share of it: on batches of the same
# shape, and on batches of different shapes.
_ROUNDING = 1e-3
_ROUNDING_OF_SHAPES = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 1e-2}


def prepare_training(
    base: LoadedModel, train_data: TrainingData, config: RunConfig
) -> TokenizedRows:
    """Return tokenized rows to train on, after a trial of the training on one small batch.

    Mistakes so show before hours go into measuring the base. The trial makes the optimizer, checks
    that gradients arrive, and finds out whether rows may lie end to end without padding, which is
    faster: the loss must then be the same as with padding. Several processes must call this
    together.

    Args:
        base: The model; it is left as it is.
        train_data: The rows.
        config: The checked settings.

    Returns:
        The rows for `fine_tune`, those that a mitigation adds among them. They say whether the
        training needs no padding.

    Raises:
        ModelError: This model cannot be trained with these settings.
        DataError: No row is left to train on.
    """
    tokenized = tokenize_rows(
        train_data, base.tokenizer, config.train, use_cpu=base.device == "cpu", seed=config.seed
    )
    rows: TokenizedRows = config.keep.prepare_rows(base, tokenized, config)
    is_padding_free = _try_training(base, rows, config)
    if config.train.args.get("packing"):
        if not is_padding_free:
            raise ModelError(
                "train.args.packing=true wants rows without padding, which this model, this method "
                "or NEFTune may mix; leave it out"
            )
        rows = replace(rows, train=pack_rows(rows.train, config.train))
    if is_padding_free:
        return replace(rows, is_padding_free=True)
    note = "training pads its rows, which is slower: this model or NEFTune may mix unpadded ones"
    return replace(rows, notes=[*rows.notes, note])


def _try_training(base: LoadedModel, rows: TokenizedRows, config: RunConfig) -> bool:
    """Try the training on a few rows, and return whether it can go without padding.

    The trial trains a twin of the base: a copy of its modules, which shares its weights.

    Raises:
        ModelError: The training fails even with padding.
    """
    trained_before = [(parameter, parameter.requires_grad) for parameter in base.model.parameters()]
    try:
        with quiet_libraries(), tempfile.TemporaryDirectory() as folder:
            model = attach_adapter(_make_twin(base), config.method, config.lora, config.seed)
            return _Trial(replace(base, model=model), rows, config, Path(folder)).keeps_rows_apart()
    except SlimdownError:
        raise  # it already says how to go on
    except Exception as error:  # models, adapters and optimizers are other people's code
        if changed := explain_library_change(error):
            raise LibraryError(changed) from error
        has_options = config.train.args or config.lora.args
        advice = "change train.args and lora.args, or " if has_options else ""
        raise ModelError(
            f"method={config.method.name} cannot train {base.id} here: {describe_error(error)}; "
            f"{advice}choose another method, quantization=none, or another model"
        ) from error
    finally:  # the twin has the base's own parameters, and its adapter has frozen them
        for parameter, was_trained in trained_before:
            parameter.requires_grad_(was_trained)
            parameter.grad = None


def _make_twin(base: LoadedModel) -> LoadedModel:
    """Copy a model, but not its weights: PEFT, TRL and the Trainer change a model in place."""
    tensors = list(chain(base.model.parameters(), base.model.buffers()))
    states = [t.quant_state for t in tensors if getattr(t, "quant_state", None) is not None]
    states += list_int8_copies(base.model)
    shared = {id(tensor): tensor for tensor in (*tensors, *states)}
    return replace(base, model=copy.deepcopy(base.model, shared))


@dataclass(frozen=True)
class _Trial:
    """A training that takes a step on a few rows, to see whether it can."""

    model: LoadedModel  # a twin, with what is trained
    rows: TokenizedRows
    config: RunConfig
    folder: Path

    def keeps_rows_apart(self) -> bool:
        """Try a batch of padded rows, and return whether its loss is the same without padding.

        Without padding, rows lie end to end. A model that does not mix them passes three checks:

        - Two rows have the same loss in either order.
        - A single row has the same loss with padding and without.
        - Two rows have nearly the same loss with padding and without. These batches differ in
          shape, so half precision rounds them differently.
        """
        # The batch is two rows of middle length among the first 32.
        numbers = range(min(32, len(self.rows.train)))
        by_length = sorted(numbers, key=lambda number: len(self.rows.train[number]["labels"]))
        middle = (len(by_length) - 1) // 2
        pair = by_length[middle : middle + 2]  # one row if there is only one
        # This comes before all else: what cannot be trained with padding either raises here.
        padding_trainer = self.build_trainer(pair, is_padding_free=False)
        padded_loss = self.compute_loss(padding_trainer, pair)
        # NEFTune adds noise to a row's embeddings. The noise depends on a row's length,
        # and rows laid end to end are one row.
        if self.config.train.args.get("neftune_noise_alpha"):
            return False
        if not supports_padding_free(self.model.model):
            return False
        try:
            trainer = self.build_trainer(pair, is_padding_free=True)
            loss = self.compute_loss(trainer, pair)
            swapped_loss = self.compute_loss(trainer, pair[::-1])
            row_loss = self.compute_loss(trainer, pair[:1])
            padded_row_loss = self.compute_loss(padding_trainer, pair[:1])
            shape_rounding = _ROUNDING_OF_SHAPES[self.model.dtype]
        except Exception:  # it cannot train without padding, or its dtype has no known rounding
            return False
        size = max(abs(padded_loss), 1e-2)  # a loss near 0 would allow no rounding at all
        is_order_free = abs(loss - swapped_loss) <= _ROUNDING * size
        is_row_equal = abs(row_loss - padded_row_loss) <= _ROUNDING * size
        is_pair_equal = abs(loss - padded_loss) <= shape_rounding * size
        return is_order_free and is_row_equal and is_pair_equal

    def build_trainer(self, numbers: list[int], is_padding_free: bool) -> Any:
        """Return a trainer of some training rows, whose optimizer and batches can be made.

        Args:
            numbers: Which training rows it has, counted from 0.
            is_padding_free: Whether the rows of a batch lie end to end, instead of being padded.

        Raises:
            Exception: The trainer or the optimizer does not work with the settings.
        """
        chosen = self.rows.train.select(numbers)
        rows = replace(self.rows, train=chosen, validation=None, is_padding_free=is_padding_free)
        model, tokenizer = self.model.model, self.model.tokenizer
        trainer = build_trainer(model, tokenizer, rows, self.config, self.folder)
        # The next two calls are made because they raise: the first if the optimizer's package is
        # missing (any number of steps does), the second if options do not fit together.
        trainer.create_optimizer_and_scheduler(num_training_steps=10)
        trainer.get_train_dataloader()
        return trainer

    def compute_loss(self, trainer: Any, numbers: list[int]) -> float:
        """Return the loss of a batch of training rows, and compute its gradients.

        No weight changes. Afterwards the model is in evaluation mode, and its parameters hold the
        gradients, which `_try_training` removes.

        Args:
            trainer: By which the batch is made.
            numbers: Which training rows the batch has, counted from 0.

        Raises:
            Exception: The model does not work with the settings.
            ValueError: No gradient arrives at what is trained.
        """
        model = self.model.model
        rows = [self.rows.train[number] for number in numbers]
        batch = send_to_device(trainer.data_collator(rows), trainer.args.device)
        model.eval()  # without dropout
        with attention_within_rows(model, trainer.args.padding_free):
            loss = trainer.compute_loss(model, batch)
            loss.backward()
        if not any(p.grad is not None and p.grad.any() for p in model.parameters()):
            raise ValueError("no gradient arrives at what is trained")
        return float(loss)


def fine_tune(
    base: LoadedModel,
    rows: TokenizedRows,
    config: RunConfig,
    checkpoint_dir: Path,
    on_log: Callable[[StepLog], None],
    *,
    on_progress: OnProgress,
    forwards: Forwards | None = None,
    watcher: Any = None,
) -> tuple[LoadedModel, TrainingResult]:
    """Train, or resume from the last checkpoint, and validate before and after.

    The loss before training is that of the base: an adapter is switched off for it. The tuned model
    is compared with the base in the same way, unless the weights themselves are trained.

    Seeds are set before the adapter is made and before the first step, so nothing that was measured
    before changes what training does. Several processes must call this together.

    Args:
        base: The model; it is changed in place and no longer the base afterwards.
        rows: What `prepare_training` returned.
        config: The same settings.
        checkpoint_dir: The first process's folder for checkpoints and for the tuned model.
        on_log: Receives what each step logged; after a resume, first the steps of the checkpoint.
        on_progress: Receives how many steps are done.
        forwards: How a step is split into forward passes that fit the card's memory: see
            `step_splits`. All processes use those of the first. None: as the settings say.
        watcher: The trainer's callback that may end the training and put earlier weights back. Its
            `stopped` says why; `kept_step` is the step of these weights, None if there are none.
            `_Training.run` copies both to the `TrainingCallback`, from which the result has them.

    Returns:
        The tuned model in evaluation mode, and what the training did. If the watcher has put
        earlier weights back, `steps` counts up to these weights. The history, the mean loss and the
        tokens are always of all steps that were taken.

    Raises:
        ModelError: It does not fit in memory, its loss is not finite any more, or the watcher
            ended it and has no weights to put back.
        KeyboardInterrupt: A signal came; see `_Training.run`.
    """
    folder = broadcast_from_main(checkpoint_dir)
    config, forwards_description = apply_forwards(config, broadcast_from_main(forwards))
    facts = config.method.facts
    # Weights that are trained themselves become float32; they are saved in these dtypes.
    dtypes = {n: p.dtype for n, p in base.model.named_parameters() if facts.trains_weights}
    model = _attach(base, config)
    if facts.start:  # the method takes its first values from the text of the rows
        facts.find_function(facts.start)(model, (row["input_ids"] for row in rows.train))
    # Two kinds of training cannot resume. An engine's own module writes no checkpoints. With a
    # watcher, a checkpoint would lack the weights that the watcher may have to put back.
    resumes = facts.resumes and not watcher and not ENGINES[config.train.engine].module
    checkpoint_seconds = 60 * (config.train.checkpoint_minutes or math.inf) if resumes else math.inf
    callback = TrainingCallback(config.train, base.dtype, on_log, on_progress, checkpoint_seconds)
    attention = attention_within_rows(model, rows.is_padding_free)
    with quiet_libraries(), _keep_generation(base.model), attention:
        trainer = build_trainer(model, base.tokenizer, rows, config, folder)
        with _explain_memory(base.device, config.train):
            on_progress(0, 0, "validating")
            with nullcontext() if facts.trains_weights else disabled_adapters(model):
                loss_before, _ = trainer.validate()
            training = _Training(trainer, model, callback, watcher, folder, resumes)
            seconds, peak_bytes = training.run(base, rows, config)
        on_progress(0, 0, "validating")
        loss_after, divergence = trainer.validate(compares=not facts.trains_weights)
    n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    output_dir = folder / ("model" if facts.trains_weights else "adapter")
    tuned = _save_tuned(replace(base, model=model.eval()), output_dir, dtypes)
    history = callback.history
    n_tokens = history[-1].values.get("num_tokens", 0.0)  # counted from the first step on
    result = TrainingResult(
        output_dir=output_dir,
        steps=len(history) if callback.kept_step is None else callback.kept_step,
        tokens=int(n_tokens),
        train_loss=sum(log.values["loss"] for log in history) / len(history),
        validation_loss_before=loss_before,
        validation_loss_after=loss_after,
        base_divergence=divergence,
        stopped=callback.stopped,
        n_trainable=n_trainable,
        trainable_percent=100 * n_trainable / base.n_parameters,
        runtime_seconds=seconds,
        tokens_per_second=(n_tokens - callback.n_tokens_before) / seconds,
        history=tuple(history),
        n_truncated=rows.n_truncated,
        n_untrained=rows.n_untrained,
        peak_bytes=peak_bytes,
        forwards=forwards_description,
    )
    return tuned, result


def _attach(base: LoadedModel, config: RunConfig) -> Any:
    """Attach the adapter, or prepare all weights to be trained: they become float32."""
    model = attach_adapter(base, config.method, config.lora, config.seed)
    if config.method.facts.trains_weights:
        model.float()  # half precision would round Adam's small steps away
    return model


@contextmanager
def _keep_generation(model: Any) -> Iterator[None]:
    """On leaving, undo what TRL and the Trainer change in how a model generates."""
    config = copy.deepcopy(model.generation_config)
    yield
    vars(model).pop("forward", None)  # that of TRL's fused head
    model.generation_config = config  # the Trainer had aligned it with the tokenizer


@contextmanager
def _explain_memory(device: str, train: TrainConfig) -> Iterator[None]:
    """Inside, refuse a training that runs out of memory, and name what would need less."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"training does not fit in the memory of {device}: halve "
            f"train.per_device_train_batch_size (now {train.per_device_train_batch_size}) and "
            f"train.per_device_eval_batch_size ({train.per_device_eval_batch_size}), double "
            f"train.gradient_accumulation_steps ({train.gradient_accumulation_steps}), or set "
            "train.gradient_checkpointing=true"
        ) from None


@dataclass(frozen=True)
class _Training:
    """A training that is set up, and may have been run by an earlier process."""

    trainer: Any
    model: Any
    callback: TrainingCallback
    watcher: Any  # see `fine_tune`
    folder: Path
    resumes: bool  # from the last checkpoint

    def run(self, base: LoadedModel, rows: TokenizedRows, config: RunConfig) -> tuple[float, float]:
        """Train, or load what an earlier process trained; return the seconds and the peak bytes.

        Raises:
            ModelError: The watcher ended the training and has no weights to put back.
            KeyboardInterrupt: A signal came. The next process goes on: from a checkpoint, or if the
            signal came in the last step, from the trained weights.
        """
        callback = self.callback
        file = self.folder / "trained.pt"  # written below, once all steps are taken
        is_trained = broadcast_from_main(file.is_file())
        engine = ENGINES[config.train.engine]
        self.trainer.add_callback(callback)
        if self.watcher:
            self.trainer.add_callback(self.watcher)
        transformers.set_seed(config.seed)
        if is_trained:  # no step is taken that a signal should wait for
            return callback.load(file, self.model)
        with measure_peak_memory(base.device) as peak, callback.stop_after_step():
            if engine.module:
                seconds = engine.find_function("train")(base, self.model, rows, config, callback)
            else:
                checkpoint = _find_checkpoint(self.folder) if self.resumes else None
                checkpoint = broadcast_from_main(checkpoint)
                output = self.trainer.train(resume_from_checkpoint=checkpoint)
                seconds = output.metrics["train_runtime"]
            peak_bytes = peak()
        self._note_early_end(config.train)
        if process_rank() == 0:
            callback.save(file, self.model, seconds, peak_bytes)
        # After a signal in an earlier step, `train` above has raised this already. The callback
        # does so in `on_save`, once a checkpoint is written. The last step writes no checkpoint, so
        # the weights are saved first.
        if callback.is_stopping:
            raise KeyboardInterrupt
        return seconds, peak_bytes

    def _note_early_end(self, train: TrainConfig) -> None:
        """If the watcher ended the training, note in the callback why, and whose weights it has."""
        if not (self.watcher and self.watcher.stopped):
            return
        if self.watcher.kept_step is None:
            raise ModelError(
                f"training ended: {self.watcher.stopped}, and no look before it was within all "
                f"budgets; look earlier (train.look_steps={train.look_steps}), allow more "
                f"(benchmark.NAME.max_loss), or lower train.learning_rate"
            )
        self.callback.stopped = self.watcher.stopped
        self.callback.kept_step = self.watcher.kept_step


def try_steps(base: LoadedModel, rows: TokenizedRows, config: RunConfig, n_steps: int) -> float:
    """Train a few steps, and return how many seconds they take together, for an estimate of time.

    Args:
        base: The model; it is not usable any more.
        rows: What `prepare_training` returned.
        config: The checked settings.
        n_steps: How many steps are trained.
    """
    config = replace(config, train=replace(config.train, max_steps=n_steps))
    model = _attach(base, config)
    attention = attention_within_rows(model, rows.is_padding_free)
    with tempfile.TemporaryDirectory() as folder, quiet_libraries(), attention:
        trial = replace(rows, validation=None)
        trainer = build_trainer(model, base.tokenizer, trial, config, Path(folder))
        return float(trainer.train().metrics["train_runtime"])


def _find_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint, if any: one whose state, written last, is there."""
    states = list(folder.glob("checkpoint-*/trainer_state.json"))
    return str(max(states, key=lambda file: file.stat().st_mtime).parent) if states else None


def _save_tuned(tuned: LoadedModel, folder: Path, dtypes: dict[str, torch.dtype]) -> LoadedModel:
    """Save what was trained, once for all processes; return the model with its identity.

    Args:
        tuned: The model in evaluation mode; its weights are changed to `dtypes`.
        folder: An empty folder.
        dtypes: For a model trained as a whole, the dtypes that its weights had in the base, by
            name; empty if the model has an adapter.
    """
    is_whole = bool(dtypes)
    for name, dtype in dtypes.items():
        parameter = tuned.model.get_parameter(name)
        parameter.data = parameter.data.to(dtype)
    if process_rank() == 0:
        if is_whole:
            with quiet_libraries():
                tuned.model.save_pretrained(folder)
            tuned.tokenizer.save_pretrained(folder)
        else:
            save_adapter(tuned.model, tuned, folder)
    broadcast_from_main(None)  # waits until the first process has written the files
    if is_whole:
        identity = {**tuned.identity, "weights": f"sha256:{hash_folder(folder)}"}
        return replace(tuned, identity=identity, files=str(folder))
    return replace(tuned, identity=identify_adapted(tuned.identity, folder), adapter=str(folder))


def validate(model: Any, tokenizer: Any, rows: TokenizedRows, config: RunConfig) -> float:
    """Compute a model's loss on the held-out rows, in nats per token.

    Args:
        model: A model with an adapter; it is not trained here.
        tokenizer: The base's.
        rows: What `tokenize_rows` returned.
        config: The settings that the model was trained with.
    """
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        loss, _ = build_trainer(model, tokenizer, rows, config, Path(folder)).validate()
    return float(loss)


def pack_rows(rows: Dataset, train: TrainConfig) -> Any:
    """Lay rows end to end, up to `train.max_length`.

    Several processes need full batches, so rows without labels fill the last ones.
    """
    with quiet_libraries():
        packed = pack_dataset(rows, train.max_length)
    if process_count() > 1:
        n_missing = -len(packed) % (process_count() * train.per_device_train_batch_size)
        for _ in range(n_missing):
            packed = packed.add_item({"input_ids": [0], "labels": [IGNORED], "seq_lengths": [1]})
    return packed
