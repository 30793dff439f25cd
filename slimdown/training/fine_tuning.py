"""Fine-tune a base with TRL: everything that can fail is tried before the base is measured."""

import copy
import math
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset
from trl.data_utils import pack_dataset

from slimdown.config.engines import ENGINES
from slimdown.config.schema import RunConfig, TrainConfig
from slimdown.data.training_data import TrainingData
from slimdown.models.adapters import attach_adapter, save_adapter
from slimdown.models.base_model import LoadedModel
from slimdown.models.causal import disabled_adapters
from slimdown.models.identity import identify_adapted
from slimdown.models.memory import is_out_of_memory, list_int8_copies, measure_peak_memory
from slimdown.models.quiet import quiet_libraries
from slimdown.training.forwards import read_forwards
from slimdown.training.labels import IGNORED
from slimdown.training.padding_free import attention_within_rows, supports_padding_free
from slimdown.training.result import StepLog, TrainingResult
from slimdown.training.sft import TrainingCallback, build_trainer
from slimdown.training.tokenizing import TokenizedRows, tokenize_rows
from slimdown.utils.distributed import broadcast_from_main, process_count, process_rank
from slimdown.utils.errors import ModelError, SlimdownError, describe_error
from slimdown.utils.hashing import hash_folder
from slimdown.utils.progress import OnProgress

# Relative difference that rounding explains between two computations of one loss: on batches of
# one shape, and of two shapes.
_ROUNDING = 1e-3
_ROUNDING_OF_SHAPES = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 1e-2}


