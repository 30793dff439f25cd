"""`slimdown status` lists the runs of the record; `slimdown ui` shows them in MLflow."""

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import chdir, closing
from dataclasses import replace
from math import isnan
from pathlib import Path
from socket import socket
from typing import Any, NamedTuple

import pytest
from commands_and_runs import call_verb, succeed
from mlflow import MlflowClient
from mlflow.utils import rest_utils
from record_builders import Capture, Compose, Patch, compose_config, make_info, record_run

from slimdown.commands import ui
from slimdown.tracking.run_reader import find_run
from slimdown.tracking.run_writer import open_run


def test_each_run_has_its_state(store: MlflowClient, composed: Compose) -> None:
    config = composed()
    record_run(config, "done", sweep="s")
    with pytest.raises(ValueError, match="x"), open_run(config, make_info(config, "bad")) as bad:
        raise ValueError("no such layer x")
    assert isnan(store.get_run(bad.run_id).data.metrics["change/pocket_cs"])  # it was not measured
    with pytest.raises(KeyboardInterrupt), open_run(config, make_info(config, "busy")) as run:
        shown = succeed(Path(), "status").stdout
        parts = ("running", "busy", "bad ", "ValueError: no ", "done ", "-44.0")
        assert sorted(parts, key=shown.index) == [*parts]
        raise KeyboardInterrupt
    store.update_run(run.run_id, "RUNNING")  # as a process that was killed outright leaves it
    assert "died" in succeed(Path(), "status").stdout
    shown = succeed(Path(), "status", "--rows", "1").stdout
    assert [name in shown for name in ("busy", "bad", "done")] == [True, True, False]
    assert "--rows" in shown
    shown = succeed(Path(), "status", "--rows", "0").stdout
    assert "done" in shown
    assert "--rows" not in shown
    for choice, n_lines in ((["--rows", "1"], 4), (["--sweep", "s"], 2)):  # programs get all rows
        shown = succeed(Path(), "status", *choice, "--format", "csv").stdout
        assert len(shown.splitlines()) == n_lines
    done = call_verb(Path(), "status", "--tracking-uri", "sqlite:///gone.db")
    assert done.returncode == 1
    assert "there is no record" in done.stderr


def test_an_experiments_page_lists_its_tuned_runs(store: MlflowClient, composed: Compose) -> None:
    for rank in (2, 8):
        config = composed(f"lora.r={rank}")
        run_id = record_run(config, f"rank {rank}", sweep="s")
    run = store.get_run(run_id)
    assert next(iter(run.data.metrics)) == "kept"  # MLflow's page Compare begins with it
    tags = store.get_experiment(run.info.experiment_id).tags
    view = json.loads(tags["mlflow.sharedViewState.slimdown"])
    listed = store.search_runs([run.info.experiment_id], view["searchFilter"])
    names = {listed_run.info.run_name for listed_run in listed}
    assert names == {"rank 2", "rank 8"}  # and not their base
    assert find_run(config.tracking, run_id).params["lora.r"] == "8"


class Pages(NamedTuple):
    """A command that shows the pages of a record, and the folder that it runs in."""

    folder: Path
    process: int
    port: int
    line: str  # which says where they are
    run_id: str

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def pages(recorded: Path) -> Iterator[Pages]:
    """SIGTERM ends the command without a word."""
    with chdir(recorded):
        run_id = record_run(compose_config(), "one")
        with closing(socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "slimdown", "ui", "-p", str(port), "--workers", "1"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, **pipes)
    try:
        line = next(line for line in process.stdout if line.startswith("ready"))
        yield Pages(recorded, process.pid, port, line, run_id)
    finally:
        process.send_signal(signal.SIGTERM)
        rest, err = process.communicate(timeout=60)
    assert rest == ""
    assert "Traceback" not in err


@pytest.fixture
def shown(pages: Pages, monkeypatch: Patch) -> Pages:
    monkeypatch.chdir(pages.folder)
    return pages


def test_ui_says_where_the_pages_are_once_the_server_answers(shown: Pages, capsys: Capture) -> None:
    urllib.request.urlopen(f"{shown.address}/health").close()
    store = MlflowClient(f"sqlite:///{Path.cwd()}/mlruns/mlflow.db")
    number = store.get_run(shown.run_id).info.experiment_id
    experiment = f"ready: open {shown.address}/#/experiments/{number}"
    assert shown.line.startswith(f"{experiment}/runs?viewStateShareKey=")
    children = Path(f"/proc/{shown.process}/task/{shown.process}/children")
    if children.exists():  # Linux
        server = Path(f"/proc/{children.read_text().split()[0]}/cmdline").read_text()
        assert "sqlite" not in server
        assert "mlflow" in server
    assert ui.main(["-p", str(shown.port), "--workers", "1"]) == 1
    assert "give another one" in capsys.readouterr().err


def test_a_servers_password_is_not_shown(shown: Pages, capsys: Capture) -> None:
    store = MlflowClient(f"sqlite:///{Path.cwd()}/mlruns/mlflow.db")
    other = store.create_experiment("of another tool")
    store.create_run(other)
    assert ui.main(["--tracking-uri", shown.address.replace("//", "//me:hunter22@")]) == 0
    captured = capsys.readouterr()
    assert f"ready: open {shown.address}/#/experiments/" in captured.out
    assert "of another tool" not in captured.out
    assert "mlflow.sharedViewState.slimdown" not in store.get_experiment(other).tags
    assert "hunter22" not in captured.out + captured.err


def test_findings_are_read_where_a_gateway_lets_only_the_api_pass(
    shown: Pages, composed: Compose, monkeypatch: Patch
) -> None:
    send = rest_utils.http_request

    def refuse(*arguments: Any, **options: Any) -> Any:
        moved = ["/no-such-page" if a == "/get-artifact" else a for a in arguments]
        return send(*moved, **options)

    monkeypatch.setattr(rest_utils, "http_request", refuse)
    tracking = replace(composed().tracking, uri=shown.address)
    assert find_run(tracking, shown.run_id).findings is not None


def test_a_server_that_does_not_start_is_no_success(store: MlflowClient, composed: Compose) -> None:
    record_run(composed(), "one")
    assert ui.main(["-p", "59123", "--workers", "none"]) != 0


@pytest.mark.parametrize("option", ["-p=-1", "-p=0", "-p=65536", "-p=x", "--host="])
def test_a_port_that_is_none_is_refused(option: str) -> None:
    done = call_verb(Path(), "ui", option)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_one_run_is_no_sweep() -> None:
    assert call_verb(Path(), "status", "done", "--sweep", "s").returncode == 2
