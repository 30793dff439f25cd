"""Read what runs left in the MLflow store: settings and numbers, findings, samples, models."""

import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from slimdown.comparison.run_records import RunRecord
from slimdown.config.benchmark_config import ResolvedBenchmark
from slimdown.config.engines import Backend
from slimdown.config.fields import nearest
from slimdown.config.loader import complete_config
from slimdown.config.schema import Dtype, RunConfig
from slimdown.config.tracking_config import TrackingConfig
from slimdown.evaluation.results import Evaluation
from slimdown.judging.findings import Findings
from slimdown.tracking import logged_models, store
from slimdown.tracking.metrics_and_tags import Tag
from slimdown.tracking.recorded_settings import (
    FILE as SETTINGS,
    RecordedSettings,
    flatten_settings,
    read_settings,
)
from slimdown.utils.errors import ConfigError, DataError, TrackingError
from slimdown.utils.files import read_limited
from slimdown.utils.secrets import redact_uri

_N_THREADS = 8  # threads that read a server's artifacts; MLflow's pool has 10 connections
_STATES = {"RUNNING": "is still running, or died", "FAILED": "failed", "KILLED": "was stopped"}
_log = logging.getLogger(__name__)


def find_runs(
    tracking: TrackingConfig,
    experiments: Sequence[str] = (),
    sweep: str = "",
    filter_string: str = "",
    *,
    with_findings: bool = False,
    kind: str = "tuned",
    n_newest: int = 0,
) -> list[RunRecord]:
    """Return the fine-tuning runs, or the runs of another kind, newest first.

    A run whose record is odd is left out, after a warning.

    Args:
        tracking: The store.
        experiments: The names of experiments; if there are none, all are searched.
        sweep: The name of a sweep, see `Tag.sweep`, to return only its runs.
        filter_string: A condition in MLflow's filter language.
        with_findings: Also read findings.json of each finished run.
        kind: The kind of run, the value of `Tag.kind`: `tuned` for fine-tuning runs, `baseline` for
            answers of a base, `sweep` for the run of a whole sweep, `scaled` for scaled models.
        n_newest: The most runs to return; 0: all.

    Raises:
        TrackingError: No store, no such experiment, or a filter that MLflow does not understand.
    """
    client = store.open_store(tracking, must_exist=True)
    # MLflow picks out the sweep's runs by this condition. It is empty if the sweep's name has both
    # kinds of quotes, which no condition can hold. Then the loop below picks them out.
    sweep_condition = _compare_text(f"tags.`{Tag.sweep}`", sweep) if sweep else ""
    conditions = [f"tags.`{Tag.kind}` = '{kind}'", sweep_condition, filter_string]
    with store.explain_store_errors(tracking, filter_string):
        names_by_id = _find_experiments(client, tracking, experiments)
        condition = " and ".join(filter(None, conditions))
        search = partial(client.search_runs, list(names_by_id), condition)
        is_filtered_below = sweep and not sweep_condition
        most = 0 if is_filtered_below else n_newest  # 0: all, to pick out the sweep's runs from
        runs = store.search_all(search, most)
    records = []
    for run in runs:
        if sweep and run.data.tags.get(Tag.sweep) != sweep:
            continue
        try:
            records.append(_make_record(run, names_by_id))
        except Exception as error:  # an id, a time or settings that slimdown never writes
            reason = store.first_line(error)
            _log.warning("run %.40a is left out: its record is odd (%s)", run.info.run_id, reason)
    records = records[: n_newest or None]  # where all were searched
    return read_findings(tracking, records) if with_findings else records


def _find_experiments(
    client: Any, tracking: TrackingConfig, chosen: Sequence[str]
) -> dict[str, str]:
    """Return the names of the chosen experiments by id; of all where none is chosen."""
    experiments = store.search_all(client.search_experiments)
    names_by_id = {str(experiment.experiment_id): experiment.name for experiment in experiments}
    for name in chosen:
        if name not in names_by_id.values():
            similar = nearest(name, sorted(names_by_id.values()))
            uri = redact_uri(tracking.uri)
            raise TrackingError(f"there is no experiment {name} in {uri}{similar}")
    return {key: name for key, name in names_by_id.items() if not chosen or name in chosen}


