"""One job of a command: what Hydra composed -> a run, made or found finished, and what became of it as data.

Torch and its kin are imported when a run has to be made: they take seconds, for which a typo, a silent store or a
finished run should not wait.
"""

import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from slimdown.config.loader import load_config
from slimdown.config.naming import run_name
from slimdown.config.schema import TRAINING, Engine, RunConfig
from slimdown.tracking.connection import check_store
from slimdown.utils import distributed as processes, interruption
from slimdown.utils.errors import ConfigError, SlimdownError, TrialPruned
from slimdown.utils.hiding import blank_secrets
from slimdown.utils.redaction import redact
from slimdown.utils.worker import at_worker, is_queued

# Our launchers have the names of those that plugins store, and are checked against them, which Hydra 1.3 warns of.
warnings.filterwarnings(
    "ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema", UserWarning
)

if TYPE_CHECKING:  # it takes a third of a second
    from slimdown.report.sweep import Job, Sweep
    from slimdown.stats.runs import RecordedRun
    from slimdown.tracking.provenance import About


class MadeElsewhere(Exception):
    """Another process is at an equal run, and there are other jobs to be made meanwhile."""


def work(sweep: "Sweep", composed: DictConfig) -> "Job":
    """What became of a job of a sweep, in the command's own process or in a launcher's worker.

    Whatever is raised, `sys.exit` and a lack of memory too, is told of this job and stops no other.

    Raises:
        KeyboardInterrupt: a signal came, in the command's own process, or in a job that its queue starts again.
    """
    from slimdown.report.sweep import State

    os.environ.update(sweep.environment)
    settings = HydraConfig.get()
    this = sweep.begin(settings.job.num)
    if sweep.stop.exists():
        this.state = State.to_do
        return this
    with (
        nullcontext()
        if sweep.in_process
        else at_worker(sweep.stop, Path(settings.runtime.output_dir)) as log
    ):
        this.log = str(log or "")
        sweep.tell()
        try:
            interruption.stop_if_interrupted()
            make_or_find(this, composed, sweep)
        except MadeElsewhere:
            this.state = State.elsewhere
        except BaseException as error:
            if interruption.interrupted() or isinstance(error, KeyboardInterrupt):
                this.state = State.interrupted
                sweep.tell()
                if sweep.in_process or (is_queued() and not sweep.stop.exists()):
                    raise
                return this
            if isinstance(error, TrialPruned):
                this.state, this.what = State.pruned, str(error)
            else:
                _tell_failure(this, error, sweep.at_hand)
        if "torch" in sys.modules:  # only now has an error let go of what its frames held
            from slimdown.models.memory import release_memory

            release_memory()
    if this.state is State.finished:
        this.seconds = time.time() - this.began
    sweep.tell()
    return this


def _tell_failure(this: "Job", error: BaseException, which: str) -> None:
    from slimdown.report.sweep import State

    reason = str(error) if isinstance(error, SlimdownError) else f"{type(error).__name__}: {error}"
    this.state, this.what = State.failed, redact(" ".join(reason.split()))
    if not isinstance(error, SlimdownError) and this.run_id:
        error.add_note("Its traceback is among its artifacts, traceback.txt.")
    elif not isinstance(error, SlimdownError):  # nothing else holds it
        sys.stderr.write(redact(traceback.format_exc()))
    sys.stderr.write(f"{said(f'This run cannot go on ({which}):', error, reason)}\n")


def make_or_find(this: "Job", composed: DictConfig, sweep: "Sweep | None" = None) -> None:
    """Make a run, or find that an equal one has ended; `this` is told what becomes of it.

    Raises:
        SlimdownError: something that the user can mend; whatever else ends a run is raised as well.
        MadeElsewhere: it is put off.
    """
    from slimdown.report import console
    from slimdown.report.sweep import State
    from slimdown.tracking.done import finished_or_alone, run_key
    from slimdown.tracking.tags import Tag

    settings = HydraConfig.get()
    with interruption.listening():  # in the process of a launcher too
        config = load_config(composed)
        this.experiment = config.tracking.experiment
        if (
            processes.started()[1] > 1
            and config.tuned is None
            and config.train.engine is Engine.unsloth
        ):
            raise ConfigError(
                "train.engine=unsloth trains in one process, and several make this run; start it as one"
            )
        check_store(config.tracking)
        key = run_key(config)
        of = (sweep.name, sweep.began) if sweep else ()
        with finished_or_alone(config, key, partial(_wait, sweep), *of) as run:
            if run and Tag.pruned in run.tags and run.tags.get(Tag.sweep) == config.search.study:
                this.run_id = run.run_id  # by a command that was killed before its study was told
                raise TrialPruned(run.tags[Tag.pruned])
            if run is None or run.status != "FINISHED":
                if sweep:
                    console.show_job(sweep)
                _make(this, config, key, composed, settings, run, sweep)
                return
            this.run_id = run.run_id
            this.found(State.skipped, run.changes)
            console.show_skipped(run, sweep)
            with suppress(OSError):
                Path(settings.runtime.output_dir).rmdir()  # which Hydra made for it


