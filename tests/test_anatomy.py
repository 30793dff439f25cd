"""Which cause is found for which lost answer."""

from dataclasses import replace
from math import isnan

import pytest
from made_up import chosen as coloured, stopped, written

from slimdown.config.schema import BenchmarkConfig
from slimdown.evaluation.answers import BenchmarkEvaluation, Sample, Score
from slimdown.stats.anatomy import anatomy

STEPS = "There are 3 boxes of 6 pens, so there are 3 * 6 = 18 pens in all. The answer is 18"


def generated(*answers: tuple[str, float, float]) -> BenchmarkEvaluation:
    """Answers as (response, strict score, flexible score)."""
    samples = tuple(
        Sample(
            "task",
            i,
            f"doc{i}",
            f"prompt{i}",
            "How many pens?",
            "18",
            response,
            (),
            (),
            {"strict": response, "flexible": response},
            {"strict": strict, "flexible": flexible},
        )
        for i, (response, strict, flexible) in enumerate(answers)
    )
    config = BenchmarkConfig(task="task", metric="strict", num_fewshot=0, chance=0.0)
    scores = {"strict": Score(0.5, 0.1), "flexible": Score(0.5, 0.1)}
    return BenchmarkEvaluation(config, "1", "hash", scores, samples, 1.0)


def chosen(
    metric: str, *questions: tuple[int, tuple[float, ...]], choices: tuple[str, ...] = ()
) -> BenchmarkEvaluation:
    """Questions as (right choice, log-likelihoods)."""
    choices = choices or ("A", "B", "C", "D")
    samples = []
    for i, (right, likelihoods) in enumerate(questions):
        ranked = [
            v / (len(c) if metric == "acc_norm" else 1)
            for v, c in zip(likelihoods, choices, strict=True)
        ]
        correct = float(ranked.index(max(ranked)) == right)
        samples.append(
            Sample(
                "task",
                i,
                f"d{i}",
                f"p{i}",
                "Which?",
                choices[right],
                "",
                choices,
                likelihoods,
                {metric: ""},
                {metric: correct},
            )
        )
    config = BenchmarkConfig(task="task", metric=metric, num_fewshot=0, chance=0.25)
    return BenchmarkEvaluation(config, "1", "hash", {metric: Score(0.5, 0.1)}, tuple(samples), 1.0)


@pytest.mark.parametrize(
    ("tuned", "cause"),
    [
        (("18", 0, 1), "other_format"),
        (("", 0, 0), "empty"),
        (("  \n", 0, 0), "empty"),
        (("There are 12 pens.", 0, 0), "stopped_early"),
        (
            (
                "There are 3 boxes of 6 pens, so there are 3 + 6 = 9 pens in all. The answer is 9",
                0,
                0,
            ),
            "wrong_result",
        ),
    ],
)
def test_a_lost_answer_has_one_cause_and_an_example(
    tuned: tuple[str, float, float], cause: str
) -> None:
    found = anatomy(generated((STEPS, 1, 1)), generated(tuned))
    assert found.n_lost == 1
    assert {c.name: c.count for c in found.causes if c.count} == {cause: 1}
    (example,) = [c.example for c in found.causes if c.example]
    assert (example.base.response, example.tuned.response) == (STEPS, tuned[0])


def test_shares_are_of_the_lost_answers_with_intervals() -> None:
    base = generated(*[(STEPS, 1, 1)] * 10, ("?", 0, 0))
    tuned = generated(*[("18", 0, 1)] * 6, *[("", 0, 0)] * 2, *[(STEPS, 1, 1)] * 2, (STEPS, 1, 1))
    found = anatomy(base, tuned)
    assert (found.n_right, found.n_lost) == (10, 8)
    shares = {c.name: c.share for c in found.causes}
    assert shares["other_format"] is not None
    assert shares["other_format"].value == 0.75
    assert 0.3 < shares["other_format"].low < 0.75 < shares["other_format"].high < 0.95
    assert found.gained is not None
    assert found.gained.base.response == "?"


