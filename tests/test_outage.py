"""A store that falls silent while a run is under way: nothing computed is lost, and all of it can be delivered."""

import errno
import json
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from made_up import stopped, written
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException
from recorded import benchmark_settings, evaluation, here, right, settings_of
from requests.exceptions import ConnectionError as NoConnection, HTTPError
from test_page import TRAINING

from slimdown import send as command
from slimdown.config.schema import TrackingConfig
from slimdown.models.model import LoadedModel
from slimdown.stats.findings import judge
from slimdown.tracking import outage
from slimdown.tracking.evaluations import EvaluationRecord, base_records, tuned_record
from slimdown.tracking.outage import PatientClient, send
from slimdown.tracking.owner import this_process
from slimdown.tracking.read import read_evaluation, read_run
from slimdown.tracking.tags import Tag
from slimdown.tracking.write import TrackedRun
from slimdown.training.fine_tune import StepRecord, TrainResult, Tuned
from slimdown.utils.errors import SlimdownError

BEFORE, AFTER = evaluation({"math": right(80)}), evaluation({"math": right(40)})


class Server:
    """A real store that answers until a given number of calls, and then as told."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self.answers: Iterator[Exception | float | None] = iter(
            ()
        )  # of calls to come: raise, sleep, or go on
        self.last: Exception | None = None  # what every later call raises
        self.n_calls = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.n_calls += 1
            answer = next(self.answers, self.last)
            if isinstance(answer, Exception):
                raise copy(answer)  # a new one: errors remember what they were raised in
            if answer:
                time.sleep(answer)
            return getattr(self._client, name)(*args, **kwargs)

        return call


@pytest.fixture
def server(
    store: MlflowClient, migrated_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Server:
    """The store of the test behind a server; folders for what it does not take begin with tables."""

    def folder() -> Path:
        made = tmp_path / "unsent"
        made.mkdir()
        shutil.copy(migrated_store, made / "mlflow.db")
        return made

    monkeypatch.setattr(outage, "_new_folder", folder)
    return Server(store)


def opened(server: Server, wait: float = 0.2) -> TrackedRun:
    config = TrackingConfig(uri="http://me:secret-word@server", experiment="slimdown", wait=wait)
    client = PatientClient(server, config)  # type: ignore[arg-type]
    return TrackedRun(config, "a run", "tuned", {"slimdown.seed": "0"}, client)


@pytest.fixture
def adapter(tmp_path: Path) -> TrainResult:
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return replace(TRAINING, adapter_dir=folder)


FILES: dict[str, str | bytes] = {
    "report.md": "# what was lost",
    "report.html": "<p>",
    "plots/changes.png": b"png",
}


THE_MODEL = 6  # the step that logs it


def tell(
    run: TrackedRun, loaded: LoadedModel, trained: TrainResult, at: Callable[[int], None]
) -> int:
    """Everything that a run records, with a call before each step and one after the last; returns their number."""
    steps: list[Callable[[EvaluationRecord], object]] = [
        lambda base: run.log_settings(
            {"lora.r": 8, "tracking.uri": here().uri}, {"config.yaml": "lora:\n  r: 8\n"}
        ),
        lambda base: run.log_model(loaded),
        lambda base: base.find("math", "key", BEFORE.benchmarks["math"].benchmark),
        lambda base: base.keep("math", "key", BEFORE.benchmarks["math"]),
        lambda base: run.log_base(BEFORE),
        lambda base: [run.log_step(StepRecord(i, {"loss": 2.5 - i})) for i in range(3)],
        lambda base: run.log_tuned(Tuned(loaded, trained)),
        lambda base: run.log_evaluation("tuned", "math", AFTER.benchmarks["math"], "tuned-key"),
        lambda base: run.keep(judge(BEFORE, AFTER, trained), FILES),
    ]
    with run, base_records(settings_of(here()), loaded, run)() as record:
        for i, step in enumerate(steps):
            at(i)
            step(record)
        at(len(steps))
    return len(steps) + 1


def contents(client: MlflowClient, run: Run) -> dict[str, Any]:
    """What a run holds, without ids and times."""
    run_id = run.info.run_id

    def files(path: str = "") -> list[str]:
        return [
            file
            for artifact in client.list_artifacts(run_id, path)
            for file in (files(artifact.path) if artifact.is_dir else [artifact.path])
        ]

    own = ("slimdown.sent", "slimdown.attempt", "slimdown.heartbeat")
    names = {r.info.run_id: r.info.run_name for r in runs(client)}
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "params": run.data.params,
        "metrics": {
            k: [(m.step, m.value) for m in client.get_metric_history(run_id, k)]
            for k in run.data.metrics
        },
        "tags": {k: names.get(v, v) for k, v in run.data.tags.items() if not k.startswith(own)},
        "files": sorted(files()),
        "models": [
            (m.name, m.status, m.params, {k.key: k.value for k in m.metrics or []})
            for m in models(client, run_id)
        ],
        "outputs": len(run.outputs.model_outputs),
    }


def models(client: MlflowClient, run_id: str) -> list[LoggedModel]:
    experiment = client.get_run(run_id).info.experiment_id
    return list(client.search_logged_models([experiment], f"source_run_id = '{run_id}'"))


def runs(client: MlflowClient) -> list[Run]:
    experiments = [e.experiment_id for e in client.search_experiments()]
    return sorted(client.search_runs(experiments), key=lambda run: str(run.info.run_name))


GONE = NoConnection("refused")


@pytest.mark.parametrize("moment", [0, 3, THE_MODEL, 8, 9])
def test_what_a_silent_server_lacks_lies_on_disk_and_is_delivered_once(
    moment: int, server: Server, store: MlflowClient, pocket: LoadedModel, adapter: TrainResult, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert moment < tell(opened(server), pocket, adapter, lambda i: None)
    expected = [contents(store, run) for run in runs(store)]
    assert len(expected) == 2
    for run in runs(store):
        store.delete_run(run.info.run_id)

    def at(i: int) -> None:
        server.last = GONE if i >= moment else None
        if i == moment == THE_MODEL:
            server.answers = iter(
                [None] * 4
            )  # in the middle of a step: the logged model is made and not filled

    run = opened(server)
    tell(run, pocket, adapter, at)
    said = capsys.readouterr().err
    assert [
        said.count(words) for words in ("it is waited for, at most 0 s", "takes nothing more")
    ] == [1, 1]
    assert "secret-word" not in said
    assert f"python -m slimdown.send {tmp_path}/unsent" in run.undelivered
    server.last = None
    if moment == THE_MODEL:
        assert [m.status for m in models(store, run.run_id)] == ["PENDING"]

    local = MlflowClient(f"sqlite:///{tmp_path}/unsent/mlflow.db")
    on_disk = [contents(local, run) for run in runs(local)]
    # The tags name the run of the base by its id; its answers lie beside, for that run's store may not come back.
    files = sorted([*expected[0]["files"], "samples/base-math.parquet"])
    assert on_disk[0] == {**expected[0], "tags": on_disk[0]["tags"], "files": files}
    for _ in range(2):
        uri, sent, going = send(tmp_path / "unsent")
        assert (uri, going) == (here().uri, [])
        assert run.run_id in sent
        assert [contents(store, run) for run in runs(store)] == expected


def test_what_a_lost_server_held_of_the_base_is_in_the_folder_and_goes_to_another(
    server: Server, store: MlflowClient, pocket: LoadedModel, migrated_store: Path, tmp_path: Path
) -> None:
    with opened(server) as before, base_records(settings_of(here()), pocket, before)() as record:
        record.keep("math", "key", BEFORE.benchmarks["math"])
    with opened(server) as run, base_records(settings_of(here()), pocket, run)() as record:
        run.log_settings(benchmark_settings(BEFORE))
        assert record.find("math", "key", BEFORE.benchmarks["math"].benchmark)
        run.log_base(BEFORE)
        server.last = GONE
        run.log_evaluation("tuned", "math", AFTER.benchmarks["math"], "tuned-key")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(migrated_store, other / "mlflow.db")
    for _ in range(2):
        send(tmp_path / "unsent", f"sqlite:///{other}/mlflow.db")
    [artifacts] = tmp_path.rglob(record.sources["math"])
    shutil.rmtree(artifacts)  # the evaluation's tag is left
    send(tmp_path / "unsent", here().uri)
    for folder, called in (
        (tmp_path / "unsent", "a run"),
        (other, "a run"),
        (tmp_path / "mlruns", run.run_id),
    ):
        place = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", experiment="slimdown")
        found = read_run(place, called)
        assert read_evaluation(place, found, "base").benchmarks == BEFORE.benchmarks
        assert read_evaluation(place, found, "tuned").benchmarks == AFTER.benchmarks


@pytest.mark.parametrize("moment", [32, 45, 63, 0])
def test_a_run_in_stages_whose_store_falls_silent_between_two_of_them_arrives_whole(
    moment: int, server: Server, store: MlflowClient, pocket: LoadedModel, tmp_path: Path
) -> None:
    """The first stage of the base is made before a training, the others after it, in one run."""
    pairs = [stopped(written([score] * 400), 63) for score in (1.0, 0.0)]
    before, after = (replace(BEFORE, benchmarks={"written": one}) for one in pairs)
    with opened(server) as run:
        run.log_settings({**benchmark_settings(before), "tracking.uri": here().uri})
        record_of = base_records(settings_of(here()), pocket, run)
        for stages in ((32,), (45, 63)):
            with record_of() as record:
                for n in stages:
                    server.last = server.last or (GONE if n == moment else None)
                    assert (
                        record.of_stage(n).find("written", f"key {n}", pairs[0].benchmark) is None
                    )
                    record.of_stage(n).keep("written", f"key {n}", stopped(written([1.0] * 400), n))
        record.keep_asked(before)
        tuned_record(settings_of(here()), run).keep_asked(after)
        run.keep(judge(before, after), FILES)
    server.last = None
    for _ in range(2 if moment else 0):
        send(tmp_path / "unsent")
    found, base = runs(store)
    assert [one.info.status for one in (found, base)] == ["FINISHED", "FINISHED"]
    own = [file for file in contents(store, found)["files"] if file.startswith("samples/")]
    assert own == ["samples/base-written.parquet", "samples/tuned-written.parquet"]
    assert contents(store, base)["files"] == [
        f"samples/base-written-to-{n}.parquet" for n in (32, 45, 63)
    ]
    assert {key for key in base.data.tags if key.startswith(Tag.evaluation)} == {
        f"{Tag.evaluation}key {n}" for n in (32, 45, 63)
    }
    recorded = read_run(here(), found.info.run_id)
    for model, asked in (("base", before), ("tuned", after)):
        assert read_evaluation(here(), recorded, model).benchmarks == asked.benchmarks


def test_a_server_that_comes_back_gets_everything_and_one_line_says_so(
    server: Server, store: MlflowClient, pocket: LoadedModel, adapter: TrainResult, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(outage, "_CALL_SECONDS", 0.3)
    monkeypatch.setattr(time, "sleep", _shortly(time.sleep))
    run = opened(server, wait=30)

    def at(i: int) -> None:
        if i == 3:
            server.answers = iter(
                [GONE, MlflowException("503"), 1.0, None]
            )  # refuses, is busy, says nothing

    tell(run, pocket, adapter, at)
    assert [run.info.status for run in runs(store)] == ["FINISHED", "FINISHED"]
    assert not run.undelivered
    said = capsys.readouterr().err
    assert said.count("\n") == 2
    assert "does not answer (refused); it is waited for, at most 30 s." in said
    assert "answers again after" in said


def test_a_run_whose_opening_arrived_and_was_not_answered_is_opened_once(
    server: Server, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", _shortly(time.sleep))
    lost = [GONE]

    def create(*args: Any, **kwargs: Any) -> Run:
        made = store.create_run(*args, **kwargs)
        if lost and kwargs["run_name"] == "base":
            raise lost.pop()
        return made

    monkeypatch.setattr(server, "create_run", create, raising=False)
    with (
        opened(server, wait=30) as run,
        run.sibling("base", "baseline"),
        run.sibling("base", "baseline"),
    ):
        pass
    assert [(r.info.run_name, r.info.status) for r in runs(store)] == [
        ("a run", "FINISHED"),
        ("base", "FINISHED"),
        ("base", "FINISHED"),
    ]


def _shortly(sleep: Callable[[float], None]) -> Callable[[float], None]:
    return lambda seconds: sleep(seconds if seconds > 1 else seconds / 20 if seconds < 1 else 0.05)


def test_a_refusal_in_the_middle_costs_no_wait_and_no_result(
    server: Server, store: MlflowClient
) -> None:
    started = time.monotonic()
    with opened(server, wait=300) as run:
        server.last = MlflowException.invalid_parameter_value("the token has expired")
        run.log_settings({"lora.r": 8})
    assert time.monotonic() - started < 10
    assert run.store_uri.endswith("unsent/mlflow.db")


class ClientError(Exception):
    """As botocore's, which is nobody's subclass."""


DENIED = PermissionError(errno.EACCES, "Permission denied", "/artifacts")


@pytest.mark.parametrize(
    "refusal", [DENIED, HTTPError("403 Forbidden"), ClientError("AccessDenied")]
)
def test_an_artifact_root_that_refuses_in_words_of_its_own_costs_no_result(
    refusal: Exception, server: Server, tmp_path: Path
) -> None:
    with opened(server, wait=300) as run:
        run.log_settings({"lora.r": 8})
        server.last = refusal
        run.keep(judge(BEFORE, AFTER), FILES)
    local = MlflowClient(f"sqlite:///{tmp_path}/unsent/mlflow.db")
    [on_disk] = [contents(local, run) for run in runs(local)]
    assert (on_disk["status"], on_disk["params"]) == ("FINISHED", {"lora.r": "8"})
    assert on_disk["files"] == sorted(FILES)


def test_a_full_disk_is_no_silent_store(server: Server, tmp_path: Path) -> None:
    with pytest.raises(SlimdownError, match="the disk takes no more"), opened(server) as run:
        run.log_settings({"lora.r": 8})
        server.answers = iter([OSError(errno.ENOSPC, "No space left on device")])
        run.log_settings({"lora.alpha": 16})
    assert not (tmp_path / "unsent").exists()


def test_what_refuses_the_first_write_ends_the_run_before_anything_is_computed(
    server: Server, tmp_path: Path
) -> None:
    with pytest.raises(PermissionError, match="/artifacts"), opened(server) as run:
        server.answers = iter([DENIED])
        run.log_settings({"lora.r": 8})
    assert not (tmp_path / "unsent").exists()


def test_a_run_that_is_stopped_does_not_wait_for_its_store(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "interrupted", lambda: True)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as stopped, opened(server, wait=300):
        server.last = GONE
        raise KeyboardInterrupt
    assert time.monotonic() - started < 10
    assert "is marked KILLED on disk" in stopped.value.__notes__[0]
    [run] = runs(MlflowClient(f"sqlite:///{tmp_path}/unsent/mlflow.db"))
    assert run.info.status == "KILLED"


def test_a_store_that_is_silent_from_the_start_is_not_waited_for(server: Server) -> None:
    server.last = GONE
    started = time.monotonic()
    with pytest.raises(SlimdownError, match=r"http://\*\*\*@server does not answer \(refused\)"):
        opened(server, wait=300)
    assert time.monotonic() - started < 2


def test_sending_says_what_it_lacks(
    tmp_path: Path, store: MlflowClient, migrated_store: Path
) -> None:
    with pytest.raises(SlimdownError, match="holds no runs to send"):
        send(tmp_path)
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    with pytest.raises(SlimdownError, match="give --tracking-uri"):
        send(tmp_path)


def test_a_folder_that_a_run_still_writes_into_is_kept(
    server: Server, store: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "unsent")
    with opened(server) as run:
        server.last = GONE
        run.log_settings({"lora.r": 8})
        server.last = None
        with pytest.raises(
            SystemExit, match=f"run {run.run_id} is still going .* keep {folder} and send again"
        ):
            command.main([folder, "--tracking-uri", here().uri])
        assert "no longer needed" not in capsys.readouterr().out
        run.log_settings({"lora.alpha": 16})
    command.main([folder, "--tracking-uri", here().uri])
    assert "no longer needed" in capsys.readouterr().out
    [sent] = runs(store)
    assert (sent.info.status, sent.data.params) == ("FINISHED", {"lora.r": "8", "lora.alpha": "16"})


@pytest.mark.parametrize(
    ("status", "why"), [("RUNNING", "is worked on"), ("FINISHED", "was finished")]
)
def test_a_run_that_another_process_went_on_in_is_not_filled(
    status: str, why: str, server: Server, store: MlflowClient, tmp_path: Path
) -> None:
    with opened(server) as run:
        server.last = GONE
        run.log_settings({"lora.r": 8})
    elsewhere = replace(this_process(), host="node7", pid=123)
    store.set_tag(run.run_id, Tag.owner, json.dumps(asdict(elsewhere)))
    store.update_run(run.run_id, status)
    with pytest.raises(SlimdownError, match=rf"^run {run.run_id} {why} by node7 \(process 123\)"):
        send(tmp_path / "unsent", here().uri)
    [there] = runs(store)
    assert (there.info.status, there.data.params) == (status, {})
    store.set_tag(run.run_id, Tag.heartbeat, "1")  # and since then nothing was heard of it
    store.update_run(run.run_id, "RUNNING")
    send(tmp_path / "unsent", here().uri)
    [there] = runs(store)
    assert (there.info.status, there.data.params) == ("FINISHED", {"lora.r": "8"})


def test_a_folder_of_before_is_sent_to_the_run_that_it_names(
    server: Server, store: MlflowClient, tmp_path: Path
) -> None:
    with opened(server) as run:
        server.last = GONE
        run.log_settings({"lora.r": 8})
        server.last = None
    local = MlflowClient(f"sqlite:///{tmp_path}/unsent/mlflow.db")
    [on_disk] = runs(local)
    local.delete_tag(on_disk.info.run_id, Tag.sent_for)
    local.set_tag(on_disk.info.run_id, "slimdown.origin", run.run_id)
    send(tmp_path / "unsent", here().uri)
    local.set_tag(
        on_disk.info.run_id, "slimdown.origin", "trained here"
    )  # as today: where a tuned model came from
    local.set_tag(on_disk.info.run_id, Tag.sent_for, run.run_id)
    send(tmp_path / "unsent", here().uri)
    [sent] = runs(store)
    assert (sent.info.run_id, sent.data.params) == (run.run_id, {"lora.r": "8"})
    assert sent.data.tags["slimdown.origin"] == "trained here"
    assert Tag.sent_for not in sent.data.tags


class _Dying(BaseHTTPRequestHandler):
    """A server that answers while it is opened, and is nothing but a proxy's 503 from then on."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        alive = self.path.startswith(("/health", "/api/2.0/mlflow/experiments/search"))
        self.send_response(200 if alive else 503)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_sending_to_a_server_that_dies_ends_soon(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in outage._MLFLOW_SETTINGS:
        monkeypatch.setenv(name, "")  # so that it is undone
        monkeypatch.delenv(name)
    with opened(server):
        server.last = GONE
    with ThreadingHTTPServer(("127.0.0.1", 0), _Dying) as dying:
        threading.Thread(target=dying.serve_forever, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(SlimdownError, match=r"did not take everything .* nothing is doubled"):
            send(tmp_path / "unsent", f"http://127.0.0.1:{dying.server_port}")
        assert time.monotonic() - began < 5
        dying.shutdown()


def test_an_interrupted_sending_says_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(folder: Path, uri: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(outage, "send", interrupt)
    with pytest.raises(SystemExit) as ended:
        command.main([str(tmp_path)])
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (130, 1)
    assert "sent again nothing is doubled" in said


def test_the_command_that_delivers_can_be_pasted() -> None:
    said = outage.advice(TrackingConfig(uri="sqlite:////a place/$one/mlflow.db"))
    assert shlex.split(said.partition(": ")[2]) == [
        "python",
        "-m",
        "slimdown.send",
        "/a place/$one",
    ]
