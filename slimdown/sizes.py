"""`python -m slimdown.sizes`: what a run would take, by its settings alone: bytes, trained parameters, peaks of memory.

The command line is that of `slimdown.run`; several values are rows of a table. No weights are fetched or loaded.
"""

import gc
import logging
import os
import sys
from typing import Any
from unittest import mock

from slimdown.config.arguments import exit_with
from slimdown.config.commandline import composed_runs, read_command_line
from slimdown.config.schema import RunConfig
from slimdown.utils.errors import ConfigError

_USAGE = """Usage: python -m slimdown.sizes [group=choice ...] [setting=value ...]

What a run of these settings would take: bytes of the weights by data type, trained parameters, peaks of memory.
Groups and settings are those of `python -m slimdown.run --help`; several values, as in lora.r=4,8,16, are rows.
--config-dir FOLDER adds your own group files. Only config.json of a model is fetched.
"""


def main() -> None:
    """Tell the sizes; exit code 1 where the settings are wrong, or the model cannot be had."""
    exit_with(lambda: tell(sys.argv[1:]), "These sizes cannot be told:", unasked=1)


def tell(arguments: list[str]) -> int:
    """Print what each run that the command line asks for would take."""
    if {"--help", "-h"} & set(arguments):
        sys.stdout.write(_USAGE)
        return 0
    line = read_command_line(arguments)
    if not line.checkable or {flag.partition("=")[0] for flag in line.flags} & {
        "--cfg",
        "-c",
        "--package",
        "-p",
    }:
        raise ConfigError(
            f"{' '.join(line.flags)}: of Hydra's flags only --config-dir goes with sizes"
        )
    runs = composed_runs(arguments)
    if tuned := next((run.tuned for _, run in runs if run.tuned), None):
        raise ConfigError(
            f"tuned={tuned} is measured as it is, and nothing is trained; leave it out"
        )
    _import_without_compiler()
    from slimdown.report.console import console
    from slimdown.report.sizes import runs_table, weights_table
    from slimdown.report.table import show

    by_model: dict[str, list[tuple[list[str], RunConfig]]] = {}
    for own, run in runs:
        by_model.setdefault(
            repr((run.model, run.quantization.bnb_4bit_use_double_quant)), []
        ).append((own, run))
    for same in by_model.values():
        outline, sizes, rows = _of_one_model(same)
        show(weights_table(outline, sizes, same[0][1]), console)
        show(runs_table(rows), console)
    return 0


def _of_one_model(runs: list[tuple[list[str], RunConfig]]) -> tuple[Any, dict[str, Any], list[Any]]:
    from slimdown.models.model import bare_outline
    from slimdown.models.sizes import weight_sizes
    from slimdown.training.footprint import footprint

    first = runs[0][1]
    outline = bare_outline(first.model)
    held = {
        name: weight_sizes(outline.quantized(first.quantization, name))
        for name in ("none", "int8", "nf4")
    }
    known: dict[str, int] = {}
    rows = [
        (own, run, footprint(outline.loaded(run.quantization), run, known=known))
        for own, run in runs
    ]
    return outline, held, rows


def _import_without_compiler() -> None:
    """Import bitsandbytes without torch's compiler, a second and a half: what it would compile is never called here.

    bitsandbytes 0.50 decorates functions with torch.compile as it is imported; to be deleted when it no longer does.
    """
    import torch

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that it does not find
    with mock.patch.object(
        torch, "compile", lambda model=None, **_: model or (lambda function: function)
    ):
        import bitsandbytes  # noqa: F401


if __name__ == "__main__":
    gc.disable()  # nothing here lives in circles, and looking for some takes a tenth of the time
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))  # taking torch apart takes a second