def test_what_only_the_stricter_reading_lost_is_found_when_the_looser_one_is_primary() -> None:
    base, tuned = generated((STEPS, 1, 1)), generated(("18", 0, 1))
    loose = replace(base.benchmark, metric="flexible")
    found = anatomy(replace(base, benchmark=loose), replace(tuned, benchmark=loose))
    assert {c.name: c.count for c in found.causes if c.count} == {"other_format": 1}


def test_nothing_lost_has_no_shares() -> None:
    found = anatomy(generated((STEPS, 1, 1)), generated((STEPS, 1, 1)))
    assert found.n_lost == 0
    assert all(c.share is None and c.example is None for c in found.causes)


def test_how_far_the_right_choice_fell_behind() -> None:
    base = chosen(
        "acc",
        (0, (-1.0, -2.0, -5.0, -5.0)),
        (1, (-2.0, -1.0, -5.0, -5.0)),
        (2, (-9.0, -9.0, -1.0, -9.0)),
    )
    tuned = chosen(
        "acc",
        (0, (-2.0, -1.0, -5.0, -5.0)),
        (1, (-1.00, -1.05, -5.0, -5.0)),
        (2, (-9.0, -9.0, -1.0, -9.0)),
    )
    found = anatomy(base, tuned)
    assert {c.name: c.count for c in found.causes} == {"clearly_behind": 1, "nearly_level": 1}
    assert found.choices is not None
    assert found.choices.median_lead_before == pytest.approx(1.0)
    assert found.choices.median_lead_after == pytest.approx((-1.0 - 0.05) / 2)


def test_a_length_normalized_choice_is_ranked_by_length() -> None:
    choices = ("yes", "certainly", "no", "maybe")
    base = chosen(
        "acc_norm", (1, (-3.0, -4.5, -9.0, -9.0)), choices=choices
    )  # -1.0 and -0.5 a character
    tuned = chosen("acc_norm", (1, (-3.0, -18.0, -9.0, -9.0)), choices=choices)  # -1.0 and -2.0
    found = anatomy(base, tuned)
    assert found.n_lost == 1
    assert found.choices is not None
    assert found.choices.median_lead_before == pytest.approx(0.5 * (3 + 9) / 2)
    assert found.choices.median_lead_after == pytest.approx(-1.0 * (3 + 9) / 2)


def test_a_model_that_takes_one_letter_has_collapsed_onto_it() -> None:
    def favouring(letter: int, right: int) -> tuple[int, tuple[float, ...]]:
        return right, tuple(-1.0 if i == letter else -3.0 for i in range(4))

    base = chosen("acc", *[favouring(i % 4, i % 4) for i in range(80)])
    tuned = chosen("acc", *[favouring(2, i % 4) for i in range(80)])
    found = anatomy(base, tuned).choices
    assert found is not None
    assert found.collapsed
    assert (found.position, found.share_before.value, found.share_after.value) == (2, 0.25, 1.0)
    same = anatomy(base, base).choices
    assert same is not None
    assert not same.collapsed


def test_questions_with_several_right_choices_have_no_lead() -> None:
    base = chosen("acc", (0, (-1.0, -2.0, -5.0, -5.0)))
    odd = replace(base, samples=tuple(replace(s, target="[0, 2]") for s in base.samples))
    found = anatomy(odd, odd)
    assert (found.causes, found.choices) == ((), None)


def test_of_what_was_stopped_no_share_has_an_interval_and_a_move_one_that_holds_at_any_look() -> (
    None
):
    base, tuned = (stopped(written(scores), 63) for scores in ([1.0] * 200, [1.0, 0.0] * 100))
    [cause] = [cause for cause in anatomy(base, tuned).causes if cause.count]
    assert cause.share is not None
    assert (cause.share.value, isnan(cause.share.low)) == (1.0, True)
    before, after = ([i % 4 for i in range(200)], [0] * 200)
    whole, cut = (
        anatomy(*(cut(coloured(taken)) for taken in (before, after))).choices
        for cut in (lambda report: report, lambda report: stopped(report, 63))
    )
    assert whole is not None
    assert cut is not None
    assert whole.collapsed
    assert cut.collapsed
    assert cut.drift.low < whole.drift.low
