"""`slimdown sizes SETTING=VALUE ...`: estimate the memory of the weights and of a training step.

It takes the settings of `slimdown run`. Several values, as in lora.r=4,8,16, give several rows.
Only the config.json of the model is downloaded.
"""

import sys
from math import nan
from typing import Any

from slimdown.commands.arguments import run_command
from slimdown.report.formatting import EMPTY, format_bytes
from slimdown.report.tables import Cell

_LEGEND = (
    "none, int8, nf4: the weights by quantization, parameters times bits and the scales of blocks. "
    "training: the weights as set, 16 bytes for each trained parameter (AdamW), and a batch of "
    "rows of train.max_length."
)


def main(argv: list[str]) -> int:
    """Show the sizes of every run that a command line asks for.

    Args:
        argv: The arguments after `sizes`.

    Returns:
        The exit code.
    """
    if {"--help", "-h"} & set(argv):
        sys.stdout.write(__doc__ or "")
        return 0
    return run_command(lambda: _show_sizes(argv), "These sizes cannot be shown:", error_code=1)


def _show_sizes(argv: list[str]) -> int:
    """Show the estimated memory of the runs that some settings describe, and return 0.

    Raises:
        ConfigError: A setting is not valid, or the settings describe no training.
        ModelError: The model's config.json cannot be read, or the method cannot train this model.
    """
    from slimdown.report.console import progress_bar, show_table
    from slimdown.report.tables import make_table
    from slimdown.sweep.command_line import compose_runs, read_command_line
    from slimdown.utils.errors import ConfigError

    line = read_command_line(["-m", *argv])  # -m: lora.r=4,8 means two runs, as in a sweep
    if not line.is_run:
        raise ConfigError(f"{' '.join(argv)}: of Hydra's flags only --config-dir goes here")
    runs = compose_runs(line).runs
    tuned = next((run.config.tuned for run in runs if run.config.tuned), None)
    if tuned:
        raise ConfigError(f"tuned={tuned}: such a run trains nothing, so leave tuned out")
    models = ", ".join(dict.fromkeys(run.config.model.id for run in runs))
    with progress_bar(f"reading the config.json of {models}"):
        records = _list_sizes(runs)
    show_table(make_table(f"Estimated memory of runs of {models}", records, legend=_LEGEND))
    return 0


def _list_sizes(runs: list[Any]) -> list[dict[str, Any]]:
    """Estimate the memory that each run needs.

    Args:
        runs: A `sweep.command_line.ComposedRun` each.

    Returns:
        A row of a table for each run: its settings, its numbers of parameters, the bytes of the
        weights by quantization, and the bytes of a training step.

    Raises:
        ModelError: The model's config.json cannot be read, or the method cannot train this model.
    """
    import torch  # imported only now, because a wrong setting is refused sooner without it

    from slimdown.models.adapters import check_base
    from slimdown.models.base_model import load_outline, pick_dtype
    from slimdown.models.training_estimate import estimate_quantized_bytes, estimate_training

    records: list[dict[str, Any]] = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for run in runs:
        config = run.config
        check_base(config)
        outline = load_outline(config.model)  # the model's layers and shapes, without its weights
        dtype = pick_dtype(config.model.dtype, device)
        n_parameters = sum(parameter.numel() for parameter in outline.parameters())
        name = " ".join(run.overrides) or "as composed"
        sizes: dict[str, Any] = {"run": name, "parameters": n_parameters}
        for quantization, n_stored in estimate_quantized_bytes(config, outline, dtype).items():
            sizes[quantization] = Cell(format_bytes(n_stored), sort_key=n_stored)
        training = estimate_training(config, outline, dtype)
        # None: the method needs weights to begin with, which the outline lacks.
        sizes["trained"] = training.n_trained if training else None
        n_bytes = training.n_bytes if training else nan
        sizes["training"] = Cell(format_bytes(n_bytes) if training else EMPTY, sort_key=n_bytes)
        records.append(sizes)
    return records
