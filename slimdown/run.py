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
from slimdown.config.loader import register_schema, reword
from slimdown.config.paths import CONF_DIR
from slimdown.config.schema import Backend, Engine
from slimdown.sweep.command_line import compose_runs, read_command_line
from slimdown.utils.devices import count_gpus
from slimdown.utils.distributed import check_launcher, process_count, process_rank
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
    if not line.is_run:
        return _ask_hydra(arguments)
    check_launcher()
    if process_rank() > 0:  # of accelerate or torchrun; the first process says what is wrong
        with suppress(SlimdownError):
            config = compose_runs(line).runs[0].config
            from slimdown.experiment import assist_training

            assist_training(config)
            return 0
        return 1
    plan = compose_runs(line)
    train, evaluation = plan.runs[0].config.train, plan.runs[0].config.evaluation
    is_alone = line.is_sweep or train.engine is Engine.unsloth or train.stop_on_forgetting
    is_alone = is_alone or evaluation.backend is Backend.vllm
    if is_alone and (n := process_count()) > 1:
        alone = "-m, train.engine=unsloth, evaluation.backend=vllm and stop_on_forgetting=true"
        raise ConfigError(f"{alone} take one process, and there are {n}")
    from slimdown.data.row_checks import check_row_files, read_prompts

    datasets: dict[str, Any] = {repr(r.config.dataset): r.config.dataset for r in plan.runs}
    configs = {repr(run.config.benchmark): run.config for run in plan.runs}
    problems = [problem for each in datasets.values() for problem in check_row_files(each)]
    for path in {run.config.keep.prompts for run in plan.runs} - {None}:
        try:
            read_prompts(str(path))
        except DataError as error:
            problems.append(str(error))
    for config in configs.values():
        problems += check_task_names(config.benchmark, config.evaluation.include_path)
    if evaluation.backend is Backend.vllm and not count_gpus():
        problems.append(
            "evaluation.backend=vllm needs a GPU of NVIDIA's; set evaluation.backend=hf"
        )
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))
    if line.is_sweep:
        from slimdown.sweep.sweeper import Sweep

        return Sweep(line, plan).run()
    from slimdown.sweep.jobs import run_job
    from slimdown.sweep.launching import run_here
    from slimdown.tracking.provenance import RunInfo

    run_here(plan.hydra, lambda: run_job(plan.runs[0], RunInfo("")))
    return 0


def _ask_hydra(arguments: list[str]) -> int:
    """Have Hydra answer `--help`, `--cfg` and the like."""

    def refuse_run(_: DictConfig) -> None:
        raise ConfigError(
            f"slimdown knows no run with {' '.join(arguments)}; see slimdown run --help"
        )

    sys.argv[1:] = arguments
    register_schema()
    try:
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")(
            refuse_run
        )()
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra's, of flags
        raise ConfigError(reword(error)) from error
    except BrokenPipeError:  # a reader of Hydra's --help has seen enough
        return 0
    except SystemExit as stop:
        return int(stop.code or 0)
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
