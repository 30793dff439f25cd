"""A search: what it may propose, how it heeds its budget of forgetting, what it goes on from after a kill."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL
from mlflow import MlflowClient
from recorded import here

from slimdown.guarding.errors import ConfigError, Pruned, UserError
from slimdown.preparing.data import load_data
from slimdown.preparing.model import load_model
from slimdown.recording.read import read_run, refuse_unfinished
from slimdown.recording.write import TrackedRun
from slimdown.settings import search
from slimdown.settings.commandline import check_command_line
from slimdown.settings.schema import RunConfig
from slimdown.settings.sweeps import parsed
from slimdown.training.fine_tune import TrainResult, fine_tune
from slimdown.training.rows import prepare_rows
from slimdown.training.watching import Watch

Composed = Callable[..., RunConfig]
RANKS = "+search.space={lora.r:{choices:[2,4]}}"


# --- what may be searched ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([RANKS], "a search is many runs; begin it with -m"),
        (["-m", "search.n_trials=3"], "search.n_trials=3: nothing is searched; name settings and values in search.sp"),
        (["-m", "+search.space={lora.rr:{low:1,high:2}}"], "search.space: lora.rr is not a setting; did you mean lora"),
        (["-m", "+search.space={lora.r:{low:4,high:2}}"], "search.space.lora.r.low=4 must be below high=2"),
        (["-m", "+search.space={lora.r:{low:4}}"], "search.space.lora.r.low and high, or choices, must be set"),
        (["-m", "+search.space={lora.r:{choices:[]}}"], "search.space.lora.r.low and high, or choices, must be set"),
        (
            ["-m", "+search.space={lora.r:{choices:null}}"],
            "search: field 'search.space.lora.r.choices' is not Optional",
        ),
        (
            ["-m", "+search.space={lora.r:{choices:[2],low:1}}"],
            "search.space.lora.r.choices: a range (low) is given to",
        ),
        (["-m", "+search.space={lora.r:{low:a,high:3}}"], "search.space.lora.r.low='a': the ends of a range are numb"),
        (["-m", "+search.space={train.learning_rate:{low:0,high:1,log:true}}"], "log=true needs numbers above 0"),
        (["-m", "+search.space={lora.r:{low:1,high:2.5}}"], "lora.r=2.5: Value '2.5' of type 'float' could not be"),
        (["-m", "+search.space={lora.r:{choices:[2,1000]}}"], "lora.r=1000: no matrix of pocket:model has more than"),
        (["-m", "+search.space={train.optim:{low:1,high:2}}"], "search.space: train.optim is no number and has no r"),
        (["-m", "+search.space={evaluation.holdout:{low:0,high:0.5}}"], "evaluation.holdout is not searched"),
        (["-m", RANKS, "seed=0,1"], "search.space: seed is not searched: it is no setting of what is trained"),
        (["-m", RANKS, "search.max_loss=3"], "search.max_loss must be a share from 0 up to 1 (0.03 is three points)"),
        (["-m", RANKS, "search.storage=here"], "search.storage=here is no database's URL; give one such as sqlite:"),
        (["-m", RANKS, "lora.r=4"], "search.space: each of its settings is given on the command line; leave one out"),
        (["-m", RANKS, "tuned=./mine"], "tuned=./mine is measured as it is: nothing is trained that could be search"),
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
    [(None, "a search needs Optuna, which is not installed"), ("4.6.0", "a search needs Optuna 5 or later, found 4.6")],
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
    space = {"lora.r": search.DimensionConfig(choices=[2, 4]), "lora.lora_alpha": search.DimensionConfig(8, 32)}
    line = ["lora.r=8", "train.learning_rate=tag(log,interval(1e-4,1e-2))", "lora.target_modules=[q_proj],[v_proj]"]
    found = search.searched(space, [parsed(text) for text in line])
    assert list(found) == ["lora.lora_alpha", "train.learning_rate", "lora.target_modules"]
    assert found["train.learning_rate"] == search.DimensionConfig(1e-4, 1e-2, log=True)
    assert found["lora.target_modules"].values() == ["[q_proj]", "[v_proj]"]


# --- what is watched and pruned ----------------------------------------------------------------------------


def trained(config: RunConfig, folder: Path, watch: Watch | None = None) -> TrainResult:
    base = load_model(config.model, config.quantization)
    rows = prepare_rows(base, load_data(config.dataset, config.seed, base.tokenizer), config.train)
    found = fine_tune(base, rows, config.method, config.lora, config.train, config.seed, folder, watch=watch).training
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
    losses = [plain.validation_loss_before, *(loss for _, loss in seen), plain.validation_loss_after]
    assert losses == sorted(losses, reverse=True)


def test_the_loss_that_is_watched_is_the_one_that_is_recorded(composed: Composed, tmp_path: Path) -> None:
    config = composed(*SMALL, "train.learning_rate=1e-12", "train.per_device_eval_batch_size=7")
    seen: list[float] = []
    found = trained(config, tmp_path, lambda share, loss: seen.append(loss))
    assert seen == pytest.approx([found.validation_loss_before] * 3, rel=1e-5)


def test_a_pruned_run_says_so_and_is_no_failure(store: MlflowClient) -> None:
    with pytest.raises(Pruned) as ended, TrackedRun(here(), "slow", "tuned", {}) as tracked:
        raise Pruned("pruned after 25% of its steps: its validation loss is too high")
    assert "marked KILLED" in ended.value.__notes__[0]
    run = read_run(here(), tracked.run_id)
    assert run.status == "KILLED"
    with pytest.raises(UserError, match="was stopped: pruned after 25% of its steps"):
        refuse_unfinished(run)
