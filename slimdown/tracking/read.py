"""Reading what runs left in the MLflow store.

MLflow is imported where it is used: it takes 1.5 seconds, and the runs of a local SQLite store are read without it, by
its tables; any other store, and what a filter of MLflow's language chooses, through its client.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf.errors import OmegaConfBaseException

from slimdown.config.keys import nearest
from slimdown.config.naming import section
from slimdown.config.schema import BenchmarkConfig, TrackingConfig
from slimdown.evaluation.answers import BenchmarkEvaluation, DamagedSamples, Evaluation
from slimdown.stats.holdout import open_part
from slimdown.stats.runs import RecordedRun
from slimdown.tracking.connection import first_line, open_store, sqlite_file
from slimdown.tracking.names import evaluation_seconds, recorded_run
from slimdown.tracking.owner import is_gone, owner_of
from slimdown.tracking.tables import TUNED, has_tables, reading
from slimdown.tracking.tags import Tag
from slimdown.utils.errors import SlimdownError
from slimdown.utils.redaction import public_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from slimdown.stats.seeds import SeedsChange

_STATES = {
    "RUNNING": "is still going, or was killed outright",
    "SCHEDULED": "has not begun",
    "FAILED": "failed",
    "KILLED": "was stopped",
}
FILTER_EXAMPLE = "write e.g. \"params.`lora.r` = '8' and tags.`slimdown.model` LIKE '%SmolLM2%'\""


def find_runs(
    config: TrackingConfig,
    experiments: Sequence[str] = (),
    filter_string: str = "",
    max_results: int = 50_000,
    tags: Mapping[str, str] | None = None,
) -> list[RecordedRun]:
    """The fine-tuning runs in the store, newest first.

    Args:
        config: which store.
        experiments: names; empty for all.
        filter_string: MLflow's filter language, e.g. "params.`lora.r` = '8' and tags.`slimdown.sweep` = 'ranks'".
        max_results: the most to return.
        tags: only runs that have all of these.

    Raises:
        SlimdownError: no store, no such experiment, or a filter that MLflow does not understand.
    """
    wanted = {**TUNED, **(tags or {})}
    if not filter_string and (file := _existing_file(config)):
        try:
            with reading(file) as rows:
                names = _chosen(config, experiments, rows.experiments())
                return rows.runs(names, wanted, max_results)
        except sqlite3.Error:
            pass  # not a store as MLflow makes them today: its client knows what to say
    return _search(config, experiments, filter_string, max_results, wanted)


def experiment_names(config: TrackingConfig) -> list[str]:
    """The experiments of the store, sorted.

    Raises:
        SlimdownError: no store.
    """
    if file := _existing_file(config):
        try:
            with reading(file) as rows:
                return sorted(rows.experiments().values())
        except sqlite3.Error:
            pass
    return sorted(e.name for e in _open_existing(config).search_experiments())


def read_run(config: TrackingConfig, run_id: str) -> RecordedRun:
    """One fine-tuning run, by its id, the beginning of its id, or its name.

    Raises:
        SlimdownError: no store, no such run, several such runs, or one that is no fine-tuning run.
    """
    client: MlflowClient | None = None
    known: list[RecordedRun] = []
    if file := _existing_file(config):
        try:
            with reading(file) as rows:
                names = rows.experiments()
                found = rows.called(run_id, names)
                known = [] if found else rows.runs(names, TUNED, 50_000, entries=False)
        except sqlite3.Error:
            client = _open_existing(config)
    else:
        client = _open_existing(config)
    if client:
        found, known = _called(client, run_id)
    if not found:
        others = sorted({run.name for run in known})
        close = nearest(run_id, others) if others else ""
        raise SlimdownError(
            f"there is no run {run_id} in {public_uri(config.uri)}{close if 'did you mean' in close else ''}; "
            "python -m slimdown.compare lists the runs that are"
        )
    if len(found) > 1:
        several = ", ".join(run.run_id for run in found[:3]) + (", ..." if len(found) > 3 else "")
        raise SlimdownError(f"{len(found)} runs are called {run_id}; give the id of one: {several}")
    run = found[0]
    if (kind := run.tags.get(Tag.kind, "")) != "tuned":
        what = {
            "baseline": "the measurement of a base",
            "sweep": f"a whole sweep; --sweep {run.tags.get(Tag.sweep)} compares its runs",
        }.get(kind, "not a run of slimdown")
        raise SlimdownError(
            f"run {run_id} is {what}; only a fine-tuning run has a change to look at"
        )
    return run


def refuse_unfinished(run: RecordedRun) -> None:
    """Return in silence where the run came to its end.

    Raises:
        SlimdownError: it is still going, failed or was stopped.
    """
    if run.status != "FINISHED":
        state = _STATES.get(run.status, run.status)
        if run.status == "RUNNING" and owner_of(run.tags):
            state = (
                "was killed outright, and its command goes on in it"
                if is_gone(run.tags)
                else "is still going"
            )
        said = run.tags.get(Tag.error) or run.tags.get(Tag.pruned, "")
        raise SlimdownError(
            f"run {run.run_id} ({run.name}) {state}{': ' + said if said else ''}; "
            "it left no complete measurement to read, choose a finished run"
        )


def read_evaluation(config: TrackingConfig, run: RecordedRun, model: str) -> Evaluation:
    """Every question and answer of a finished run; `model` is base or tuned.

    Raises:
        SlimdownError: a run that is not finished, or whose samples are gone.
    """
    refuse_unfinished(run)
    client = _open_existing(config)
    reports = {name: _report(client, run, model, name) for name in run.benchmarks}
    return Evaluation(
        benchmarks=reports,
        harness_version=run.harness_version,
        scoring_path=run.scoring_path,
        seconds=evaluation_seconds(run.metrics, model),
    )


def _report(client: "MlflowClient", run: RecordedRun, model: str, name: str) -> BenchmarkEvaluation:
    """One benchmark's: a base's from the run that it is linked to, or another that holds the same; else the run's own.

    Older records link to nothing and have all of their own, as has what was sent without the run that it is linked to.
    """
    from slimdown.tracking.evaluations import GONE, holders, read_file  # mlflow

    try:
        benchmark = section(run.params, f"benchmark.{name}", BenchmarkConfig)
    except OmegaConfBaseException as error:
        raise SlimdownError(
            f"the settings of benchmark.{name} in run {run.run_id} cannot be read ({first_line(error)}); another "
            "version of slimdown wrote them"
        ) from None
    key = run.tags.get(f"{Tag.base_key}{name}", "") if model == "base" else ""
    holder = run.tags.get(f"{Tag.baseline}{name}", "")
    problem, lost = "", ""
    for run_id, file in [
        *(holders(client, key, holder) if key else ()),
        (run.run_id, f"{model}-{name}"),
    ]:
        try:
            return read_file(client, run_id, file, benchmark)
        except DamagedSamples as error:
            problem = (
                f"the samples of {name} in run {run_id} cannot be read ({first_line(error)}); the file is damaged, or "
                "another version of slimdown wrote it"
            )
        except GONE as error:
            lost = first_line(error)
    if key:
        problem = (
            problem
            or f"run {run.run_id} has lost the base's answers to {name}, which run {holder} held: {lost}"
        )
        problem += "; the next run with the same base, settings and versions measures them again, and they are read there"
    raise SlimdownError(problem or f"run {run.run_id} has lost its samples of {name}: {lost}")


def fetch_tuned(config: TrackingConfig, run: RecordedRun, folder: Path) -> Path:
    """The folder with what a finished run trained, fetched into `folder`: an adapter, or a whole model.

    Raises:
        SlimdownError: a run that trained nothing, or that has lost what it trained.
    """
    from slimdown.tracking.evaluations import GONE  # mlflow

    if origin := run.params.get("tuned") or run.tags.get(Tag.origin):
        raise SlimdownError(
            f"run {run.run_id} ({run.name}) trained nothing: it measured {origin}, made elsewhere"
        )
    from mlflow.artifacts import download_artifacts

    client = _open_existing(config)
    try:
        # MLflow's `runs:/RUN_ID/adapter` asks the store that the environment names, whatever it is told (3.17).
        made = client.get_run(run.run_id).outputs.model_outputs
        if not made:  # older runs kept it among their artifacts
            return Path(client.download_artifacts(run.run_id, "adapter", str(folder)))
        place = client.get_logged_model(made[0].model_id).artifact_location
        return Path(download_artifacts(place, dst_path=str(folder), tracking_uri=config.uri))
    except GONE as error:
        raise SlimdownError(
            f"run {run.run_id} ({run.name}) has lost what it trained ({first_line(error)}); the same settings, "
            "its artifact config.yaml, train it again"
        ) from None


def read_seeds(store: TrackingConfig, runs: Sequence[RecordedRun]) -> "list[SeedsChange]":
    """`seeds_changes` of recorded runs that differ only in their seed.

    Raises:
        SlimdownError: a run whose samples are gone, or seeds that were not asked the same questions.
    """
    from slimdown.stats.seeds import seeds_changes  # scipy, which the others do without

    def read(run: RecordedRun, model: str) -> Evaluation:
        return open_part(read_evaluation(store, run, model), run.holdout)

    try:
        return seeds_changes([(read(run, "base"), read(run, "tuned")) for run in runs])
    except ValueError as error:
        raise SlimdownError(
            f"{error}; compare runs of one configuration that differ only in seed"
        ) from None


def _existing_file(config: TrackingConfig) -> Path | None:
    """The file of a local store; None for a server. Reading must not make an empty store, so it has to be there."""
    if not config.uri.startswith("sqlite:///"):
        return None
    file = sqlite_file(config.uri)
    assert file
    if not file.is_file():
        raise SlimdownError(
            f"there is no record {file} yet; python -m slimdown.run makes one, or name another with "
            "--tracking-uri or MLFLOW_TRACKING_URI"
        )
    if not has_tables(file):  # MLflow would make them
        raise SlimdownError(
            f"{file} is no MLflow record, and is left as it is; name another with --tracking-uri"
        )
    return file


def _open_existing(config: TrackingConfig) -> "MlflowClient":
    _existing_file(config)
    return open_store(config, reading=True)


def _chosen(
    config: TrackingConfig, experiments: Sequence[str], known: dict[str, str]
) -> dict[str, str]:
    """Of the experiments by id those that are named, or all."""
    for name in experiments:
        if name not in known.values():
            there = sorted(known.values())
            raise SlimdownError(
                f"there is no experiment {name} in {public_uri(config.uri)}{nearest(name, there)}"
            )
    return {key: name for key, name in known.items() if not experiments or name in experiments}


# --- any store, by its client ---------------------------------------------------------------------


def _search(
    config: TrackingConfig,
    experiments: Sequence[str],
    filter_string: str,
    most: int,
    tags: Mapping[str, str],
) -> list[RecordedRun]:
    from mlflow.exceptions import MlflowException

    client = _open_existing(config)
    names = _chosen(
        config, experiments, {str(e.experiment_id): e.name for e in client.search_experiments()}
    )
    wanted = " and ".join(
        [*(f"tags.`{key}` = {_quoted(value)}" for key, value in tags.items()), filter_string]
    )
    found: list[RecordedRun] = []
    token: str | None = None
    while len(found) < most:
        try:
            page = client.search_runs(
                list(names),
                wanted.removesuffix(" and "),
                max_results=min(1000, most - len(found)),
                page_token=token,
            )
        except MlflowException as error:
            raise SlimdownError(
                f"the filter {filter_string!r} is not understood: {first_line(error)}; {FILTER_EXAMPLE}"
            ) from None
        found += [recorded_run(run, names) for run in page]
        token = page.token
        if not token:
            break
    return found


def _called(client: "MlflowClient", text: str) -> tuple[list[RecordedRun], list[RecordedRun]]:
    """The runs that `text` may mean, and, where there is none, those that there are."""
    from mlflow.exceptions import MlflowException

    names = {str(e.experiment_id): e.name for e in client.search_experiments()}
    try:
        run = client.get_run(text)
        if run.info.lifecycle_stage == "active":
            return [recorded_run(run, names)], []
    except MlflowException:
        pass
    kind = f"tags.`{Tag.kind}` = 'tuned'"
    named = client.search_runs(
        list(names), f"{kind} and attributes.run_name = {_quoted(text)}", max_results=50
    )
    if named:
        return [recorded_run(run, names) for run in named], []
    every: list[RecordedRun] = []
    token: str | None = None
    while True:
        page = client.search_runs(list(names), kind, max_results=1000, page_token=token)
        every += [recorded_run(run, names) for run in page]
        token = page.token
        if not token:
            return [run for run in every if run.run_id.startswith(text)], every


def _quoted(text: str) -> str:
    """The text as a string of MLflow's filter language, which has no way to write both kinds of quotes."""
    return f"'{text}'" if "'" not in text else '"' + text.replace('"', "") + '"'
