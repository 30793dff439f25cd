"""What this machine has, asked without importing torch."""

import os
from pathlib import Path


def count_gpus(root: Path = Path("/")) -> int:
    """Return 1 if this process sees any GPU of NVIDIA's, else 0; torch is not imported.

    Launchers of jobs take it as the number of GPUs of a job, and a job uses one.

    Args:
        root: Where the file system begins.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles"):
        return 0  # with hidden GPUs, Ray would wait forever
    patterns = ("proc/driver/nvidia/gpus/*", "dev/nvidia[0-9]*")
    # WSL has one device for the GPUs of all makers. NVIDIA's library is there if Windows has the
    # driver of NVIDIA.
    is_wsl = (root / "dev" / "dxg").exists() and any(root.glob("usr/lib/wsl/lib/libcuda.so*"))
    return int(is_wsl or any(any(root.glob(pattern)) for pattern in patterns))
