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
from slimdown.models.base_model import LoadedModel
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
        PEFT's model around the base's, or the base's own; only what is trained wants gradients.
    """
    with quiet_libraries():
        import peft

    torch.manual_seed(seed)
    if method.trains_weights:
        trained = {id(p) for m in _list_trained_modules(base, method) for p in m.parameters()}
        for parameter in base.model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        return base.model
    if method.bottleneck_dim:
        return attach_bottleneck(base.model, method.target_modules or [], method.bottleneck_dim)
    settings: dict[str, Any] = {name: getattr(method, name) for name in method.own}
    kinds = {Method.prefix: peft.PrefixTuningConfig, Method.ia3: peft.IA3Config}
    kind: Any = kinds.get(method.name, peft.LoraConfig)
    if method.is_lora:
        settings = asdict(lora)
        settings["use_rslora"] = method.name is Method.rslora
        settings["use_dora"] = method.name is Method.dora
        if lora.is_everywhere:
            settings["target_modules"] = "all-linear"
    elif method.name is Method.prompt:  # PEFT's default is noise, far from any embedding
        kind, settings["prompt_tuning_init"] = peft.PromptTuningConfig, "SAMPLE_VOCAB"
    with quiet_libraries():
        return peft.get_peft_model(base.model, kind(**settings, task_type="CAUSAL_LM"))


def check_adapter(
    base: LoadedModel, method: MethodConfig, lora: LoraConfig, max_length: int
) -> None:
    """Check that a method's settings fit this model.

    Raises:
        ModelError: Target modules that it lacks, or rows or virtual tokens beyond its window.
    """
    n_virtual = method.num_virtual_tokens or 0
    window = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    if window and max_length + n_virtual > window:
        extra = f" with method.num_virtual_tokens={n_virtual} before each" if n_virtual else ""
        raise ModelError(
            f"train.max_length={max_length}{extra} is beyond the {window} tokens that {base.id} "
            f"was made for; set train.max_length={max(8, window - n_virtual)} or less"
        )
    targets = list((lora.target_modules if method.is_lora else method.target_modules) or [])
    modules = dict(base.model.named_modules())
    for target in targets:  # PEFT is content where one is there, and silent about the others
        if target != "all-linear" and not any(f".{n}".endswith(f".{target}") for n in modules):
            layers = [n for n, m in modules.items() if isinstance(m, nn.Linear)]
            known = sorted({name.rpartition(".")[2] for name in layers})
            close = get_close_matches(target, known, n=1)
            meant = f" (did you mean {close[0]}?)" if close else ""
            raise ModelError(
                f"target_modules: {base.id} has no {target}{meant}; its linear layers are "
                f"{', '.join(known)}"
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
        reason = f"with quantization={base.quantization}: {' '.join(str(error).split())[:300]}"
        raise ModelError(f"{folder} does not fit on {base.id} {reason}") from None


def _list_trained_modules(base: LoadedModel, method: MethodConfig) -> list[nn.Module]:
    """Return the modules whose weights `full` or `last_layer` trains."""
    model = base.model
    if method.name is Method.full:
        return [model]
    n_layers = model.config.get_text_config().num_hidden_layers
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    named = [(name, blocks) for name, blocks in lists if len(blocks) == n_layers]
    if not named:
        raise ModelError(f"method=last_layer: {base.id} keeps its {n_layers} blocks in no list")
    name, blocks = named[0]
    siblings = model.get_submodule(name.rpartition(".")[0]).named_children()
    norms = [m for key, m in siblings if "norm" in type(m).__name__.lower() and "embed" not in key]
    head = model.get_output_embeddings()
    if method.lm_head and head.weight is model.get_input_embeddings().weight:
        raise ModelError(
            f"method.lm_head=true: the head of {base.id} is its embeddings as well "
            "(tie_word_embeddings); leave it out, or train them all with method=full"
        )
    return [blocks[-1], *norms, *([head] if method.lm_head else [])]
