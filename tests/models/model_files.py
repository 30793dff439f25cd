"""Load the models that settings name, as a run does, and edit their files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record_builders import compose_config
from safetensors.torch import load_file, save_file
from torch import Tensor

from slimdown.models.base_model import LoadedModel, load_base_model
from slimdown.models.external import ExternalModel, open_tuned_model


def load_base(*settings: str) -> LoadedModel:
    config = compose_config(*settings)
    return load_base_model(config.model, config.quantization)


def open_tuned(tuned: Path, *settings: str) -> tuple[LoadedModel, ExternalModel]:
    """The base, and a tuned model whose weights are not loaded yet."""
    config = compose_config(f"tuned={tuned}", *settings)
    base = load_base_model(config.model, config.quantization)
    return base, open_tuned_model(config, base)


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(file: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})
