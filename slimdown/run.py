"""`python -m slimdown.run`: compose a run, measure the base, fine-tune, measure again, record what changed."""

import logging
import os
import sys
import traceback
import warnings

from slimdown.utils import interruption

if __name__ == "__main__":
    interruption.end_at_once_when_interrupted()  # before the imports, which take a third of a second

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from slimdown.config.commandline import check_command_line, read_command_line
from slimdown.config.files import CONF_DIR
from slimdown.job import make_or_find, said, share
from slimdown.sweeper import Sweeper, register
from slimdown.utils import distributed as processes
from slimdown.utils.errors import ConfigError, SlimdownError
from slimdown.utils.hiding import without_secrets
from slimdown.utils.redaction import redact

_objectives: list[float] = []  # of the run that `job` made or found; Hydra hands it to nobody


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def job(composed: DictConfig) -> None:
    """One run, as Hydra starts it; those of a sweep are started by `Sweeper`."""
    from slimdown.report.sweep import Job

    make_or_find(this := Job(""), composed)
    _objectives.append(this.objective)


def main() -> float | None:
    """The objective of the run that the command line asks for; None for a sweep.

    A user's mistake ends in one message and exit code 1.
    """
    # Hydra prints its own shortened traceback and exits; we decide here what a person sees.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's small bars would tear our one
    try:
        with interruption.listening():
            sys.argv[1:] = without_secrets(read_command_line(sys.argv[1:]).arguments)
            check_command_line(sys.argv[1:])
            _check_processes(read_command_line(sys.argv[1:]).is_sweep)
            register(Sweeper)
            _objectives.clear()
            job()
            return _objectives[0] if _objectives else None
    except KeyboardInterrupt as error:
        notes = getattr(error, "__notes__", ["No run was open: nothing is lost."])
        sys.stderr.write(f"Interrupted. {notes[-1]}\n")
        # One that was raised inside an exec'd text, as dataclasses are made with, marks the process as killed by
        # SIGINT, whatever its exit code (CPython, run_eval_code_obj); the next such text takes that back.
        exec("")
        sys.exit(interruption.EXIT_CODE)
    except (ConfigError, HydraException) as error:
        sys.exit(said("This run cannot start:", error))
    except SlimdownError as error:
        sys.exit(said("This run cannot go on:", error))
    except Exception as error:
        if not isinstance(error, OSError) or error.filename is None or hasattr(error, "__notes__"):
            sys.exit(
                redact(traceback.format_exc())
            )  # what nobody thought of may hold an address too
        sys.exit(  # the folder that Hydra makes for a run before it calls us
            f"This run cannot start:\n  its folder {error.filename} cannot be made ({error.strerror}); "
            "hydra.run.dir=FOLDER (of a sweep hydra.sweep.dir=FOLDER) puts it where there is room and you may write"
        )


def _check_processes(is_sweep: bool) -> None:
    if problem := processes.start_problem():
        raise ConfigError(problem)
    if is_sweep and (n := processes.started()[1]) > 1:
        raise ConfigError(
            f"{n} processes make one run together, and -m asks for several: start each by itself"
        )


def command() -> None:
    """`main` as a program, whose exit code is no objective; of several processes for one run, the first does it."""
    if processes.started()[1] > 1:
        # DDP warns where it looks for parameters that lie idle and finds none, as the Trainer has it look.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if processes.started()[0] > 0:
        os.environ["TQDM_DISABLE"] = "1"
        warnings.simplefilter("ignore")  # the first is told the same
        logging.disable()
        processes.assist(share)
    else:
        with processes.leading():
            main()


if __name__ == "__main__":
    command()
