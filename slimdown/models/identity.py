"""What a model's answers depend on, for the keys of cached evaluations."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimdown.utils.hashing import hash_json


def hash_weights(model: nn.Module) -> str:
    """Hash every saved tensor: its name, dtype, shape and bytes, quantized as it is."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy())
    return digest.hexdigest()


def hash_tokenizer(tokenizer: Any) -> str:
    """Hash a tokenizer that nothing was padded with yet: its tables, templates and special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    tables = backend.to_str() if backend else tokenizer.get_vocab()
    settings = tokenizer.chat_template, tokenizer.special_tokens_map, tokenizer.padding_side
    return hash_json([tables, *settings, type(tokenizer).__name__])


@cache
def describe_arithmetic(device: torch.device) -> dict[str, Any]:
    """Return what decides how sums are rounded on this machine."""
    if device.type == "cuda":
        return {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:  # not Linux
        lines = []
    kinds = ("model name", "flags", "Features")  # of x86 and Arm
    return {
        "device": device.type,
        "processor": hash_json([line for line in lines if line.startswith(kinds)]),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),  # bfloat16 rounds otherwise with another number
    }


def package_versions(is_quantized: bool, has_adapter: bool = False) -> dict[str, str]:
    """Return the versions of the libraries that compute the answers."""
    packages = ["torch", "transformers", "tokenizers"]
    packages += ["bitsandbytes"] * is_quantized + ["peft"] * has_adapter
    return {package: version(package) for package in packages}
