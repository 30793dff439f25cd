"""LoadedModel and TrainRows -> `Tuned`: an adapter trained by TRL's `SFTTrainer`, and its training record.

Seeds for itself before it makes the adapter and before it takes the first step, so that nothing measured or computed
before can change what it does.
"""

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite, nan
from pathlib import Path
from typing import Any

from slimdown.config.method import Method, MethodConfig
from slimdown.config.schema import Engine, LoraConfig, OnProgress, TrainConfig
from slimdown.data.contamination import Contamination
from slimdown.data.tokens import IGNORED
from slimdown.evaluation.rows_apart import attention_by_row
from slimdown.evaluation.validation import validation_loss
from slimdown.models.dequantize import dequantized, dequantizes
from slimdown.models.identity import identify
from slimdown.models.model import LoadedModel
from slimdown.training.adapters import adapter_config, attach, save_adapter, settle_pissa
from slimdown.training.checks import check_settings
from slimdown.training.lean import padding_free_collator, trainer_class
from slimdown.training.rows import CutRows, TrainRows
from slimdown.training.steps import Note, Steps, silence_transformers, take_steps, trainer_for
from slimdown.training.unsloth import UnslothProcess
from slimdown.training.watching import Watch, watching
from slimdown.training.whole import save_model, unfreeze
from slimdown.utils import distributed as processes
from slimdown.utils.digests import digest
from slimdown.utils.disk import Interim
from slimdown.utils.errors import SlimdownError

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
    peak_bytes: float = nan  # the most that was held during the steps
    contamination: Contamination = field(
        default_factory=Contamination
    )  # by the questions that are asked


@dataclass(frozen=True)
class Tuned:
    """A tuned model, and how it was trained where that was done here."""

    model: LoadedModel
    training: TrainResult | None


def fine_tune(
    base: LoadedModel,
    rows: TrainRows,
    method: MethodConfig,
    lora: LoraConfig,
    config: TrainConfig,
    seed: int,
    folder: Path,
    dequantize: str = "auto",
    before: float | None = None,
    unsloth: UnslothProcess | None = None,
    on_step: OnStep = lambda record: None,
    on_progress: OnProgress = lambda done, total, note: None,
    interim: Interim | None = None,
    watch: Watch | None = None,
) -> Tuned:
    """Train a base; `base.model` is wrapped or trained in place and no longer the base afterwards.

    Args:
        base: the model, evaluated before or not; only a method that trains weights changes its own.
        rows: what `prepare_rows` made of the data.
        method: what is trained.
        lora: the adapter's shape, where it is a LoRA.
        config: steps, batches, learning rate.
        seed: of the adapter's start and the order of the rows.
        folder: receives `adapter/` in PEFT's format, or `model/` as `AutoModelForCausalLM` reads it.
        dequantize: whether to compute on the values of 4-bit weights instead of unpacking them at every step: true,
            false, or auto: on a CPU where memory allows. The weights come back untouched.
        before: the base's validation loss, where it is known.
        unsloth: the process that is to train, where it stands ready; None: started here where `config` asks for it.
        on_step, on_progress: told of each step, and of how many are done.
        interim: where checkpoints are kept, and one is gone on from; None: none are.
        watch: told the validation loss at each quarter of the steps; Unsloth's process tells of none.

    Raises:
        SlimdownError: settings that this model cannot be trained with, or a loss that is no longer a number.
    """
    check_settings(base, method, lora, config)
    if before is None:
        before = validation_loss(base, base.model, rows.validation, config, dequantize)
    check_number = partial(_check_number, base, config)
    check_number(before, "validation loss", "before the first step")
    history: list[StepRecord] = []
    adapter = adapter_config(method, lora, base)
    settle = _way_to_files(base, method, adapter, folder)
    note = _recorder(history, check_number, on_step, on_progress)
    if config.engine is Engine.unsloth:
        unsloth = unsloth or UnslothProcess(base, adapter, rows.train, config, seed)
        model, steps = unsloth.train(note, interim)
    else:
        how = (config, seed, folder, dequantize, note, interim, watch and (watch, rows.validation))
        model, steps = _trained_by_trl(base, method, adapter, rows.train, *how)
    n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model, saved = settle(model)
    after = validation_loss(base, model, rows.validation, config, dequantize)
    check_number(after, "validation loss", "after the last step")
    model.eval()
    identity = identify(model, base.tokenizer, adapter and _content(base, saved))
    training = _result(saved, steps, (before, after), n_trainable, base, history, rows.cut)
    return Tuned(replace(base, model=model, identity=identity), training)


