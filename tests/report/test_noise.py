"""What two logs of one model say about the engine."""

import re
from dataclasses import replace

import pytest
from builders import make_evaluation, make_scores

from slimdown.judging.findings import judge
from slimdown.report.text import describe_noise, list_caveats


def describe(kept: int, lost: int, gained: int, models: tuple[str, str] = ("m", "m")) -> str:
    scores = make_scores(kept, lost, gained, 10)
    base, tuned = (make_evaluation(a=a, b=[1.0] * 50) for a in scores)
    findings = judge(replace(base, model=models[0]), replace(tuned, model=models[1]))
    sentences = list(describe_noise(findings))
    assert [line for line in list_caveats(findings) if line in sentences] == sentences
    return " ".join(sentences)


def test_flips_are_counted_and_the_change_that_they_hide_is_named() -> None:
    few, many = describe(200, 5, 4), describe(200, 15, 14)
    assert re.findall(r"(\d+) of (\d+) in (\w)", few) == [("9", "219", "a"), ("0", "50", "b")]
    [hidden] = re.findall(r"\d+\.\d+", few)
    [hidden_by_many] = re.findall(r"below (\S+) points", many)
    assert 1 < float(hidden) < float(hidden_by_many)


def test_more_flips_one_way_are_no_noise() -> None:
    sentences = describe(200, 40, 2)
    assert "engine" in sentences
    assert "both directions" not in sentences


@pytest.mark.parametrize("models", [("m", "m@step1000"), ("", "")])
def test_nothing_is_said_of_two_models_or_of_unnamed_ones(models: tuple[str, str]) -> None:
    assert describe(200, 5, 4, models) == ""


def test_without_flips_every_later_one_is_the_weights() -> None:
    assert "no answer flips" in describe(200, 0, 0)
