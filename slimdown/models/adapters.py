"""What each method trains: its adapter on the base or the base's own weights, checked and saved."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimdown.config.method_config import MethodConfig
from slimdown.config.methods import Method
from slimdown.config.schema import LoraConfig, RunConfig
from slimdown.models.base_model import LoadedModel, load_outline
from slimdown.models.bottleneck import attach_bottleneck, load_bottleneck, save_bottleneck
from slimdown.models.causal import disabled_adapters, has_untouched_base
from slimdown.models.identity import ADAPTER_FILES
from slimdown.models.quiet import quiet_libraries
from slimdown.utils.errors import ModelError

_MOST_CHARACTERS = 100_000  # of a setting, as JSON: the full names of 500 layers are 20,000
# PEFT 0.21 matches whole names, ends of names, and beginnings up to the number of a layer.
_MATCH = r"""
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for form in (pattern, rf"(.*\.)?({pattern})", rf".*\.{pattern}\.(\d+)\..*"):
        for name in names:
            re.fullmatch(form, name)
"""


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
    import peft

    torch.manual_seed(seed)
    if method.trains_weights:
        model = base.model.requires_grad_(method.name is Method.full)
        if method.name is Method.last_layer:
            n_layers = model.config.get_text_config().num_hidden_layers
            lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
            name, blocks = next((n, m) for n, m in lists if len(m) == n_layers)
            blocks[-1].requires_grad_(True)
            for key, module in model.get_submodule(name.rpartition(".")[0]).named_children():
                if "norm" in type(module).__name__.lower() and "embed" not in key:
                    module.requires_grad_(True)
            if method.lm_head:
                model.get_output_embeddings().requires_grad_(True)
        return model
    if method.bottleneck_dim:
        return attach_bottleneck(base.model, method.target_modules or [], method.bottleneck_dim)
    with quiet_libraries():
        return peft.get_peft_model(base.model, build_adapter_config(method, lora))


def build_adapter_config(method: MethodConfig, lora: LoraConfig) -> Any:
    """Build PEFT's settings of a method that it knows."""
    import peft

    settings: dict[str, Any] = {name: getattr(method, name) for name in method.own}
    kinds = {Method.prefix: peft.PrefixTuningConfig, Method.ia3: peft.IA3Config}
    kinds |= {Method.shira: peft.ShiraConfig, Method.oft: peft.OFTConfig}
    kind: Any = kinds.get(method.name, peft.LoraConfig)
    if method.is_lora:
        settings = asdict(lora)
        settings["use_rslora"] = method.name is Method.rslora
        settings["use_dora"] = method.name is Method.dora
        settings |= settings.pop("args")
        if lora.is_everywhere:
            settings["target_modules"] = "all-linear"
    elif method.name is Method.prompt:  # PEFT's default is noise, far from any embedding
        kind, settings["prompt_tuning_init"] = peft.PromptTuningConfig, "SAMPLE_VOCAB"
    return kind(**settings, task_type="CAUSAL_LM")


def check_base(config: RunConfig) -> None:
    """Check, before weights are fetched, that the base is there with each of the target modules.

    PEFT accepts a list of targets where one is there.

    Raises:
        ModelError: One is not.
    """
    outline = load_outline(config.model, None, config.quantization.name)
    if not config.tuned and config.method.is_lora:
        check_settings("lora.args", config.lora.args, outline)
    modules = dict(outline.named_modules())
    trained: LoraConfig | MethodConfig = config.lora if config.method.is_lora else config.method
    for target in [] if config.tuned else trained.target_modules or []:
        if target != "all-linear" and not any(f".{n}".endswith(f".{target}") for n in modules):
            layers = {n.rpartition(".")[2] for n, m in modules.items() if isinstance(m, nn.Linear)}
            raise ModelError(
                f"target_modules: {config.model.id} has no {target}; its linear layers are "
                f"{', '.join(sorted(layers))}"
            )