def _way_to_files(
    base: LoadedModel, method: MethodConfig, adapter: Any, folder: Path
) -> Callable[[Any], Any]:
    """What makes of the trained model its files, as they are published, and the model that they stand for."""
    before = {name: parameter.data for name, parameter in base.model.named_parameters()}
    if adapter is None:
        dtypes = {name: data.dtype for name, data in before.items()}
        return lambda model: (model, save_model(base, dtypes, folder / "model"))
    if method.name is Method.pissa:
        return lambda model: settle_pissa(model, base, before, folder / "adapter", folder / "start")
    return lambda model: (model, save_adapter(model, base, folder / "adapter"))


def _content(base: LoadedModel, adapter: Path) -> str:
    """A digest of the base's weights and the adapter's, whose file the first process has written."""
    content = (adapter / "adapter_model.safetensors").read_bytes() if processes.is_first() else b""
    return digest(
        [base.identity["weights"], processes.from_first(hashlib.sha256(content).hexdigest())]
    )


def _result(
    adapter_dir: Path,
    steps: Steps,
    losses: tuple[float, float],
    n_trainable: int,
    base: LoadedModel,
    history: list[StepRecord],
    cut: CutRows,
) -> TrainResult:
    tokens = int(history[-1].values.get("num_tokens", 0)) if history else 0
    return TrainResult(
        adapter_dir=adapter_dir,
        steps=steps.n,
        tokens=tokens,
        train_loss=steps.train_loss,
        validation_loss_before=losses[0],
        validation_loss_after=losses[1],
        n_trainable=n_trainable,
        trainable_percent=100 * n_trainable / base.n_parameters,
        runtime_seconds=steps.seconds,
        tokens_per_second=tokens / steps.seconds,
        history=tuple(history),
        cut=cut,
        peak_bytes=steps.peak_bytes,
    )


def _trained_by_trl(
    base: LoadedModel,
    method: MethodConfig,
    adapter: Any,
    rows: Any,
    config: TrainConfig,
    seed: int,
    folder: Path,
    dequantize: str,
    note: Note,
    interim: Interim | None,
    watched: tuple[Watch, Any] | None,
) -> tuple[Any, Steps]:
    """PEFT's model around the base or the base's own, trained, and what the steps came to."""
    import transformers

    silence_transformers()
    if (
        method.name is Method.prompt
    ):  # behind virtual tokens the first token has a predictor, too; nowhere else
        rows = rows.map(lambda row: {"labels": [IGNORED, *row["labels"][1:]]})
    transformers.set_seed(seed)
    model = unfreeze(base, method) if adapter is None else attach(base, adapter, rows)
    if method.name is Method.pissa and processes.is_first():
        model.save_pretrained(folder / "start")
    kind, collator = trainer_class(base, model), padding_free_collator(base, model)
    trainer = trainer_for(
        model, base.tokenizer, rows, config, seed, folder, base.device, kind, collator
    )
    # A GPU unpacks as fast as it reads, and has better uses for memory.
    pays = dequantize.lower() != "auto" or base.device == "cpu"
    unpacked = dequantized(model) if pays and dequantizes(model, dequantize) else nullcontext()
    with attention_by_row(base, model), unpacked:
        if watched:
            trainer.add_callback(watching(trainer, *watched, config.per_device_eval_batch_size))
        return model, take_steps(trainer, config, seed, base.device, note, interim)


def _recorder(
    history: list[StepRecord], check_number: CheckNumber, on_step: OnStep, on_progress: OnProgress
) -> Note:
    """What appends each step to `history`, hands it on, and ends what is no number."""

    def note(step: int, of: int, values: dict[str, float]) -> None:
        history.append(StepRecord(step, values))
        on_step(history[-1])
        for name in ("loss", "grad_norm"):
            check_number(
                values.get(name, 0.0), name, f"at step {step} of {of}", values.get("learning_rate")
            )
        on_progress(step, of, f"loss {values['loss']:.3f}")

    return note


def _check_number(
    base: LoadedModel,
    config: TrainConfig,
    value: float,
    name: str,
    where: str,
    learning_rate: float | None = None,
) -> None:
    """End a training whose loss or gradient is no number, with what to try."""
    if isfinite(value):
        return
    exact = "" if base.dtype == "float32" else f", or model.dtype=float32 (now {base.dtype})"
    rate = "" if learning_rate is None else f" at a learning rate of {learning_rate:g}"
    raise SlimdownError(
        f"training came to an end {where}: the {name} is {value}{rate} (train.learning_rate={config.learning_rate:g}), "
        f"and nothing is measured after that. Try a smaller train.learning_rate, e.g. "
        f"{min(config.learning_rate / 10, 2e-3):g}, more train.warmup_steps (now {config.warmup_steps:g}), a smaller "
        f"train.max_grad_norm (now {config.max_grad_norm:g}){exact}"
    )
