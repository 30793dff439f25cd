"""What `slimdown run` does with its command line: a run, a sweep, a plan, help."""

import argparse
import sys
from contextlib import suppress
from unittest.mock import patch

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from slimdown.config.engines import BACKENDS, ENGINES, list_engines
from slimdown.config.help import write_help
from slimdown.config.loader import register_schema, reword
from slimdown.config.paths import CONF_DIR
from slimdown.runs.input_checks import find_problems
from slimdown.sweep.command_line import CommandLine, CommandPlan, compose_runs, read_command_line
from slimdown.sweep.shorthands import read_flags
from slimdown.utils.distributed import (
    broadcast_from_main,
    check_launcher,
    process_count,
    process_rank,
)
from slimdown.utils.errors import ConfigError, DataError, SlimdownError


def start(arguments: list[str]) -> int:
    """Run what the command line asks for.

    Args:
        arguments: Settings and Hydra's flags, without the program.

    Returns:
        The exit code: 0, or 1 where a launched process or a job of a sweep failed.

    Raises:
        SlimdownError: The run cannot go on.
    """
    if {"-h", "--help", "--help=all"} & {*arguments}:
        return _show_help(arguments)
    line = read_command_line(arguments)
    if not line.is_run:
        return _ask_hydra(arguments)
    check_launcher()
    # Accelerate or torchrun may have started several processes. All but the first only assist it,
    # and leave the messages to it.
    if process_rank() > 0:
        return 0 if line.plan else _assist_first_process(line)
    plan = compose_runs(line)
    _check_processes(line, plan)
    if problems := list(dict.fromkeys(find_problems([run.config for run in plan.runs]))):
        raise DataError("\n".join(problems))
    if line.plan:
        return _show_plan(line, plan)
    if line.is_sweep:
        from slimdown.sweep.sweeper import Sweep

        return Sweep(line, plan).run()
    broadcast_from_main(None)  # wait for all processes before the long work begins
    from slimdown.sweep.jobs import run_job
    from slimdown.sweep.launching import run_here
    from slimdown.tracking.provenance import RunInfo

    run_here(plan.hydra, lambda: run_job(plan.runs[0], RunInfo(name="")))  # `run_job` names it
    return 0


def _assist_first_process(line: CommandLine) -> int:
    """Help the first process to train and to answer; return 0, or 1 after an error.

    The first process meets the same error, and shows its message.
    """
    with suppress(SlimdownError):
        config = compose_runs(line).runs[0].config
        broadcast_from_main(None)  # wait for all processes, as the first one does in `start`
        from slimdown.runs.experiment import assist_run

        assist_run(config)
        return 0
    return 1


def _check_processes(line: CommandLine, plan: CommandPlan) -> None:
    """Refuse a plan that takes one process, if a launcher has started several."""
    n_processes, config = process_count(), plan.runs[0].config
    engine, backend = ENGINES[config.train.engine], BACKENDS[config.evaluation.backend]
    takes_several = engine.takes_processes and backend.takes_processes and not config.address
    needs_one = line.is_sweep or config.train.stop_on_forgetting or not takes_several
    if needs_one and n_processes > 1:
        alone = [name for name, engine in list_engines() if not engine.takes_processes]
        named = f"-m, {', '.join(alone)}, tuned=ADDRESS and stop_on_forgetting=true"
        raise ConfigError(f"{named} take one process, and there are {n_processes}")


def _show_plan(line: CommandLine, plan: CommandPlan) -> int:
    """Show what a command will do, and how long it takes."""
    from slimdown.report.console import show_plans
    from slimdown.sweep.plans import plan_runs

    n_trials = plan.runs[0].config.search.n_trials if plan.space else 1
    planned = plan_runs(plan.runs, n_trials, tries=line.plan == "try")
    show_plans(planned.plans, planned.n_finished)
    return 0


def _show_help(arguments: list[str]) -> int:
    """Show one screen, or with `--help all` every choice and setting."""
    from slimdown.report.console import print_text

    help_words = ("-h", "--help", "--help=all", "all")
    settings = [argument for argument in arguments if argument not in help_words]
    is_whole = "all" in arguments or "--help=all" in arguments
    print_text(write_help(is_whole, read_command_line(settings).folders))
    return 0


def _ask_hydra(arguments: list[str]) -> int:
    """Have Hydra answer `--cfg`, `--hydra-help` and the like, and return the exit code.

    Raises:
        ConfigError: A flag is unknown or not allowed, or a setting is not valid.
    """

    def refuse_run(_: DictConfig) -> None:
        shown = " ".join(arguments)
        raise ConfigError(f"slimdown knows no run with {shown}; see slimdown run --help")

    if any(argument.startswith("--e") for argument in arguments):  # it can be abbreviated
        problem = "--experimental-rerun reads a pickle, which can run code"
        raise ConfigError(f"{problem}; repeat the command instead")
    sys.argv[1:] = read_flags(arguments)
    register_schema()
    # Python 3.14 checks a help text before it is shown, and one of Hydra's is no text until then.
    # To be deleted when https://github.com/facebookresearch/hydra/issues/3121 is released.
    no_check = patch.object(argparse.ArgumentParser, "_check_help", lambda *_: None, create=True)
    make_main = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
    # Hydra calls `refuse_run` unless a flag asks for something else.
    answer_flags = make_main(refuse_run)
    try:
        with no_check:
            answer_flags()
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: of a flag
        raise ConfigError(reword(error)) from error
    except BrokenPipeError:  # a reader of what Hydra prints has seen enough
        return 0
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
