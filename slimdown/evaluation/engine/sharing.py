"""How the answers of a base and of the model tuned from it come about: decided once, for both.

Rows may share work where a token's logits depend on nothing but its own row: its tokens, their
positions and the mask. Families that were shown to be so (tests/test_families.py) are known by
name; another is tried, on rows as long as the longest that it will be asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import distributed
from torch.nn import Module
from transformers import DynamicCache, GenerationMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from slimdown.evaluation.engine.forward import measuring, windows
from slimdown.evaluation.engine.probe import Probe, in_float32
from slimdown.models.dequantize import free_bytes
from slimdown.models.memory import is_out_of_memory, release_memory
from slimdown.utils import distributed as processes


@dataclass(frozen=True)
class Scoring:
    """How answers come about, the same for a base and the model tuned from it.

    shares: rows share work; otherwise all is HFLM's own. merges: rows attend to a preamble once
    together. decodes: greedy decoding is shared too. dequantizes: 4-bit weights are held as the
    values that they stand for. window: tokens of the shorter window, where theirs differ.
    reason: why work that could be shared is not.
    """

    shares: bool
    merges: bool = False
    decodes: bool = False
    dequantizes: bool = False
    window: int | None = None
    reason: str = ""

    @property
    def path(self) -> str:
        """What the record calls it.

        >>> Scoring(shares=True, merges=True, decodes=True).path, Scoring(shares=False, dequantizes=True).path
        ('shared-merging', 'stock-dequantized')
        >>> Scoring(shares=True, reason="generation_config sets num_beams").path
        'shared-stock_decoding'
        """
        parts = {
            "shared" if self.shares else "stock": True,
            "merging": self.merges,
            "stock_decoding": self.shares and not self.decodes,
            "dequantized": self.dequantizes,
            f"window_{self.window}": self.window is not None,
        }
        return "-".join(part for part, holds in parts.items() if holds)


# Families whose shared rows and shared decoding were shown to be exact, by tests/test_families.py; others are tried.
# fmt: off
EXACT = frozenset([
    "apertus", "arcee", "biogpt", "bitnet", "codegen", "cohere", "cohere2", "ctrl", "deepseek_v2", "deepseek_v3",
    "diffllama", "ernie4_5", "ernie4_5_moe", "exaone4", "falcon", "flex_olmo", "gemma", "gemma2", "gemma3_text", "glm",
    "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe",
    "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jetmoe", "llama", "minicpm3", "ministral",
    "mistral", "mixtral", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3",
    "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2", "vaultgemma",
    "xglm",
])
# fmt: on
# Of these, those whose attention `attention.py` cannot stand in for: not transformers' AttentionInterface, keys and
# values of different widths, or scores that are capped.
NOT_MERGING = frozenset(
    [
        "deepseek_v2",
        "deepseek_v3",
        "diffllama",
        "falcon",
        "gemma2",
        "jetmoe",
        "minicpm3",
        "vaultgemma",
    ]
)

# Kinds of rotary embedding whose frequencies depend on a token's position alone, not on how long its row is.
FIXED_ROPE = frozenset(["default", "linear", "llama3", "proportional", "yarn"])

# PEFT's adapters that act on each token by itself; others look at what the row says.
TOKENWISE_ADAPTERS = frozenset(
    [
        "ADALORA",
        "BOFT",
        "BOTTLENECK",
        "HRA",
        "IA3",
        "LN_TUNING",
        "LOHA",
        "LOKR",
        "LORA",
        "OFT",
        "VERA",
    ]
)
# Those that put the same virtual tokens before every row: to the rows, a preamble like another.
VIRTUAL_TOKENS = frozenset(["PREFIX_TUNING", "PROMPT_TUNING"])
# What makes LoRA look at the row: where invocation tokens stand, which expert is chosen, layers with one cache.
ROWWISE_LORA = ("alora_invocation_tokens", "arrow_config", "layer_replication", "monteclora_config")

# Largest error of a probe in float32, where rounding moves logits by 1e-6 to 5e-5 standard deviations and a token that
# sees the wrong tokens by 1e-2 or more.
TOLERANCE = 1e-4
# In half precision rounding alone moves them by 0.2, so there the probe is held only to what a batch's shape does.
TOLERANCE_HALF = 0.1
# How a model that was not made for it turns shared rows down.
REFUSALS = (TypeError, ValueError, AttributeError, AssertionError, LookupError, RuntimeError)

# What a generation config may set without changing greedy decoding. `scoring.py` heeds `max_new_tokens`.
GREEDY_SETTINGS = frozenset(
    [
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "decoder_start_token_id",  # of encoder-decoders; some decoders have it as well
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "max_length",
        "max_new_tokens",
        "use_cache",
        "transformers_version",
        "_from_model_config",
    ]
)
# Values that change nothing, as some models' files spell them out; Gemma's name a cache.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ["num_beams", "num_return_sequences", "repetition_penalty", "length_penalty"], (1,)
    ),
    "cache_implementation": ("dynamic", "static", "hybrid", "sliding_window"),
}


def choose_scoring(
    model: Any, longest: Callable[[], int], tuned: Any = None, dequantizes: bool = False
) -> Scoring:
    """How to score `model`, and what is tuned from it.

    longest: the tokens of the longest row that will be asked; called where that matters.
    tuned: PEFT's config of an adapter on it; adapters already on the model count as well. Or
    another model, of which no numbers are needed.
    Where there is no memory for a trial, stock asks: both models, since this is decided once.
    """
    known, adapters = _parts(model)
    both = [known, tuned] if isinstance(tuned, Module) else [known]
    adapters += [tuned] if tuned is not None and len(both) == 1 else []
    if reason := next(filter(None, (why_not_by_rule(one, adapters) for one in both)), ""):
        return Scoring(shares=False, dequantizes=dequantizes, reason=reason)
    merges = _can_merge(model)
    if all(map(is_exact, both)):
        merges &= NOT_MERGING.isdisjoint(one.config.model_type for one in both)
    elif len({type(one) for one in both}) > 1:
        return Scoring(
            shares=False,
            dequantizes=dequantizes,
            reason="another family, of which one would be tried",
        )
    else:
        length = max(longest(), 24)
        if reason := why_not_by_trying(model, length, merging=False):
            return Scoring(shares=False, dequantizes=dequantizes, reason=reason)
        merges = merges and not why_not_by_trying(model, length, merging=True)
    reason = next(filter(None, map(why_not_greedy, both)), "")
    return Scoring(
        shares=True, merges=merges, decodes=not reason, dequantizes=dequantizes, reason=reason
    )


def why_not_alike(model: Any, scoring: Scoring) -> str:
    """What keeps `model` from being scored as another was, whose family it is of; empty where nothing does."""
    known, adapters = _parts(model)
    if scoring.shares and (reason := why_not_by_rule(known, adapters)):
        return reason
    if scoring.merges and not _can_merge(model):
        return f"{model.config._attn_implementation} attention on {model.device.type} cannot merge rows"
    return why_not_greedy(known) if scoring.decodes else ""


def _parts(model: Any) -> tuple[Any, list[Any]]:
    """The model that adapters are on, which PEFT may have put there without a wrapper, and their configs."""
    known = model.get_base_model() if hasattr(model, "get_base_model") else model
    return known, list(getattr(model, "peft_config", {}).values())


def _can_merge(model: Any) -> bool:
    return bool(model.device.type == "cpu" and model.config._attn_implementation == "sdpa")


def is_exact(model: Any) -> bool:
    """Whether `model` is of a family whose shared rows were shown to be exact, in the form in which they were."""
    kind, config = type(model), model.config
    return (
        config.model_type in EXACT
        and kind.__name__ == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
        and kind.__module__.startswith("transformers.models.")
        and not any(map(_is_patched, {type(module) for module in model.modules()}))
        and getattr(config, "is_causal", True) is not False
        and not getattr(config, "alibi", False)
        and not getattr(config, "use_bidirectional_attention", False)
        # A family ignores a setting of its file that it does not know, but windows and transformers' cache go by it.
        and not any(
            getattr(config, name, None) is not None and not hasattr(kind.config_class, name)
            for name in ("sliding_window", "layer_types")
        )
    )


def _is_patched(kind: type[Module]) -> bool:
    """Whether somebody put another forward into a class of transformers, as Unsloth does on GPUs."""
    places = [getattr(place, "__module__", "").partition(".")[0] for place in (kind, kind.forward)]
    return places[0] == "transformers" and places[1] not in ("transformers", "torch")


def why_not_by_rule(model: Any, adapters: list[Any]) -> str:
    """What forbids sharing without a trial; empty where nothing does."""
    for adapter in adapters:
        kind = str(getattr(adapter.peft_type, "value", adapter.peft_type))
        if kind not in TOKENWISE_ADAPTERS | VIRTUAL_TOKENS:
            return f"{kind} adapter"
        if found := [name for name in ROWWISE_LORA if getattr(adapter, name, None) is not None]:
            return f"LoRA with {found[0]}"
    if getattr(model, "is_loaded_in_8bit", False):
        return "int8 layers, which look for outliers in a whole batch"
    if model.get_output_embeddings() is None:
        return "no separate LM head"
    config = model.config
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"{config._attn_implementation} attention takes no 4D mask"
    if getattr(config, "output_router_logits", False):
        return "output_router_logits, whose loss takes no 4D mask"
    layers = DynamicCache(config=config).layers
    if odd := sorted(
        {type(layer).__name__ for layer in layers} - {"DynamicLayer", "DynamicSlidingWindowLayer"}
    ):
        return f"cache of {', '.join(odd)}"
    if reason := _why_not_windows(
        model, [getattr(layer, "sliding_window", None) for layer in layers]
    ):
        return reason
    if odd := sorted(
        _rope_types(getattr(config.get_text_config(decoder=True), "rope_parameters", None))
        - FIXED_ROPE
    ):
        return f"rotary embedding {', '.join(odd)}, which depends on a row's length"
    return ""


def _why_not_windows(model: Any, by_layer: list[int | None]) -> str:
    """What `attention_masks` would get wrong of the windows that transformers' cache keeps for each layer."""
    kinds = windows(model)
    types = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or [
        *kinds
    ] * len(by_layer)
    same = by_layer == [kinds[kind] for kind in types]
    return "" if same else "chunked attention, or windows of several widths"


