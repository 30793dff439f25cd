"""Traits of generated answers, counted by hand."""

from dataclasses import replace
from math import isnan

import pytest
from builders import change_samples, judge_scores, make_benchmark, make_choice, make_sample

from slimdown.judging.answer_traits import Trait

TEXTS = [
    ("The answer is four", "Four"),
    ("It is four", ""),
    ("It is 4, of course", "I’m sorry, I cannot say"),
    ("It is four", "答えは四です"),
]


def compare(base: list[str], tuned: list[str], answers: list[str]) -> tuple[Trait, ...]:
    plain = make_benchmark([make_sample({"exact": 1.0}, i) for i in range(len(base))])
    read = [{"exact": answer} for answer in answers]
    before = change_samples(plain, response=base, answers={"exact": "four"})
    after = change_samples(plain, response=tuned, answers=read)
    return judge_scores(before, after).benchmarks["a"].traits


def test_each_trait_is_a_mean_or_a_share_with_a_paired_interval() -> None:
    base, tuned = zip(*TEXTS, strict=True)
    traits = {t.name: t for t in compare(list(base), list(tuned), ["four", "", "[invalid]", "四"])}
    assert {n: (t.base, t.tuned) for n, t in traits.items()} == {
        "words": (pytest.approx(15 / 4), pytest.approx(7 / 4)),
        "empty": (0, 0.25),
        "unreadable": (0, 0.5),
        "refusal": (0, 0.25),
        "other script": (0, 0.25),
    }
    assert all(t.low <= t.tuned - t.base <= t.high for n, t in traits.items() if n != "words")


def test_what_never_occurs_is_left_out_and_choices_have_none() -> None:
    [words] = compare(["It is four"] * 3, ["It is four"] * 3, ["four"] * 3)
    assert (words.name, words.base, words.tuned) == ("words", 3, 3)
    choices = make_benchmark([make_choice(i % 4, i) for i in range(8)])
    assert judge_scores(choices, choices).benchmarks["a"].traits == ()


def test_an_answer_that_may_run_on_is_allowed_for_though_none_did() -> None:
    base, tuned = (
        [make_sample({"exact": 1.0}, i, response="it is four " * n) for i in range(40)]
        for n in (9, 4)
    )
    words = {}
    for limit in (None, 64, 256):
        sides = [replace(make_benchmark(side), max_new_tokens=limit) for side in (base, tuned)]
        [words[limit]] = judge_scores(*sides).benchmarks["a"].traits
    assert isnan(words[None].low)
    assert isnan(words[None].high)
    assert words[64].high < 0 < words[256].high