def _make_record(run: Any, experiment_names: Mapping[str, str]) -> RunRecord:
    """Return what MLflow itself says of a run; its findings are in a file.

    Args:
        run: MLflow's `Run`.
        experiment_names: The names of the experiments, by id.

    Raises:
        TrackingError: As for `store.check_run_id`.
    """
    info = run.info
    tags = dict(run.data.tags)
    return RunRecord(
        run_id=store.check_run_id(info.run_id),
        name=info.run_name or info.run_id,
        experiment=experiment_names[info.experiment_id],
        status=info.status,
        started=datetime.fromtimestamp((info.start_time or 0) / 1000, UTC),
        params=dict(run.data.params),
        tags=tags,
        artifact_uri=info.artifact_uri or "",
        given_name=tags.get(Tag.name, ""),
        note=tags.get(Tag.note, ""),
        model_files=tags.get(Tag.model_files, ""),
    )


def find_run(tracking: TrackingConfig, text: str) -> RunRecord:
    """Return the fine-tuning run that has this id, this name, or an id that begins like this.

    These are tried in this order. The run has its findings if they can be read.

    Args:
        tracking: The store.
        text: What the user typed as RUN.

    Raises:
        TrackingError: No run fits, or several do.
    """
    if not text.strip():
        raise TrackingError("RUN is empty; give a run's id, the beginning of it, or its name")
    by_beginning = _find_by_id(tracking, text, kind="tuned")
    matches = [run for run in by_beginning if run.run_id == text]  # the whole id comes first
    if not matches:
        runs = find_runs(tracking, filter_string=_compare_text("attributes.run_name", text))
        # MLflow may ignore the case of letters, or have no condition for a name with odd quotes.
        runs_of_name = [run for run in runs if run.name == text]
        matches = runs_of_name or by_beginning
    if not matches:
        raise TrackingError(_explain_no_run(tracking, text))
    if len(matches) > 1:
        ids = ", ".join(f"{run.run_id[:8]} ({run.status.lower()})" for run in matches[:3])
        advice = "give an id, or delete the others with slimdown delete"
        raise TrackingError(f"{len(matches)} runs are called {text}: {ids}; {advice}")
    return read_findings(tracking, matches)[0]


def _explain_no_run(tracking: TrackingConfig, text: str) -> str:
    """Say that no fine-tuning run has this id or name, and what the user may have meant."""
    problem = f"there is no run {text} in {redact_uri(tracking.uri)}"
    for kind in ("baseline", "sweep"):
        if runs := _find_by_id(tracking, text, kind):
            problem = f"{runs[0].run_id} is a {kind} run, and no fine-tuning"
    names = sorted({run.name for run in find_runs(tracking)})
    close = get_close_matches(text, names, n=2)
    advice = f"did you mean {' or '.join(close)}?" if close else "slimdown status lists the runs"
    return f"{problem}; {advice}"


def _find_by_id(tracking: TrackingConfig, beginning: str, kind: str) -> list[RunRecord]:
    """Return the runs of a kind whose id begins like this."""
    if not re.fullmatch(r"[\w-]+", beginning, re.ASCII):
        return []
    runs = find_runs(tracking, filter_string=f"attributes.run_id LIKE '{beginning}%'", kind=kind)
    return [run for run in runs if run.run_id.startswith(beginning)]  # LIKE takes _ for any letter


def _compare_text(key: str, text: str) -> str:
    """Return a condition in MLflow's language; empty for a text that it cannot write."""
    quote = '"' if "'" in text else "'"
    return "" if quote in text or "\\" in text else f"{key} = {quote}{text}{quote}"


def check_finished(run: RunRecord) -> Findings:
    """Return the findings of a run that came to its end.

    Raises:
        TrackingError: It is still running, failed, was stopped, or its findings cannot be read.
    """
    if run.status == "FINISHED" and run.findings:
        return run.findings
    state = _STATES.get(run.status, "has no findings that can be read")
    reason = f": {run.tags[Tag.error]}" if run.tags.get(Tag.error) else ""
    raise TrackingError(f"run {run.run_id} ({run.name}) {state}{reason}; choose a finished run")


