"""What a model's answers depend on, for the keys of cached evaluations."""

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from slimdown.models.tuned_base import ADAPTER_CONFIG
from slimdown.utils.hashing import hash_file, hash_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def hash_tokenizer(tokenizer: Any) -> str:
    """Hash a tokenizer that has padded nothing yet: tables, templates and special tokens.

    Padding is a part of a fast tokenizer's tables, so a hash after padding would be another one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    tables = backend.to_str() if backend else tokenizer.get_vocab()
    return hash_json([tables, tokenizer.chat_template, tokenizer.special_tokens_map])


def identify_adapted(base: Mapping[str, Any], adapter_dir: Path) -> dict[str, Any]:
    """Return the identity of a base with the adapter that a folder holds.

    Args:
        base: The base's, see `LoadedModel.identity`.
        adapter_dir: The folder.
    """
    hashes = [hash_file(adapter_dir / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    return {**base, "adapter": hashes, "peft": version("peft")}


@cache
def describe_computation(device: torch.device) -> dict[str, Any]:
    """Return what decides how sums are rounded: versions of libraries, device and processor.

    The number of CPU threads is left out: one and two gave the same log-likelihoods to the bit.
    """
    packages = ("torch", "transformers", "tokenizers", "bitsandbytes")
    versions = {package: version(package) for package in packages}
    if device.type == "cuda":
        return {**versions, "device": torch.cuda.get_device_name(device)}
    processor = f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
    return {**versions, "device": device.type, "processor": processor}
