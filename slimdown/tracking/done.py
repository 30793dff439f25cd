"""What is done already: the key of a run, and the finished run of this key in the record.

Imports neither torch nor, for a local store, MLflow: a sweep of which everything is finished ends in seconds.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from slimdown.config.naming import flatten
from slimdown.config.schema import Engine, ModelConfig, RunConfig, TrackingConfig
from slimdown.config.search import SearchConfig
from slimdown.config.task_files import task_dataset
from slimdown.models.hub import commit_of
from slimdown.pocket import TASKS_DIR
from slimdown.stats.runs import RecordedRun
from slimdown.tracking.connection import within
from slimdown.tracking.locks import saving_work
from slimdown.tracking.owner import heard_of
from slimdown.tracking.read import find_runs
from slimdown.tracking.tags import Tag
from slimdown.tracking.unfinished import folder_of, to_go_on_in
from slimdown.utils.digests import digest, file_digest, folder_content
from slimdown.utils.distributed import started
from slimdown.utils.errors import SlimdownError

_MOST_SECONDS = 30  # that a store may take to say what is finished
# The settings that no result depends on. Nor is it in the key on which machine a run was made, with how many threads,
# on what processor: its sums are rounded otherwise there, and whoever shares a store shares what is finished.
NOT_IN_KEY = {
    "tracking.uri": "where the record goes",
    "tracking.experiment": "what the record is called; a run is looked for in its own experiment",
    "tracking.wait": "how long a silent server is waited for",
    "baseline.reuse": "an evaluation that is found is the one that would be made; false makes the run again",
    "train.checkpoint_minutes": "how often what is done is kept on disk; what goes on from there ends the same",
    "rerun": "whether what is finished is made again",
    **{
        f"search.{f.name}": "who proposed a value does not matter"
        for f in fields(SearchConfig)
        if f.name != "space"
    },
}
_PACKAGES = (
    "accelerate", "bitsandbytes", "datasets", "lm-eval", "numpy", "peft", "scipy", "tokenizers", "torch",
    "transformers", "trl",
)  # fmt: skip
_NOTHING_SET = (
    "no",
    "false",
    "0",
    "default",
)  # what `accelerate launch` says of what it was not asked for
_UNSLOTHS = ("unsloth", "unsloth_zoo")
# What a run is made of, with all that they import; not the rooms that check, write down and show.
PAGE = (
    "experiment.py", "config/dataset.py", "data/row_files.py", "data/rows.py", "training/unsloth_process.py",
)  # fmt: skip
NO_NUMBER = ("utils", "pocket", "tracking", "config", "report")


def run_key(config: RunConfig) -> str:
    """A digest of everything that a run's result depends on; empty where a file or a commit cannot be had.

    Settings are in it unless `NOT_IN_KEY` says why not; models and rows by what they hold and not by where they lie,
    on the hub by the commit; the packages that numbers come from by their versions, and our own modules by their text.
    """
    settings = {key: value for key, value in flatten(config).items() if key not in NOT_IN_KEY}
    packages = _PACKAGES + (
        _UNSLOTHS if config.tuned is None and config.train.engine is Engine.unsloth else ()
    )
    try:
        settings |= _content("model.", config.model)
        if given := config.given:
            settings |= _content("tuned.", given)
            del settings["tuned"]
        for name, dataset in config.dataset.items():
            key = f"dataset.{name}."
            if dataset.file:
                settings |= {f"{key}path": dataset.file.suffix.lower() + file_digest(dataset.file)}
            else:
                settings |= {f"{key}revision": commit_of(dataset.path, dataset.revision, "dataset")}
        for name, benchmark in config.benchmark.items():
            if data := task_dataset(benchmark.task):
                settings |= {f"benchmark.{name}.data": commit_of(data[0], "main", "dataset")}
        parts: dict[str, object] = {
            "settings": settings,
            "order of datasets": list(config.dataset),
            "versions": {package: _version(package) for package in packages},
            "code": code_digest(),
            # transformers and accelerate take them for settings, of mixed precision for one
            "environment": {
                name: value
                for name, value in os.environ.items()
                if name.startswith("ACCELERATE_") and value.lower() not in _NOTHING_SET
            },
        }
        if config.tuned is None and (n_processes := started()[1]) > 1:
            parts["processes"] = n_processes  # each takes a batch of its own at a step
    except OSError:
        return ""
    return digest(parts)


def _content(key: str, model: ModelConfig) -> dict[str, object]:
    if model.folder:
        return {f"{key}id": folder_content(model.folder), f"{key}revision": None}
    return {f"{key}id": model.id, f"{key}revision": commit_of(model.id, model.revision)}


@cache
def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        found = version(package)
        # torch's build, for this or that device, is where it runs; of others it is the commit
        return found.partition("+")[0] if package == "torch" else found
    return ""


@cache
def code_digest() -> str:
    """A digest of the modules that a run's numbers come from, and of the embedded tasks."""
    return digest(
        [
            sources(),
            {file.name: file_digest(file) for file in TASKS_DIR.iterdir() if file.is_file()},
        ]
    )


