"""`python -m slimdown.run`: one run, or with -m a sweep or a search."""

import logging
import os
import signal
import sys
from contextlib import suppress
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from slimdown.commands.arguments import run_command
from slimdown.config.benchmarks import check_task_names
from slimdown.config.command_line import compose_runs, read_command_line
from slimdown.config.loader import reword
from slimdown.config.paths import CONF_DIR
from slimdown.config.schema import Backend, Engine
from slimdown.utils.distributed import (
    broadcast_from_main,
    check_launcher,
    process_count,
    process_rank,
)
from slimdown.utils.errors import ConfigError, DataError, SlimdownError


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

    previous = signal.signal(signal.SIGTERM, interrupt)  # ends a run as Ctrl-C does: KILLED
    try:
        return run_command(lambda: _start(arguments), "This run cannot go on:", 1)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _start(arguments: list[str]) -> int:
    line = read_command_line(arguments)
    check_launcher()
    # Of accelerate or torchrun; the first process says what is wrong.
    if process_rank() > 0 and line.is_run:
        with suppress(SlimdownError):
            config = compose_runs(line).runs[0].config
            broadcast_from_main(None)
            from slimdown.experiment import assist_training

            assist_training(config)
            return 0
        return 1
    if line.is_run:
        plan = compose_runs(line)
        train, evaluation = plan.runs[0].config.train, plan.runs[0].config.evaluation
        is_alone = line.is_sweep or train.engine is Engine.unsloth or train.stop_on_forgetting
        is_alone = is_alone or evaluation.backend is Backend.vllm
        if is_alone and (n := process_count()) > 1:
            alone = "-m, train.engine=unsloth, evaluation.backend=vllm and stop_on_forgetting=true"
            raise ConfigError(f"{alone} take one process, and there are {n}")
        from slimdown.data.row_checks import check_row_files
        from slimdown.sweep.sweeper import register_sweeper

        datasets: dict[str, Any] = {repr(r.config.dataset): r.config.dataset for r in plan.runs}
        configs = {repr(run.config.benchmark): run.config for run in plan.runs}
        problems = [problem for each in datasets.values() for problem in check_row_files(each)]
        for config in configs.values():
            problems += check_task_names(config.benchmark, config.evaluation.include_path)
        if problems:
            raise DataError("\n".join(dict.fromkeys(problems)))
        broadcast_from_main(None)  # all are there, before what takes long begins
        register_sweeper(line, plan)
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
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra's, of flags
        raise ConfigError(reword(error)) from error
    except BrokenPipeError:  # a reader of Hydra's --help has seen enough
        return 0
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
        ("HF_HUB_VERBOSITY", "error"),  # it warns of each retry, twice
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ):
        os.environ.setdefault(name, value)
    # They log a missing package that nobody needs, the tables that are made, and the traceback of
    # whatever is raised.
    for name in ("bitsandbytes", "alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
