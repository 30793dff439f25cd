"""Hydra's launchers that `conf/hydra/launcher/` has presets for: what each needs."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf, open_dict

_EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm"}
_PLUGINS = {"joblib": "hydra_joblib_launcher", "ray": "hydra_ray_launcher", "slurm": "hydra_submitit_launcher"}


def launcher_problem(launcher: str, is_sweep: bool) -> str | None:
    """Say why jobs cannot be started by a launcher: its plugin is not installed, or there is no sweep."""
    if not (extra := _EXTRAS.get(launcher)):
        return None
    if not is_sweep:
        return f"hydra/launcher={launcher} starts the jobs of a sweep, be it of one; begin it with -m"
    if find_spec("hydra_plugins") and find_spec(f"hydra_plugins.{_PLUGINS[extra]}"):
        return None
    return f"hydra/launcher={launcher} needs a plugin of Hydra; pip install 'slimdown[{extra}]'"


def n_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def n_gpus() -> int:
    """1 where this machine has a GPU of NVIDIA's that its driver names, else 0; without importing torch."""
    return int(any(Path("/proc/driver/nvidia/gpus").glob("*")))


def reach_cluster(launcher: Any) -> None:
    """Let jobs on a Ray cluster have what those of this machine inherit: where the record is, and its password."""
    init: Any = launcher.ray_cfg.init if hasattr(launcher, "ray_cfg") else {}
    if init and init.address:
        kept = {name: os.environ[name] for name in os.environ if name.startswith(("SLIMDOWN_", "MLFLOW_", "HF_"))}
        with open_dict(init):
            init.runtime_env = {"env_vars": kept}


OmegaConf.register_new_resolver("n_gpus", n_gpus, replace=True)  # conf/hydra/launcher/ray.yaml names it
