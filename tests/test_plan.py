"""What `--plan` says beside what the run then does; and that it leaves nothing behind."""

import json
import re
from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import TRAINING
from commands_and_runs import call_verb, succeed
from mlflow.artifacts import download_artifacts
from record_builders import Patch

from slimdown.evaluation.results import Cost, Work
from slimdown.report.run_plan import (
    PlannedPart,
    RunPlan,
    describe_plan,
    plan_table,
    summarize_plans,
)
from slimdown.report.tables import write_table
from slimdown.runs.experiment import list_costs
from slimdown.runs.planning import measure_free_disk, plan_run
from slimdown.sweep.command_line import compose_runs, read_command_line
from slimdown.tracking.costs import estimate_seconds
from slimdown.tracking.run_reader import find_runs
from slimdown.training.result import StepLog

FEW = [
    "dataset.pocket_instructions.max_examples=60",
    "dataset.pocket_instructions.validation_examples=6",
    "train.max_steps=3",
    "benchmark=[pocket_cs,pocket_math]",
    "benchmark.pocket_cs.limit=10",
    "benchmark.pocket_math.limit=10",
]


@pytest.fixture(scope="module")
def folder(recorded: Path) -> Path:
    """Where one run was planned and made, with a record that is the demo's."""
    succeed(recorded, "run", *FEW)
    return recorded


@pytest.fixture
def plan(folder: Path, monkeypatch: Patch) -> RunPlan:
    monkeypatch.chdir(folder)
    config = compose_runs(read_command_line([*FEW, "seed=1"])).runs[0].config
    return plan_run(config, "here")


