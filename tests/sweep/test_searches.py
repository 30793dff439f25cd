"""A search: what it proposes, how it keeps its budget of forgetting, and how it resumes."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import log
from pathlib import Path
from statistics import median

import joblib
import pytest
from builders import Capture, Compose, Patch, judge_pairs, make_benchmark, make_run, make_scores

from slimdown.comparison.run_records import RunRecord
from slimdown.config.benchmark_config import Role
from slimdown.config.search_config import DimensionConfig
from slimdown.judging.findings import Findings
from slimdown.sweep.command_line import (
    CommandLine,
    CommandPlan,
    ComposedRun,
    compose_runs,
    read_command_line,
)
from slimdown.sweep.jobs import JobOutcome, JobState
from slimdown.sweep.search import Search
from slimdown.sweep.sweeper import Sweep
from slimdown.utils.errors import ConfigError

SPACE = {
    "lora.r": DimensionConfig(choices=[2, 4, 8]),
    "train.learning_rate": DimensionConfig(1e-4, 1e-2, log=True),
    "dataset.pocket_instructions.max_examples": DimensionConfig(10, 1000, log=True),
}
FAILED = JobOutcome(JobState.failed)
# Hydra warns of our launchers' names; the command ignores it, too.
quiet = pytest.mark.filterwarnings(r"ignore:\s*'hydra/launcher:UserWarning")
OpenSearch = Callable[..., Search]


@pytest.fixture
def open_search(tmp_path: Path, monkeypatch: Patch, composed: Compose) -> OpenSearch:
    """Open a search as a command of its own does; its runs are made up, see `finish`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("slimdown.sweep.search.find_run", lambda tracking, run_id: RUNS[run_id])

    def opened(*overrides: str, at_once: int = 1, **space: DimensionConfig) -> Search:
        config = composed("search.n_trials=4", *overrides)
        run = ComposedRun(list(overrides), config)
        plan = CommandPlan([run], space={**SPACE, **space})
        return Search(CommandLine(run.overrides), plan, at_once)

    return opened


def get_values(run: ComposedRun) -> dict[str, str]:
    return dict(text.split("=", 1) for text in run.overrides)


RUNS: dict[str, RunRecord] = {}


def finish(learned: float = 0.1, lost: float = 0.0) -> JobOutcome:
    """Make up a run that learned and lost so much, of 200 questions."""
    run = make_run(judge_changes(round(learned, 2), lost), len(RUNS))
    RUNS[run.run_id] = run
    return JobOutcome(JobState.finished, run.run_id)


@cache
def judge_changes(learned: float, lost: float) -> Findings:
    n_learned, n_lost = round(200 * learned), round(200 * lost)
    skill = [
        make_benchmark(scores, role=Role.target)
        for scores in make_scores(100, 0, n_learned, 100 - n_learned)
    ]
    return judge_pairs(skill=skill, kept=make_scores(100 - n_lost, n_lost, 0, 100))


def make_trials(search: Search, outcomes: list[JobOutcome]) -> list[dict[str, str]]:
    """Let a search propose one trial after another; these are their outcomes."""
    batches, trials = search.propose_batches(), []
    for outcome in outcomes:
        trials.append(get_values(next(batches)[0]))
        search.keep_outcomes([outcome])
    return trials


def test_a_repeated_search_makes_the_same_trials_whatever_failed(open_search: OpenSearch) -> None:
    first = make_trials(open_search(), [FAILED, finish(0.1), finish(0.3)])
    assert make_trials(open_search(), [finish(0.2), finish(0.1), FAILED]) == first
    [file] = Path().glob("mlruns/searches/*.json")
    file.write_text("[{")  # or deleted: they are proposed anew, which needs the same outcomes
    again = [finish(0.2), finish(0.1), finish(0.3)]
    assert make_trials(open_search(), again)[0] == first[0]
    assert make_trials(open_search("search.seed=1"), [finish()])[0] != first[0]


def test_a_trial_whose_findings_cannot_be_read_is_left_out(open_search: OpenSearch) -> None:
    search = open_search()
    outcome = finish()
    RUNS[outcome.run_id] = replace(RUNS[outcome.run_id], findings=None)
    next(search.propose_batches())
    search.keep_outcomes([outcome])
    assert search.study.trials[0].state.name == "FAIL"
    assert search.show() == {}


def test_a_named_study_of_another_space_begins_anew(open_search: OpenSearch) -> None:
    def propose_rates(**space: DimensionConfig) -> list[float]:
        trials = make_trials(open_search("search.study=s", **space), [finish() for _ in range(4)])
        return [float(values["train.learning_rate"]) for values in trials]

    first = propose_rates()
    higher = propose_rates(**{"train.learning_rate": DimensionConfig(0.1, 1.0)})
    assert len(set(higher)) == 4
    assert min(higher) >= 0.1
    assert propose_rates() == first


@pytest.mark.parametrize("content", ["5", "null", '["x"]', '{"a": 1}', '[{"lora.r": 1}]'])
def test_a_damaged_file_of_a_study_is_begun_anew(content: str, open_search: OpenSearch) -> None:
    next(open_search().propose_batches())
    [file] = Path().glob("mlruns/searches/*.json")
    before = file.read_text()
    file.write_text(content)
    next(open_search().propose_batches())
    assert file.read_text() == before


