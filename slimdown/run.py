"""`python -m slimdown.run`: compose a run, measure the base, fine-tune, measure again, record what changed."""

import os
import shutil
import sys
import tempfile
import traceback

from slimdown.guarding import interruption

if __name__ == "__main__":
    interruption.end_at_once_when_interrupted()  # before the imports, which take a third of a second

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from slimdown.guarding.errors import ConfigError, UserError
from slimdown.guarding.hiding import blank_secrets, without_secrets
from slimdown.guarding.redaction import redact
from slimdown.recording.connection import check_store
from slimdown.settings.commandline import check_command_line, read_command_line
from slimdown.settings.files import CONF_DIR
from slimdown.settings.load import load_config
from slimdown.settings.naming import run_name
from slimdown.settings.schema import TRAINING, RunConfig
from slimdown.settings.sweeps import planned_jobs, swept_keys

if TYPE_CHECKING:  # it takes a third of a second
    from slimdown.judging.runs import RecordedRun
    from slimdown.showing.sweep import Job, Sweep


class _Command:
    """What becomes of the jobs of a command: Hydra hands their values to a sweeper and to nobody else."""

    process = 0  # where `main` runs; a launcher may start jobs elsewhere
    sweep: "Sweep | None" = None
    objective: float | None = None  # of a single run


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def job(composed: DictConfig) -> float:
    """One run, as Hydra starts it; the mean change of the retained benchmarks, for a sweeper to maximize."""
    from slimdown.showing.sweep import Job, Sweep

    hydra_settings = HydraConfig.get()
    if hydra_settings.mode is not RunMode.MULTIRUN:
        try:
            _run(this := Job(""), composed, hydra_settings)
        except UserError as error:
            sys.exit(_said("This run cannot go on:", error))
        _Command.objective = this.objective
    elif _Command.process != os.getpid():
        _run(this := Job(""), composed, hydra_settings)  # Hydra carries what it raises to where the command is
    else:
        line = read_command_line(sys.argv[1:])
        sweep = _Command.sweep = _Command.sweep or Sweep(planned_jobs(line.overrides, line.folders))
        this = sweep.begin(hydra_settings.job.num)
        _isolated(this, lambda: _run(this, composed, hydra_settings, sweep), f" ({sweep.at_hand})")
        sweep.end()
    return this.objective


def _isolated(this: "Job", run: Callable[[], None], which: str) -> None:
    """Run; whatever is raised, `sys.exit` and a lack of memory too, is told of this job and stops no other.

    Raises:
        KeyboardInterrupt: a signal came.
    """
    from slimdown.showing.sweep import State

    try:
        interruption.stop_if_interrupted()
        return run()
    except BaseException as error:
        if interruption.interrupted() or isinstance(error, KeyboardInterrupt):
            this.state = State.interrupted
            raise
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        this.state, this.what = State.failed, redact(" ".join(reason.split()))
        if not isinstance(error, UserError) and this.run_id:
            error.add_note("Its traceback is among its artifacts, traceback.txt.")
        elif not isinstance(error, UserError):  # nothing else holds it
            sys.stderr.write(redact(traceback.format_exc()))
        sys.stderr.write(f"{_said(f'This run cannot go on{which}:', error, reason)}\n")
    if "torch" in sys.modules:  # only now has the error let go of what its frames held
        from slimdown.preparing.memory import release_memory

        release_memory()


def _run(this: "Job", composed: DictConfig, hydra_settings: HydraConf, sweep: "Sweep | None" = None) -> None:
    """Make a run, or find that an equal one is finished; `this` is told what becomes of it."""
    from slimdown.recording.done import finished_or_alone, run_key
    from slimdown.showing import console
    from slimdown.showing.sweep import State

    with interruption.listening():  # in the process of a launcher too
        config = load_config(composed)
        check_store(config.tracking)
        this.key, this.place = run_key(config), (config.tracking.uri, config.tracking.experiment)
        if sweep and (equal := sweep.take_equal(this)):
            console.show_note(equal)
            return
        waiting = partial(console.show_note, "Another process makes an equal run just now, which is waited for.")
        with finished_or_alone(config, this.key, waiting) as run:
            if run is None or run.status != "FINISHED":
                if sweep:
                    console.show_job(sweep)
                _make(this, config, composed, hydra_settings, run)
                return
            this.run_id = run.run_id
            this.found(State.skipped, run.changes)
            console.show_skipped(run, sweep)
            with suppress(OSError):
                Path(hydra_settings.runtime.output_dir).rmdir()  # which Hydra made for it


def _make(
    this: "Job",
    config: RunConfig,
    composed: DictConfig,
    hydra_settings: HydraConf,
    unfinished: "RecordedRun | None",
) -> None:
    # Imported here: torch and its kin take seconds, for which a typo, a silent store, a finished run should not wait.
    from slimdown.experiment import experiment
    from slimdown.judging.runs import recorded_changes
    from slimdown.recording.provenance import About
    from slimdown.recording.tags import Tag
    from slimdown.showing import console
    from slimdown.showing.sweep import State

    overrides = list(hydra_settings.overrides.task)
    swept = swept_keys(read_command_line(sys.argv[1:]).overrides)
    sections: dict[str, Any] = dict(OmegaConf.to_container(composed, resolve=True, enum_to_str=True))  # type: ignore[arg-type]
    shown = OmegaConf.create({key: sections[key] for key in sections if not (config.tuned and key in TRAINING)})
    blank_secrets(shown)
    about = About(
        name=unfinished.name
        if unfinished
        else redact(run_name(hydra_settings.runtime.choices["model"], overrides, swept)),
        config_yaml=OmegaConf.to_yaml(shown),
        overrides=overrides,
        folder=Path(tempfile.mkdtemp(prefix="scratch-", dir=hydra_settings.runtime.output_dir)),
        sweep=Path(hydra_settings.sweep.dir).name if hydra_settings.mode is RunMode.MULTIRUN else None,
        on_opened=partial(setattr, this, "run_id"),
        tags={Tag.run_key: this.key} if this.key else {},
        goes_on=unfinished.run_id if unfinished else "",
    )
    this.name = this.name or about.name
    console.show_plan(config, about.name)
    if unfinished:
        console.show_going_on(unfinished.run_id, unfinished.tags.get(Tag.at, ""))
    this.found(State.finished, recorded_changes(experiment(config, about)))
    # The record holds what is in it; where a run fails, it may be all there is.
    shutil.rmtree(about.folder, ignore_errors=True)


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
            _Command.process, _Command.sweep, _Command.objective = os.getpid(), None, None
            try:
                job()
            finally:
                failed = _Command.sweep is not None and _sweep_ended(_Command.sweep)
            if failed:
                sys.exit(1)
            return _Command.objective
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


def _sweep_ended(sweep: "Sweep") -> bool:
    """Whether a job failed; shows what became of all of them."""
    from slimdown.showing import console
    from slimdown.showing.sweep import State

    console.show_sweep(sweep)
    return any(job.state is State.failed for job in sweep.jobs)


def _said(what: str, error: BaseException, reason: str = "") -> str:
    lines = [*(reason or str(error)).splitlines(), *getattr(error, "__notes__", [])]
    return redact("\n  ".join([what, *lines]))


def command() -> None:
    """`main` as a program, whose exit code is no objective."""
    main()


if __name__ == "__main__":
    main()