def test_a_plan_refuses_rows_that_hold_the_questions(tmp_path: Path) -> None:
    question = "Which river flows through the old town, and into which one does it flow?"
    rows = [{"instruction": f"{question} ({i})", "output": "The Neckar."} for i in range(30)]
    for name, records in (
        ("rows", rows),
        ("quiz", [{"question": question, "answer": "The Neckar."}]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    done = call_verb(tmp_path, "run", "dataset=rows.jsonl", "benchmark=quiz.jsonl", "--plan")
    assert done.returncode == 1
    assert "quiz: 1 of 1 " in done.stderr


def test_a_plan_counts_what_the_run_then_does(folder: Path, plan: RunPlan) -> None:
    config = compose_runs(read_command_line(FEW)).runs[0].config
    [run] = find_runs(config.tracking)
    file = download_artifacts(f"{run.artifact_uri}/costs.json")
    costs = [Cost(**cost) for cost in json.loads(Path(file).read_bytes())["costs"]]
    planned_costs = {part.cost.name: part.cost for part in plan.parts if part.part == "tuned"}
    for cost in costs:
        if cost.work in ("choices", "answers"):
            planned = planned_costs[cost.name]
            assert (planned.n, planned.prompt_tokens) == (cost.n, cost.prompt_tokens)
            assert cost.new_tokens <= planned.new_tokens
    [steps] = [cost for cost in costs if cost.work == "steps"]
    [training] = [part.cost for part in plan.parts if part.part == "train"]
    assert training.n == steps.n == 3
    assert training.prompt_tokens == pytest.approx(steps.prompt_tokens, rel=0.3)  # other rows


def test_what_the_record_has_takes_no_time_and_its_rates_tell_the_rest(plan: RunPlan) -> None:
    assert all(part.is_recorded for part in plan.parts if part.part == "base")
    assert plan.seconds > 0
    assert re.fullmatch(r"run [0-9a-f]{8}", plan.rates)
    assert summarize_plans([plan]).startswith("About ")
    assert "in the record" in summarize_plans([plan])


def test_jobs_that_do_the_same_are_planned_once(folder: Path) -> None:
    values = ["seed=0,1,2", "train.learning_rate=1e-3,2e-3"]
    done = succeed(folder, "run", "-m", *FEW, *values, "--plan")
    assert "for each of 6 runs" in done.stdout
    others = [*FEW[:4], "benchmark.pocket_cs.limit=9", *FEW[5:]]
    done = call_verb(folder, "run", "-m", *others, "method=lora,ia3", "--plan")
    assert done.stdout.count("as above") == 1  # the other benchmark is in the record
    done = call_verb(folder, "run", *FEW, "--plan")
    assert not re.search("^(base|train|tuned) ", done.stdout, re.MULTILINE)  # nothing is left


def test_a_batch_of_each_kind_of_work_tells_the_time_and_leaves_nothing(tmp_path: Path) -> None:
    done = succeed(tmp_path, "run", *FEW, "--plan=try")
    assert "About " in done.stdout
    assert "tried here" in done.stdout
    assert " ?" not in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan=now"], "--plan, or --plan=try"),
        (["--plan="], "--plan, or --plan=try"),
        (["--plan", "lora.rr=8"], "did you mean lora.r"),
    ],
)
def test_a_mistake_of_a_plan_is_told(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = call_verb(tmp_path, "run", *FEW, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_equal_work_tells_the_time() -> None:
    answers = Cost("math", Work.answers, 100, 5_000, 2_000, 10.0)
    assert estimate_seconds(Cost("math", Work.answers, 50, 9_000, 9_000), answers) == 5.0
    assert estimate_seconds(Cost("code", Work.answers, 100, 5_000, 4_000), answers) == 10.0
    assert estimate_seconds(Cost("code", Work.answers, 100, 5_000, 1_000), answers) == 5.0
    choices = Cost("cs", Work.choices, 100, 5_000, 0, 10.0)
    assert estimate_seconds(Cost("law", Work.choices, 10, 10_000, 0), choices) == 20.0
    assert isnan(estimate_seconds(choices, None))


def test_a_resumed_training_costs_the_steps_that_it_took_itself() -> None:
    history = tuple(StepLog(step, {}) for step in range(100))
    speed: dict[str, Any] = {"runtime_seconds": 50.0, "tokens_per_second": 200.0}
    whole = replace(TRAINING, tokens=10_000, history=history, **speed)
    resumed = replace(whole, runtime_seconds=5.0)  # 10 of the 100 steps, at the same speed
    for training, n_steps in ((whole, 100), (resumed, 10)):
        [steps, _] = list_costs([], training, began=0.0)
        assert (steps.work, steps.n, steps.prompt_tokens) == (Work.steps, n_steps, 100 * n_steps)


def test_the_free_disk_is_that_of_the_record(tmp_path: Path, monkeypatch: Patch) -> None:
    def measure(path: str) -> SimpleNamespace:
        return SimpleNamespace(free=len(path))

    monkeypatch.setattr("psutil.disk_usage", measure)
    assert measure_free_disk(tmp_path / "not" / "made") == len(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert measure_free_disk(Path("mlruns")) == len(str(tmp_path))


def test_a_long_plan_names_what_shortens_it_most() -> None:
    parts = [
        PlannedPart("base", Cost("a", Work.choices, 1_000, 10, 0, 900.0), "1,000 questions"),
        PlannedPart("train", Cost("", Work.steps, 50, 10, 0, 7200.0), "50 steps"),
        PlannedPart("tuned", Cost("a", Work.choices, 1_000, 10, 0, 900.0), "1,000 questions"),
        PlannedPart("rest", Cost("", Work.other, 1, 0, 0, 90_000.0), "loading"),
    ]
    [*_, line] = describe_plan(RunPlan("", parts))
    choices = re.findall(r"([\w.]+=\d+) \(−(\d+ \w+)", line)
    assert choices == [("train.max_steps=25", "1 h"), ("benchmark.a.limit=200", "24 min")]
    assert not list(describe_plan(RunPlan("", parts[:1])))  # a quarter of an hour on a GPU
    group = PlannedPart("base", replace(parts[0].cost, n=570), "570 questions", n_tasks=57)
    [line] = describe_plan(RunPlan("", [group], on_cpu=True))
    assert "benchmark.a.limit=3 (" in line  # of each task
    server = PlannedPart("tuned", replace(group.cost, work=Work.server), "570 questions")
    [line] = describe_plan(RunPlan("", [group, server], on_cpu=True))
    assert re.findall(r"([\w.]+=\d+) \(−(\d+ \w+)", line) == [("benchmark.a.limit=3", "21 min")]
    two = RunPlan("", parts, n_equal=2)
    assert two.seconds == 900 + 2 * (7200 + 900 + 90_000)


def test_what_is_not_known_is_said() -> None:
    part = PlannedPart("tuned", Cost("a", Work.choices, 10, 2_500_000, 0, nan), "10 questions")
    plan = RunPlan("", [part])
    assert "--plan=try" in summarize_plans([plan])
    assert "2.5M" in write_table(plan_table(plan), "markdown")
    known = PlannedPart("base", replace(part.cost, seconds=120.0), "10 questions")
    assert summarize_plans([RunPlan("", [known, part], n_equal=3)]).startswith("At least 2 min")
