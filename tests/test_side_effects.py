"""slimdown changes nothing of other libraries or of the process.

A process imports large libraries and parts in two. One uses slimdown; the other, a control, imports
in the same order what the first one did, but for slimdown. Both say about themselves what is
compared: first after what the package hands out was used, then after a whole run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from record_builders import copy_store

SNAPSHOT = """
import functools, gc, importlib, importlib.metadata, inspect, json, logging, os, signal, sys
import threading, types, warnings

def describe(value):
    code = getattr(value, "__code__", None)
    names = [getattr(value, name, "") for name in ("__module__", "__qualname__")]
    return [type(value).__name__, *map(str, names), getattr(code, "co_filename", "")]

def describe_module(name):
    module = importlib.import_module(name)
    items = vars(module).items()
    items = [item for item in items if item[0] != "_GLOBAL_CLIENT_FACTORY"]  # see "hub client"
    return {key: describe(value) for key, value in items if callable(value)}

def find_patches(folder):
    '''Functions and classes of other libraries' modules and classes that lie in a folder.'''
    def is_foreign(value):
        return type(value) is types.FunctionType and value.__code__.co_filename.startswith(folder)
    patches = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if name in ("__main__", "__mp_main__") or file.startswith(folder):
            continue
        for key, value in list(vars(module).items()):
            if is_foreign(value):
                patches.append(f"{name}.{key}")
            if type(value) is type and value.__module__ == name:
                owned = vars(value).items()
                patches += [f"{name}.{key}.{member}" for member, f in owned if is_foreign(f)]
    return patches

def snapshot(folder):
    import huggingface_hub.utils._http as hub, peft, torch
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM)
    loggers = {name: logger.level for name, logger in logging.Logger.manager.loggerDict.items()
               if isinstance(logger, logging.Logger) and not name.startswith("slimdown")}
    modules = ["functools", "inspect", "importlib.metadata", "torch.nn.functional", "signal",
               "lm_eval.models.huggingface", "huggingface_hub.utils._http", "warnings", "gc"]
    return {
        "modules": {name: describe_module(name) for name in modules},
        "torch.compile": describe(torch.compile),
        "torch": [str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.get_num_threads(),
                  torch.are_deterministic_algorithms_enabled()],
        "meta_path": [describe(finder) for finder in sys.meta_path],
        "path_hooks": [describe(hook) for hook in sys.path_hooks],
        "gc": [gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.get_freeze_count()],
        "environ": {key: value for key, value in os.environ.items()
                    if key != "_MLFLOW_TELEMETRY_SESSION_ID"},  # MLflow draws it in each process
        "signals": [str(signal.getsignal(number)) for number in signals],
        "loggers": {"root": logging.root.level, **loggers},
        "disabled": logging.root.manager.disable,
        "hub client": describe(hub._GLOBAL_CLIENT_FACTORY),
        "PeftType": sorted(peft.PeftType.__members__),
        "hooks": [describe(hook) for hook in
                  (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook)],
        "patches": find_patches(folder),
    }
"""
# What the package hands out, used in a Hydra app with resolvers and a schema of its own.
DOORS = """
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

for name in ("n_gpus", "twice", "default_store", "by_method"):
    OmegaConf.register_new_resolver(name, lambda *values: "the user's")
ConfigStore.instance().store(name="schema", node={"whose": "the user's"})
import slimdown
slimdown.measure, slimdown.judge, slimdown.read_logs, slimdown.ForgettingCallback
from slimdown.config.benchmarks import read_benchmarks
read_benchmarks(["hellaswag"])
names = [OmegaConf.create({"x": f"${{{name}:1}}"}).x for name in
         ("n_gpus", "twice", "default_store", "by_method")]
assert names == ["the user's"] * 4, names
assert ConfigStore.instance().load("schema.yaml").node.whose == "the user's"
"""
# A command's process is its own: what the program above registered would be in its way.
WHOLE_RUN = """
for name in ("n_gpus", "twice", "default_store", "by_method"):
    OmegaConf.clear_resolver(name)
from slimdown.run import main
arguments = ["dataset.pocket_instructions.max_examples=32", "train.max_steps=2"]
arguments += ["benchmark=[pocket_math,pocket_cs]"]
arguments += [f"benchmark.pocket_{name}.limit=2" for name in ("math", "cs")]
assert main(arguments) == 0
"""
IMPORTS = """
for name in json.load(open("{step}.json"))["names"]:
    if name.partition(".")[0] != "slimdown":
        with contextlib.suppress(Exception):
            importlib.import_module(name)
"""
# Their import takes longer than the rest.
SHARED = """
import contextlib
import datasets, lm_eval.models.huggingface, mlflow, peft, torch, trl.trainer.sft_trainer
"""


def write_script(steps: dict[str, str], kind: str) -> str:
    """Write code that does each step, and leaves a snapshot after each."""
    package, script = str(Path(__file__).parent.parent / "slimdown"), ""
    for step, code in steps.items():
        script += f"""
{code}
names = list(sys.modules)
with open("{kind}{step}.json", "w") as file:
    json.dump({{"names": names, **snapshot({package!r})}}, file)
"""
    return script


@pytest.fixture(scope="module")
def snapshots(
    migrated_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The snapshots after each step: with slimdown, and of the control."""
    folder = copy_store(migrated_store, tmp_path_factory.mktemp("snapshots"))
    steps = {"doors": DOORS, "run": WHOLE_RUN}
    imports = {step: IMPORTS.format(step=step) for step in steps}
    parts = [f"exec({write_script(steps, '')!r})", f"exec({write_script(imports, 'control-')!r})"]
    script = f"""{SNAPSHOT}{SHARED}
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
    {parts[1]}
else:
    {parts[0]}
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder, env=environment | {"HF_HUB_OFFLINE": "1"}, text=True, capture_output=True,
    )  # fmt: skip
    assert not done.returncode, done.stdout[-2000:] + done.stderr[-2000:]
    ours, control = (
        {step: json.loads((folder / f"{kind}{step}.json").read_text()) for step in steps}
        for kind in ("", "control-")
    )
    return ours, control


@pytest.mark.parametrize(
    ("step", "own"),
    [
        ("doors", set()),
        # A command may set its own process's environment and log handlers, and the factory that
        # huggingface_hub takes for its client.
        ("run", {"environ", "loggers", "hub client"}),
    ],
)
def test_nothing_of_the_process_or_of_another_library_changes(
    step: str, own: set[str], snapshots: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    ours, control = (snapshot[step] for snapshot in snapshots)
    assert ours["patches"] == []
    for key in ours.keys() - own - {"names"}:
        assert ours[key] == control[key], key
