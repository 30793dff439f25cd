"""What a run will hold at its peaks, counted on a model without numbers before anything is trained or measured."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from psutil import swap_memory

from slimdown.config.schema import RunConfig, TrainConfig
from slimdown.evaluation.engine.forward import virtual_tokens
from slimdown.evaluation.footprint import evaluation_peak
from slimdown.evaluation.rows_apart import attention_by_row, tells_rows_apart
from slimdown.models.dequantize import dequantized, dequantizes, free_bytes
from slimdown.models.memory import LIBRARY_BYTES, LiveBytes
from slimdown.models.model import LoadedModel, outline_of
from slimdown.models.sizes import count_trainable, lora_parameters, weight_sizes
from slimdown.training.adapters import adapter_config
from slimdown.training.checks import optimizer_bytes
from slimdown.training.lean import SummedLoss
from slimdown.training.whole import unfreeze
from slimdown.utils import distributed as processes
from slimdown.utils.errors import SlimdownError


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peaks of a run; None where a model's forward depends on numbers, so that nothing can be counted."""

    device: torch.device
    n_parameters: int
    n_trainable: int
    by_equation: (
        int | None
    )  # what the paper's equation 1.2 says of them; None where no LoRA is trained
    training: int | None
    evaluation: int | None
    mapped: (
        int  # of these, pages of the weights' file, which the system takes back where it needs room
    )
    tokens: int  # of the batch that was counted
    reason: str = ""  # why something is not known

    @property
    def estimates(self) -> dict[str, float]:
        """Bytes by the names of a run's costs."""
        named = {"training": self.training, "evaluation": self.evaluation}
        return {
            f"estimated_{what}_peak_bytes": float(peak)
            for what, peak in named.items()
            if peak is not None
        }


def footprint(
    base: LoadedModel,
    config: RunConfig,
    tokens: int | None = None,
    known: dict[str, int] | None = None,
    scored_share: float = 1.0,
) -> Footprint:
    """What a run of these settings will hold: the process on a CPU, all tensors on a GPU.

    Args:
        base: on the meta device, see `Outline.loaded`; used up.
        config: the run's.
        tokens: of the largest batch; None takes all of its rows for as long as `train.max_length`.
        scored_share: of the tokens, those that the loss is over.
        known: what evaluations hold besides the model, by their settings; adapters of whatever size work alike.
    """
    known = {} if known is None else known
    tokens = tokens or config.train.max_length * config.train.per_device_train_batch_size
    model = trained_outline(base, config)
    loras = [layer for layer in model.modules() if getattr(layer, "lora_A", None)]
    by_equation = sum(
        lora_parameters(layer.r["default"], layer.in_features, layer.out_features)
        for layer in loras
    )
    mapped = mapped_bytes(base)
    around = mapped + LIBRARY_BYTES.get(base.device, 0)
    training, why_not_training = _counted(
        partial(training_peak, base, model, config, tokens, scored_share), around
    )
    evaluation, why_not_evaluation = _counted(
        partial(_evaluation_peak, base, model, config, known), around
    )
    return Footprint(
        device=torch.device(base.device),
        n_parameters=base.n_parameters,
        n_trainable=count_trainable(model),
        by_equation=by_equation or None,
        training=training,
        evaluation=evaluation,
        mapped=mapped,
        tokens=tokens,
        reason=why_not_training or why_not_evaluation,
    )


def mapped_bytes(base: LoadedModel) -> int:
    """Bytes of the weights' file that stay in sight of a process on a CPU beside what is made of them.

    transformers 5.24 reads a file by mapping it, and what is not converted is the mapping itself. Weights are taken to
    be published in 16 bits.
    """
    is_the_file = base.quantization == "none" and base.dtype != "float32"
    return 2 * base.n_parameters if base.device == "cpu" and not is_the_file else 0


