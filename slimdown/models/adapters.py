"""Make, check, save and load what a method trains: an adapter, or the base's own weights."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
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
from slimdown.models.identity import ADAPTER_WEIGHTS
from slimdown.models.quiet import quiet_libraries
from slimdown.models.tuned_base import ADAPTER_CONFIG, read_adapter_config
from slimdown.utils.errors import ModelError


def attach_adapter(base: LoadedModel, method: MethodConfig, lora: LoraConfig, seed: int) -> Any:
    """Attach an adapter, or let the base's own weights be trained; the base is changed in place.

    Args:
        base: The model, with its weights or as its outline.
        method: What is trained.
        lora: The adapter's shape; a method that is no LoRA does not read it.
        seed: The seed of the adapter's first values.

    Returns:
        PEFT's model around `base.model`, or `base.model` itself where PEFT does not have the
        method; only what is trained requires gradients.
    """
    torch.manual_seed(seed)
    return method.facts.find_function("attach")(base.model, method, lora)


def check_base(config: RunConfig) -> Any:
    """Check that the base exists and has each target module, before its weights are fetched.

    PEFT itself complains only if the base has none of the targets.

    Returns:
        The base's outline, see `load_outline`.

    Raises:
        ModelError: The base does not exist or lacks a target module.
    """
    outline = load_outline(config.model, config.quantization.name)
    if config.tuned:  # this run trains nothing, so it has no target modules
        return outline
    targets = config.method.layers
    if config.method.facts.reads_lora:
        check_whole_modules("lora.args", config.lora.args, outline)
        targets = config.lora.target_modules
    modules = dict(outline.named_modules())
    for target in targets:
        if target != "all-linear" and not _has_module(modules, target):
            linear = (name for name, module in modules.items() if isinstance(module, nn.Linear))
            # Without the names of the block and what is around it: q_proj, once for all blocks.
            layers = {name.rpartition(".")[2] for name in linear}
            raise ModelError(
                f"target_modules: {config.model.id} has no {target}; its linear layers are "
                f"{', '.join(sorted(layers))}"
            )
    return outline


def check_whole_modules(setting: str, adapter: Mapping[str, Any], model: Any) -> None:
    """Check that the base has the modules which an adapter trains as a whole.

    Args:
        setting: The setting that names the adapter, for a message.
        adapter: Settings of the adapter by PEFT's names; only `modules_to_save` is read.
        model: The base, with or without its weights in memory.

    Raises:
        ModelError: A module does not exist.
    """
    modules = [name for name, _ in model.named_modules()]
    for name in adapter.get("modules_to_save") or ():
        if not _has_module(modules, name):
            raise ModelError(f"{setting}: modules_to_save names {name!r}, which the base has not")


def _has_module(modules: Iterable[str], target: str) -> bool:
    """Whether a target is the last part of a module's name, or several parts, as PEFT finds it."""
    return any(f".{module}".endswith(f".{target}") for module in modules)


def save_adapter(model: Any, base: LoadedModel, folder: Path) -> None:
    """Write the adapter in PEFT's format; it names its base by hub id and commit.

    Args:
        model: The base with the adapter on it.
        base: Its id and commit are written; the base of a local folder has no commit.
        folder: Where the files are written.
    """
    if (adapter := get_own_adapter(model)) is not None:
        adapter.save(folder)
    else:
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    file = folder / ADAPTER_CONFIG
    config = json.loads(file.read_text())
    # PEFT has these as sets, whose order differs from process to process.
    for name in ("target_modules", "exclude_modules"):
        if isinstance(config.get(name), list):
            config[name].sort()
    config["base_model_name_or_path"] = base.id
    config["revision"] = None if base.revision.startswith("sha256:") else base.revision
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_adapter(base: LoadedModel, folder: Path) -> Any:
    """Put a saved adapter on its base; the base is changed in place.

    Args:
        base: The model that the adapter was made on.
        folder: Where the adapter is.

    Returns:
        The model with the adapter, in evaluation mode: PEFT's around `base.model`, or `base.model`
        itself where PEFT does not have the method.
    """
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
    if learns_prompt(model):  # its virtual tokens are beside the base's layers, which are unchanged
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
    """Return why a model at scale 0 is not its base, as the end of a sentence; empty if it is.

    The settings of its adapters are read first. Then the logits of a few tokens at scale 0 are
    compared with those of the base.
    """
    from peft.helpers import rescale_adapter_scale

    # The settings alone show these: they may change only logits of tokens that are not tried below.
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
    # DoRA also trains the lengths of the weights' vectors, and PEFT scales only its two matrices.
    return "its directions or lengths are its own, as DoRA's are"


@contextmanager
def scale_adapter(tuned: LoadedModel, scale: float) -> Iterator[LoadedModel]:
    """Inside, the model adds `scale` times what its LoRA adds; its identity says so."""
    from peft.helpers import rescale_adapter_scale

    with rescale_adapter_scale(tuned.model, scale):
        yield replace(tuned, identity={**tuned.identity, "scale": scale})


def save_scaled_adapter(folder: Path, scale: float, out: Path) -> None:
    """Write a LoRA adapter that adds `scale` times what the one in a folder adds.

    Args:
        folder: Where the adapter is. It must have passed `check_scalable`, so it trained no biases
            and no whole modules, which would need scaling, too.
        scale: What its change is multiplied by.
        out: Where the scaled one is written; it is made if it does not exist.
    """
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / ADAPTER_WEIGHTS)
    # What an adapter adds is the product of two matrices A and B, so it is enough to scale one.
    for name in tensors:
        if ".lora_B" in name or ".lora_embedding_B" in name:
            tensors[name] *= scale
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(folder / ADAPTER_CONFIG, out / ADAPTER_CONFIG)
