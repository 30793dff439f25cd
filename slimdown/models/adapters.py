"""What each method trains: its adapter on the base or the base's own weights, checked and saved."""

import json
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimdown.config.method_config import Method, MethodConfig
from slimdown.config.schema import LoraConfig
from slimdown.models.base_model import LoadedModel, read_context_window
from slimdown.models.bottleneck import attach_bottleneck, load_bottleneck, save_bottleneck
from slimdown.models.quiet import quiet_libraries
from slimdown.utils.errors import ModelError


def attach_adapter(base: LoadedModel, method: MethodConfig, lora: LoraConfig, seed: int) -> Any:
    """Make what a method trains; the base's model is changed in place.

    Args:
        base: The model.
        method: What is trained.
        lora: The adapter's shape, where it is a LoRA.
        seed: Of its first values, whatever was computed before.

    Returns:
        PEFT's model around the base's, or the base's own, where only what is trained wants
        gradients; that is float32.
    """
    import peft

    torch.manual_seed(seed)
    if method.trains_weights:
        trained = {id(p) for m in _trained_modules(base, method) for p in m.parameters()}
        for parameter in base.model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        return base.model
    if method.name is Method.bottleneck:
        assert method.target_modules and method.bottleneck_dim
        return attach_bottleneck(base.model, method.target_modules, method.bottleneck_dim)
    settings: dict[str, Any] = {name: getattr(method, name) for name in method.own}
    kind: Any = peft.LoraConfig
    if method.is_lora:
        switches = {
            "use_rslora": method.name is Method.rslora,
            "use_dora": method.name is Method.dora,
        }
        settings = asdict(lora) | settings | switches
        if lora.is_everywhere:
            settings["target_modules"] = "all-linear"
    elif method.name is Method.prefix:
        kind = peft.PrefixTuningConfig
    elif method.name is Method.prompt:  # PEFT's default is noise, far from any embedding
        kind, settings["prompt_tuning_init"] = peft.PromptTuningConfig, "SAMPLE_VOCAB"
    else:
        kind = peft.IA3Config
    if not method.learns_prompt and any(type(m).__name__ == "Conv1D" for m in base.model.modules()):
        settings["fan_in_fan_out"] = True  # as GPT-2 holds its weights
    with quiet_libraries():
        return peft.get_peft_model(base.model, kind(**settings, task_type="CAUSAL_LM"))


def check_adapter(
    base: LoadedModel, method: MethodConfig, lora: LoraConfig, max_length: int
) -> None:
    """Check that a method's settings fit this model.

    Raises:
        ModelError: Target modules that it lacks, a rank above its matrices, rows or virtual tokens
            beyond its window, no block that is the last, or a head that cannot be trained alone.
    """
    window, n_virtual = read_context_window(base.model), method.num_virtual_tokens or 0
    if window is not None and max_length + n_virtual > window:
        extra = f" with method.num_virtual_tokens={n_virtual} before each" if n_virtual else ""
        room = window - n_virtual
        advice = f"train.max_length={room} or less" if room > 0 else "fewer virtual tokens"
        raise ModelError(
            f"train.max_length={max_length}{extra} is beyond the {window} tokens that {base.id} was "
            f"made for; set {advice}"
        )
    if method.trains_weights:
        _trained_modules(base, method)
    targets = lora.target_modules if method.is_lora else method.target_modules
    if not targets:
        return
    head = base.model.get_output_embeddings()
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in base.model.named_modules():
        if isinstance(module, nn.Linear):
            shapes[name] = (module.in_features, module.out_features)
        elif type(module).__name__ == "Conv1D":
            shapes[name] = tuple(module.weight.shape)
    names = [name for name in shapes if base.model.get_submodule(name) is not head]
    known = sorted({name.rpartition(".")[2] for name in names})
    if not (method.is_lora and lora.is_everywhere):
        setting = "lora.target_modules" if method.is_lora else "method.target_modules"
        for target in targets:  # PEFT is content where one is there, and silent about the others
            if not any(f".{name}".endswith(f".{target}") for name in shapes):
                close = get_close_matches(target, known, n=1)
                meant = f" (did you mean {close[0]}?)" if close else ""
                raise ModelError(
                    f"{setting}: {base.id} has no {target}{meant}; its linear layers are "
                    f"{', '.join(known)}"
                )
        chosen = [n for n in shapes if any(f".{n}".endswith(f".{target}") for target in targets)]
        if unusual := [name for name in chosen if name not in names]:
            raise ModelError(
                f"{setting}: {unusual[0]} is the head of {base.id}, and TRL trains no adapter on it; "
                "leave it out"
            )
        names = chosen
    size = method.bottleneck_dim or (lora.r if method.is_lora else 0)
    setting = "method.bottleneck_dim" if method.bottleneck_dim else "lora.r"
    highest = max(min(shapes[name]) for name in names)
    if size > highest:
        raise ModelError(
            f"{setting}={size}: no layer of {base.id} that is adapted has a rank above {highest}, and "
            f"more adds nothing; set {setting}={highest} or less"
        )


def save_adapter(model: Any, base: LoadedModel, folder: Path) -> None:
    """Write the adapter in PEFT's format, its base named by hub id and commit."""
    if hasattr(model, "bottleneck_adapter"):
        save_bottleneck(model, folder)
    else:
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = base.id
    config["revision"] = None if base.revision.startswith("sha256:") else base.revision
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_adapter(base: LoadedModel, folder: Path) -> Any:
    """Put a saved adapter on its base, which is changed in place, in evaluation mode.

    Raises:
        ModelError: It does not fit.
    """
    import peft

    if json.loads((folder / "adapter_config.json").read_text()).get("peft_type") == "BOTTLENECK":
        return load_bottleneck(base.model, folder).eval()
    try:
        with quiet_libraries():
            return peft.PeftModel.from_pretrained(base.model, str(folder)).eval()
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        quantized = "" if base.quantization == "none" else ", or its kind needs quantization=none"
        raise ModelError(
            f"the adapter in {folder} does not fit on {base.id}: it was made on another base"
            f"{quantized} ({' '.join(str(error).split())[:300]})"
        ) from None


def _trained_modules(base: LoadedModel, method: MethodConfig) -> list[nn.Module]:
    """Return the modules whose weights `full` or `last_layer` trains."""
    model = base.model
    if method.name is Method.full:
        return [model]
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise ModelError(f"method=last_layer: {base.id} keeps its {n_layers} blocks in no list")
    name, blocks = lists[0]
    siblings = model.get_submodule(name.rpartition(".")[0]).named_children()
    norms = [m for key, m in siblings if "norm" in type(m).__name__.lower() and "embed" not in key]
    head = model.get_output_embeddings()
    if method.lm_head and head.weight is model.get_input_embeddings().weight:
        raise ModelError(
            f"method.lm_head=true: the head of {base.id} is its embeddings as well "
            "(tie_word_embeddings); leave it out, or train them all with method=full"
        )
    return [blocks[-1], *norms, *([head] if method.lm_head else [])]