def check_settings(setting: str, settings: Mapping[str, Any], model: Any) -> None:
    """Check an adapter's settings against the model that PEFT puts it on.

    Args:
        setting: What names the adapter, for a message.
        settings: By PEFT's names for them.
        model: The base, with or without its numbers.

    Raises:
        ModelError: They name no module, scale by nothing, or would be read for minutes.
    """
    modules = [name for name, _ in model.named_modules()]
    patterns: list[str] = []
    for key, value in settings.items():
        if len(json.dumps(value)) > _MOST_CHARACTERS and key != "trainable_token_indices":
            raise ModelError(f"{setting}: {key} is longer than any model has names; get it again")
        if re.fullmatch(".*(modules|pattern|parameters)", key):
            patterns += (
                [value]
                if isinstance(value, str)
                else map(str, value)
                if isinstance(value, list | dict)
                else ()
            )
        for name, number in (
            (value or {}).items() if key in ("alpha_pattern", "rank_pattern") else ()
        ):
            if not isinstance(number, int | float) or not number > 0:
                raise ModelError(f"{setting}: {key} has {name}={number!r}; it must be above 0")
    for name in settings.get("modules_to_save") or ():
        if not any(f".{module}".endswith(f".{name}") for module in modules):
            raise ModelError(f"{setting}: modules_to_save names {name!r}, which the base has not")
    patterns = [pattern for pattern in patterns if re.escape(pattern) != pattern]
    try:  # in a process of its own, as a match can take for ever and cannot be interrupted
        subprocess.run(
            [sys.executable, "-ISc", _MATCH],
            input=json.dumps([patterns, modules]).encode(),
            stderr=subprocess.DEVNULL,
            timeout=5 if patterns else None,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{setting}: one of its patterns takes more than 5 seconds to match the names of the "
            f"base's layers ({max(patterns, key=len)[:80]!r}); write plain names"
        ) from None


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


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the settings of a saved adapter.

    Raises:
        ModelError: Their file is damaged.
    """
    file = folder / ADAPTER_FILES[0]
    try:
        is_long = file.stat().st_size > 40 * _MOST_CHARACTERS
        settings = None if is_long else json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise ModelError(f"{file} is damaged: it holds no settings of an adapter; get it again")
    return settings


def load_adapter(base: LoadedModel, folder: Path) -> Any:
    """Put a saved adapter on its base, which is changed in place, in evaluation mode."""
    import peft

    if read_adapter_config(folder)["peft_type"] == "BOTTLENECK":
        return load_bottleneck(base.model, folder).eval()
    with quiet_libraries():
        return peft.PeftModel.from_pretrained(base.model, str(folder)).eval()


def check_scalable(tuned: LoadedModel) -> None:
    """Check that a loaded model with nothing of its adapter is its base.

    Raises:
        ModelError: It is not: there is no LoRA, or something beside it was trained.
    """
    from peft.helpers import rescale_adapter_scale

    model, reason = tuned.model, "something beside its LoRA was trained"
    beside = (
        "modules_to_save",
        "trainable_token_indices",
    )  # of which a few tokens may show nothing
    adapters = getattr(model, "peft_config", {}).values()
    if has_untouched_base(model) and not any(getattr(a, n, None) for a in adapters for n in beside):
        n_tokens = min(64, model.get_input_embeddings().weight.shape[0])
        tokens = torch.arange(n_tokens, device=model.device)[None]
        with torch.no_grad(), disabled_adapters(model):
            logits = model(input_ids=tokens, use_cache=False).logits
        try:
            with torch.no_grad(), rescale_adapter_scale(model, 0.0):
                scaled = model(input_ids=tokens, use_cache=False).logits
            if torch.allclose(logits, scaled, rtol=0, atol=1e-5):
                return
            reason = "its directions or lengths are its own, as DoRA's are"
        except ValueError:  # PEFT finds no LoRA in it
            reason = "it is no LoRA"
    raise ModelError(f"{tuned.id}: at scale 0 this model is not its base, for {reason}")


def save_scaled_adapter(folder: Path, scale: float, out: Path) -> None:
    """Write a LoRA adapter that adds `scale` times as much as the one in a folder."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / ADAPTER_FILES[1])
    scaled = {
        name: tensor * scale if ".lora_B" in name or ".lora_embedding_B" in name else tensor
        for name, tensor in tensors.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(scaled, out / ADAPTER_FILES[1], metadata={"format": "pt"})
    shutil.copyfile(folder / ADAPTER_FILES[0], out / ADAPTER_FILES[0])