def test_what_a_trial_sets_lies_in_the_space(open_search: OpenSearch) -> None:
    options = {
        "train.args.adam_beta1": DimensionConfig(0.8, 0.99),
        "lora.args.layers_to_transform": DimensionConfig(0, 1),
    }
    trials = next(open_search("search.n_trials=8", at_once=8, **options).propose_batches())
    assert len(trials) == 8
    for values in map(get_values, trials):
        assert values["lora.r"] in ("2", "4", "8")
        assert 1e-4 <= float(rate := values["train.learning_rate"]) <= 1e-2
        assert float(rate) == float(f"{float(rate):.3g}")
        assert 10 <= int(values["dataset.pocket_instructions.max_examples"]) <= 1000
        assert 0.8 <= float(values["train.args.adam_beta1"]) <= 0.99
        assert values["lora.args.layers_to_transform"] in ("0", "1")


def test_another_search_is_another_study(open_search: OpenSearch) -> None:
    settings = ["seed=1", "search.seed=1", "search.max_loss=0.03", "search.n_startup_trials=9"]
    names = {open_search(setting).name for setting in settings} | {open_search().name}
    assert len(names) == 5
    assert open_search("search.n_trials=9").name == open_search().name
    assert open_search(**{"lora.r": DimensionConfig(choices=[2, 4])}).name not in names


def test_a_trial_beyond_its_budget_is_none_to_go_by(open_search: OpenSearch) -> None:
    """If two trials learned equally, the proposals follow the one within the budget."""

    def propose(budget: str) -> float:
        search = open_search(
            f"search.study={budget}",
            f"search.max_loss={budget}",
            "search.n_trials=16",
            "search.n_startup_trials=8",
        )
        rates = []
        for [trial] in search.propose_batches():
            rates.append(rate := float(get_values(trial)["train.learning_rate"]))
            search.keep_outcomes([finish(log(rate / 1e-4) / 10, 0.4 if rate > 1e-3 else 0.0)])
        return median(rates[10:])

    assert propose("0.1") <= 1e-3 < propose("0.9")


UNFIT = {
    "method": DimensionConfig(choices=["lora", "full"]),
    "keep": DimensionConfig(choices=["none", "self_replay"]),
}


def test_a_trial_whose_settings_do_not_fit_is_refused_and_the_search_goes_on(
    open_search: OpenSearch, capsys: Capture
) -> None:
    search = open_search("quantization=none", "search.n_trials=12", **UNFIT)
    proposed = []
    for [run] in search.propose_batches():
        proposed.append((get_values(run)["method"], get_values(run)["keep"]))
        search.keep_outcomes([finish()])
    states = [trial.state.name for trial in search.study.get_trials()]
    assert len(states) == 12
    assert 0 < states.count("FAIL") == 12 - len(proposed)
    assert ("full", "self_replay") not in proposed
    assert capsys.readouterr().out.count("is refused (") == states.count("FAIL")
    search.show()
    assert f"Trial {states.index('FAIL')} was refused" in capsys.readouterr().out


def test_a_search_of_refused_trials_alone_fails(open_search: OpenSearch) -> None:
    search = open_search("quantization=none", "keep=self_replay", **{"method": UNFIT["method"]})
    search.space["method"] = DimensionConfig(choices=["full"])
    assert not list(search.propose_batches())
    with pytest.raises(ConfigError, match="keep=self_replay"):
        search.show()


@quiet
@pytest.mark.parametrize(
    ("settings", "n"),
    [
        ("hydra/launcher=basic", 1),
        ("hydra/launcher=joblib hydra.launcher.n_jobs=3", 3),
        ("hydra/launcher=joblib hydra.launcher.n_jobs=-1", joblib.cpu_count()),
        ("hydra/launcher=submitit_local", 6),  # search.n_startup_trials
        ("hydra/launcher=submitit_local search.at_once=9", 9),
    ],
)
def test_trials_run_together_as_the_launcher_can(settings: str, n: int) -> None:
    line = read_command_line(["-m", "+search.space={lora.r:{choices:[2,4]}}", *settings.split()])
    assert Sweep(line, compose_runs(line)).count_at_once() == n


@quiet
@pytest.mark.parametrize(
    ("launcher", "setting", "answer"),
    [
        ("joblib", "backend=nope", "loky"),  # Hydra starts no other
        ("submitit_local", "timeout_min=0", "at least 1, got 0"),
        ("submitit_local", "mem_gb=-4", "at least 1, got -4"),
        ("submitit_local", "nodes=0", "at least 1, got 0"),
    ],
)
def test_a_launcher_of_nothing_is_refused(launcher: str, setting: str, answer: str) -> None:
    settings = [f"hydra/launcher={launcher}", f"hydra.launcher.{setting}"]
    line = read_command_line(["-m", "seed=1,2", *settings])
    with pytest.raises(ConfigError, match=rf"{setting.partition('=')[0]}.*{answer}"):
        Sweep(line, compose_runs(line))
