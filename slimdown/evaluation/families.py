"""Which models `PrefixLM` scores exactly: families that test_families.py holds to HFLM's answers.

A model may share work between questions when a token's logits depend only on the tokens before it,
their positions and the attention mask. Every other model takes HFLM's own path.
"""

import inspect
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from slimdown.models.causal import get_inner_model

# fmt: off
EXACT_FAMILIES = frozenset([
    "apertus", "arcee", "biogpt", "bitnet", "codegen", "cohere", "cohere2", "ctrl", "deepseek_v2",
    "deepseek_v3", "diffllama", "ernie4_5", "ernie4_5_moe", "exaone4", "falcon", "flex_olmo",
    "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode",
    "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe", "granitemoeshared", "helium",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "jetmoe", "llama", "minicpm3", "ministral", "mistral",
    "mixtral", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon",
    "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3",
    "stablelm", "starcoder2", "vaultgemma", "xglm",
])
# fmt: on
# Rotary embeddings whose frequencies depend on a token's position alone, not on its row's length.
_FIXED_ROPE = frozenset(["default", "linear", "llama3", "proportional", "yarn"])
# PEFT's adapters that act on each token by itself. Prompt learning is not among them: PEFT
# overwrites `past_key_values`, so a shared prefix would be lost without an error.
_TOKENWISE_ADAPTERS = frozenset(
    ["ADALORA", "BOFT", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "OFT", "SHIRA", "VERA"]
)
# Settings that make LoRA look at more than one token, or run a layer twice with one cache.
_ROWWISE_LORA = ["alora_invocation_tokens", "arrow_config", "layer_replication"]
_ROWWISE_LORA += ["monteclora_config"]


def explain_no_sharing(model: Any) -> str:
    """Say why `PrefixLM` must not score a model.

    Args:
        model: A model of transformers, or PEFT's model around one.

    Returns:
        The reason in a few words; empty where sharing is exact.
    """
    inner = get_inner_model(model)
    return _explain_adapters(model) or _explain_class(inner) or _explain_settings(inner)


def _explain_adapters(model: Any) -> str:
    """Say which adapter may compute a token by more than the tokens before it."""
    for peft_config in getattr(model, "peft_config", {}).values():
        peft_type = str(getattr(peft_config.peft_type, "value", peft_config.peft_type))
        if peft_type not in _TOKENWISE_ADAPTERS:
            return f"{peft_type} adapter"
        for setting in _ROWWISE_LORA:
            if getattr(peft_config, setting, None) is not None:
                return f"LoRA with {setting}"
    return ""


def _explain_class(inner: Any) -> str:
    """Say what in a model's code was not tested for exact sharing; empty if all of it was.

    `PrefixLM` may score only the families in `EXACT_FAMILIES`, run by the code of transformers.
    Patches of other libraries, int8 layers and other attention code count as untested, too.
    """
    config: Any = inner.config
    model_class: Any = type(inner)
    class_of_family: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if (
        config.model_type not in EXACT_FAMILIES
        or model_class is not class_of_family
        or not model_class.__module__.startswith("transformers.models.")
    ):
        return f"{model_class.__name__} is not among the families that were tested"
    if any(map(_is_patched, {type(module) for module in inner.modules()})):
        return "another library has replaced a forward of transformers"
    # `PrefixLM` computes the logits of the choices alone, which this argument makes possible.
    if "logits_to_keep" not in inspect.signature(model_class.forward).parameters:
        return f"{model_class.__name__} has no logits_to_keep"
    if getattr(inner, "is_loaded_in_8bit", False):
        return "int8 layers look for outliers in the whole batch"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"{config._attn_implementation} attention takes no 4D mask"
    return ""


def _explain_settings(inner: Any) -> str:
    """Say which setting keeps a model from being scored with shared prefixes; empty if none does.

    With such a setting, a token's logits depend on more than the tokens before it, their positions
    and the attention mask. Or the model ignores a setting that `PrefixLM` would follow.

    Args:
        inner: A model of transformers, of one of the families in `EXACT_FAMILIES`.
    """
    config = inner.config
    odd_settings = {"alibi": True, "use_bidirectional_attention": True, "is_causal": False}
    for setting, odd_value in odd_settings.items():
        if getattr(config, setting, None) is odd_value:
            return setting
    for setting in ("sliding_window", "layer_types"):
        # A family ignores a setting that its config class does not know. But `PrefixLM` builds the
        # attention masks itself, and would follow the setting.
        is_known = hasattr(inner.config_class, setting)
        if getattr(config, setting, None) is not None and not is_known:
            return f"{setting} in the config of {config.model_type}"
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    # Most families have one set of rotary parameters; some have one for each kind of layer.
    ropes = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    types = {str(parameters["rope_type"]) for parameters in ropes if parameters.get("rope_type")}
    if odd_types := types - _FIXED_ROPE:
        return f"rotary embedding {', '.join(sorted(odd_types))} depends on a row's length"
    return ""


def _is_patched(module_class: type) -> bool:
    """Return whether another library put its forward into a class of transformers, as Unsloth."""
    forward: Any = getattr(module_class, "forward", None)
    package = str(module_class.__module__).partition(".")[0]
    forward_package = str(forward.__module__).partition(".")[0]
    return package == "transformers" and forward_package not in ("transformers", "torch")


def get_windows(model: Any) -> dict[str, int | None]:
    """Return how many positions each kind of attention layer sees, its own included; None: all.

    Keys are the names of `config.layer_types`. The rules are those of `transformers.masking_utils`.
    """
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    usual_kind = "full_attention" if window is None else "sliding_attention"
    kinds = getattr(config, "layer_types", None) or [usual_kind]
    return {kind: window if kind == "sliding_attention" else None for kind in kinds}
