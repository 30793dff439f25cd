"""Hydra's launchers that `conf/hydra/launcher/` has presets for: what each needs."""

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slimdown.config.keys import COUNT, NOT_NEGATIVE, POSITIVE, Range

_EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm"}
_PLUGINS = {
    "joblib": "hydra_joblib_launcher",
    "ray": "hydra_ray_launcher",
    "slurm": "hydra_submitit_launcher",
}


def launcher_problems(launcher: str, settings: DictConfig, is_sweep: bool) -> Iterator[str]:
    """Say why jobs cannot be started: the launcher is not installed, there is no sweep or Slurm, a setting is wrong."""
    if not (extra := _EXTRAS.get(launcher)):
        return
    if not is_sweep:
        yield f"hydra/launcher={launcher} starts the jobs of a sweep, be it of one; begin it with -m"
    if not (find_spec("hydra_plugins") and find_spec(f"hydra_plugins.{_PLUGINS[extra]}")):
        yield f"hydra/launcher={launcher} needs a plugin of Hydra; pip install 'slimdown[{extra}]'"
    elif launcher == "submitit_slurm" and (
        missing := [name for name in ("sbatch", "srun") if not which(name)]
    ):
        yield (
            f"hydra/launcher=submitit_slurm: there is no {missing[0]} on the PATH; type the command on a machine of "
            "the cluster, or try hydra/launcher=submitit_local"
        )
    for key, allowed in _RANGES[extra].items():
        try:
            value = OmegaConf.select(settings, key)
            if value is not None and not allowed.holds(value):
                raise TypeError
        except TypeError:  # of Ray's settings Hydra knows no types
            yield f"hydra.launcher.{key} {allowed.demand}, got {value}"
        except OmegaConfBaseException as error:
            yield f"hydra.launcher.{key}: {str(error).splitlines()[0]}"


def n_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def n_gpus() -> int:
    """1 where this process sees a GPU of NVIDIA's, else 0; without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles"):
        return 0  # hidden: Ray would wait for one for ever
    return int(
        any(Path("/proc/driver/nvidia/gpus").glob("*")) or any(Path("/dev").glob("nvidia[0-9]*"))
    )


def inherited(launcher: Any) -> dict[str, str]:
    """What jobs on a Ray cluster lack of what those of this machine inherit: where the record is, and its password.

    Not for Ray's `runtime_env`, which Hydra's plugin and Ray's agents write into their logs.
    """
    init: Any = launcher.ray_cfg.init if hasattr(launcher, "ray_cfg") else {}
    if not (init and init.address):
        return {}
    return {
        name: os.environ[name]
        for name in os.environ
        if name.startswith(("SLIMDOWN_", "MLFLOW_", "HF_"))
    }


_DISPATCH = r"all|([1-9]\d* ?\* ?)?n_jobs( ?\* ?[1-9]\d*)?|[1-9]\d*"
_RANGES: dict[str, dict[str, Range]] = {  # by the extra, of settings of its launchers
    "joblib": {
        "n_jobs": Range(
            f"must be -1, for all cores, or from 1 to {n_cores()}",
            lambda n: n == -1 or 1 <= n <= n_cores(),
        ),
        "backend": Range(
            "must be loky, the processes that Hydra's plugin always starts",
            lambda name: name == "loky",
        ),
        "require": Range(
            "must be null: jobs are processes, which share no memory", lambda _: False
        ),
        "prefer": Range(
            "must be processes: signals and torch's seeds are a process's",
            lambda name: name == "processes",
        ),
        "pre_dispatch": Range(
            "must be all, n_jobs, a multiple as 2*n_jobs, or a number",
            lambda text: bool(re.fullmatch(_DISPATCH, text)),
        ),
        "batch_size": Range(
            "must be auto or at least 1", lambda text: bool(re.fullmatch(r"auto|[1-9]\d*", text))
        ),
        "timeout": POSITIVE,
    },
    "ray": {
        "ray.init.num_cpus": COUNT,
        "ray.remote.num_cpus": POSITIVE,
        "ray.remote.num_gpus": NOT_NEGATIVE,
        "ray.remote.max_retries": Range("must be at least 0, or -1 for no end", lambda n: n >= -1),
    },
    "slurm": {
        **dict.fromkeys(
            (
                "timeout_min",
                "cpus_per_task",
                "tasks_per_node",
                "mem_gb",
                "nodes",
                "array_parallelism",
            ),
            COUNT,
        ),
        **dict.fromkeys(
            ("gpus_per_node", "gpus_per_task", "max_num_timeout", "signal_delay_s"), NOT_NEGATIVE
        ),
    },
}
OmegaConf.register_new_resolver("n_gpus", n_gpus, replace=True)  # conf/hydra/launcher/ names it
