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

from slimdown.models.causal import get_inner_model
from slimdown.utils.errors import ModelError


class BottleneckAdapter(nn.Module):
    """Computes `x + up(gelu(down(x)))` on the output of each target; `up` starts at zero.

    Attributes:
        enabled: False: the model is its base.
    """

    def __init__(self, widths: dict[str, int], dim: int) -> None:
        super().__init__()
        self.enabled = True
        self.dim = dim
        self.targets = list(widths)
        self.down = nn.ModuleList(nn.Linear(width, dim) for width in widths.values())
        self.up = nn.ModuleList(nn.Linear(dim, width) for width in widths.values())
        for layer in self.up:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def attach_bottleneck(model: Any, targets: Sequence[str], dim: int) -> Any:
    """Put an untrained adapter behind every layer whose name ends in a target; freeze the rest.

    Args:
        model: A causal language model; it is changed in place.
        targets: Names of layers, as PEFT's `target_modules`.
        dim: Width of the small layers.

    Returns:
        The same model, the adapter at `model.bottleneck_adapter`, its weights in float32.
    """
    modules = dict(model.named_modules())
    named = [name for name in modules if any(f".{name}".endswith(f".{t}") for t in targets)]
    widths = {  # `nf` of GPT-2's Conv1D
        name: int(getattr(modules[name], "nf", 0) or modules[name].out_features) for name in named
    }
    adapter = BottleneckAdapter(widths, dim).to(model.device)
    for i, name in enumerate(named):

        def add_bottleneck(layer: Any, inputs: Any, output: torch.Tensor, i: int = i) -> Any:
            if not adapter.enabled:
                return output
            hidden = functional.gelu(adapter.down[i](output.float()))
            return output + adapter.up[i](hidden).to(output.dtype)

        modules[name].register_forward_hook(add_bottleneck)
    model.requires_grad_(False)
    model.bottleneck_adapter = adapter
    return model


def save_bottleneck(model: Any, folder: Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`."""
    adapter = get_inner_model(model).bottleneck_adapter
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous().cpu() for name, tensor in adapter.state_dict().items()},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "BOTTLENECK", "bottleneck_dim": adapter.dim, "layers": adapter.targets}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_bottleneck(model: Any, folder: Path) -> Any:
    """Put a saved adapter on its base.

    Raises:
        ModelError: It was made on another base.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    attach_bottleneck(model, config["layers"], config["bottleneck_dim"])
    try:
        model.bottleneck_adapter.load_state_dict(load_file(folder / "adapter_model.safetensors"))
    except RuntimeError as error:
        raise ModelError(
            f"the bottleneck adapter in {folder} does not fit: it was made on another base "
            f"({' '.join(str(error).split())[:200]})"
        ) from None
    return model
