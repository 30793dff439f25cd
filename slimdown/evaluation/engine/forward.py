"""Forwards of a causal LM that compute no more than is asked for, and leave the model unchanged."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from slimdown.evaluation.engine.attention import attending_to
from slimdown.evaluation.engine.packing import PackedRows

# Numbers of the vocabulary-wide softmax held at once: few enough for a processor's cache, many enough for a GPU.
SOFTMAX_NUMBERS = {"cpu": 2**20, "cuda": 2**26}
# Least lead of the likeliest token, in standard deviations of all: rounding in float32, which differs from one batch to
# another, moves logits by at most a tenth of it. What is closer is decided by a forward of the row alone.
LEAST_LEAD = 5e-4


@contextmanager
def measuring(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients; every module as it was on leaving."""
    training = [(module, module.training) for module in model.modules()]
    # bitsandbytes repacks 4-bit weights for AVX512-BF16 at the first evaluation forward on a CPU,
    # and the packed kernel has no gradient: training afterwards would silently train nothing.
    # Seen in bitsandbytes 0.50.2 (Linear4bit.forward); delete when the packing can be undone.
    packing = [m for m, _ in training if getattr(m, "support_avx512bf16_for_cpu", False)]
    model.eval()
    for module in packing:
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    try:
        # Not inference_mode: tensors that modules cache in a forward could not be trained through.
        with torch.no_grad():
            yield
    finally:
        for module in packing:
            module.support_avx512bf16_for_cpu = True  # type: ignore[assignment]
        for module, was_training in training:
            module.training = was_training