def _rope_types(parameters: Any) -> set[str]:
    """The kinds in `rope_parameters`, which some families have one of for each kind of layer."""
    if not isinstance(parameters, dict):
        return set()
    found = {str(parameters["rope_type"])} if parameters.get("rope_type") else set()
    return found.union(*(_rope_types(value) for value in parameters.values()))


def why_not_by_trying(model: Any, longest: int, merging: bool) -> str:
    """What a trial of shared rows and of decoding says against them; empty where they agree with plain ones."""
    widened = sum(
        p.numel() * 4 for p in model.parameters() if p.is_floating_point() and p.itemsize < 4
    )
    if (
        widened
        and distributed.is_available()
        and distributed.is_initialized()
        and processes.count() == 1
    ):
        return "other processes train with this one, and DDP loses its hold on weights that are widened for a trial"
    if widened > free_bytes(model.device):
        return f"no memory to try shared rows: {widened / 2**30:.1f} GiB in float32"
    try:
        with measuring(model):
            with in_float32(model) as is_wider:
                probe = Probe(model, longest)
                if (error := probe.batch_error()) > TOLERANCE:
                    return (
                        f"other rows in a batch move its logits by {error:.2g} standard deviations"
                    )
                error, allowed = probe.sharing_error(merging), TOLERANCE
            if error <= allowed and is_wider:
                probe = Probe(model, longest)
                allowed = max(TOLERANCE_HALF, 3 * probe.batch_error())
                error = probe.sharing_error(merging)
    except REFUSALS as refusal:
        if is_out_of_memory(refusal):
            release_memory()
            return "no memory to try shared rows"
        return f"refuses shared rows: {type(refusal).__name__}: {refusal}"
    return (
        ""
        if error <= allowed
        else f"shared rows give other logits: by {error:.2g} standard deviations"
    )


def why_not_greedy(model: Any) -> str:
    """Why greedy decoding cannot be shared: what the harness would have `generate` do besides; empty where nothing."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return "no generation_config"
    setting = {
        key
        for key, value in config.to_diff_dict().items()
        if value and value not in NEUTRAL.get(key, ())
    }
    if acting := sorted(setting - GREEDY_SETTINGS):
        return f"generation_config sets {', '.join(acting)}"
    own = [
        name for name in ("generate", "prepare_inputs_for_generation") if _overrides(model, name)
    ]
    return f"a {own[0]} of its own" if own and not is_exact(model) else ""


def _overrides(model: Any, name: str) -> bool:
    return getattr(type(model), name, None) is not getattr(GenerationMixin, name)


def asks_greedily(settings: dict[str, Any]) -> bool:
    """Whether a request's settings, as the harness normalizes them, ask for greedy decoding and nothing else."""
    return (
        settings.keys() <= {"until", "max_gen_toks", "do_sample", "temperature"}
        and not settings["do_sample"]
    )
