"""Which cause is found for which lost answer."""

import pytest
from builders import (
    change_samples,
    make_benchmark,
    make_choice,
    make_evaluation,
    make_sample,
    stop_early,
)

from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.judging.answer_traits import compare_behaviour
from slimdown.judging.losses import LossBreakdown, break_down_losses
from slimdown.judging.pairing import pair_evaluations

STEPS = "There are 3 boxes of 6 pens, so there are 3 * 6 = 18 pens in all. The answer is 18"
WRONG = "There are 3 boxes of 6 pens, so there are 3 + 6 = 9 pens in all. The answer is 9"


def break_down(
    base: BenchmarkEvaluation, tuned: BenchmarkEvaluation, is_loss_shown: bool = True
) -> LossBreakdown:
    pairs = pair_evaluations(make_evaluation(a=base), make_evaluation(a=tuned))
    return break_down_losses(pairs["a"], is_loss_shown)


def written(*answers: tuple[str, float, float], metric: str = "strict") -> BenchmarkEvaluation:
    """Answers as (response, strict score, flexible score)."""
    samples = [
        make_sample({"strict": strict, "flexible": flexible}, i, response=response)
        for i, (response, strict, flexible) in enumerate(answers)
    ]
    return make_benchmark(samples, metric=metric)


@pytest.mark.parametrize(
    ("tuned", "cause"),
    [
        (("18", 0, 1), "other_format"),
        (("  \n", 0, 0), "empty"),
        (("There are 12 pens.", 0, 0), "stopped_early"),
        ((WRONG, 0, 0), "wrong_result"),
    ],
)
@pytest.mark.parametrize("metric", ["strict", "flexible"])
def test_a_loss_has_one_cause(tuned: tuple[str, float, float], cause: str, metric: str) -> None:
    """That also holds where only the stricter reading lost it and the looser one is primary."""
    losses = break_down(written((STEPS, 1, 1), metric=metric), written(tuned, metric=metric))
    assert losses.n_lost == 1
    assert {c.name: c.count for c in losses.causes if c.count} == {cause: 1}
    (example,) = [c.example for c in losses.causes if c.example]
    assert (example.base.response, example.tuned.response) == (STEPS, tuned[0])


def test_answers_that_were_not_logged_have_no_cause() -> None:
    base, tuned = written(*[("", 1, 1)] * 6), written(*[("", 0, 0)] * 6)
    lost = break_down(base, tuned)
    assert (lost.n_lost, lost.causes, lost.main_cause) == (6, (), None)
    [pair] = pair_evaluations(make_evaluation(a=base), make_evaluation(a=tuned)).values()
    assert compare_behaviour(pair) == ()


def test_shares_are_of_the_lost_answers_and_a_cause_is_named_where_a_loss_is_shown() -> None:
    base = written(*[(STEPS, 1, 1)] * 10, ("?", 0, 0))
    tuned = written(*[("18", 0, 1)] * 6, *[("", 0, 0)] * 2, *[(STEPS, 1, 1)] * 3)
    losses = break_down(base, tuned)
    assert (losses.n_right, losses.n_lost) == (10, 8)
    assert {c.name: c.share for c in losses.causes}["other_format"] == 0.75
    assert losses.gained.base.response == "?"
    assert losses.main_cause == ("other_format", 0.75)
    assert break_down(base, tuned, is_loss_shown=False).main_cause is None
    few = break_down(written((STEPS, 1, 1)), written(("", 0, 0)))
    assert few.main_cause is None


def test_a_length_normalized_choice_is_ranked_by_length() -> None:
    question = {"choices": ("yes", "certainly", "no", "maybe"), "target": "certainly"}
    sides = []
    # "yes" has -1.0 a character, and "certainly" -0.5, then -2.0
    for certainly, answer in ((-4.5, "certainly"), (-18.0, "yes")):
        fields = {"log_likelihoods": (-3.0, certainly, -9.0, -9.0), "answers": {"acc_norm": answer}}
        score = float(answer == "certainly")
        sides.append(make_benchmark([make_sample({"acc_norm": score}, **question, **fields)]))
    losses = break_down(sides[0], sides[1])
    assert {c.name: c.count for c in losses.causes} == {"nearly_level": 0, "clearly_behind": 1}


def test_a_model_that_takes_one_letter_has_collapsed_onto_it() -> None:
    base = make_benchmark([make_choice(i % 4, i) for i in range(200)])
    tuned = make_benchmark([make_choice(2, i) for i in range(200)])
    shift, same = break_down(base, tuned).choices, break_down(base, base).choices
    early = break_down(base, stop_early(tuned, 63)).choices
    assert shift.collapsed  # type: ignore[union-attr]
    assert early.collapsed  # type: ignore[union-attr]
    assert not same.collapsed  # type: ignore[union-attr]
    assert (shift.position, shift.share_before, shift.share_after) == (2, 0.25, 1.0)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "fields", [{"target": "[0, 2]"}, {"choices": ("red",) * 4, "target": "red"}]
)
def test_several_right_choices_or_such_as_read_alike_have_no_lead(fields: dict[str, str]) -> None:
    odd = change_samples(make_benchmark([make_choice(0)]), **fields)
    losses = break_down(odd, odd)
    assert (losses.causes, losses.choices) == ((), None)