def prepare_training(
    base: LoadedModel, train_data: TrainingData, config: RunConfig
) -> TokenizedRows:
    """Check settings, tokenize, and try one small batch, before hours go into measuring the base.

    The trial makes the optimizer, checks that gradients arrive, and compares the loss without
    padding with that of padded rows. Several processes must call this together.

    Args:
        base: The model; it is left as it is.
        train_data: The rows.
        config: The checked settings.

    Returns:
        What `fine_tune` needs.

    Raises:
        ModelError: This model cannot be trained with these settings.
        DataError: No row is left to train on.
    """
    on_cpu = base.device == "cpu"
    plain = tokenize_rows(train_data, base.tokenizer, config.train, on_cpu, config.seed)
    rows: TokenizedRows = config.keep.prepare_rows(base, plain, config)
    options = config.train.args
    # A copy that shares the weights: PEFT, TRL and the Trainer change a model in place.
    tensors = list(chain(base.model.parameters(), base.model.buffers()))
    states = [t.quant_state for t in tensors if getattr(t, "quant_state", None) is not None]
    states += list_int8_copies(base.model)
    shared = {id(tensor): tensor for tensor in (*tensors, *states)}
    trained = [(parameter, parameter.requires_grad) for parameter in base.model.parameters()]
    twin = replace(base, model=copy.deepcopy(base.model, shared))
    by_length = sorted(range(min(32, len(rows.train))), key=lambda i: len(rows.train[i]["labels"]))
    middle = by_length[(len(by_length) - 1) // 2 :][:2]

    def take_step(model: Any, folder: str, numbers: list[int], is_padding_free: bool) -> float:
        trial = replace(rows, train=rows.train.select(numbers), validation=None)
        trial = replace(trial, is_padding_free=is_padding_free)
        trainer = build_trainer(model, base.tokenizer, trial, config, Path(folder))
        trainer.create_optimizer_and_scheduler(num_training_steps=10)  # fails where one is missing
        trainer.get_train_dataloader()  # fails where its options do not fit together
        batch = trainer._prepare_inputs(trainer.data_collator(list(trial.train)))
        model.eval()  # without dropout
        with attention_within_rows(model, trial.is_padding_free):
            loss = trainer.compute_loss(model, batch)
            loss.backward()
        if not any(p.grad is not None and p.grad.any() for p in model.parameters()):
            raise ValueError("no gradient arrives at what is trained")
        return float(loss)

    try:
        with quiet_libraries(), tempfile.TemporaryDirectory() as folder:
            model = attach_adapter(twin, config.method, config.lora, config.seed)
            padded_loss, differences = take_step(model, folder, middle, False), [math.nan]
            # NEFTune's noise depends on a row's length, and rows laid end to end are one row.
            if supports_padding_free(model) and not options.get("neftune_noise_alpha"):
                with suppress(Exception):  # then its rows are padded
                    loss = take_step(model, folder, middle, True)
                    swapped = take_step(model, folder, middle[::-1], True)
                    alone = [take_step(model, folder, middle[:1], free) for free in (True, False)]
                    # Rows that do not mix round alike in either order, and so does one row with
                    # and without padding: half precision hides no difference here.
                    looser = _ROUNDING / _ROUNDING_OF_SHAPES[base.dtype]
                    differences = [abs(loss - swapped), abs(alone[0] - alone[1])]
                    differences += [looser * abs(loss - padded_loss)]
    except SlimdownError:
        raise
    except Exception as error:  # models, adapters and optimizers are other people's code
        advice = "change train.args and lora.args, or " * bool(options or config.lora.args)
        raise ModelError(
            f"method={config.method.name} cannot train {base.id} here: {describe_error(error)}; "
            f"{advice}choose another method, quantization=none, or another model"
        ) from error
    finally:
        for parameter, is_trained in trained:
            parameter.requires_grad_(is_trained).grad = None
    if all(d <= _ROUNDING * max(abs(padded_loss), 1e-2) for d in differences):
        if options.get("packing"):
            rows = replace(rows, train=pack_rows(rows.train, config.train))
        return replace(rows, is_padding_free=True)
    if options.get("packing"):
        raise ModelError(
            "train.args.packing=true wants rows without padding, which this model, this method or "
            "NEFTune may mix; leave it out"
        )
    note = "training pads its rows, which is slower: this model or NEFTune may mix unpadded ones"
    return replace(rows, notes=[*rows.notes, note])


def fine_tune(
    base: LoadedModel,
    rows: TokenizedRows,
    config: RunConfig,
    checkpoint_dir: Path,
    on_log: Callable[[StepLog], None],
    on_progress: OnProgress,
    watcher: Any = None,
) -> tuple[LoadedModel, TrainingResult]:
    """Train, or resume from the last checkpoint, and validate before and after.

    Seeds are set before the adapter is made and before the first step, so nothing that was measured
    before changes what training does. Several processes must call this together.

    Args:
        base: The model; it is changed in place and no longer the base afterwards.
        rows: What `prepare_training` returned.
        config: The same settings.
        checkpoint_dir: The first process's folder for checkpoints and for the tuned model.
        on_log: Receives what each step logged; after a resume, first the steps of the checkpoint.
        on_progress: Receives how many steps are done.
        watcher: The trainer's callback that may end the training and put earlier weights back. Its
            `stopped` says why; `kept_step` is the step of these weights, None if there are none.

    Returns:
        The tuned model in evaluation mode, and what the training did.

    Raises:
        ModelError: It does not fit in memory, or its loss is not finite any more.
    """
    checkpoint_dir = broadcast_from_main(checkpoint_dir)
    if forwards := broadcast_from_main(read_forwards(checkpoint_dir)):
        config = replace(config, train=forwards.apply(config.train))
    method, facts, train = config.method, config.method.facts, config.train
    dtypes = {name: parameter.dtype for name, parameter in base.model.named_parameters()}
    generation_config = copy.deepcopy(base.model.generation_config)
    model = attach_adapter(base, method, config.lora, config.seed)
    if facts.trains_weights:
        model.float()  # Adam's small steps are rounded away in half precision
    if facts.start:
        facts.find_function(facts.start)(model, (row["input_ids"] for row in rows.train))
    # What the last look kept is in no checkpoint: a killed training begins anew.
    engine = ENGINES[train.engine]
    saves = not engine.module and facts.resumes and not watcher
    interval = 60 * (train.checkpoint_minutes or math.inf) if saves else math.inf
    callback = TrainingCallback(train, base.dtype, on_log, on_progress, interval)
    trained = checkpoint_dir / "trained.pt"
    is_trained = broadcast_from_main(trained.is_file())
    with quiet_libraries(), attention_within_rows(model, rows.is_padding_free):
        trainer = build_trainer(model, base.tokenizer, rows, config, checkpoint_dir)
        try:
            on_progress(0, 0, "validating")
            with nullcontext() if facts.trains_weights else disabled_adapters(model):
                loss_before, _ = trainer.validate()
            for one in filter(None, (callback, watcher)):
                trainer.add_callback(one)
            transformers.set_seed(config.seed)
            with measure_peak_memory(base.device) as peak, callback.stop_after_step():
                if is_trained:  # by an earlier process
                    seconds, peak_bytes = callback.load(trained, model)
                elif engine.module:
                    run = engine.find_function("train")
                    seconds = run(base, model, rows, config, callback)
                else:
                    newest = broadcast_from_main(saves and _find_checkpoint(checkpoint_dir))
                    seconds = trainer.train(resume_from_checkpoint=newest).metrics["train_runtime"]
                peak_bytes = peak_bytes if is_trained else peak()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ModelError(
                f"training does not fit in the memory of {base.device}: halve "
                f"train.per_device_train_batch_size (now {train.per_device_train_batch_size}) and "
                f"train.per_device_eval_batch_size ({train.per_device_eval_batch_size}), double "
                f"train.gradient_accumulation_steps ({train.gradient_accumulation_steps}), or set "
                "train.gradient_checkpointing=true"
            ) from None
        if watcher and watcher.stopped:
            if watcher.kept_step is None:
                raise ModelError(
                    f"training ended: {watcher.stopped}, and no look before it was within all "
                    f"budgets; look earlier (train.look_steps={train.look_steps}), allow more "
                    f"(benchmark.NAME.max_loss), or lower train.learning_rate"
                )
            callback.stopped, callback.kept_step = watcher.stopped, watcher.kept_step
        if not is_trained and process_rank() == 0:
            callback.save(trained, model, seconds, peak_bytes)
        if callback.is_stopping:
            raise KeyboardInterrupt
        on_progress(0, 0, "validating")
        loss_after, divergence = trainer.validate(compares=not facts.trains_weights)
    vars(base.model).pop("forward", None)  # TRL's fused head
    base.model.generation_config = generation_config  # the Trainer aligns it with the tokenizer
    n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    output_dir = checkpoint_dir / ("model" if facts.trains_weights else "adapter")
    if facts.trains_weights:
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(dtypes[name])
    tuned = _save_tuned(replace(base, model=model.eval()), output_dir, facts.trains_weights)
    history = callback.history
    n_tokens = history[-1].values.get("num_tokens", 0.0)
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
        forwards=forwards.describe() if forwards else "",
    )
    return tuned, result


