"""The methods that train weights of the base: all of them, or those of the last block."""

from typing import Any

from torch import nn

from slimdown.config.methods import LastLayer, MethodConfig
from slimdown.config.schema import LoraConfig


def attach(model: Any, method: MethodConfig, lora: LoraConfig) -> Any:
    """Make the weights that a method trains require gradients, and no others.

    Args:
        model: A causal language model; it is changed in place.
        method: `full`, which trains all weights, or `last_layer`.
        lora: Not read, as these methods are no LoRA.

    Returns:
        The same model.
    """
    model.requires_grad_(method.name == "full")
    if method.name == "last_layer":
        n_blocks = model.config.get_text_config().num_hidden_layers
        lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
        # The first list of as many modules as the config has blocks holds the blocks.
        list_name, blocks = next((n, modules) for n, modules in lists if len(modules) == n_blocks)
        blocks[-1].requires_grad_(True)
        # The norm behind the last block stands beside the list of blocks, under any name. A norm of
        # the embeddings, as BLOOM's, may stand there, too.
        parent = model.get_submodule(list_name.rpartition(".")[0])
        for name, child in parent.named_children():
            if "norm" in type(child).__name__.lower() and "embed" not in name:
                child.requires_grad_(True)
        if isinstance(method, LastLayer) and method.lm_head:
            model.get_output_embeddings().requires_grad_(True)
    return model
