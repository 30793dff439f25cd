"""Whether a model can be trained so, asked before hours go into measuring its base."""

import tempfile
from difflib import get_close_matches
from typing import Any

import torch

from slimdown.config.method import Method, MethodConfig
from slimdown.config.schema import Engine, LoraConfig, TrainConfig
from slimdown.models.model import LoadedModel, context_window
from slimdown.training.lean import trainer_class
from slimdown.training.whole import trained_modules
from slimdown.utils.errors import SlimdownError


def check_settings(
    base: LoadedModel, method: MethodConfig, lora: LoraConfig, config: TrainConfig
) -> None:
    """Check that this model can be trained so, before hours go into measuring it.

    Raises:
        SlimdownError: target modules that it lacks, examples or virtual tokens beyond its window, a rank above its
            matrices, an adapter larger than the model, an optimizer or a schedule that cannot be used here.
    """
    _check_window(base, method, config)
    if method.is_lora:
        _check_rank(base, method, lora)
    elif method.target_modules:
        names = named_layers(base, "method.target_modules", method.target_modules)
        if method.bottleneck_dim:
            _check_bottleneck(base, method.bottleneck_dim, names)
    elif method.trains_weights:
        trained_modules(base, method)
    if config.engine is Engine.trl:
        _check_loss(base, method)
    _check_optimizer(config, base.device)


def _check_window(base: LoadedModel, method: MethodConfig, config: TrainConfig) -> None:
    window, n_virtual = context_window(base.model), method.num_virtual_tokens or 0
    if window is None:
        return
    made_for = f"beyond the {window} tokens that {base.id} was made for"
    if n_virtual >= window:
        raise SlimdownError(
            f"method.num_virtual_tokens={n_virtual} is {made_for}, and leaves no room for a prompt"
        )
    if config.max_length + n_virtual > window:
        with_them = f" with method.num_virtual_tokens={n_virtual} before each" if n_virtual else ""
        raise SlimdownError(
            f"train.max_length={config.max_length} is {made_for}{with_them}; set train.max_length={window - n_virtual} "
            "or less"
        )


def layers_of(model: Any) -> dict[str, tuple[int, int]]:
    """The linear layers by name, with the number of their inputs and outputs; GPT-2's are called Conv1D."""
    sizes = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            sizes[name] = (module.in_features, module.out_features)
        elif type(module).__name__ == "Conv1D":
            sizes[name] = tuple(module.weight.shape)
    return sizes


def named_layers(base: LoadedModel, setting: str, targets: list[str]) -> list[str]:
    """The layers that `targets` name, as PEFT reads them: it is content where one is found, and silent of the others.

    Raises:
        SlimdownError: a target that the model lacks, with those that it has; or its head.
    """
    layers = layers_of(base.model)
    adapted = {
        target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in targets
    }
    if absent := [target for target, names in adapted.items() if not names]:
        known = sorted({name.rsplit(".", 1)[-1] for name in layers} - {"lm_head", "embed_out"})
        close = sorted(
            {name for target in absent for name in get_close_matches(target, known, n=1)}
        )
        meant = f" (did you mean {', '.join(close)}?)" if close else ""
        raise SlimdownError(
            f"{setting}: {base.id} has no {', '.join(absent)}{meant}; its linear layers are {', '.join(known)}"
        )
    names = sorted({name for names in adapted.values() for name in names})
    head = base.model.get_output_embeddings()
    if at_head := [name for name in names if base.model.get_submodule(name) is head]:
        raise SlimdownError(
            f"{setting}: {at_head[0]} is the head of {base.id}, and TRL trains no adapter on it; leave it out"
        )
    return names


def _check_rank(base: LoadedModel, method: MethodConfig, lora: LoraConfig) -> None:
    layers = layers_of(base.model)
    head = base.model.get_output_embeddings()
    every = [name for name in layers if base.model.get_submodule(name) is not head]
    names = (
        every
        if lora.is_everywhere
        else named_layers(base, "lora.target_modules", lora.target_modules)
    )
    per_rank = sum(sum(layers[name]) for name in names)
    if lora.r * per_rank > base.n_parameters:
        raise SlimdownError(
            f"lora.r={lora.r}: the adapter would have {lora.r * per_rank:,} parameters, and {base.id} has "
            f"{base.n_parameters:,}; the largest adapter that is smaller has lora.r={base.n_parameters // per_rank}"
        )
    # PiSSA takes as many singular vectors of each matrix; for the others a rank too high for one may suit another.
    ranks = {name: min(layers[name]) for name in names}
    bound = (min if method.name is Method.pissa else max)(ranks, key=ranks.__getitem__)
    if lora.r > ranks[bound]:
        raise SlimdownError(
            f"lora.r={lora.r}: {bound} of {base.id} has a rank of at most {ranks[bound]}, and a higher one adds "
            f"nothing; set lora.r={ranks[bound]} or less"
        )


