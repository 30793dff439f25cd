"""`slimdown doctor`: show device, memory, versions, record and hub, and what is missing."""

import argparse
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain

from slimdown.commands.arguments import CommandParser, check_extensions, run_command
from slimdown.config.engines import list_engines
from slimdown.sweep.launchers import LAUNCHERS
from slimdown.utils.extensions import describe_extensions
from slimdown.utils.extras import name_install
from slimdown.utils.tested_versions import find_untested
from slimdown.utils.versions import OWN_VERSION

_PACKAGES = "torch transformers peft bitsandbytes trl lm-eval mlflow hydra-core"
_EXTRAS = {  # -> the module that it installs, and what that is for
    "search": ("optuna", "searches"),
    **{launcher.extra: (launcher.module, launcher.purpose) for launcher in LAUNCHERS.values()},
    "postgres": ("psycopg", "a record in PostgreSQL"),
}
_EXTRAS |= {
    engine.extra: (engine.packages[0], name) for name, engine in list_engines() if engine.extra
}


def main(argv: list[str]) -> int:
    """Show what slimdown finds on this machine.

    Args:
        argv: The arguments after `doctor`.

    Returns:
        The exit code: 1 where the record cannot be opened, or an extension is broken.
    """
    options = CommandParser("doctor", __doc__).parse(argv)
    refusal = "This machine cannot be examined:"
    return run_command(lambda: _examine(options), refusal, error_code=1, with_extensions=False)


def _examine(options: argparse.Namespace) -> int:
    """Show what is found, and return 1 if the record or an extension is broken."""
    from slimdown.report.console import show_facts
    from slimdown.tracking.store import check_store
    from slimdown.utils.errors import ConfigError, TrackingError

    show_facts(describe_machine())
    exit_code = 0
    record_state = f"{options.tracking.uri} can be opened"
    try:
        check_store(options.tracking)
    except TrackingError as error:
        exit_code = 1
        record_state = str(error)
    show_facts(chain([("record", record_state)], _describe_hub(), _describe_extras()))
    show_facts([("extension", f"{package}: {added}") for package, added in describe_extensions()])
    try:
        check_extensions()
    except ConfigError as error:
        show_facts([("broken", str(error))])
        exit_code = 1
    return exit_code


def describe_machine() -> Iterator[tuple[str, str]]:
    """Yield headings and lines: versions, processors with their memory, what `auto` stands for."""
    import psutil
    import torch

    from slimdown.config.schema import Device, Dtype
    from slimdown.models.base_model import pick_device, pick_dtype

    yield "slimdown", f"{OWN_VERSION}, Python {platform.python_version()}, {sys.platform}"
    yield "packages", ", ".join(f"{name} {version(name)}" for name in _PACKAGES.split())
    for _, sentence in find_untested():
        yield "untested", sentence
    memory = psutil.virtual_memory()
    processor = f"{torch.get_num_threads()} threads on {platform.machine()}"
    processors = [("CPU", processor, (memory.available, memory.total))]
    for number in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(number)
        processors.append(("GPU", name, torch.cuda.mem_get_info(number)))
    for kind, name, (free, total) in processors:  # free and total memory in bytes
        yield kind, f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    device = pick_device(Device.auto)
    dtype = str(pick_dtype(Dtype.auto, device)).removeprefix("torch.")
    yield "auto means", f"model.device={device.type} model.dtype={dtype}"


def _describe_hub() -> Iterator[tuple[str, str]]:
    """Yield a heading and a line for the hub, and for each preset model whether it can be read."""
    from huggingface_hub import constants, get_token

    from slimdown.config.paths import read_group
    from slimdown.utils.errors import ModelError
    from slimdown.utils.hub import ask_hub, explain_hub_errors

    yield "hub", f"{constants.ENDPOINT}, {'a token is set' if get_token() else 'no token'}"
    for choice, settings in read_group("model").items():
        # A recipe sets more than its model, which is then in a section of its own.
        repo = settings.get("model", settings).get("id", "")
        if not repo or repo.startswith("pocket:"):  # the user names it, or it comes with slimdown
            continue
        try:
            with explain_hub_errors(f"model.id={repo}"):
                ask_hub(repo)
            yield "model", f"model={choice}: {repo} can be read"
        except ModelError as error:
            if "cannot be reached" in str(error):  # then the hub will not answer for the others
                yield "models", f"no preset can be fetched now; for example model={choice}: {error}"
                break
            yield "model", f"model={choice}: {error}"


def _describe_extras() -> Iterator[tuple[str, str]]:
    for extra, (module, purpose) in _EXTRAS.items():
        is_here = find_spec(module.partition(".")[0]) and find_spec(module)
        state = "installed" if is_here else f"not installed; {name_install(extra)}"
        yield extra, f"{purpose}: {state}"
    if find_spec("kernels"):
        yield (
            "kernels",
            "installed; with it, bitsandbytes downloads compiled code from the hub by itself",
        )
