"""What the benches share: a composed config, and the machine in a line."""

import logging
import os
from importlib.metadata import version

import torch
from hydra import compose

from slimdown.config.loader import load_config, open_hydra
from slimdown.config.schema import RunConfig

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "lm-eval")


def load_config_of(*overrides: str) -> RunConfig:
    """Compose and check the settings that overrides give."""
    with open_hydra():
        return load_config(compose("config", overrides=list(overrides)))


def describe_machine() -> str:
    """Name processor, load and versions; silences the libraries' warnings."""
    logging.disable(logging.WARNING)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else read_processor()
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    return f"{name}, {threads} of {os.cpu_count()} cores, load {load:.1f}; {packages}"


def read_processor() -> str:
    """Return the processor's name, where Linux says it."""
    if not os.path.isfile("/proc/cpuinfo"):
        return "CPU"
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else "CPU"