def _check_bottleneck(base: LoadedModel, dim: int, names: list[str]) -> None:
    layers = layers_of(base.model)
    per_unit = sum(2 * layers[name][1] + 1 for name in names)
    if dim * per_unit > base.n_parameters:
        raise SlimdownError(
            f"method.bottleneck_dim={dim}: the adapter would have {dim * per_unit:,} parameters, and {base.id} has "
            f"{base.n_parameters:,}; the largest that is smaller has method.bottleneck_dim="
            f"{base.n_parameters // per_unit}"
        )


def _check_loss(base: LoadedModel, method: MethodConfig) -> None:
    """Refuse the one version of TRL whose loss needs Triton and so a GPU, where that loss would be used on a CPU."""
    import trl

    if base.device != "cpu" or trl.__version__ != "1.15.0":
        return
    if method.num_virtual_tokens or trainer_class(base, base.model) is trl.SFTTrainer:
        raise SlimdownError(
            f"trl 1.15.0 cannot train {base.id} by method={method.name} on a CPU: where there are virtual tokens, or a "
            "head that has a bias, scales or caps, the loss is TRL's own, which needs a GPU in this version; pip "
            "install 'trl!=1.15.0'"
        )


def optimizer_bytes(config: TrainConfig, device: str) -> float:
    """Bytes that the optimizer keeps for each trained parameter."""
    # Two moments in float32; the Trainer that takes the step otherwise is a second to import.
    return 8.0 if config.optim == "adamw_torch" else kept_after_a_step(config, device)


def kept_after_a_step(config: TrainConfig, device: str) -> float:
    """The same, by what it keeps after a step."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        use_cpu = device == "cpu"
        arguments = transformers.TrainingArguments(
            folder, optim=config.optim, report_to="none", use_cpu=use_cpu
        )
        optimizer, parameter = _stepped_optimizer(arguments, device)
    kept = [
        value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)
    ]
    return sum(tensor.nbytes for tensor in kept) / parameter.numel()


def _stepped_optimizer(arguments: Any, device: str) -> tuple[Any, torch.nn.Parameter]:
    import transformers

    # More than the 4,096 numbers below which optimizers of 8 bits use 32, and many beside their tables.
    parameter = torch.nn.Parameter(torch.zeros(512, 512, device=device))
    parameter.grad = torch.zeros_like(parameter)
    kind, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer = kind([parameter], **settings)
    optimizer.step()
    return optimizer, parameter


def _check_optimizer(config: TrainConfig, device: str) -> None:
    """Check that this device can take a step with the optimizer and the schedule, by taking one.

    Raises:
        SlimdownError: one that needs another package or device, or settings that there are none for here.
    """
    import transformers

    here: dict[str, Any] = {"report_to": "none", "use_cpu": device == "cpu"}
    setting = f"train.optim={config.optim}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(folder, optim=config.optim, **here)
            optimizer, _ = _stepped_optimizer(arguments, device)
            setting = f"train.lr_scheduler_type={config.lr_scheduler_type}"
            schedule = {
                "lr_scheduler_type": config.lr_scheduler_type,
                "warmup_steps": config.warmup_steps,
            }
            transformers.TrainingArguments(
                folder, **schedule, **here
            )  # which refuses some schedules by themselves
        transformers.get_scheduler(config.lr_scheduler_type, optimizer, 1, 10)
    except Exception as error:  # each optimizer is somebody else's code
        reason = " ".join(str(error).split())[:200]
        sure = "optim=adamw_torch" if "optim" in setting else "lr_scheduler_type=linear"
        raise SlimdownError(
            f"{setting} cannot be used here: {reason}; train.{sure} can everywhere"
        ) from None
