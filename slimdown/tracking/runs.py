"""Runs from their beginning to their end: opened for an experiment, or recorded whole. Imports no torch."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any, cast

from slimdown.config.naming import flatten
from slimdown.config.schema import RunConfig, TrackingConfig
from slimdown.stats.findings import Findings
from slimdown.tracking.tags import Tag
from slimdown.tracking.unfinished import end_forsaken, folder_of
from slimdown.tracking.write import TrackedRun
from slimdown.training.checkpoints import last_checkpoint
from slimdown.utils import distributed as processes
from slimdown.utils.disk import Interim
from slimdown.utils.interruption import undisturbed

if TYPE_CHECKING:  # it would bring torch along
    from slimdown.tracking.provenance import About


class Unrecorded:
    """What a process beside the first has for a run: it takes everything that a run is told, and keeps nothing."""

    run_id = store_uri = artifact_uri = undelivered = ""

    def __init__(self, interim: Interim) -> None:
        self.interim = interim

    def __getattr__(self, name: str) -> "Unrecorded":
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        pass


@contextmanager
def opened_run(
    config: RunConfig,
    about: "About",
    opening: AbstractContextManager[Any],
    tell: Callable[[str], None],
) -> Iterator[TrackedRun]:
    """The run, its settings recorded; closed on leaving, whatever comes in between.

    Args:
        config: the settings.
        about: what it is called; and whether it is one that was not finished and goes on.
        opening: shown while the store is opened.
        tell: takes a line for a person.

    Raises:
        SlimdownError: see `TrackedRun`.
    """
    if not processes.is_first():
        told: Any = processes.from_first(None)
        folder, seconds = told
        yield cast("TrackedRun", Unrecorded(Interim(folder, seconds, tell)))
        return
    commit = about.environment["git_commit"] or "none"
    tags: dict[str, str] = {
        **({Tag.seed: str(config.seed)} if config.tuned is None else {}),
        Tag.git_commit: commit,
        "mlflow.source.name": "slimdown.run",  # the columns that MLflow's pages have for them
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        **({Tag.sweep: about.sweep} if about.sweep else {}),
        **({Tag.processes: str(processes.count())} if processes.count() > 1 else {}),
        **about.tags,
    }
    with ExitStack() as until_closed:
        with undisturbed():  # a run that is opened is closed
            with opening:
                tracked = TrackedRun(
                    config.tracking, about.name, "tuned", tags, goes_on=about.goes_on
                )
            until_closed.enter_context(tracked)
        seconds = 60 * (config.train.checkpoint_minutes or inf)
        tracked.interim = interim = Interim(
            folder_of(config.tracking, tracked.run_id), seconds, tell
        )
        processes.from_first((interim.folder, interim.seconds))
        if about.goes_on:
            at = last_checkpoint(replace(interim, tell=lambda line: None))
            tell(
                f"goes on in run {tracked.run_id}"
                + (f", from step {at.step} of {at.of}" if at else "")
            )
        end_forsaken(tracked._client, tracked.experiment_id, interim.folder.parent)
        about.on_opened(tracked.run_id)
        files = {
            "config.yaml": about.config_yaml,
            "overrides.txt": "\n".join(about.overrides) + "\n",
            "environment.json": json.dumps(about.environment, indent=2) + "\n",
        }
        tracked.log_settings(flatten(config), files)
        yield tracked
    shutil.rmtree(interim.folder, ignore_errors=True)


def record_findings(
    config: TrackingConfig,
    name: str,
    settings: Mapping[str, object],
    findings: Findings,
    files: Callable[[str], Mapping[str, str | bytes]],
    tags: Mapping[str, str] | None = None,
) -> TrackedRun:
    """A run of two evaluations that were made elsewhere, recorded whole and closed; imports no torch.

    Args:
        config: the store.
        name: of the run.
        settings: by dotted keys; of `benchmark.NAME.FIELD` who reads the record makes its `BenchmarkConfig`s.
        findings: as `judge` returns them; the answers of both models are kept in this run's `samples/`.
        files: given the run's id, what shows the findings by its paths among the artifacts; `report.md` must be there.
        tags: of the run from its beginning, by `Tag`'s names.

    Raises:
        SlimdownError: the tracking store does not answer or refuses.
    """
    with TrackedRun(config, name, "tuned", dict(tags or {})) as run:
        run.log_settings(settings)
        for model, evaluation in (("base", findings.before), ("tuned", findings.after)):
            for benchmark, report in evaluation.benchmarks.items():
                run.log_evaluation(model, benchmark, report)
        run.log_base(findings.before)
        run.keep(findings, files(run.run_id))
    return run
