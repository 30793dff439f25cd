"""What a model's answers depend on: one dict, made from the objects that answer, and its digest.

Read from what was loaded and not from settings or file names, so that whatever led to it (a branch that moved, an
edited folder, a default that upstream resolved) is in it. Where a model lies and what it is called is not: the same
content gives the same answers.
"""

import hashlib
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimdown.models.dtype import kernels
from slimdown.utils.digests import digest

# Where something came from; what came from there is in by its content.
_PROVENANCE = frozenset(
    ["_name_or_path", "_commit_hash", "name_or_path", "is_local", "local_files_only"]
)
# Of an adapter's config: the base is in by its content, and whether it is to be trained further changes no answer.
_NO_ANSWER = frozenset(["base_model_name_or_path", "revision", "inference_mode"])


def identify(model: Any, tokenizer: Any, weights: str | None = None) -> dict[str, Any]:
    """Everything that the answers of `model` depend on, adapters included, as a JSON-able object.

    Quantization as bitsandbytes resolved it, dtypes and rope lie in the config and in the weights.

    Args:
        model: a causal language model, PEFT's wrapper around it or not.
        tokenizer: its tokenizer.
        weights: a digest of all its weights, where that is known.
    """
    config = model.config.to_dict()
    packages = ["torch", "transformers", "tokenizers"]
    packages += ["bitsandbytes"] if "quantization_config" in config else []
    adapters = {
        name: adapter.to_dict() for name, adapter in getattr(model, "peft_config", {}).items()
    }
    packages += ["peft"] if adapters else []
    return {
        "weights": weights or weights_digest(model),
        "config": _without(config, _PROVENANCE),
        "generation_config": model.generation_config.to_dict() if model.generation_config else None,
        "adapters": {name: _without(adapter, _NO_ANSWER) for name, adapter in adapters.items()},
        "attention": model.config._attn_implementation,
        "tokenizer": _tokenizer_digest(tokenizer),
        "arithmetic": _arithmetic(model.device),
        "versions": {package: version(package) for package in packages},
    }


def weights_digest(model: nn.Module) -> str:
    """A digest of every parameter and buffer that is saved: names, dtypes, shapes and bytes, quantized as they are."""
    content_digest = hashlib.sha256()
    names: dict[tuple[Any, ...], str] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        shared = names.setdefault(place, name) if tensor.numel() else name
        content_digest.update(f"{name} {shared} {tensor.dtype} {list(tensor.shape)}".encode())
        if shared == name:  # tied weights are read once
            content_digest.update(
                tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            )
    return content_digest.hexdigest()


def _tokenizer_digest(tokenizer: Any) -> str:
    """Of the files that the tokenizer would be saved as, chat templates included."""
    content_digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            content = file.read_bytes()
            if file.name == "tokenizer_config.json":
                content = digest(_without(json.loads(content), _PROVENANCE)).encode()
            content_digest.update(f"{file.relative_to(folder)} {len(content)} ".encode() + content)
    return content_digest.hexdigest()


def _arithmetic(device: torch.device) -> dict[str, Any]:
    """What decides in which order sums are rounded; in bfloat16 one thread and two answer otherwise here and there."""
    settings: dict[str, Any] = {
        "device": device.type,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        return settings | {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    if device.type == "cpu":
        return settings | {"kernels": kernels(), "threads": torch.get_num_threads()}
    return settings


def _without(settings: dict[str, Any], left_out: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in left_out}
