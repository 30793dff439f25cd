"""Houlsby's bottleneck adapters (2019): a small layer behind each attention and feed-forward.

Plain modules behind forward hooks, since PEFT has none and offers no public way to add a method.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from slimdown.config.methods import Bottleneck
from slimdown.config.schema import LoraConfig
from slimdown.utils.errors import ModelError


class BottleneckAdapter(nn.Module):
    """Computes `x + up(gelu(down(x)))` on the output of each target; `up` starts at zero."""

    def __init__(self, widths: dict[str, int], dim: int) -> None:
        """Make the small layers.

        Args:
            widths: By the full name of a target, the width of its output.
            dim: Width of the small layers.
        """
        super().__init__()
        self.is_enabled, self.dim, self.targets = True, dim, list(widths)
        self.down = nn.ModuleList(nn.Linear(width, dim) for width in widths.values())
        self.up = nn.ModuleList(nn.Linear(dim, width) for width in widths.values())
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    def forward(self, i: int, output: torch.Tensor) -> torch.Tensor:
        """Return the output of the target with the number `i`, [..., width], as it is changed."""
        if not self.is_enabled:
            return output
        change: torch.Tensor = self.up[i](functional.gelu(self.down[i](output.float())))
        return output + change.to(output.dtype)

    def save(self, folder: Path) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "adapter_model.safetensors")
        config = {"peft_type": "BOTTLENECK", "bottleneck_dim": self.dim, "layers": self.targets}
        (folder / "adapter_config.json").write_text(json.dumps(config))


def attach(model: Any, method: Bottleneck, lora: LoraConfig) -> Any:
    """Put an untrained adapter behind every layer whose name ends in a target; freeze the rest."""
    return attach_behind(model, method.target_modules, method.bottleneck_dim)


def attach_behind(model: Any, targets: Sequence[str], dim: int) -> Any:
    """Put an untrained adapter behind layers.

    Args:
        model: A causal language model; it is changed in place.
        targets: Ends of names of layers, as PEFT's `target_modules`.
        dim: Width of the small layers.

    Returns:
        The same model; the adapter is `model.own_adapter`, with weights in float32.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if any(f".{name}".endswith(f".{target}") for target in targets)
    }
    widths = {}
    for name, layer in layers.items():
        # GPT-2's Conv1D has `nf` instead of `out_features`.
        widths[name] = int(getattr(layer, "nf", 0) or layer.out_features)
    model.requires_grad_(False)
    model.own_adapter = adapter = BottleneckAdapter(widths, dim).to(model.device)
    for i, layer in enumerate(layers.values()):
        # `i=i` keeps the number of this layer; without it, all hooks would have the last one.
        layer.register_forward_hook(
            lambda layer, inputs, output, i=i: adapter(i, output)  # type: ignore[misc]
        )
    return model


def load(model: Any, folder: Path) -> Any:
    """Put a saved adapter on its base, and return that model.

    Raises:
        ModelError: It was made on another base.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    attach_behind(model, config["layers"], config["bottleneck_dim"])
    try:
        model.own_adapter.load_state_dict(load_file(folder / "adapter_model.safetensors"))
    except RuntimeError as error:
        raise ModelError(f"the adapter in {folder} was made on another base ({error})") from None
    return model
