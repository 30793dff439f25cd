"""A search: what it may propose, how it heeds its budget of forgetting, what it goes on from after a kill."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from math import log, nan
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from conftest import SMALL
from mlflow import MlflowClient
from recorded import here

from slimdown.config import search
from slimdown.config.commandline import check_command_line
from slimdown.config.schema import Role, RunConfig
from slimdown.config.sweeps import parsed
from slimdown.data.loading import load_data
from slimdown.models.model import load_model
from slimdown.report import words
from slimdown.stats.paired import Estimate
from slimdown.stats.runs import RecordedChange, RecordedChanges, RecordedRun
from slimdown.tracking.read import read_run, refuse_unfinished
from slimdown.tracking.study import Study, watch
from slimdown.tracking.write import TrackedRun
from slimdown.training.fine_tune import TrainResult, fine_tune
from slimdown.training.rows import prepare_rows
from slimdown.training.watching import Watch
from slimdown.utils.errors import ConfigError, TrialPruned, SlimdownError

Composed = Callable[..., RunConfig]
RANKS = "+search.space={lora.r:{choices:[2,4]}}"


# --- what may be searched ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([RANKS], "a search is many runs; begin it with -m"),
        (
            ["-m", "search.n_trials=3"],
            "search.n_trials=3: nothing is searched; name settings and values in search.sp",
        ),
        (
            ["-m", "+search.space={lora.rr:{low:1,high:2}}"],
            "search.space: lora.rr is not a setting; did you mean lora",
        ),
        (
            ["-m", "+search.space={lora.r:{low:4,high:2}}"],
            "search.space.lora.r.low=4 must be below high=2",
        ),
        (
            ["-m", "+search.space={lora.r:{low:4}}"],
            "search.space.lora.r.low and high, or choices, must be set",
        ),
        (
            ["-m", "+search.space={lora.r:{choices:[]}}"],
            "search.space.lora.r.low and high, or choices, must be set",
        ),
        (
            ["-m", "+search.space={lora.r:{choices:null}}"],
            "search: field 'search.space.lora.r.choices' is not Optional",
        ),
        (
            ["-m", "+search.space={lora.r:{choices:[2],low:1}}"],
            "search.space.lora.r.choices: a range (low) is given to",
        ),
        (
            ["-m", "+search.space={lora.r:{low:a,high:3}}"],
            "search.space.lora.r.low='a': the ends of a range are numb",
        ),
        (
            ["-m", "+search.space={train.learning_rate:{low:0,high:1,log:true}}"],
            "log=true needs numbers above 0",
        ),
        (
            ["-m", "+search.space={lora.r:{low:1,high:2.5}}"],
            "lora.r=2.5: Value '2.5' of type 'float' could not be",
        ),
        (
            ["-m", "+search.space={lora.r:{choices:[2,1000]}}"],
            "lora.r=1000: no matrix of pocket:model has more than",
        ),
        (
            ["-m", "+search.space={train.optim:{low:1,high:2}}"],
            "search.space: train.optim is no number and has no r",
        ),
        (
            ["-m", "+search.space={evaluation.holdout:{low:0,high:0.5}}"],
            "evaluation.holdout is not searched",
        ),
        (
            ["-m", RANKS, "seed=0,1"],
            "search.space: seed is not searched: it is no setting of what is trained",
        ),
        (
            ["-m", RANKS, "search.max_loss=3"],
            "search.max_loss must be a share from 0 up to 1 (0.03 is three points)",
        ),
        (
            ["-m", RANKS, "search.storage=here"],
            "search.storage=here is no database's URL; give one such as sqlite:",
        ),
        (
            ["-m", RANKS, "lora.r=4"],
            "search.space: each of its settings is given on the command line; leave one out",
        ),
        (
            ["-m", RANKS, "tuned=./mine"],
            "tuned=./mine is measured as it is: nothing is trained that could be search",
        ),
        (["-m", "lora.r=interval(2,4)"], "lora.r=interval(2,4): an interval has no end of values"),
    ],
)
def test_what_cannot_be_searched_is_told_in_a_line(arguments: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_command_line(arguments)
    assert told in str(error.value)
    assert "\n" not in str(error.value).removesuffix("\n")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (None, "a search needs Optuna, which is not installed"),
        ("4.6.0", "a search needs Optuna 5 or later, found 4.6"),
    ],
)
def test_a_search_without_optuna_says_how_to_get_it(
    found: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        if found is None:
            raise search.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(search, "version", version)
    with pytest.raises(ConfigError, match=told) as error:
        check_command_line(["-m", RANKS])
    assert "pip install 'slimdown[search]'" in str(error.value)


def test_the_command_line_beats_the_space() -> None:
    space = {
        "lora.r": search.DimensionConfig(choices=[2, 4]),
        "lora.lora_alpha": search.DimensionConfig(8, 32),
    }
    line = [
        "lora.r=8",
        "train.learning_rate=tag(log,interval(1e-4,1e-2))",
        "lora.target_modules=[q_proj],[v_proj]",
    ]
    found = search.searched(space, [parsed(text) for text in line])
    assert list(found) == ["lora.lora_alpha", "train.learning_rate", "lora.target_modules"]
    assert found["train.learning_rate"] == search.DimensionConfig(1e-4, 1e-2, log=True)
    assert found["lora.target_modules"].values() == ["[q_proj]", "[v_proj]"]


# --- what is watched and pruned ----------------------------------------------------------------------------


def trained(config: RunConfig, folder: Path, watch: Watch | None = None) -> TrainResult:
    base = load_model(config.model, config.quantization)
    rows = prepare_rows(base, load_data(config.dataset, config.seed, base.tokenizer), config.train)
    found = fine_tune(
        base, rows, config.method, config.lora, config.train, config.seed, folder, watch=watch
    ).training
    assert found is not None
    return found


def test_watching_the_validation_loss_changes_nothing(composed: Composed, tmp_path: Path) -> None:
    config = composed(*SMALL, "lora.lora_dropout=0.1")
    seen: list[tuple[float, float]] = []
    plain = trained(config, tmp_path / "plain")
    watched = trained(config, tmp_path / "watched", lambda share, loss: seen.append((share, loss)))
    digests = {
        hashlib.sha256((run.adapter_dir / "adapter_model.safetensors").read_bytes()).hexdigest()
        for run in (plain, watched)
    }
    assert len(digests) == 1
    assert plain.history == watched.history
    assert [share for share, _ in seen] == [0.25, 0.5, 0.75]
    losses = [
        plain.validation_loss_before,
        *(loss for _, loss in seen),
        plain.validation_loss_after,
    ]
    assert losses == sorted(losses, reverse=True)


def test_the_loss_that_is_watched_is_the_one_that_is_recorded(
    composed: Composed, tmp_path: Path
) -> None:
    config = composed(*SMALL, "train.learning_rate=1e-12", "train.per_device_eval_batch_size=7")
    seen: list[float] = []
    found = trained(config, tmp_path, lambda share, loss: seen.append(loss))
    assert seen == pytest.approx([found.validation_loss_before] * 3, rel=1e-5)


def test_a_pruned_run_says_so_and_is_no_failure(store: MlflowClient) -> None:
    with pytest.raises(TrialPruned) as ended, TrackedRun(here(), "slow", "tuned", {}) as tracked:
        raise TrialPruned("pruned after 25% of its steps: its validation loss is too high")
    assert "marked KILLED" in ended.value.__notes__[0]
    run = read_run(here(), tracked.run_id)
    assert run.status == "KILLED"
    with pytest.raises(SlimdownError, match="was stopped: pruned after 25% of its steps"):
        refuse_unfinished(run)


# --- the study ---------------------------------------------------------------------------------------------

SPACE = {
    "lora.r": search.DimensionConfig(choices=[2, 4, 8]),
    "train.learning_rate": search.DimensionConfig(1e-4, 1e-2, log=True),
    "dataset.pocket_instructions.max_examples": search.DimensionConfig(10, 1000, log=True),
}


@pytest.fixture
def searching(store: MlflowClient, composed: Composed) -> Callable[..., Study]:
    """A study of `SPACE`, opened as another command of the same search would."""

    def opened(*overrides: str, **space: search.DimensionConfig) -> Study:
        config = composed("benchmark=[pocket_math,pocket_cs]", "search.n_trials=4", *overrides)
        config.tracking = here()
        config.benchmark["skill"] = replace(config.benchmark["pocket_cs"], role=Role.target)
        return Study(config, {**SPACE, **space})

    return opened


def made(learned: float, math: float = 0.0, cs: float = 0.0, **how: Any) -> RecordedRun:
    """A run that learned and lost so much."""
    changes = {"pocket_math": math, "pocket_cs": cs, "skill": learned}
    kept = {
        name: RecordedChange(Estimate(value, 0.01, value, value)) for name, value in changes.items()
    }
    found = RecordedChanges(kept, mean_target_change=Estimate(learned, 0.01, learned, learned))
    return RecordedRun(**{"run_id": f"{learned}", "name": "run", "experiment": "slimdown", "status": "FINISHED",
                          "started": datetime.now(UTC), "changes": found, **how})  # fmt: skip


def test_a_study_goes_on_where_it_was_as_if_nothing_had_been(
    searching: Callable[..., Study],
) -> None:
    undisturbed, killed = searching("search.study=undisturbed"), searching("search.study=killed")
    first = [undisturbed.ask(1)[0] for _ in range(2)]
    assert [trial.number for trial in first] == [0, 1]
    for trial in first:
        undisturbed.tell(trial.number, made(0.1))
    [last] = undisturbed.ask(1)

    assert killed.ask(1) == first[:1]
    again = searching("search.study=killed")  # before the first one was told
    assert again.n_left == 4
    assert again.ask(1) == first[:1]
    again.tell(0, made(0.1))
    assert again.ask(1) == first[1:]
    assert (
        again.ask(1)[0].number == 2
    )  # the second failed: it stays open, and is not made twice by one command
    once_more = searching("search.study=killed")
    assert once_more.ask(2)[0] == first[1]
    once_more.tell(1, made(0.1))
    assert [trial.number for trial in once_more.ask(9)] == [3]
    assert once_more.ask(9) == []
    assert last.number == 2


def test_what_a_trial_sets_lies_in_the_space_and_can_be_read(
    searching: Callable[..., Study],
) -> None:
    for trial in searching("search.n_trials=8").ask(8):
        rank, rate, rows = trial.values.values()
        assert rank in ("2", "4", "8")
        assert 1e-4 <= float(rate) <= 1e-2
        assert float(rate) == float(f"{float(rate):.3g}")
        assert 10 <= int(rows) <= 1000


def test_another_search_is_another_study_and_more_trials_are_the_same(
    searching: Callable[..., Study],
) -> None:
    names = {
        searching(*how).name
        for how in (
            [],
            ["seed=1"],
            ["search.seed=1"],
            ["search.max_loss=0.03"],
            ["search.sampler=random"],
        )
    }
    assert len(names) == 5
    assert searching("search.n_trials=9").name == searching().name
    assert searching(**{"lora.r": search.DimensionConfig(choices=[2, 4])}).name not in names


def test_a_trial_beyond_its_budget_is_none_to_go_by(searching: Callable[..., Study]) -> None:
    """Of two that learned as much, the proposals go by the one within the budget."""
    low, high = 1e-4, 1e-2

    def proposals(budget: str) -> list[float]:
        study = searching(f"search.study={budget}", f"search.max_loss={budget}", "search.n_trials=16",
                          "search.n_startup_trials=8")  # fmt: skip
        for trial in study.ask(10):
            rate = float(trial.values["train.learning_rate"])
            study.tell(trial.number, made(log(rate / low), math=-0.5 if rate > 1e-3 else 0.0))
        return [float(trial.values["train.learning_rate"]) for trial in study.ask(6)]

    kept, free = proposals("0.1"), proposals("0.9")
    assert median(kept) <= 1e-3 < median(free) <= high


def test_trials_are_ordered_by_what_they_lost_beyond_and_then_by_what_they_learned(
    searching: Callable[..., Study],
) -> None:
    study = searching("search.max_loss=0.05")
    runs = [made(0.9, math=-0.2), made(0.1), made(0.2, math=-0.05, cs=-0.04), made(0.8, cs=-0.1)]
    found = sorted(runs, key=lambda run: study.outcome(run).order)
    assert [run.run_id for run in found] == ["0.2", "0.1", "0.8", "0.9"]
    assert study.outcome(runs[2]).is_within
    assert words.excess(study.outcome(runs[0])) == "beyond by pocket_math 15.0"
    margins = searching().outcome(runs[2])
    assert margins.excess == pytest.approx({"pocket_math": 0.03, "pocket_cs": 0.02})


def test_without_a_target_the_validation_loss_says_what_was_learned(
    searching: Callable[..., Study],
) -> None:
    losses = {"train/validation_loss_before": 3.0, "train/validation_loss_after": 1.2}
    assert searching().outcome(made(nan, metrics=losses)).learned == pytest.approx(1.8)


def test_a_trial_with_a_high_loss_is_pruned_and_one_with_a_low_loss_is_not(
    searching: Callable[..., Study], composed: Composed
) -> None:
    how = ["search.prune=0.5", "search.n_startup_trials=2", "search.study=mine"]
    study = searching(*how)

    def watched(number: int) -> Watch:
        config = composed(*how, f"search.trial={number}")
        config.tracking = here()
        found = watch(config)
        assert found is not None
        return found

    for trial, loss in zip(study.ask(2), (1.0, 2.0), strict=True):
        for share in (0.25, 0.5, 0.75):
            watched(trial.number)(share, loss)  # too few are complete to prune any
        study.tell(trial.number, made(0.1))
    good, bad = study.ask(2)
    watched(good.number)(0.25, 1.1)
    with pytest.raises(
        TrialPruned,
        match=r"pruned after 25% of its steps: its validation loss of 1.900 is among the high",
    ):
        watched(bad.number)(0.25, 1.9)
    study.tell(bad.number, made(0.0, status="KILLED"))
    assert study.n_left == 1
    assert watch(composed(*how)) is None  # no trial
    assert (
        watch(composed("search.study=gone", "search.trial=0", "search.storage=sqlite:///gone/x.db"))
        is None
    )


def test_a_database_that_cannot_be_used_is_named(searching: Callable[..., Study]) -> None:
    with pytest.raises(
        SlimdownError,
        match=r"search.storage=sqlite:////proc/x/search.db cannot be used: .*choose a file",
    ):
        searching("search.storage=sqlite:////proc/x/search.db")


# --- a real search, killed ---------------------------------------------------------------------------------

FEW = [
    *SMALL[:2],
    "train.max_steps=3",
    "benchmark=[pocket_instructions,pocket_cs]",
    "benchmark.pocket_instructions.limit=8",
    "benchmark.pocket_cs.limit=8",
    "evaluation.holdout=0.5",
    "search.n_trials=3",
]


def begin(folder: Path) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "slimdown.run",
        "-m",
        "+search.space={lora.r:{low:2,high:64}}",
        *FEW,
    ]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_search_that_was_killed_goes_on_and_makes_nothing_twice(
    migrated_store: Path, tmp_path: Path
) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(migrated_store.read_bytes())
    with begin(tmp_path) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("job 2 of 3"):
                process.kill()
                break
    with begin(tmp_path) as process:
        out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    runs = [run for e in client.search_experiments() for run in client.search_runs([e.experiment_id])
            if run.data.tags["slimdown.kind"] == "tuned"]  # fmt: skip
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert len({run.data.params["lora.r"] for run in runs}) == 3
    assert len({run.data.tags["slimdown.sweep"] for run in runs}) == 1
    [whole] = [
        client.get_run(run_id) for run_id in {run.data.tags["mlflow.parentRunId"] for run in runs}
    ]
    assert (whole.info.status, whole.data.tags["slimdown.at"]) == ("FINISHED", "3 of 3 jobs done")
    kept = Path(client.download_artifacts(whole.info.run_id, "search.html")).read_text()
    assert all(run.info.run_id[:8] in kept for run in runs)
    assert "job 1 of 2, lora.r=" in out
    assert "Within the budget as measured:" in out
    assert "About the held-out part of each benchmark's questions" in out
    assert all(run.info.run_id[:8] in out for run in runs)
    with begin(tmp_path) as process:
        again, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert "job" not in again
    assert again[again.index("search slimdown-") :] in out.replace(
        *(page(text) for text in (out, again))
    )


def page(text: str) -> str:
    """The line that names the page, which lies in each command's own folder."""
    return next(
        line
        for line in text.splitlines()
        if line.startswith("open ") and line.endswith("search.html")
    )