def computes_in_float32(model: Any) -> bool:
    """Whether rounding is float32's all through."""
    kinds = {x.dtype for x in chain(model.parameters(), model.buffers()) if x.is_floating_point()}
    kinds |= {
        layer.compute_dtype for layer in model.modules() if getattr(layer, "compute_dtype", None)
    }
    device = model.device.type
    is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return (
        kinds <= {torch.float32, torch.float64}
        and not is_cast
        and torch.get_float32_matmul_precision() == "highest"
    )


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """`cache` under the name that the model's forward knows it by.

    transformers 5.24 renamed `past_key_values` to `cache` in the models it ships and warns about
    the old name; models with code of their own keep it. Delete at a floor of transformers 5.40.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    forwards = [vars(kind)["forward"] for kind in type(base).__mro__ if "forward" in vars(kind)]
    renamed = any("cache" in inspect.signature(forward).parameters for forward in forwards)
    return {"cache" if renamed else "past_key_values": cache}


def virtual_tokens(model: Any) -> tuple[int, ...]:
    """Numbers, all negative, for the virtual tokens that a trained prompt or prefix puts before every row."""
    adapter = getattr(model, "active_peft_config", None)
    if (
        adapter is None
        or not adapter.is_prompt_learning
        or getattr(model, "_adapters_disabled", False)
    ):
        return ()  # in PEFT's `disable_adapter` the model is its base
    return tuple(range(-adapter.num_virtual_tokens, 0))


def plain(model: Any) -> Any:
    """The model that computes, without the wrapper that would put virtual tokens before every forward."""
    return model.get_base_model() if virtual_tokens(model) else model


def logits_at(model: Any, kept: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Logits [len(kept), vocabulary] at the given positions of the flattened [batch * length].

    The LM head runs on those positions only. The rows are picked in front of the head, inside the
    model's own forward, so that whatever the model does to its logits afterwards still happens.
    """

    def pick(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *rest = args
        return hidden.flatten(0, 1)[kept][None], *rest

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        logits: torch.Tensor = model(**inputs).logits
    finally:
        handle.remove()
    if logits.shape[:2] != (1, len(kept)):
        raise RuntimeError(f"the LM head did not see the picked rows: logits {tuple(logits.shape)}")
    return logits[0]


def repeated(cache: DynamicCache, n_rows: int) -> DynamicCache:
    """A cache of `n_rows` rows that starts with the one row of `cache`, which is not copied."""
    copy = DynamicCache()
    for layer in cache.layers:
        one = DynamicLayer()
        one.lazy_initialization(layer.keys, layer.values)
        one.keys = layer.keys.expand(n_rows, -1, -1, -1)
        one.values = layer.values.expand(n_rows, -1, -1, -1)
        copy.layers.append(one)
    return copy


def preamble_cache(
    model: Any, preamble: tuple[int, ...], device: torch.device, budget: int
) -> DynamicCache:
    """The keys and values of `preamble`, one row, from forwards of at most `budget` tokens."""
    n_virtual = sum(token < 0 for token in preamble)
    cache = _virtual_cache(model) if n_virtual else DynamicCache()
    nothing = torch.zeros(1, dtype=torch.long, device=device)
    inputs = cache_argument(model, cache)
    for part in torch.split(torch.tensor([preamble[n_virtual:]], device=device), budget, dim=1):
        if part.numel():
            logits_at(plain(model), nothing, input_ids=part, use_cache=True, **inputs)
    return cache


def _virtual_cache(model: Any) -> DynamicCache:
    """The keys and values of the virtual tokens, one row: what was trained, or what the model makes of it."""
    trained = model.get_prompt(batch_size=1)
    if not isinstance(trained, torch.Tensor):
        return repeated(trained, 1)  # without the windows that a family's own cache may have
    cache = DynamicCache()
    embeddings = trained.to(model.get_input_embeddings().weight.dtype)
    plain(model).base_model(
        inputs_embeds=embeddings, use_cache=True, **cache_argument(model, cache)
    )
    return cache


def packed_logits(
    model: Any, packed: PackedRows, preamble: DynamicCache | None, merging: bool
) -> torch.Tensor:
    """Logits [kept positions, vocabulary] of packed rows behind their preamble.

    merging: attend to the preamble once for all rows (`attention.py`) instead of repeating it.
    """
    device, n_rows = model.device, len(packed.input_ids)
    positions = packed.position_ids.to(device)
    n_preamble = 0 if preamble is None else preamble.get_seq_length()
    inputs: dict[str, Any] = {
        "input_ids": packed.input_ids.to(device),
        "position_ids": positions,
        "attention_mask": attention_masks(
            model, packed.mask.to(device), positions, positions, n_preamble, merging
        ),
        "use_cache": preamble is not None and not merging,
    }
    own = plain(model)
    if preamble is None:
        return logits_at(own, packed.kept.to(device), **inputs)
    if merging:
        with attending_to(model, preamble):
            return logits_at(own, packed.kept.to(device), **inputs)
    inputs |= cache_argument(model, repeated(preamble, n_rows))
    return logits_at(own, packed.kept.to(device), **inputs)


def windows(model: Any) -> dict[str, int | None]:
    """How many positions each kind of the model's attention layers looks back, its own included; None is all.

    These are the rules of `transformers.masking_utils` for full and for sliding attention.
    """
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or [
        "full_attention" if window is None else "sliding_attention"
    ]
    return {kind: window if kind == "sliding_attention" else None for kind in kinds}


def attention_masks(
    model: Any,
    allowed: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    n_preamble: int,
    merging: bool,
) -> torch.Tensor | dict[str, torch.Tensor]:
    """What tokens may look at, as the model wants it: one 4D mask, or one for each kind of its layers.

    allowed: bool [rows, 1, tokens, columns], true where a token may look in its own row.
    queries, keys: the positions of the tokens, [rows or 1, tokens], and of the columns, [rows or 1, columns].
    n_preamble: tokens in front of each row, which get columns of their own. When `merging`
    (`attention.py`), those that a window may reach do, and none where every token sees all of them.
    """
    furthest = int(queries.max())
    binding = {
        k: None if window is None or furthest < window else window
        for k, window in windows(model).items()
    }
    masks: dict[int | None, torch.Tensor] = {}
    for window in set(binding.values()):
        n_columns = 0 if merging else n_preamble
        if merging and window is not None:
            n_columns = min(n_preamble, max(1, window - 1))
        mask = torch.nn.functional.pad(allowed, (n_columns, 0), value=True)
        if window is not None:
            before = torch.arange(n_preamble - n_columns, n_preamble, device=keys.device).expand(
                len(keys), -1
            )
            columns = torch.cat([before, keys], dim=1)
            mask = mask & (columns[:, None, None] > queries[:, None, :, None] - window)
        if merging or model.config._attn_implementation == "eager":
            zeros = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device)
            mask = zeros.masked_fill_(~mask, torch.finfo(model.dtype).min)
        masks[window] = mask
    if len(masks) == 1:
        return masks[next(iter(masks))]
    return {kind: masks[window] for kind, window in binding.items()}


def token_scores(
    logits: torch.Tensor, slot: torch.Tensor, target: torch.Tensor, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of `target` under `logits[slot]` and whether it is the likeliest token.

    logits: [positions, vocabulary]; slot, target: [scored tokens]; results on the CPU. The softmax
    is taken in `dtype` (default float32), a slice of positions at a time.
    """
    dtype = dtype or torch.float32
    highest, total = [], []
    at_once = SOFTMAX_NUMBERS.get(logits.device.type, 2**20)
    for part in torch.split(logits, max(1, at_once // logits.shape[-1])):
        highest.append(part.amax(-1, keepdim=True).to(dtype))
        total.append((part.to(dtype) - highest[-1]).exp_().sum(-1))
    slot, target = slot.to(logits.device), target.to(logits.device)
    own, best = logits[slot, target].to(dtype), torch.cat(highest)[slot, 0]
    greedy = own == best
    # Of several likeliest tokens the first is decoded, as `argmax` has it.
    greedy[greedy.clone()] = logits[slot[greedy]].argmax(-1) == target[greedy]
    return (own - best - torch.cat(total)[slot].log()).cpu(), greedy.cpu()


def leads_by_little(logits: torch.Tensor) -> bool:
    """Whether rounding may decide which of the tokens, [vocabulary], is the likeliest."""
    below = (logits - logits.max()).clamp_(min=-50)  # some models rule tokens out by a huge number
    return bool(-below.topk(2).values[1] < LEAST_LEAD * below.std())
