"""`python -m slimdown.run`: compose a run, measure the base, fine-tune, measure again, record what changed."""

import os
import shutil
import sys
import tempfile
import traceback

from slimdown.guarding import interruption

if __name__ == "__main__":
    interruption.end_at_once_when_interrupted()  # before the imports, which take a third of a second

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from slimdown.guarding.errors import ConfigError, UserError
from slimdown.guarding.hiding import blank_secrets, without_secrets
from slimdown.guarding.redaction import redact
from slimdown.recording.connection import check_store
from slimdown.settings.commandline import check_command_line, read_command_line, swept_keys
from slimdown.settings.files import CONF_DIR
from slimdown.settings.load import load_config
from slimdown.settings.naming import run_name
from slimdown.settings.schema import TRAINING

_objectives: list[float] = []  # Hydra hands a job's value to a sweeper, and to nobody else


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def job(composed: DictConfig) -> float:
    """One run, as Hydra starts it; the mean change of the retained benchmarks, for a sweeper to maximize."""
    hydra_settings = HydraConfig.get()
    overrides = list(hydra_settings.overrides.task)
    try:
        with interruption.listening():  # in the process of a launcher too
            config = load_config(composed)
            check_store(config.tracking)
            # Imported here: torch and its kin take seconds, and a typo or a silent store should not wait for them.
            from slimdown.experiment import experiment
            from slimdown.recording.provenance import About

            sections: dict[str, Any] = dict(OmegaConf.to_container(composed, resolve=True, enum_to_str=True))  # type: ignore[arg-type]
            shown = OmegaConf.create({key: sections[key] for key in sections if not (config.tuned and key in TRAINING)})
            blank_secrets(shown)
            about = About(
                name=redact(run_name(hydra_settings.runtime.choices["model"], overrides, swept_keys(sys.argv[1:]))),
                config_yaml=OmegaConf.to_yaml(shown),
                overrides=overrides,
                folder=Path(tempfile.mkdtemp(prefix="scratch-", dir=hydra_settings.runtime.output_dir)),
                sweep=Path(hydra_settings.sweep.dir).name if hydra_settings.mode is RunMode.MULTIRUN else None,
            )
            _objectives.append(experiment(config, about).changes.mean_retained_change.value)
            # The record holds what is in it; where a run fails, it may be all there is.
            shutil.rmtree(about.folder, ignore_errors=True)
            return _objectives[-1]
    except UserError as error:
        if hydra_settings.mode is RunMode.MULTIRUN:
            raise  # Hydra marks this job as failed and goes on with the next; an exit would end the sweep
        sys.exit(_said("This run cannot go on:", error))


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
            _objectives.clear()
            job()
            return _objectives[0] if len(_objectives) == 1 else None
    except KeyboardInterrupt as error:
        notes = getattr(error, "__notes__", ["No run was open: nothing is lost."])
        sys.stderr.write(f"Interrupted. {notes[-1]}\n")
        # One that was raised inside an exec'd text, as dataclasses are made with, marks the process as killed by
        # SIGINT, whatever its exit code (CPython, run_eval_code_obj); the next such text takes that back.
        exec("")
        sys.exit(interruption.EXIT_CODE)
    except (ConfigError, HydraException) as error:
        sys.exit(_said("This run cannot start:", error))
    except UserError as error:
        sys.exit(_said("This run cannot go on:", error))
    except Exception as error:
        if not isinstance(error, OSError) or error.filename is None or hasattr(error, "__notes__"):
            sys.exit(redact(traceback.format_exc()))  # what nobody thought of may hold an address too
        sys.exit(  # the folder that Hydra makes for a run before it calls us
            f"This run cannot start:\n  its folder {error.filename} cannot be made ({error.strerror}); "
            "hydra.run.dir=FOLDER (of a sweep hydra.sweep.dir=FOLDER) puts it where there is room and you may write"
        )


def _said(what: str, error: Exception) -> str:
    lines = [*str(error).splitlines(), *getattr(error, "__notes__", [])]
    return redact("\n  ".join([what, *lines]))


def command() -> None:
    """`main` as a program, whose exit code is no objective."""
    main()


if __name__ == "__main__":
    main()
