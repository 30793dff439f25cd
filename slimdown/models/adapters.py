"""Make, check, save and load what a method trains: an adapter, or the base's own weights."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimdown.config.methods import MethodConfig, find_own_type
from slimdown.config.schema import LoraConfig, RunConfig
from slimdown.models.base_model import LoadedModel, load_outline
from slimdown.models.causal import (
    disabled_adapters,
    get_own_adapter,
    has_untouched_base,
    learns_prompt,
)
from slimdown.models.identity import ADAPTER_FILES
from slimdown.models.quiet import quiet_libraries
from slimdown.models.tuned_base import read_adapter_config
from slimdown.utils.errors import ModelError


def attach_adapter(base: LoadedModel, method: MethodConfig, lora: LoraConfig, seed: int) -> Any:
    """Attach an adapter, or let the base's own weights be trained; the base is changed in place.

    Args:
        base: The model.
        method: What is trained.
        lora: The adapter's shape, where it is a LoRA.
        seed: The seed of its first values, whatever was computed before.

    Returns:
        PEFT's model around the base's, or the base's own; only trained weights require gradients.
    """
    torch.manual_seed(seed)
    return method.facts.find_function("attach")(base.model, method, lora)


def check_base(config: RunConfig) -> Any:
    """Check that the base exists and has each target module, before its weights are fetched.

    PEFT accepts a list of targets if the base has one of them.

    Returns:
        The base's outline, see `load_outline`.

    Raises:
        ModelError: The base does not exist or lacks a target module.
    """
    outline = load_outline(config.model, config.quantization.name)
    if config.tuned:
        return outline
    targets = config.method.layers
    if config.method.facts.reads_lora:
        check_settings("lora.args", config.lora.args, outline)
        targets = config.lora.target_modules
    modules = dict(outline.named_modules())
    for target in targets:
        if target == "all-linear" or any(f".{name}".endswith(f".{target}") for name in modules):
            continue
        linear = (name for name, module in modules.items() if isinstance(module, nn.Linear))
        layers = {name.rpartition(".")[2] for name in linear}  # their names within a block
        raise ModelError(
            f"target_modules: {config.model.id} has no {target}; its linear layers are "
            f"{', '.join(sorted(layers))}"
        )
    return outline


def check_settings(setting: str, settings: Mapping[str, Any], model: Any) -> None:
    """Check that the base has the modules which an adapter trains as a whole.

    Args:
        setting: The setting that names the adapter, for a message.
        settings: The settings by PEFT's names.
        model: The base, with or without its weights in memory.

    Raises:
        ModelError: A module does not exist.
    """
    modules = [name for name, _ in model.named_modules()]
    for name in settings.get("modules_to_save") or ():
        if not any(f".{module}".endswith(f".{name}") for module in modules):
            raise ModelError(f"{setting}: modules_to_save names {name!r}, which the base has not")


def save_adapter(model: Any, base: LoadedModel, folder: Path) -> None:
    """Write the adapter in PEFT's format; it names its base by hub id and commit."""
    if (adapter := get_own_adapter(model)) is not None:
        adapter.save(folder)
    else:
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    for name in ("target_modules", "exclude_modules"):  # sets: each process has another order
        if isinstance(config.get(name), list):
            config[name].sort()
    config["base_model_name_or_path"] = base.id
    config["revision"] = None if base.revision.startswith("sha256:") else base.revision
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_adapter(base: LoadedModel, folder: Path) -> Any:
    """Put a saved adapter on its base, in evaluation mode; the base is changed in place."""
    import peft

    if own := find_own_type(read_adapter_config(folder)["peft_type"]):
        return own.find_function("load")(base.model, folder).eval()
    with quiet_libraries():
        return peft.PeftModel.from_pretrained(base.model, str(folder)).eval()


def remove_adapter(model: Any) -> Any:
    """Take an adapter off its base, in place.

    Returns:
        The base's model; the same model where nothing can take its adapter off.
    """
    if learns_prompt(model):
        return model.get_base_model()
    is_removable = hasattr(model, "peft_config") and hasattr(model, "unload")
    return model.unload() if is_removable else model


def check_scalable(tuned: LoadedModel) -> None:
    """Check that a loaded model is its base when its adapter is scaled to 0.

    Raises:
        ModelError: It is not: there is no LoRA, or something beside it was trained.
    """
    if reason := _explain_unscalable(tuned.model):
        raise ModelError(f"{tuned.id}: at scale 0 this model is not its base, for {reason}")


def _explain_unscalable(model: Any) -> str:
    """Return why a model at scale 0 is not its base; empty: it is its base."""
    from peft.helpers import rescale_adapter_scale

    # What was trained beside a LoRA may change the logits of other tokens than those below.
    trained_beside = [
        getattr(adapter, name, None)
        for adapter in getattr(model, "peft_config", {}).values()
        for name in ("modules_to_save", "trainable_token_indices")
    ]
    if any(trained_beside) or not has_untouched_base(model):
        return "something beside its LoRA was trained"
    n_tokens = min(64, model.get_input_embeddings().weight.shape[0])
    tokens = torch.arange(n_tokens, device=model.device)[None]
    with torch.no_grad(), disabled_adapters(model):
        base_logits = model(input_ids=tokens, use_cache=False).logits
    try:
        with torch.no_grad(), rescale_adapter_scale(model, 0.0):
            scaled_logits = model(input_ids=tokens, use_cache=False).logits
    except ValueError:  # PEFT finds no LoRA in it
        return "it is no LoRA"
    if torch.allclose(base_logits, scaled_logits, rtol=0, atol=1e-5):
        return ""
    return "its directions or lengths are its own, as DoRA's are"


@contextmanager
def scale_adapter(tuned: LoadedModel, scale: float) -> Iterator[LoadedModel]:
    """Inside, the model adds `scale` times what its LoRA adds."""
    from peft.helpers import rescale_adapter_scale

    with rescale_adapter_scale(tuned.model, scale):
        yield replace(tuned, identity={**tuned.identity, "scale": scale})


def save_scaled_adapter(folder: Path, scale: float, out: Path) -> None:
    """Write a LoRA adapter that adds `scale` times what the one in a folder adds."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / ADAPTER_FILES[1])
    for name in tensors:
        if ".lora_B" in name or ".lora_embedding_B" in name:
            tensors[name] *= scale
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / ADAPTER_FILES[1], metadata={"format": "pt"})
    shutil.copyfile(folder / ADAPTER_FILES[0], out / ADAPTER_FILES[0])