def _counted(count: Callable[[], int], around: int) -> tuple[int | None, str]:
    """A peak, and why it is not known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is computed there is nothing
            return around + count(), ""
    except Exception as error:  # of any family's forward
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:200]


def trained_outline(base: LoadedModel, config: RunConfig) -> Any:
    """The model as it is trained, made of a base on the meta device."""
    import peft

    adapter = adapter_config(config.method, config.lora, base)
    if adapter is None:
        return unfreeze(base, config.method)
    adapter.init_lora_weights = True  # whatever it begins as
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base.model, adapter)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def training_peak(
    base: LoadedModel, model: Any, config: RunConfig, tokens: int, scored_share: float = 1.0
) -> int:
    """Bytes of all tensors at the peak of a training step on a batch of so many tokens, with the optimizer's state."""
    model.train()
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buckets = 4 if processes.count() > 1 else 0  # DDP's, beside each gradient
    kept = int(count_trainable(model) * (optimizer_bytes(config.train, base.device) + buckets))
    state = torch.empty(kept, dtype=torch.uint8, device="meta")
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    is_prefix = (
        getattr(model, "peft_type", "") == "PREFIX_TUNING"
    )  # keys and values, where a prompt is embeddings
    n_embedded = 0 if is_prefix else len(virtual_tokens(model))
    is_padded = bool(virtual_tokens(model)) or not tells_rows_apart(base, model)
    n_rows = min(config.train.per_device_train_batch_size, tokens) if is_padded else 1
    ids = torch.zeros(n_rows, tokens // n_rows, dtype=torch.long, device="meta")
    rule = config.quantization.dequantize_for_training
    by_row = attention_by_row(base, None if n_embedded else model, (n_embedded + ids.shape[1],))
    with LiveBytes(model) as live, by_row, unpacked_for_training(base, model, rule):
        live.count(state)
        if virtual_tokens(model):  # rows are padded, and their logits made
            torch.autograd.backward(model(input_ids=ids, use_cache=False).logits.float().sum())
            return live.peak
        # A mask of rows alone would be looked into.
        mask = (
            torch.ones(n_rows, 1, *[ids.shape[1]] * 2, dtype=torch.bool, device="meta")
            if is_padded
            else None
        )
        inputs = {"input_ids": ids, "position_ids": ids, "attention_mask": mask, "use_cache": False}
        hidden = causal.base_model(**inputs).last_hidden_state.flatten(0, 1)
        weight = causal.get_output_embeddings().weight
        scored = slice(max(1, int(ids.numel() * scored_share)))
        loss, _ = SummedLoss.apply(hidden[scored].clone(), weight, ids.flatten()[scored])  # type: ignore[no-untyped-call]
        torch.autograd.backward(
            loss
        )  # inside `loss.backward()` nothing would be seen that is computed again
    for parameter in trained:
        parameter.grad = None
    return live.peak


def unpacked_for_training(base: LoadedModel, model: Any, rule: str) -> AbstractContextManager[Any]:
    """4-bit layers computing on the values that they stand for, where that pays: `rule` is true, false or auto."""
    # A GPU unpacks as fast as it reads, and has better uses for memory.
    pays = rule.lower() != "auto" or base.device == "cpu"
    return dequantized(model) if pays and dequantizes(model, rule) else nullcontext()


def _evaluation_peak(
    base: LoadedModel, model: Any, config: RunConfig, known: dict[str, int]
) -> int:
    held = weight_sizes(model).held
    if (key := repr((config.quantization, config.evaluation, config.method))) not in known:
        unpacks = dequantizes(model, config.quantization.dequantize_for_evaluation)
        with dequantized(model) if unpacks else nullcontext():
            known[key] = evaluation_peak(model, config.evaluation, base.device) - held
    return held + known[key]


def largest_batch(
    lengths: Sequence[int], config: TrainConfig, seed: int, is_padded: bool = False
) -> int:
    """Tokens of the largest batch that training is likely to draw from rows of these lengths, padding included."""
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
    cut = torch.tensor(lengths)[order].clamp(max=config.max_length)
    split = torch.split(cut, config.per_device_train_batch_size)
    batches = [int(len(batch) * batch.max() if is_padded else batch.sum()) for batch in split]
    n_drawn = config.max_steps * config.gradient_accumulation_steps * processes.count()
    return max(batches[:n_drawn] if config.max_steps > 0 else batches)


def checked_footprint(
    base: LoadedModel, config: RunConfig, lengths: Sequence[int], scored_share: float = 1.0
) -> tuple[Footprint, list[str]]:
    """What a run will hold, and what to know of it before it begins.

    Args:
        base: loaded.
        config: the run's.
        lengths: tokens of the training rows.
        scored_share: of these, the tokens that the loss is over.

    Raises:
        SlimdownError: training needs more than is free, whatever batches are drawn.
    """
    outline, train = outline_of(base), config.train

    def of(tokens: int, **changed: Any) -> Footprint:
        settings = replace(config, train=replace(train, **changed))
        return footprint(
            outline.loaded(config.quantization), settings, tokens, scored_share=scored_share
        )

    def more(found: Footprint) -> int:  # than the process holds by now
        return (
            (found.training or 0)
            - found.mapped
            - LIBRARY_BYTES.get(base.device, 0)
            - base.memory_bytes
        )

    is_padded = not tells_rows_apart(base) or config.method.num_virtual_tokens is not None
    found = of(largest_batch(lengths, train, config.seed, is_padded))
    free = free_bytes(torch.device(base.device)) + (
        swap_memory().free if base.device == "cpu" else 0
    )
    if found.training is None or found.evaluation is None:
        return found, [f"what this run will hold in memory is not known: {found.reason}"]
    told = (
        f"estimated peak memory: training {found.training / 2**30:.2f} GiB (up to {found.tokens:,} tokens a batch), "
        f"evaluation {found.evaluation / 2**30:.2f} GiB; {free / 2**30:.1f} GiB are free on {base.device}"
    )
    if more(found) <= free:
        return found, [told]
    ways = (
        f"halve train.per_device_train_batch_size (now {train.per_device_train_batch_size}) and double "
        f"train.gradient_accumulation_steps (now {train.gradient_accumulation_steps}), set "
        "train.gradient_checkpointing=true or a smaller train.max_length, or choose a smaller model"
    )
    least = max(1, sum(min(n, train.max_length) for n in lengths) // len(lengths))
    if more(of(least)) > free:
        needs = f"training needs {more(found) / 2**30:.1f} GiB more than it holds by now"
        raise SlimdownError(
            f"{needs}, and {free / 2**30:.1f} GiB are free on {base.device}; {ways}"
        )
    return found, [told, f"training may not fit: {ways}"]
