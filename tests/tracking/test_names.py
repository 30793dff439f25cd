"""A run's name and note: wherever the run is shown, and no part of what it is."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands_and_runs import succeed
from mlflow import MlflowClient
from record_builders import Capture, make_info, record_run, save_answers

from slimdown.config.schema import RunConfig
from slimdown.sweep.command_line import ComposedRun, compose_runs, read_command_line
from slimdown.sweep.jobs import JobState, name_run, run_job
from slimdown.tracking.finished_runs import record_outcome
from slimdown.tracking.metrics_and_tags import DESCRIPTION, Tag
from slimdown.tracking.provenance import RunInfo
from slimdown.tracking.resume import run_key
from slimdown.tracking.run_reader import find_run, read_config
from slimdown.tracking.run_writer import open_run
from slimdown.utils.errors import ConfigError, TrackingError

MARKUP = "<b>new</b> *try* | 2"


@pytest.fixture
def repeat(config: RunConfig) -> Callable[..., str]:
    """Record a run, and return what repeats its command with other names."""
    run_id = record_run(config, "pocket", run_key=run_key(config))

    def run_again(**names: str) -> str:
        outcome = run_job(ComposedRun([], replace(config, **names), "pocket"), RunInfo(""))
        assert (outcome.state, outcome.run_id) == (JobState.skipped, run_id)
        return run_id

    return run_again


def test_a_repeat_with_another_name_renames_the_run(
    repeat: Callable[..., str], store: MlflowClient, config: RunConfig, capsys: Capture
) -> None:
    run_id = repeat(name=MARKUP, note="warmer [see](http://x)")
    assert find_run(config.tracking, MARKUP).run_id == run_id
    with pytest.raises(TrackingError):
        find_run(config.tracking, "pocket")
    run = store.get_run(run_id)
    assert run.info.run_name == MARKUP
    assert run.data.tags[Tag.note] == "warmer [see](http://x)"
    assert f"{run_id} ({MARKUP})" in capsys.readouterr().out
    assert read_config(config.tracking, find_run(config.tracking, run_id)).name is None


def test_a_name_and_a_note_stand_in_status_and_compare(
    repeat: Callable[..., str], config: RunConfig
) -> None:
    repeat(name=MARKUP, note="warmer")
    record_run(replace(config, lora=replace(config.lora, r=2)), "pocket lora.r=2")
    for verb in ("status", "compare"):
        rows = json.loads(succeed(Path.cwd(), verb, "--format=json").stdout)["rows"]
        assert {(row["name"], row["note"]) for row in rows} >= {(MARKUP, "warmer")}
        assert MARKUP[:6] in succeed(Path.cwd(), verb).stdout


def test_what_a_repeat_leaves_open_stays(
    repeat: Callable[..., str], store: MlflowClient, config: RunConfig
) -> None:
    run_id = repeat(name="first", note="warmer")
    record_outcome(config.tracking, find_run(config.tracking, "first"), "PASSED: nothing.", "check")
    for names, shown in (({}, ("first", "warmer")), ({"note": "colder"}, ("first", "colder"))):
        repeat(**names)
        run = find_run(config.tracking, run_id)
        assert (run.name, run.note) == shown
    description = store.get_run(run_id).data.tags[DESCRIPTION]
    assert description.startswith("**PASSED: nothing.** (check)\n\n")
    repeat(name="second", note="")
    assert not store.get_run(run_id).data.tags[Tag.note]


def test_a_stopped_run_goes_on_under_its_new_name(config: RunConfig, store: MlflowClient) -> None:
    with suppress(KeyboardInterrupt), open_run(config, make_info(config, "before")) as run:
        raise KeyboardInterrupt
    tags = {Tag.name: "after", Tag.note: "warmer"}
    info = make_info(config, "after", resume_run_id=run.run_id, tags=tags)
    with open_run(config, info) as resumed:
        save_answers(resumed, config)
    found = find_run(config.tracking, "after")
    assert (found.run_id, found.note, found.status) == (run.run_id, "warmer", "FINISHED")


def compose(*arguments: str) -> Any:
    return compose_runs(read_command_line(list(arguments)))


def test_names_and_notes_are_any_text_and_change_no_key() -> None:
    note = "lr too high, see (3): 'x' = \"y\" [z]"
    [run] = compose("name=a, b", f"note={note}").runs
    assert (run.config.name, run.config.note) == ("a, b", note)
    assert name_run(run, ()) == "a, b"
    [quoted] = compose('note="a, b"', "--name", "two words").runs
    assert (quoted.config.name, quoted.config.note) == ("two words", "a, b")
    [plain] = compose().runs
    assert run_key(run.config) == run_key(quoted.config) == run_key(plain.config)
    assert run.shown == plain.shown == {}


def test_in_a_sweep_a_name_stands_before_what_is_swept() -> None:
    plan = compose("-m", "name=ranks", "lora.r=4,8", "evaluation.batch_size=1,2", "seed=3")
    names = [name_run(run, plan.swept) for run in plan.runs]
    assert names[0] == "ranks lora.r=4 evaluation.batch_size=1"
    assert len(set(names)) == 4


@pytest.mark.parametrize(
    "text", ["a\nb", "x" * 10_000, "\x1b[2J", "a\tb", "\u202eabc", "\u2028", "\0", ""]
)
def test_a_hostile_name_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose(f"name={text}", f"note={text or chr(10)}")
    for answer, key in zip(str(error.value).splitlines(), ("name", "note"), strict=True):
        assert answer.startswith(f"{key} must be one line")
        assert answer.isprintable()
        assert len(answer) < 200
