"""What a run will hold at its peaks, counted on a model without numbers before anything is trained or measured."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from slimdown.measuring.engine.forward import virtual_tokens
from slimdown.measuring.footprint import evaluation_peak
from slimdown.measuring.rows_apart import attention_by_row
from slimdown.preparing.dequantize import dequantized, dequantizes
from slimdown.preparing.memory import LIBRARY_BYTES, LiveBytes
from slimdown.preparing.model import LoadedModel
from slimdown.preparing.sizes import count_trainable, lora_parameters, weight_sizes
from slimdown.settings.schema import RunConfig, TrainConfig
from slimdown.training.adapters import adapter_config
from slimdown.training.lean import SummedLoss
from slimdown.training.whole import unfreeze


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peaks of a run; None where a model's forward depends on numbers, so that nothing can be counted."""

    device: torch.device
    n_parameters: int
    n_trainable: int
    by_equation: int | None  # what the paper's equation 1.2 says of them; None where no LoRA is trained
    training: int | None
    evaluation: int | None
    tokens: int  # of the batch that was counted
    reason: str = ""  # why something is not known


def footprint(
    base: LoadedModel, config: RunConfig, tokens: int | None = None, known: dict[str, int] | None = None
) -> Footprint:
    """What a run of these settings will hold: the process on a CPU, all tensors on a GPU.

    Args:
        base: on the meta device, see `Outline.loaded`; used up.
        config: the run's.
        tokens: of the largest batch; None takes all of its rows for as long as `train.max_length`.
        known: what evaluations hold besides the model, by their settings; adapters of whatever size work alike.
    """
    known = {} if known is None else known
    tokens = tokens or config.train.max_length * config.train.per_device_train_batch_size
    model = trained_outline(base, config)
    loras = [layer for layer in model.modules() if getattr(layer, "lora_A", None)]
    by_equation = sum(lora_parameters(layer.r["default"], layer.in_features, layer.out_features) for layer in loras)
    training, why_not_training = _counted(partial(training_peak, base, model, config, tokens), base.device)
    evaluation, why_not_evaluation = _counted(partial(_evaluation_peak, base, model, config, known), base.device)
    return Footprint(
        device=torch.device(base.device),
        n_parameters=base.n_parameters,
        n_trainable=count_trainable(model),
        by_equation=by_equation or None,
        training=training,
        evaluation=evaluation,
        tokens=tokens,
        reason=why_not_training or why_not_evaluation,
    )


def _counted(count: Callable[[], int], device: str) -> tuple[int | None, str]:
    """A peak, and why it is not known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is computed there is nothing
            return LIBRARY_BYTES.get(device, 0) + count(), ""
    except Exception as error:  # of any family's forward
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:200]


def trained_outline(base: LoadedModel, config: RunConfig) -> Any:
    """The model as it is trained, made of a base on the meta device."""
    import peft

    adapter = adapter_config(config.method, config.lora, base)
    if adapter is None:
        return unfreeze(base, config.method)
    adapter.init_lora_weights = True  # whatever it begins as
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base.model, adapter)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def training_peak(base: LoadedModel, model: Any, config: RunConfig, tokens: int) -> int:
    """Bytes of all tensors at the peak of a training step on a batch of so many tokens, Adam's moments included."""
    model.train()
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moments = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    rule = config.quantization.dequantize_for_training
    by_row = attention_by_row(base, model, (tokens,))
    with LiveBytes(model) as live, by_row, unpacked_for_training(base, model, rule):
        live.count(*moments)
        if virtual_tokens(model):  # rows are padded, and their logits made
            n_rows = min(config.train.per_device_train_batch_size, tokens)
            rows = ids[:, : tokens // n_rows * n_rows].reshape(n_rows, -1)
            torch.autograd.backward(model(input_ids=rows, attention_mask=rows + 1).logits.float().sum())
            return live.peak
        hidden = causal.base_model(input_ids=ids, position_ids=ids, use_cache=False).last_hidden_state
        weight = causal.get_output_embeddings().weight
        loss, _ = SummedLoss.apply(hidden.flatten(0, 1).clone(), weight, ids[0])  # type: ignore[no-untyped-call]
        torch.autograd.backward(loss)  # inside `loss.backward()` nothing would be seen that is computed again
    for parameter in trained:
        parameter.grad = None
    return live.peak


def unpacked_for_training(base: LoadedModel, model: Any, rule: str) -> AbstractContextManager[Any]:
    """4-bit layers computing on the values that they stand for, where that pays: `rule` is true, false or auto."""
    # A GPU unpacks as fast as it reads, and has better uses for memory.
    pays = rule.lower() != "auto" or base.device == "cpu"
    return dequantized(model) if pays and dequantizes(model, rule) else nullcontext()


def _evaluation_peak(base: LoadedModel, model: Any, config: RunConfig, known: dict[str, int]) -> int:
    held = weight_sizes(model).held
    if (key := repr((config.quantization, config.evaluation, config.method))) not in known:
        unpacks = dequantizes(model, config.quantization.dequantize_for_evaluation)
        with dequantized(model) if unpacks else nullcontext():
            known[key] = evaluation_peak(model, config.evaluation, base.device) - held
    return held + known[key]


def largest_batch(lengths: Sequence[int], config: TrainConfig, seed: int) -> int:
    """Tokens of the largest batch that training is likely to draw from rows of these lengths."""
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
    cut = torch.tensor(lengths)[order].clamp(max=config.max_length)
    batches = [int(batch.sum()) for batch in torch.split(cut, config.per_device_train_batch_size)]
    n_drawn = config.max_steps * config.gradient_accumulation_steps if config.max_steps > 0 else len(batches)
    return max(batches[:n_drawn])
