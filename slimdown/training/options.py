"""Try options of TRL and PEFT before a model is loaded."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from slimdown.config.schema import RunConfig
from slimdown.models.peft_adapters import build_adapter_config
from slimdown.models.quiet import quiet_libraries
from slimdown.training.sft import build_arguments
from slimdown.utils.errors import describe_error

_LOADING = ("num_workers", "persistent_workers", "prefetch_factor", "multiprocessing_context")


def check_options(config: RunConfig) -> Iterator[str]:
    """Try train.args and lora.args: build TRL's and PEFT's classes and an optimizer from them.

    Args:
        config: The settings; no model is loaded.

    Yields:
        One line for each option that does not work. Others may still fail in the training.
    """
    while reason := _find_error(config):
        for section, name in ((s, n) for s in ("lora", "train") for n in getattr(config, s).args):
            node = getattr(config, section)
            args = {key: value for key, value in node.args.items() if key != name}
            fewer = replace(config, **{section: replace(node, args=args)})
            if _find_error(fewer) != reason:  # without it, another error or none
                yield f"{section}.args.{name}={node.args[name]}: {reason}"
                break
        else:
            yield f"train: {reason}"
            return
        config = fewer


def _find_error(config: RunConfig) -> str:
    """Build what needs no model; return what goes wrong in it, or an empty text."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer: Any = torch.optim.SGD([weight])
    try:
        with quiet_libraries(), tempfile.TemporaryDirectory() as folder:
            if config.method.facts.reads_lora:
                build_adapter_config(config.method, config.lora)
            built: Any = build_arguments(config, Path(folder))
            if "adamw" in config.train.optim:  # others need a model
                kind, values = transformers.Trainer.get_optimizer_cls_and_kwargs(built)
                optimizer = kind([weight], **values)
            schedule: Any = {"scheduler_specific_kwargs": built.lr_scheduler_kwargs}
            transformers.get_scheduler(built.lr_scheduler_type, optimizer, 0, 10, **schedule)
            loading: Any = {n: getattr(built, f"dataloader_{n}", None) for n in _LOADING}
            DataLoader(TensorDataset(weight.detach()), **loading)
            if config.train.gradient_checkpointing:
                recomputing: Any = built.gradient_checkpointing_kwargs or {}
                checkpoint(torch.neg, weight, **{"use_reentrant": False, **recomputing})
    except Exception as error:  # classes of other libraries raise anything
        return describe_error(error)
    return ""
