"""`python -m slimdown.run`: one run, or with -m a sweep or a search."""

import os
import signal
import sys
from functools import partial
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from slimdown.commands.arguments import run_command
from slimdown.config.command_line import compose_runs, read_command_line, reword
from slimdown.config.paths import CONF_DIR
from slimdown.config.schema import Engine
from slimdown.utils.distributed import process_count, process_rank
from slimdown.utils.errors import ConfigError, SlimdownError


def main(arguments: list[str]) -> int:
    """Run what the command line asks for.

    Args:
        arguments: Settings and Hydra's flags, without the program.

    Returns:
        The exit code: 0, 1 after an error, which is written to stderr, or 130 after a signal.
    """
    set_up_process()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if is_free:
        signal.signal(signal.SIGTERM, interrupt)  # ends a run as Ctrl-C does: KILLED
    try:
        return run_command(partial(_start, arguments), "This run cannot go on:", 1)
    finally:
        if is_free:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _start(arguments: list[str]) -> int:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        if not (value := os.environ.get(name, "0")).isdecimal():
            raise ConfigError(f"the environment has {name}={value}; a launcher sets a number")
    line = read_command_line(arguments)
    if process_rank() > 0:  # of accelerate or torchrun; the first process says what is wrong
        try:
            config = compose_runs(line).runs[0].config
            from slimdown.experiment import assist_training

            assist_training(config)
        except SlimdownError:
            return 1
        return 0
    if line.is_run:
        plan = compose_runs(line)
        if (n := process_count()) > 1 and line.is_sweep:
            raise ConfigError(f"-m asks for several runs, and {n} processes make one together")
        if n > 1 and plan.runs[0].config.train.engine is Engine.unsloth:
            raise ConfigError(f"train.engine=unsloth trains in one process, and there are {n}")
        from slimdown.sweep.sweeper import check_rows, register_sweeper

        check_rows(plan.runs)
        register_sweeper()
    sys.argv[1:] = [*line.flags, *line.overrides]  # Hydra's order: flags first
    failures: list[Exception] = []

    def start_run(composed: DictConfig) -> None:  # a sweep's runs are started by its sweeper
        from slimdown.sweep.jobs import run_job
        from slimdown.tracking.provenance import RunInfo

        try:
            run_job(composed, RunInfo(""))
        except Exception as error:  # Hydra would print a line of its own
            failures.append(error)

    try:
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")(start_run)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(reword(error)) from error
    except ValueError as error:
        if line.is_run and "Unable to configure" not in str(error):
            raise
        raise ConfigError(str(error)) from error  # flags that do not go together, or job_logging
    except SystemExit as stop:  # of the sweep, or of Hydra's --help
        return int(stop.code or 0)
    if failures:
        raise failures[0]
    return 0


def set_up_process() -> None:
    """Set what concerns the process of a command, and what the library leaves alone."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and does not print and exit
    for name, value in (
        ("TQDM_DISABLE", "1"),  # bars of other libraries would tear ours
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ):
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