def try_steps(base: LoadedModel, rows: TokenizedRows, config: RunConfig, n_steps: int) -> float:
    """Train a few steps, and return the seconds that they took; the base is not usable any more.

    Args:
        base: The model.
        rows: What `prepare_training` returned.
        config: The checked settings.
        n_steps: How many.
    """
    config = replace(config, train=replace(config.train, max_steps=n_steps))
    model = attach_adapter(base, config.method, config.lora, config.seed)
    if config.method.facts.trains_weights:
        model.float()
    with (
        tempfile.TemporaryDirectory() as folder,
        quiet_libraries(),
        attention_within_rows(model, rows.is_padding_free),
    ):
        trial = replace(rows, validation=None)
        trainer = build_trainer(model, base.tokenizer, trial, config, Path(folder))
        return float(trainer.train().metrics["train_runtime"])


def _find_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint, if any: one with the state, which is written last."""
    states = list(folder.glob("checkpoint-*/trainer_state.json"))
    return str(max(states, key=lambda file: file.stat().st_mtime).parent) if states else None


def _save_tuned(tuned: LoadedModel, folder: Path, is_whole: bool) -> LoadedModel:
    """Save what was trained, in the first of several processes; returns it with its identity."""
    if process_rank() == 0:
        if is_whole:
            with quiet_libraries():
                tuned.model.save_pretrained(folder)
            tuned.tokenizer.save_pretrained(folder)
        else:
            save_adapter(tuned.model, tuned, folder)
    broadcast_from_main(None)  # the files are there
    if is_whole:
        identity = {**tuned.identity, "weights": f"sha256:{hash_folder(folder)}"}
        return replace(tuned, identity=identity, files=str(folder))
    return replace(tuned, identity=identify_adapted(tuned.identity, folder), adapter=str(folder))


def validate(model: Any, tokenizer: Any, rows: TokenizedRows, config: RunConfig) -> float:
    """Compute a model's loss on the held-out rows, in nats a token.

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
    """Lay rows end to end; rows without labels make the batches of several processes even."""
    with quiet_libraries():
        packed = pack_dataset(rows, train.max_length)
    n_together = process_count() * train.per_device_train_batch_size
    for _ in range(-len(packed) % n_together if process_count() > 1 else 0):
        packed = packed.add_item({"input_ids": [0], "labels": [IGNORED], "seq_lengths": [1]})
    return packed