def _wait(sweep: "Sweep | None") -> None:
    from slimdown.report import console

    if sweep and not sweep.may_wait:
        console.show_note(
            f"{sweep.at_hand}: another process makes an equal run just now, and the other jobs come first."
        )
        raise MadeElsewhere
    console.show_note("Another process makes an equal run just now, which is waited for.")


def _make(
    this: "Job",
    config: RunConfig,
    key: str,
    composed: DictConfig,
    settings: HydraConf,
    unfinished: "RecordedRun | None",
    sweep: "Sweep | None",
) -> None:
    experiment = _page()
    from slimdown.report import console
    from slimdown.report.sweep import State
    from slimdown.stats.runs import recorded_changes
    from slimdown.tracking.provenance import About
    from slimdown.tracking.study import watch
    from slimdown.tracking.sweeps import PARENT, opened_sweep
    from slimdown.tracking.tags import Tag

    overrides = list(settings.overrides.task)
    sections: dict[str, Any] = dict(
        OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    )  # type: ignore[arg-type]
    shown = OmegaConf.create(
        {name: sections[name] for name in sections if not (config.tuned and name in TRAINING)}
    )
    blank_secrets(shown)
    name = redact(
        run_name(settings.runtime.choices["model"], overrides, sweep.swept if sweep else ())
    )
    tags: dict[str, str] = {Tag.run_key: key} if key else {}
    if sweep and sweep.key:
        with suppress(Exception):  # the pages' order is worth no job
            tags[PARENT] = opened_sweep(
                config.tracking, sweep.name, sweep.key, sweep.title, sweep.owner, sweep.tally()
            )
    about = About(
        name=unfinished.name if unfinished else name,
        config_yaml=OmegaConf.to_yaml(shown),
        overrides=overrides,
        folder=Path(tempfile.mkdtemp(prefix="scratch-", dir=settings.runtime.output_dir)),
        sweep=sweep.name if sweep else None,
        on_opened=partial(_opened, this, sweep),
        tags=tags,
        watch=watch(config),
        goes_on=unfinished.run_id if unfinished else "",
    )
    this.name = this.name or about.name
    processes.tell((config, about.folder))
    console.show_plan(config, about.name)
    this.found(State.finished, recorded_changes(experiment(config, about)))
    # The record holds what is in it; where a run fails, it may be all there is.
    shutil.rmtree(about.folder, ignore_errors=True)


def _page() -> Callable[[RunConfig, "About"], Any]:
    """`experiment`, imported when the first run has to be made."""
    if "slimdown.experiment" not in sys.modules:
        from slimdown.models.imports import imported_quickly

        with imported_quickly():
            import_module("slimdown.experiment")
    from slimdown.experiment import experiment

    return experiment


def _opened(this: "Job", sweep: "Sweep | None", run_id: str) -> None:
    from slimdown.tracking.owner import owner_tags
    from slimdown.tracking.tags import Tag

    this.run_id, this.owner = run_id, owner_tags()[Tag.owner]
    if sweep:
        sweep.tell()


def share(told: tuple[RunConfig, Path]) -> None:
    """The part that a process beside the first has in a run."""
    experiment = _page()
    from slimdown.report import console
    from slimdown.tracking.provenance import About

    console.console.quiet = True
    config, folder = told
    experiment(config, About(name="", config_yaml="", overrides=[], folder=folder, environment={}))


def said(what: str, error: BaseException, reason: str = "") -> str:
    """What a person reads of an error, without secrets: its message, or `reason`, and what was noted on its way."""
    lines = [*(reason or str(error)).splitlines(), *getattr(error, "__notes__", [])]
    return redact("\n  ".join([what, *lines]))
