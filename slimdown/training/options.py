"""Check options for TRL and PEFT against the installed classes; importing them takes seconds."""

from collections.abc import Iterator
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

import peft
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames
from trl.trainer.sft_config import SFTConfig

from slimdown.config.fields import explain_type, nearest
from slimdown.config.schema import RunConfig
from slimdown.utils.secrets import redact_uri

# They go by what is measured while training, which is nothing.
_MEASURING = (SchedulerType.REDUCE_ON_PLATEAU, "greedy")


def check_options(config: RunConfig) -> Iterator[str]:
    """Check the names and types of train.args and lora.args, the optimizer and the schedule.

    Args:
        config: The settings; no model is loaded. A wrong value may still fail in the trial before
            the training.

    Yields:
        One line for each mistake.
    """
    schedules = [str(one.value) for one in SchedulerType if one.value not in _MEASURING]
    known = {"optim": [str(one.value) for one in OptimizerNames], "lr_scheduler_type": schedules}
    for setting, names in known.items():
        if (value := getattr(config.train, setting)) not in names:
            yield f"train.{setting}={value} is no name of transformers{nearest(value, names)}"
    yield from _check_args("train", config.train, SFTConfig)
    if config.method.facts.reads_lora:
        yield from _check_args("lora", config.lora, getattr(peft, config.method.facts.peft_config))


def _check_args(section: str, node: Any, kind: Any) -> Iterator[str]:
    types = {one.name: str(one.type) for one in fields(kind) if one.init}
    for name, value in node.args.items():
        key = f"{section}.args.{name}"
        if name not in types:
            owner = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
            advice = "its documentation lists them"
            for near in get_close_matches(name, types, n=1):
                place = section if near in vars(node) else f"{section}.args"
                advice = f"did you mean {place}.{near}?"
            yield f"{key} is no option of {owner}; {advice}"
        elif fault := explain_type(types[name], value):
            yield f"{key} {fault}, got {redact_uri(repr(value))[:80]}"
