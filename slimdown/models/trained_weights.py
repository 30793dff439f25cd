"""The methods that train weights of the base: all of them, or those of the last block."""

from typing import Any

from torch import nn

from slimdown.config.methods import LastLayer, MethodConfig
from slimdown.config.schema import LoraConfig


def attach(model: Any, method: MethodConfig, lora: LoraConfig) -> Any:
    """Make the weights that a method trains require gradients, and no others."""
    model.requires_grad_(method.name == "full")
    if method.name == "last_layer":
        n_layers = model.config.get_text_config().num_hidden_layers
        lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
        name, blocks = next((n, m) for n, m in lists if len(m) == n_layers)
        blocks[-1].requires_grad_(True)
        for key, module in model.get_submodule(name.rpartition(".")[0]).named_children():
            if "norm" in type(module).__name__.lower() and "embed" not in key:
                module.requires_grad_(True)
        if isinstance(method, LastLayer) and method.lm_head:
            model.get_output_embeddings().requires_grad_(True)
    return model
