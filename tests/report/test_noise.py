"""What two logs of one model say about the engine."""

from dataclasses import replace

import pytest
from builders import make_evaluation, make_scores

from slimdown.judging.findings import judge
from slimdown.report.text import describe_noise, list_caveats


def describe(kept: int, lost: int, gained: int, models: tuple[str, str] = ("m", "m")) -> str:
    scores = make_scores(kept, lost, gained, 10)
    sides = [
        replace(make_evaluation(a=one, b=[1.0] * 50), model=model)
        for one, model in zip(scores, models, strict=True)
    ]
    findings = judge(*sides)
    sentences = list(describe_noise(findings))
    assert [line for line in list_caveats(findings) if line in sentences] == sentences
    return " ".join(sentences)


def test_flips_are_counted_and_the_change_that_they_hide_is_named() -> None:
    said = describe(200, 5, 4)
    assert "the same model, m, but answers flip: 9 of 219 in a, 0 of 50 in b" in said
    [hidden] = [
        float(word) for word in said.split() if word.replace(".", "").isdigit() and "." in word
    ]
    more = describe(200, 15, 14)
    assert 1 < hidden < float(more.partition("below ")[2].partition(" points")[0])


def test_more_flips_one_way_are_no_noise() -> None:
    said = describe(200, 40, 2)
    assert "the engine alone may change" in said
    assert "both directions" not in said


@pytest.mark.parametrize("models", [("m", "m@step1000"), ("", "")])
def test_nothing_is_said_of_two_models_or_of_unnamed_ones(models: tuple[str, str]) -> None:
    assert describe(200, 5, 4, models) == ""


def test_without_flips_every_later_one_is_the_weights() -> None:
    assert "no answer flips" in describe(200, 0, 0)
