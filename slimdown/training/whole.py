"""Training a model's own weights, all of them or those of its last block, and the whole model as files."""

from pathlib import Path
from typing import Any

from torch import nn

from slimdown.config.method import Method, MethodConfig
from slimdown.models.model import LoadedModel
from slimdown.utils import distributed as processes
from slimdown.utils.errors import SlimdownError


def trained_modules(base: LoadedModel, method: MethodConfig) -> list[nn.Module]:
    """The modules whose weights `method` trains.

    Raises:
        SlimdownError: no block is found to be the last, or the head cannot be trained by itself.
    """
    model = base.model
    if method.name is Method.full:
        return [model]
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) == n_layers
    ]
    if not lists:
        raise SlimdownError(
            f"method=last_layer: {base.id} keeps its {n_layers} blocks in no list, so none is known as last"
        )
    name, blocks = lists[0]
    around = model.get_submodule(name.rpartition(".")[0])
    norms = [
        m
        for key, m in around.named_children()
        if "norm" in type(m).__name__.lower() and "embed" not in key
    ]
    head = model.get_output_embeddings()
    if method.lm_head and head.weight is model.get_input_embeddings().weight:
        raise SlimdownError(
            f"method.lm_head=true: the head of {base.id} is its embeddings as well (tie_word_embeddings), and would "
            "change what every token begins as; leave it out, or train them all with method=full"
        )
    return [blocks[-1], *norms, *([head] if method.lm_head else [])]


def unfreeze(base: LoadedModel, method: MethodConfig) -> Any:
    """The base's model, of which those weights are trained and all are held in float32, as Adam's small steps need."""
    trained = {id(p) for module in trained_modules(base, method) for p in module.parameters()}
    for parameter in base.model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
        parameter.data = parameter.data.float()
    return base.model


def save_model(base: LoadedModel, dtypes: dict[str, Any], folder: Path) -> Path:
    """Write the model as `AutoModelForCausalLM` reads it, its numbers held as the base's were, with its tokenizer."""
    for name, parameter in base.model.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
        parameter.requires_grad_(False)
    if processes.is_first():
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
    return folder
