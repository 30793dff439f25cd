"""Asking in stages: in which order, how far each goes, and that what is asked is what a whole evaluation asks."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from made_up import written

from slimdown.guarding.errors import ConfigError
from slimdown.measuring.answers import read_samples, write_samples
from slimdown.measuring.order import order_of, stages_of
from slimdown.settings.commandline import check_command_line
from slimdown.settings.schema import RunConfig, Until

Composed = Callable[..., RunConfig]


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 38, 45, 100, 1319, 10042])
def test_stages_grow_to_all_questions(n: int) -> None:
    stages = stages_of(n)
    assert stages[-1] == n
    assert list(stages) == sorted(set(stages))
    assert all(later < 1.8 * earlier for earlier, later in pairwise(stages))


def test_the_first_questions_hold_each_task_in_proportion() -> None:
    sizes = {"physics": 100, "law": 1500, "art": 7}
    order = order_of({task: [f"question {i}" for i in range(size)] for task, size in sizes.items()})
    assert sorted(order) == sorted((task, i) for task, size in sizes.items() for i in range(size))
    for n in stages_of(len(order)):
        first = [task for task, _ in order[:n]]
        for task, size in sizes.items():
            assert abs(first.count(task) - n * size / len(order)) < 2, (task, n)


def test_small_tasks_are_among_the_first_questions_too() -> None:
    sizes = {"law": 1500, "history": 1500} | {f"small {i}": 100 for i in range(40)}
    order = order_of({task: [f"question {i}" for i in range(size)] for task, size in sizes.items()})
    small = sum(task.startswith("small") for task, _ in order[:32])
    assert abs(small - 32 * 4000 / 7000) < 7


def test_a_tasks_order_depends_on_its_own_questions_alone() -> None:
    texts = [f"question {i}" for i in range(50)]
    alone = [texts[place] for _, place in order_of({"law": texts})]
    assert alone != texts
    turned = list(reversed(texts))
    beside = order_of({"art": ["a", "b", "c"], "law": turned})
    assert [turned[place] for task, place in beside if task == "law"] == alone
    assert [texts[place] for _, place in order_of({"law": texts[:20]})] == [
        text for text in alone if text in texts[:20]
    ]


def test_a_file_of_samples_says_when_they_were_looked_at(tmp_path: Path) -> None:
    whole = written([1.0] * 40)
    stopped = replace(whole, samples=tuple(reversed(whole.samples)), stages=(32, 40), n_available=200)
    for report in (whole, stopped):
        write_samples(tmp_path / "samples.parquet", "base", "written", report)
        assert read_samples(tmp_path / "samples.parquet", whole.benchmark) == report


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["evaluation.until=soon"], "evaluation.until"),
        (["evaluation.until=decided", "evaluation.holdout=0.5"], "set one of the two"),
        (["evaluation.until=budget", "evaluation.holdout=0.5"], "set one of the two"),
        (
            ["benchmark.pocket_cs.max_loss=2"],
            "max_loss must be a share from 0 up to, not including, 1 (",
        ),
        (["benchmark.pocket_cs.max_loss=-0.1"], "benchmark.pocket_cs.max_loss must be a share"),
        (["evaluation.until=budget", "benchmark=[pocket_instructions]"], "benchmark.pocket_instructions.max_loss=0.02"),
        (
            ["-m", "evaluation.until=decided", "+search.space={lora.r:{choices:[2,4]}}"],
            "a search compares its trials by their scores",
        ),
    ],
)
def test_what_cannot_be_stopped_so_is_refused_on_the_command_line(given: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        check_command_line(given)


def test_a_budget_may_be_given_and_is_that_of_what_is_to_be_retained_otherwise(composed: Composed) -> None:
    assert composed().evaluation.until is Until.all
    assert composed("evaluation.until=budget").benchmark["pocket_cs"].max_loss is None
    budget = ["benchmark=[pocket_instructions]", "benchmark.pocket_instructions.max_loss=0"]
    target = composed("evaluation.until=budget", *budget)
    assert target.benchmark["pocket_instructions"].max_loss == 0
