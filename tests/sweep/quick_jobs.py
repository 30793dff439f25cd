"""Jobs of a sweep for a launcher's workers whose experiment is made up, so that none loads torch.

A worker imports this by name, as it does what it runs in earnest. One that dies imports little.
"""

import os
import signal
import sys
from types import ModuleType
from typing import Any
from unittest.mock import patch

from slimdown.config.schema import RunConfig
from slimdown.judging.findings import Findings, judge
from slimdown.sweep.command_line import ComposedRun
from slimdown.sweep.jobs import JobOutcome, SweepInfo, run_job, run_sweep_job
from slimdown.tracking.provenance import RunInfo

DEADLY = 1
"""The seed of the job whose process always dies, as one that is out of memory."""


def run_experiment(config: RunConfig, info: RunInfo, _: object) -> Findings:
    """Record a finished run."""
    from record_builders import LOST, make_answers, set_metric

    from slimdown.tracking.run_writer import open_run

    config = set_metric(config)
    with open_run(config, info) as run:
        findings = judge(*make_answers(config, LOST))
        run.save(findings, {})
    return findings


def run_or_end(
    run: ComposedRun, info: RunInfo, swept: tuple[str, ...], *, is_planned: bool, shared_base: Any
) -> JobOutcome:
    """Make a run, or end the process."""
    if run.config.seed == DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)
    return run_job(run, info, swept, is_planned=is_planned, shared_base=shared_base)


def run_quick_job(sweep: SweepInfo, setting: object, shared_base: object) -> None:
    """Do what `run_sweep_job` does, with the experiment above."""
    experiment = ModuleType("slimdown.runs.experiment")
    vars(experiment)["run_experiment"] = run_experiment
    with (
        patch.dict(sys.modules, {experiment.__name__: experiment}),
        patch("slimdown.sweep.jobs.run_job", run_or_end),
    ):
        run_sweep_job(sweep, setting)
