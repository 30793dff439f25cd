"""Jobs of a sweep for a launcher's workers whose experiment is made up, so that none loads torch.

A worker imports this by name, as it does what it runs in earnest.
"""

import os
import signal
import sys
from types import ModuleType
from unittest.mock import patch

from slimdown.config.schema import RunConfig
from slimdown.judging.findings import Findings, judge
from slimdown.sweep.jobs import SweepInfo, run_sweep_job
from slimdown.tracking.provenance import RunInfo

DEADLY = 1
"""The seed of the job whose process always dies, as one that is out of memory."""


def run_experiment(config: RunConfig, info: RunInfo, _: object) -> Findings:
    """Record a finished run, or end the process."""
    if config.seed == DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)
    from record_builders import LOST, make_answers, set_metric

    from slimdown.tracking.run_writer import open_run

    config = set_metric(config)
    with open_run(config, info) as run:
        findings = judge(*make_answers(config, LOST))
        run.save(findings, {})
    return findings


def run_quick_job(sweep: SweepInfo, setting: object, shared_base: object) -> None:
    """Do what `run_sweep_job` does, with the experiment above and the dtypes as they are set."""
    experiment = ModuleType("slimdown.runs.experiment")
    vars(experiment)["run_experiment"] = run_experiment
    base_model = ModuleType("slimdown.models.base_model")  # imports torch in earnest
    vars(base_model)["fix_dtypes"] = lambda config: config
    modules = {module.__name__: module for module in (experiment, base_model)}
    with patch.dict(sys.modules, modules):
        run_sweep_job(sweep, setting)
