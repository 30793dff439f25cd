"""What the benches share: a composed config, and the machine in a line.

python -m bench.machine     how much faster bfloat16 is here, beside what model.dtype=auto takes
"""

import logging
import os
import time
from importlib.metadata import version

import torch
from hydra import compose

from slimdown.config.loader import load_config, open_hydra
from slimdown.config.schema import Dtype, RunConfig
from slimdown.models.base_model import pick_dtype

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


def measure_bfloat16_speedup() -> float:
    """Time products of a layer's size in float32 and bfloat16 on this processor, in turn."""
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(30):  # the first rounds also build kernels
        for dtype, taken in seconds.items():
            rows, weight = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
            started = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            taken.append(time.perf_counter() - started)
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])


if __name__ == "__main__":
    chosen = pick_dtype(Dtype.auto, torch.device("cpu"))
    print(describe_machine())
    print(f"model.dtype=auto takes {str(chosen).removeprefix('torch.')} on this processor")
    print(f"a product in bfloat16 is {measure_bfloat16_speedup():.1f} times as fast as in float32")
