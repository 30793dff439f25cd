"""What `dtype: auto` stands for on this machine, and why: on a CPU by a measurement, made once a processor.

Which instructions a processor has does not say whether bfloat16 pays: with AMX it is ten times as fast as float32, with
AVX512-BF16 2.6 times on one maker's cores and half as fast on another's, and where it is emulated a tenth as fast
(docs/studies/training-speed.md). A ratio of two products timed side by side says it, on a busy machine as well.
"""

import hashlib
import json
import os
import platform
import time
from pathlib import Path

import torch
from filelock import FileLock
from torch.nn import functional

from slimdown.utils.disk import cache_folder

# bfloat16 rounds to 3 digits: it must earn that. No processor seen lies between 0.9 and 2.4.
WORTHWHILE_SPEEDUP = 1.5
_SHAPE = 256, 576, 1536  # tokens, inputs and outputs: a layer of a model of 135 million parameters
_ROUNDS = 8


def auto_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype that the device is fast at, and the reason in a few words: bfloat16 wherever it pays."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU has bfloat16"
        return torch.float16, "this GPU has no bfloat16"
    if device.type == "cpu":
        speedup = bfloat16_speedup()
        dtype = torch.bfloat16 if speedup >= WORTHWHILE_SPEEDUP else torch.float32
        return dtype, f"this processor multiplies bfloat16 {speedup:.2g} times as fast as float32"
    return torch.float32, f"the safe choice on {device.type}"


def bfloat16_speedup() -> float:
    """How many times as fast as float32 this processor multiplies matrices in bfloat16.

    Kept in a file of the user's cache folder, by processor, so that all runs of a machine choose alike; measured
    again (0.1 to 0.4 s) where that folder cannot be written.
    """
    try:
        file = _cache_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(
            f"{file}.lock", timeout=10
        ):  # two measurements at once would disturb each other
            try:
                return float(json.loads(file.read_text())["bfloat16_speedup"])
            except (
                FileNotFoundError,
                ValueError,
                KeyError,
                TypeError,
            ):  # none yet, or one that was cut off
                speedup = measured_speedup()
                file.write_text(
                    json.dumps({"processor": processor_name(), "bfloat16_speedup": speedup}) + "\n"
                )
                return speedup
    except OSError:
        return measured_speedup()


def measured_speedup() -> float:
    """The ratio of the quickest float32 product to the quickest in bfloat16, timed in turn on one thread."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other where the machine is busy
    try:
        rounds = [(_seconds(torch.float32), _seconds(torch.bfloat16)) for _ in range(_ROUNDS)]
    finally:
        torch.set_num_threads(n_threads)
    return min(full for full, _ in rounds) / min(
        half for _, half in rounds
    )  # the first rounds also build kernels


def processor_name() -> str:
    """What the processor calls itself."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def processor_vendor() -> str:
    """Who made an x86 processor, as it says itself; empty where Linux does not tell."""
    return _cpuinfo().get("vendor_id", "")


def _seconds(dtype: torch.dtype) -> float:
    tokens, inputs, outputs = _SHAPE
    x, weight = torch.ones(tokens, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    started = time.perf_counter()
    functional.linear(x, weight)
    return time.perf_counter() - started


def kernels() -> list[str | None]:
    """What decides which kernels this processor runs: its kind, torch, and the limit on instructions.

    bfloat16 products of one processor with AMX, with AVX512-BF16 alone and emulated are three different ones.
    """
    cpuinfo = _cpuinfo()
    return [
        processor_name(), *(cpuinfo.get(key) for key in ("cpu family", "model", "flags", "Features")),  # x86, Arm
        torch.__version__, torch.backends.cpu.get_cpu_capability(), os.environ.get("ONEDNN_MAX_CPU_ISA"),
    ]  # fmt: skip


def _cache_file() -> Path:
    return (
        cache_folder()
        / f"processor-{hashlib.sha256(json.dumps(kernels()).encode()).hexdigest()[:16]}.json"
    )


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
