"""Whether a model can be trained so, asked before hours go into measuring its base."""

import tempfile
from typing import Any

import torch

from slimdown.guarding.errors import UserError
from slimdown.preparing.model import LoadedModel, context_window
from slimdown.settings.method import MethodConfig
from slimdown.settings.schema import Engine, LoraConfig, TrainConfig
from slimdown.training.lean import trainer_class


def check_settings(base: LoadedModel, method: MethodConfig, lora: LoraConfig, config: TrainConfig) -> None:
    """Check that this model can be trained so, before hours go into measuring it.

    Raises:
        UserError: target modules that it lacks, examples longer than its window, an adapter larger than the model, an
            optimizer or a schedule that cannot be used here.
    """
    window = context_window(base.model)
    if window is not None and config.max_length > window:
        raise UserError(
            f"train.max_length={config.max_length} is beyond the {window} tokens that {base.id} was made for; "
            f"set train.max_length={window} or less"
        )
    # PEFT is content where one of the names is found, and leaves the others out in silence.
    linear = {name: module for name, module in base.model.named_modules() if isinstance(module, torch.nn.Linear)}
    adapted = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in lora.target_modules}
    if (absent := [target for target, names in adapted.items() if not names]) and not lora.is_everywhere:
        known = sorted({name.rsplit(".", 1)[-1] for name in linear} - {"lm_head"})
        raise UserError(
            f"lora.target_modules: {base.id} has no {', '.join(absent)}; its linear layers are {', '.join(known)}"
        )
    names = linear if lora.is_everywhere else {name for names in adapted.values() for name in names}
    per_rank = sum(linear[name].in_features + linear[name].out_features for name in names)
    if lora.r * per_rank > base.n_parameters:
        raise UserError(
            f"lora.r={lora.r}: the adapter would have {lora.r * per_rank:,} parameters, and {base.id} has "
            f"{base.n_parameters:,}; the largest adapter that is smaller has lora.r={base.n_parameters // per_rank}"
        )
    if config.engine is Engine.trl:
        _check_loss(base)
    _check_optimizer(config, base.device)


def _check_loss(base: LoadedModel) -> None:
    """Refuse the one version of TRL whose loss needs Triton and so a GPU, where that loss would be used on a CPU."""
    import trl

    if base.device == "cpu" and trl.__version__ == "1.15.0" and trainer_class(base) is trl.SFTTrainer:
        raise UserError(
            f"trl 1.15.0 cannot train {base.id} on a CPU: the loss of a head that has a bias, scales or caps is TRL's "
            "own, which needs a GPU in this version; pip install 'trl!=1.15.0', or set train.engine=unsloth"
        )


def _check_optimizer(config: TrainConfig, device: str) -> None:
    """Check that this device can take a step with the optimizer and the schedule, by taking one.

    Raises:
        UserError: one that needs another package or device, or settings that there are none for here.
    """
    import transformers

    # more than the 4,096 numbers below which optimizers of 8 bits use 32
    parameter = torch.nn.Parameter(torch.zeros(64, 128, device=device))
    parameter.grad = torch.zeros_like(parameter)
    here: dict[str, Any] = {"report_to": "none", "use_cpu": device == "cpu"}
    setting = f"train.optim={config.optim}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(folder, optim=config.optim, **here)
            kind, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(arguments)
            optimizer = kind([parameter], **settings)
            optimizer.step()
            setting = f"train.lr_scheduler_type={config.lr_scheduler_type}"
            schedule = {"lr_scheduler_type": config.lr_scheduler_type, "warmup_steps": config.warmup_steps}
            transformers.TrainingArguments(folder, **schedule, **here)  # which refuses some schedules by themselves
        transformers.get_scheduler(config.lr_scheduler_type, optimizer, 1, 10)
    except Exception as error:  # each optimizer is somebody else's code
        reason = " ".join(str(error).split())[:200]
        sure = "optim=adamw_torch" if "optim" in setting else "lr_scheduler_type=linear"
        raise UserError(f"{setting} cannot be used here: {reason}; train.{sure} can everywhere") from None