def sources() -> dict[str, str]:
    """The text of each module that a run's numbers come from, by its file."""
    root = Path(__file__).parents[1]
    waiting, texts = list(PAGE), dict[str, str]()
    while waiting:
        if (name := waiting.pop()) in texts:
            continue
        texts[name] = (root / name).read_text(encoding="utf-8")
        for module, first in re.findall(
            r"^\s*from slimdown\.([\w.]+) import (\w*)", texts[name], re.MULTILINE
        ):
            if module.partition(".")[0] not in NO_NUMBER:
                place = module.replace(".", "/")
                files = (f"{place}.py", f"{place}/{first}.py", f"{place}/__init__.py")
                waiting.append(next(file for file in files if (root / file).is_file()))
    return texts


def finished(config: TrackingConfig, key: str) -> RecordedRun | None:
    """The newest finished run of this key in the experiment; None where there is none, or the store does not say."""
    return next((run for run in _runs(config, key) if run.status == "FINISHED"), None)


def _runs(config: TrackingConfig, key: str) -> list[RecordedRun]:
    """All of this key in the experiment, the newest first."""
    if key:
        with suppress(
            Exception
        ):  # no such experiment yet; or a store that is gone, as the run's start will say
            return within(
                _MOST_SECONDS,
                lambda: find_runs(config, [config.experiment], tags={Tag.run_key: key}),
            )
    return []


@contextmanager
def finished_or_alone(
    config: RunConfig, key: str, waiting: Callable[[], None], sweep: str = "", since: float = 0.0
) -> Iterator[RecordedRun | None]:
    """The finished run of this key; else one to go on in, or None, and as long as the block lasts nobody else makes it.

    Where another process is at it, it is waited for, after a call of `waiting`. With `rerun` none is looked for, nor
    where the base shall be measured anew, but those that `sweep` made since then: equal jobs of it are made once.

    Raises:
        SlimdownError: an equal job of the sweep failed.
    """
    anew = config.rerun or not config.baseline.reuse
    waiting = cache(waiting)  # said once: for the lock, or for a run that is at work without it

    def look() -> list[RecordedRun]:
        runs = _runs(config.tracking, key)
        own = [
            run
            for run in runs
            if sweep and run.tags.get(Tag.sweep) == sweep and heard_of(run.tags) >= since
        ]
        failed = next((run for run in own if run.status == "FAILED"), None)
        if failed and not any(run.status == "FINISHED" for run in own):
            raise SlimdownError(
                f"an equal job of this sweep failed, run {failed.run_id}: {failed.tags.get(Tag.error)}"
            )
        return own if anew else runs

    if run := next((run for run in look() if run.status == "FINISHED"), None):
        shutil.rmtree(
            folder_of(config.tracking, run.run_id), ignore_errors=True
        )  # of one that was killed at its end
        yield run
        return
    lock = f"run-{digest([config.tracking.experiment, key])}"
    with saving_work(config.tracking, lock, waiting) if key else nullcontext():
        yield to_go_on_in(look, waiting)
