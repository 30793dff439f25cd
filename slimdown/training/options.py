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

# These schedules react to an evaluation during the training, and there is none.
_EVALUATING = (SchedulerType.REDUCE_ON_PLATEAU, "greedy")


def check_options(config: RunConfig) -> Iterator[str]:
    """Check the names and types of train.args and lora.args, the optimizer and the schedule.

    Args:
        config: The settings; no model is loaded. A wrong value may still fail in the trial before
            the training.

    Yields:
        One line for each mistake.
    """
    optimizers = [str(optimizer.value) for optimizer in OptimizerNames]
    schedules = [str(kind.value) for kind in SchedulerType if kind.value not in _EVALUATING]
    for setting, names in (("optim", optimizers), ("lr_scheduler_type", schedules)):
        if (value := getattr(config.train, setting)) not in names:
            yield f"train.{setting}={value} is no name of transformers{nearest(value, names)}"
    yield from _check_args("train", config.train, SFTConfig)
    if config.method.facts.reads_lora:
        yield from _check_args("lora", config.lora, getattr(peft, config.method.facts.peft_config))


def _check_args(section: str, settings: Any, library_class: Any) -> Iterator[str]:
    """Check the names and types of `settings.args`, which go to a class of another library."""
    types = {field.name: str(field.type) for field in fields(library_class) if field.init}
    for name, value in settings.args.items():
        key = f"{section}.args.{name}"
        if name not in types:
            package = library_class.__module__.partition(".")[0]
            advice = "its documentation lists them"
            if near := get_close_matches(name, types, n=1):
                place = section if near[0] in vars(settings) else f"{section}.args"
                advice = f"did you mean {place}.{near[0]}?"
            yield f"{key} is no option of {package}.{library_class.__name__}; {advice}"
        elif fault := explain_type(types[name], value):
            yield f"{key} {fault}, got {redact_uri(repr(value))[:80]}"
