"""The adapter in PEFT's terms: its config, and its files."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slimdown.preparing.model import LoadedModel
from slimdown.settings.method import Method, MethodConfig
from slimdown.settings.schema import LoraConfig


def adapter_config(method: MethodConfig, lora: LoraConfig) -> Any:
    """PEFT's config of the adapter that `method` and `lora` ask for."""
    import peft

    every = {"target_modules": "all-linear"} if lora.is_everywhere else {}
    switches: dict[Method, dict[str, Any]] = {
        Method.rslora: {"use_rslora": True},
        Method.dora: {"use_dora": True},
        Method.pissa: {"init_lora_weights": method.init_lora_weights},
    }
    return peft.LoraConfig(**asdict(lora) | every | switches.get(method.name, {}), task_type="CAUSAL_LM")


def save_adapter(model: Any, base: LoadedModel, folder: Path) -> Path:
    """Write the adapter as PEFT does, its base named by hub id and commit instead of a path of this machine."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = base.id
    config["revision"] = None if base.revision.startswith("sha256:") else base.revision
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder
