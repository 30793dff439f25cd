"""What a person reads says what it means."""

from collections.abc import Callable
from math import inf, nan

import pytest
from test_changes import answers, benchmark, report as evaluation

from slimdown.config.schema import RunConfig
from slimdown.report import console, words
from slimdown.stats.changes import Changes, changes_between
from slimdown.stats.paired import Estimate


def test_brackets_of_a_run_name_are_shown(composed: Callable[..., RunConfig]) -> None:
    with console.console.capture() as shown:
        console.show_plan(
            composed("lora.target_modules=[q_proj]"), "pocket lora.target_modules=[q_proj]"
        )
    assert "pocket lora.target_modules=[q_proj]" in shown.get()
    assert "r 8, alpha 16, q_proj" in shown.get()


def test_an_address_is_shown_as_it_is() -> None:
    with console.console.capture() as shown:
        console.show_where("1", "sqlite:///[/x]/mlflow.db", "file:///[red]/artifacts", "")
    assert "file:///[red]/artifacts/report.html" in shown.get()
    assert "sqlite:///[/x]/mlflow.db" in shown.get()


def of_subjects(n_subjects: int) -> Changes:
    before, after = answers(kept=300, lost=100, gained=10, missed=90)
    names = [f"subject{i % n_subjects}" for i in range(500)]
    return changes_between(
        evaluation(a=benchmark(before, subjects=names)),
        evaluation(a=benchmark(after, subjects=names)),
    )


@pytest.mark.parametrize(
    ("n_subjects", "said"),
    [
        (1, "Forgotten: a (−18.0 points)."),
        (4, "Forgotten: a (−18.0 points, for these 4 subjects)."),
        (5, "Forgotten: a (−18.0 points, for subjects like these 5)."),
    ],
)
def test_a_sentence_says_which_subjects_it_holds_for(n_subjects: int, said: str) -> None:
    assert words.summary(of_subjects(n_subjects)) == [said]


def test_the_legend_says_which_errors_are_held_and_that_a_seed_is_one() -> None:
    assert "for this checkpoint: another seed trains another model" in words.LEGEND
    assert (
        "any false claim of change is 5 % at most, that of any false claim of none 5 % as well"
        in words.LEGEND
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "any possible"),
        (Estimate(nan, nan, 0.125, inf), "at least 12.5 %"),
        (Estimate(nan, nan, -inf, -0.5), "at most −50.0 %"),
    ],
)
def test_a_rate_that_cannot_be_told_is_no_number(found: Estimate | None, said: str) -> None:
    assert words.rate(of_subjects(1).benchmarks["a"], found, "chance") == (
        said,
        "",
        "base not shown above chance",
    )