def read_findings(tracking: TrackingConfig, runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the runs; finished ones have their findings and settings.

    A finished run that cannot be read is returned without findings, after a warning.
    """
    client = store.open_store(tracking, must_exist=True)
    read = partial(_add_findings, client)
    if not client.tracking_uri.startswith("http"):  # for local files, threads are slower
        return [read(run) for run in runs]
    with ThreadPoolExecutor(_N_THREADS) as threads:
        return list(threads.map(read, runs))


def _add_findings(client: Any, run: RunRecord) -> RunRecord:
    """Return a run with its findings and settings, or unchanged if it has none.

    Only a finished run has findings. If they cannot be read, a warning says why, and the run is
    returned unchanged, too. Callers leave out a run without findings where they compare.
    """
    if run.status != "FINISHED":
        return run
    try:
        findings = Findings.from_dict(json.loads(_read_artifact(client, run, "findings.json")))
        config = _read_settings(client, run).config
        held_out, params = config.evaluation.holdout, flatten_settings(config)
        return replace(run, findings=findings, held_out=held_out, params=params)
    except ConfigError as error:  # settings.json cannot be read
        reason = str(error)
    except ValueError:
        reason = "its findings.json is damaged; rerun=true makes the run again"
    except DataError as error:  # the file is whole, but of another version
        reason = f"its findings.json cannot be read: {error}"
    except FileNotFoundError as error:
        place = Path(error.filename)
        reason = f"its {place.name} is not at {place}; MLflow looks only where the run was made"
    except Exception as error:  # of MLflow or the system
        reason = f"its files cannot be read: {store.first_line(error)}"
    _log.warning("run %s is left out: %s", run.run_id, reason)
    return run


def read_evaluations(tracking: TrackingConfig, run: RunRecord) -> tuple[Evaluation, Evaluation]:
    """Return every question and answer of a finished run: of the base, and of the tuned model.

    Raises:
        TrackingError: The run is not finished, or its samples are gone or damaged.
    """
    names = list(check_finished(run).benchmarks)
    return _read_samples(tracking, run, "base", names), _read_samples(tracking, run, "tuned", names)


def read_served(tracking: TrackingConfig, run: RunRecord, tuned: Evaluation) -> Evaluation | None:
    """Return the tuned model's answers when it was asked in the way in which it is served.

    A model's own files say how it is served, for example with another chat template than its base.
    A run asks such a model twice: like the base, and as it is served. Some benchmarks need only the
    first, because both ways give the same prompts.

    Args:
        tracking: The store.
        run: The run.
        tuned: The tuned model's answers when it was asked like the base, from `read_evaluations`.

    Returns:
        The answers as served, completed by those of `tuned` for the benchmarks that were not asked
        again; None if no benchmark was asked again.

    Raises:
        TrackingError: As for `read_evaluations`.
    """
    client = store.open_store(tracking, must_exist=True)
    with store.explain_store_errors(tracking):
        files = client.list_artifacts(run.run_id, "samples")
    file_names = {Path(file.path).stem for file in files}
    asked_again = [name for name in tuned.benchmarks if f"served-{name}" in file_names]
    if not asked_again:
        return None
    served = _read_samples(tracking, run, "served", asked_again)
    return replace(served, benchmarks=tuned.benchmarks | served.benchmarks)


def _read_samples(
    tracking: TrackingConfig, run: RunRecord, model: str, names: Sequence[str]
) -> Evaluation:
    """Read the answers to some benchmarks: of the `base`, or of the `tuned` model.

    Args:
        tracking: The store.
        run: The run.
        model: `base`, `tuned`, or `served`, which stands for the tuned model when it was asked in
            the way in which it is served.
        names: The names of the benchmarks.

    Returns:
        The answers. The time that they took is not in the record, so it is 0.

    Raises:
        TrackingError: The run is not finished, or its samples are gone or damaged.
    """
    from slimdown.evaluation.samples import read_samples  # imports pyarrow

    findings = check_finished(run)
    # Findings hold these two facts among the conditions; an evaluation has an attribute for each.
    conditions = dict(findings.conditions)
    harness_version = conditions.pop("harness_version")
    backend = conditions.pop("backend")
    # If the setting `tuned` was the address of a server, that server answered instead.
    served_by = findings.served_by if model == "tuned" else ""
    client = store.open_store(tracking, must_exist=True)
    benchmark_configs = _read_settings(client, run).config.benchmark
    evaluations = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = f"samples/{model}-{name}.parquet"
            try:
                file = client.download_artifacts(run.run_id, path, folder)
                benchmark = ResolvedBenchmark.of(benchmark_configs[name])
                evaluations[name] = read_samples(Path(file), benchmark)
            except DataError as error:
                raise TrackingError(f"run {run.run_id}: {path}: {error}") from None
            except Exception as error:  # the file is damaged or gone
                problem = f"{path} is gone or damaged ({store.first_line(error)})"
                advice = "the same settings with rerun=true measure it again"
                raise TrackingError(f"run {run.run_id}: {problem}; {advice}") from None
    return Evaluation(
        evaluations,
        harness_version,
        backend=served_by or backend,
        seconds=0.0,
        conditions=conditions,
        served_by=served_by,
    )


def read_config(tracking: TrackingConfig, run: RunRecord) -> RunConfig:
    """Return the settings of a run, to measure or merge its model again in this store.

    They are complete and checked, as if a command line had just set them.

    Raises:
        TrackingError: Its settings.json is gone.
        ConfigError: The settings do not hold here: another version, a file that is gone, or a
            secret that the record left out.
    """
    client = store.open_store(tracking, must_exist=True)
    with store.explain_store_errors(tracking):
        recorded = _read_settings(client, run)
    if recorded.hidden:
        problem = f"{', '.join(recorded.hidden)} held what looks like a secret, and the record"
        advice = "left it out; make the run again without it"
        raise ConfigError(f"run {run.run_id} ({run.name}): {problem} {advice}")
    config = recorded.config
    evaluation = replace(config.evaluation, backend=Backend.hf)  # another may not be here
    this_store = replace(config.tracking, uri=tracking.uri)
    return complete_config(replace(config, evaluation=evaluation, tracking=this_store))


def download_tuned(tracking: TrackingConfig, run: RunRecord, folder: Path) -> Path:
    """Download what a finished run trained: an adapter, or a whole model.

    Args:
        tracking: The store.
        run: The run.
        folder: The files come into a new folder within this one.

    Returns:
        The folder of the adapter or of the model.

    Raises:
        TrackingError: The run trained nothing, or its files are gone.
    """
    if origin := run.tags.get(Tag.origin):
        problem = f"trained nothing: it measured {origin}, and its files are where you made them"
        raise TrackingError(f"run {run.run_id} ({run.name}) {problem}")
    client = store.open_store(tracking, must_exist=True)
    with store.explain_store_errors(tracking):
        model = logged_models.find_made_model(client, run.run_id)
        return logged_models.download_model(client, model, folder)


def find_model_uri(tracking: TrackingConfig, run: RunRecord) -> str:
    """Return the folder of what a finished run trained; empty where it trained nothing."""
    if run.tags.get(Tag.origin) or run.status != "FINISHED":
        return ""
    if run.model_files:
        return run.model_files
    client = store.open_store(tracking, must_exist=True)
    with store.explain_store_errors(tracking):
        model = logged_models.find_made_model(client, run.run_id)
        return redact_uri(model.artifact_location)


def _read_settings(client: Any, run: RunRecord) -> RecordedSettings:
    """Read the settings of a run, with the dtype that was used.

    Older runs recorded the dtype `auto`. For these, the tag of the base model says what it came to:
    `TrackedRun.log_model` writes the used dtype as its last word.

    Raises:
        ConfigError: As for `read_settings`.
    """
    text = _read_artifact(client, run, SETTINGS)
    place = f"{SETTINGS} of run {run.run_id} ({run.name})"
    recorded = read_settings(text, run.tags.get(Tag.settings, ""), place)
    config = recorded.config
    _, _, used_dtype = run.tags.get(Tag.model, "").rpartition(" ")
    if config.model.dtype is not Dtype.auto or used_dtype not in set(Dtype):
        return recorded
    quantization = config.quantization
    if quantization.bnb_4bit_compute_dtype is Dtype.auto:
        quantization = replace(quantization, bnb_4bit_compute_dtype=Dtype(used_dtype))
    model = replace(config.model, dtype=Dtype(used_dtype))
    return replace(recorded, config=replace(config, model=model, quantization=quantization))


def _read_artifact(client: Any, run: RunRecord, path: str) -> str:
    """Return the text of an artifact of a run: from its file, or from a server.

    Args:
        client: A client of the store.
        run: The run.
        path: The file's path among the run's artifacts.

    Raises:
        DataError: The file is larger than any that a run writes.
        FileNotFoundError: There is no such file on this machine.
        MlflowException: The store does not give the file.
    """
    place = urlsplit(run.artifact_uri)
    if place.scheme in ("", "file"):  # a local store
        return read_limited(Path(unquote(place.path)) / path)
    with tempfile.TemporaryDirectory() as folder:
        return read_limited(Path(client.download_artifacts(run.run_id, path, folder)))
