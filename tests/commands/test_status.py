"""`slimdown status` lists the runs of the record; `slimdown ui` shows them in MLflow."""

import os
from collections.abc import Callable

import pytest
from mlflow import MlflowClient
from record_builders import make_info, record_run

from slimdown.commands import status, ui
from slimdown.config.schema import RunConfig
from slimdown.tracking.run_writer import open_run
from slimdown.tracking.sweep_run import open_sweep_run


def test_each_run_has_a_row_with_its_state(
    store: MlflowClient, composed: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed()
    record_run(config, "done", sweep="s")
    with pytest.raises(ValueError, match="x"), open_run(config, make_info(config, "bad")):
        raise ValueError("no such layer x")
    with pytest.raises(KeyboardInterrupt), open_run(config, make_info(config, "busy")) as run:
        assert status.main([]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert shown.index("running") < shown.index("busy") < shown.index("bad ValueError: no such")
        assert shown.index("done pocket_instructions -44.0 forgotten; pocket_math")
        raise KeyboardInterrupt
    store.update_run(run.run_id, "RUNNING")  # as a process that was killed outright leaves it
    assert status.main([]) == 0
    assert "died" in capsys.readouterr().out
    assert status.main(["--sweep", "s", "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert status.main(["--tracking-uri", "sqlite:///gone.db"]) == 1
    assert "there is no record" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "state"), [(None, "FINISHED"), (KeyboardInterrupt(), "KILLED")])
def test_a_sweep_has_a_run_that_ends_with_it(
    error: BaseException | None, state: str, store: MlflowClient, composed: Callable[..., RunConfig]
) -> None:
    try:
        with open_sweep_run(composed().tracking, "s", "two ranks") as sweep:
            assert store.get_run(sweep.run_id).info.status == "RUNNING"
            sweep.files["sweep.md"] = "| job |"
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert store.get_run(sweep.run_id).info.status == state
    assert [file.path for file in store.list_artifacts(sweep.run_id)] == ["sweep.md"]


def test_the_pages_of_each_experiment_have_an_address(
    store: MlflowClient,
    composed: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands = []
    monkeypatch.setattr(os, "execv", lambda program, words: commands.append(words))
    assert ui.main(["--tracking-uri", "sqlite:///gone.db"]) == 1
    assert not commands
    number = store.get_run(record_run(composed(), "one")).info.experiment_id
    ui.main(["-p", "5001", "--workers", "1"])
    place = f"http://127.0.0.1:5001/#/experiments/{number}/runs?viewStateShareKey=slimdown&"
    assert place in capsys.readouterr().err
    assert commands[0][-4:] == ["--port", "5001", "--workers", "1"]
