"""What a method trains, in PEFT's terms: the adapter's config, the adapter on its base, its files."""

import copy
import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from slimdown.config.method import Method, MethodConfig
from slimdown.config.schema import LoraConfig
from slimdown.models.model import LoadedModel
from slimdown.training.bottleneck import BottleneckConfig
from slimdown.training.steps import silence_transformers
from slimdown.utils import distributed as processes
from slimdown.utils.errors import SlimdownError


def adapter_config(method: MethodConfig, lora: LoraConfig, base: LoadedModel) -> Any:
    """PEFT's config of the adapter that `method` and `lora` ask for on this base; None where weights are trained."""
    import peft

    if method.trains_weights:
        return None
    own = {f: getattr(method, f) for f in method.own}
    if method.is_lora:
        own = asdict(lora) | own
        if lora.is_everywhere:
            own["target_modules"] = "all-linear"
    kinds: dict[Method, Callable[..., Any]] = {
        Method.prefix: peft.PrefixTuningConfig,
        Method.prompt: peft.PromptTuningConfig,
        Method.ia3: peft.IA3Config,
        Method.bottleneck: BottleneckConfig,
    }
    switches: dict[Method, dict[str, Any]] = {
        Method.rslora: {"use_rslora": True},
        Method.dora: {"use_dora": True},
        # PEFT's default is noise, far from any embedding
        Method.prompt: {"prompt_tuning_init": "SAMPLE_VOCAB"},
    }
    if (method.is_lora or method.name is Method.ia3) and any(map(_is_conv1d, base.model.modules())):
        own["fan_in_fan_out"] = True  # as GPT-2 holds its weights
    return kinds.get(method.name, peft.LoraConfig)(
        **own, **switches.get(method.name, {}), task_type="CAUSAL_LM"
    )


def _is_conv1d(layer: Any) -> bool:
    """Whether it is GPT-2's linear layer, whose weights lie transposed."""
    return type(layer).__name__ == "Conv1D"


def check_adapter(base: LoadedModel, config: Any) -> None:
    """Check that PEFT can put this adapter on, on a copy that shares the base's weights.

    Raises:
        SlimdownError: a kind of layer, or of cache, that it does not support.
    """
    import peft

    if str(getattr(config, "init_lora_weights", "")).startswith("pissa"):
        return  # it would begin by taking every matrix apart
    silence_transformers()
    tokens = torch.ones(2, 4, dtype=torch.long, device=base.device)
    devices = [tokens.device] if tokens.is_cuda else []  # of others none is woken up
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices), torch.no_grad():
            warnings.simplefilter("ignore")
            every = [*base.model.parameters(), *base.model.buffers()]
            model = peft.get_peft_model(
                sharing_copy(base.model, every), copy.deepcopy(config)
            ).eval()
            model(input_ids=tokens, attention_mask=tokens, use_cache=False)
    except Exception as error:  # PEFT has another type for each kind of adapter
        reason = " ".join(f"{error}".split())[:300]
        kind = str(config.peft_type.value).lower()
        # PEFT 0.21 computes some kinds in float32 on quantized layers, beside which attention takes no bfloat16.
        exact = base.quantization == "none" or base.dtype == "float32"
        advice = (
            "choose another method" if exact else "set quantization=none or model.dtype=float32"
        )
        raise SlimdownError(
            f"an adapter of kind {kind} does not fit on {base.id}: {reason}; {advice}"
        ) from None


def sharing_copy(model: Any, shared: Iterable[torch.Tensor]) -> Any:
    """A copy of `model` that holds the same tensors of these, and copies of the others."""
    tensors = list(shared)
    states = [
        state for tensor in tensors if (state := getattr(tensor, "quant_state", None)) is not None
    ]
    return copy.deepcopy(model, {id(one): one for one in (*tensors, *states)})


def attach(base: LoadedModel, config: Any, rows: Any) -> Any:
    """PEFT's model of `config` around the base's, which it changes in place."""
    import peft

    model = peft.get_peft_model(base.model, config)
    if config.peft_type == peft.PeftType.PREFIX_TUNING:
        _begin_with_text(model, base, rows)
    return model


def _begin_with_text(model: Any, base: LoadedModel, rows: Any) -> None:
    """Begin prefixes as what the model makes of the first rows' text, as Li and Liang do; PEFT begins with noise."""
    n_tokens = model.active_peft_config.num_virtual_tokens
    text: list[int] = []
    for row in rows:
        text += row["input_ids"]
        if len(text) >= n_tokens:
            break
    tokens = torch.tensor([(text * n_tokens)[:n_tokens]], device=base.device)
    with torch.no_grad():
        layers = model.get_base_model()(input_ids=tokens, use_cache=True).past_key_values.layers
    by_layer = torch.stack([states[0] for layer in layers for states in (layer.keys, layer.values)])
    start = by_layer.permute(2, 0, 1, 3).flatten(
        1
    )  # a row a token: layers, keys and values, heads, width
    model.prompt_encoder["default"].embedding.weight.data.copy_(start)


def settle_pissa(
    model: Any, base: LoadedModel, weights: dict[str, torch.Tensor], folder: Path, start: Path
) -> tuple[Any, Path]:
    """The base as it was, with the adapter on it that stands for what was trained, and the folder with its files.

    PiSSA takes its start out of the weights, so what is trained fits on nothing that is published. PEFT makes of it a
    LoRA of twice the rank, trained less start; that is what is measured.

    Args:
        model: PEFT's, trained.
        base: whose model it is around.
        weights: the base's by name, as they were.
        folder: receives the files.
        start: the files of the adapter as it was before training, in a folder that is not called as the adapter is.
    """
    import peft

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PiSSA changes the base weights")  # which are put back
        save_adapter(model, base, folder, path_initial_model_for_weight_conversion=str(start))
    processes.from_first(None)  # its files are there
    plain = model.unload()
    for name, parameter in plain.named_parameters():
        parameter.data = weights[name]
    return peft.PeftModel.from_pretrained(plain, folder), folder


def save_adapter(model: Any, base: LoadedModel, folder: Path, **how: Any) -> Path:
    """Write the adapter as PEFT does, its base named by hub id and commit instead of a path of this machine.

    Of several processes the first does.
    """
    if not processes.is_first():
        return folder
    model.save_pretrained(folder, **how)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = base.id
    config["revision"] = None if base.revision.startswith("sha256:") else base.revision
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder
