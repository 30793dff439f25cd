"""The methods that PEFT knows: LoRA and its kin, prompts and prefixes, IA3, SHiRA, OFT."""

from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain, cycle, islice
from typing import Any

import torch

from slimdown.config.methods import MethodConfig
from slimdown.config.schema import LoraConfig
from slimdown.models.quiet import quiet_libraries


def attach(model: Any, method: MethodConfig, lora: LoraConfig) -> Any:
    """Put PEFT's model around a model."""
    import peft

    with quiet_libraries():
        return peft.get_peft_model(model, build_adapter_config(method, lora))


def build_adapter_config(method: MethodConfig, lora: LoraConfig) -> Any:
    """Build PEFT's settings for a method.

    Args:
        method: The method's own settings, with PEFT's names.
        lora: The settings of a LoRA, which take their place if the method is one.
    """
    import peft

    facts = method.facts
    settings: dict[str, Any] = dict(vars(method))
    del settings["name"]
    if facts.reads_lora:
        settings = asdict(lora)
        settings |= settings.pop("args")  # further options of PEFT, see `LoraConfig.args`
        if lora.is_everywhere:  # PEFT takes this word only without a list around it
            settings["target_modules"] = "all-linear"
    kind: Any = getattr(peft, facts.peft_config)
    return kind(**settings | facts.peft_options, task_type="CAUSAL_LM")


def start_prefix_with_text(model: Any, rows: Iterable[list[int]]) -> None:
    """Initialize prefixes with the keys and values of the first rows' text, as Li and Liang do.

    Args:
        model: PEFT's model, with prefix tuning; it is changed in place.
        rows: The ids of each row's tokens.
    """
    base, n_tokens = model.get_base_model(), model.active_peft_config.num_virtual_tokens
    # As many tokens as the prefix has; if the rows have fewer, they are repeated.
    text = list(islice(cycle(chain.from_iterable(rows)), n_tokens))
    with torch.no_grad():
        tokens = torch.tensor([text], device=base.device)
        layers = base(input_ids=tokens, use_cache=True).past_key_values.layers
    states = []
    for layer in layers:
        states += [layer.keys[0], layer.values[0]]  # each [heads, tokens, width]
    # PEFT's table has a row for each token: its keys and values in all layers, heads and widths.
    start = torch.stack(states).permute(2, 0, 1, 3).flatten(1)
    model.prompt_encoder["default"].embedding.weight.data.copy_(start)
