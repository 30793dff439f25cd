"""Several seeds of one configuration: what is noise of the questions, and what of the training."""

from math import isnan, sqrt

import numpy as np
import pytest
from made_up import stopped
from statsmodels.regression.mixed_linear_model import MixedLM
from test_changes import benchmark, report

from slimdown.stats.paired import difference, mean
from slimdown.stats.seeds import seed_noise, seeds_changes
from slimdown.utils.errors import SlimdownError


def test_training_that_differs_from_seed_to_seed_is_seen_beside_the_questions() -> None:
    draw = np.random.default_rng(0)
    base = report(a=benchmark([1.0] * 400))
    kept = [0.9, 0.5, 0.7, 0.3]  # of seed to seed: a standard deviation of .26
    pairs = [
        (base, report(a=benchmark((draw.random(400) < share).astype(float).tolist())))
        for share in kept
    ]
    (found,) = seeds_changes(pairs)
    assert (found.benchmark, found.metric, found.n, found.noise.n_seeds) == ("a", "acc", 400, 4)
    assert found.noise.mean.value == pytest.approx(-0.4, abs=0.03)
    assert found.noise.training_spread == pytest.approx(np.std(kept, ddof=1), rel=0.2)
    assert found.noise.training_standard_error > 5 * found.noise.question_standard_error
    assert -1 <= found.noise.mean.low < -0.4 < found.noise.mean.high <= 1


def test_seeds_that_all_do_the_same_leave_only_the_questions() -> None:
    base, tuned = (
        report(a=benchmark([1.0, 1.0, 0.0, 0.0] * 50)),
        report(a=benchmark([1.0, 0.0, 0.0, 1.0] * 50)),
    )
    (found,) = seeds_changes([(base, tuned)] * 3)
    assert found.noise.training_spread == 0
    assert found.noise.question_standard_error == pytest.approx(found.noise.mean.standard_error)


def test_seeds_asked_other_questions_are_refused() -> None:
    one, other = report(a=benchmark([1.0, 0.0])), report(a=benchmark([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="a: the seeds were not asked the same questions"):
        seeds_changes([(one, one), (other, other)])


def test_the_noise_of_clustered_questions_is_that_of_their_clusters() -> None:
    draw = np.random.default_rng(9)
    subjects = [f"subject{i // 50}" for i in range(1000)]
    shared = np.repeat(draw.normal(0, 0.25, 20), 50)
    changes = (shared + draw.normal(0, 0.2, (4, 1000))).tolist()
    alone, grouped = seed_noise(changes), seed_noise(changes, subjects)
    assert grouped.question_standard_error == pytest.approx(0.25 / np.sqrt(20), rel=0.4)
    assert grouped.question_standard_error > 4 * alone.question_standard_error


def test_noise_of_seeds_and_of_questions_are_told_apart() -> None:
    draw = np.random.default_rng(5)
    by_seed, by_question = draw.normal(0, 0.05, 8), draw.normal(0, 0.3, 400)
    changes = -0.1 + by_seed[:, None] + by_question[None, :] + draw.normal(0, 0.2, (8, 400))
    found = seed_noise(changes.tolist())
    assert found.training_standard_error == pytest.approx(by_seed.std(ddof=1) / sqrt(8), abs=0.003)
    assert found.question_standard_error == pytest.approx(0.3 / 20, abs=0.003)
    together = sqrt(found.question_standard_error**2 + found.training_standard_error**2)
    assert found.mean.standard_error == pytest.approx(together)


def test_the_variance_between_seeds_agrees_with_statsmodels() -> None:
    draw = np.random.default_rng(6)
    changes = draw.normal(0, 0.5, 6)[:, None] + draw.normal(0, 2, (6, 50))
    # without a part of the questions, the two-way analysis is a random intercept by seed
    fitted = MixedLM(changes.ravel(), np.ones(300), groups=np.repeat(range(6), 50)).fit(reml=True)
    spread = seed_noise(changes.tolist()).training_standard_error * sqrt(6)
    assert spread == pytest.approx(sqrt(float(fitted.cov_re[0, 0])), rel=0.05)


def test_one_seed_leaves_the_noise_of_training_unknown() -> None:
    found = seed_noise([[0.0, -1.0, 0.0, 1.0]])
    assert isnan(found.training_spread)
    assert found.question_standard_error == pytest.approx(
        mean([0.0, -1.0, 0.0, 1.0]).standard_error
    )


def test_seeds_asked_unlike_questions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seeds were asked \[1, 2\] questions"):
        seed_noise([[0.0], [0.0, 1.0]])


def test_seeds_that_were_asked_until_something_was_known_are_refused() -> None:
    answers = benchmark([1.0, 0.0] * 100)
    whole, cut = report(maths=answers), report(maths=stopped(answers, 63))
    assert seeds_changes([(whole, whole)] * 2)[0].n == 200
    with pytest.raises(
        SlimdownError, match=r"maths was asked until enough was known .*evaluation\.until=all tell it"
    ):
        seeds_changes([(whole, whole), (cut, cut)])


def crossed(
    n_seeds: int, training: float, repeats: int, seed: int, subject: float = 0.0
) -> tuple[list[np.ndarray], list[str] | None]:
    """[n_seeds, n] changes around 0: of the seed, the subject, the question and what is left; and the subjects."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(repeats):
        question = np.repeat(draw.normal(0, subject, 8), 25) + draw.normal(0, 0.3, 200)
        made.append(
            draw.normal(0, training, n_seeds)[:, None]
            + question
            + draw.normal(0, 0.2, (n_seeds, 200))
        )
    return made, [f"s{i // 25}" for i in range(200)] if subject else None


@pytest.mark.parametrize("n_seeds", [2, 3, 8])
@pytest.mark.parametrize("training", [0.0, 0.01, 0.03, 0.1])  # the questions' noise is .023
@pytest.mark.parametrize("subject", [0.0, 0.08])
def test_the_interval_covers_the_truth_as_often_as_it_says(
    n_seeds: int, training: float, subject: float
) -> None:
    made, clusters = crossed(n_seeds, training, 1500, 11, subject)
    found = [seed_noise(changes, clusters).mean for changes in made]
    assert (
        0.93 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.98 + 0.007
    )  # two of its standard errors


@pytest.mark.parametrize("n_seeds", [2, 4])
@pytest.mark.parametrize("training", [0.02, 0.1])
def test_the_spread_from_seed_to_seed_is_as_often_too_large_as_too_small(
    n_seeds: int, training: float
) -> None:
    made, _ = crossed(n_seeds, training, 1500, 12)
    assert (
        0.46
        <= np.mean([seed_noise(changes).training_spread > training for changes in made])
        <= 0.54
    )


def test_one_seed_of_answers_is_as_sure_as_the_difference() -> None:
    before, after = [1.0] * 30 + [0.0] * 30, [1.0] * 28 + [0.0] * 32
    one = seed_noise([[y - x for x, y in zip(before, after, strict=True)]]).mean
    assert one.standard_error == pytest.approx(difference(before, after).standard_error)


def test_seeds_without_any_change_are_not_certainty() -> None:
    graded, counted = seed_noise([[0.5] * 40] * 2), seed_noise([[0.0] * 40] * 2)
    assert isnan(graded.mean.low)
    assert counted.mean.low < -0.02 < 0.02 < counted.mean.high


def test_what_seeds_say_names_what_it_holds_for() -> None:
    changes = [[0.0, -1.0] * 20] * 2
    assert seed_noise(changes).population == "questions like these"
    assert seed_noise(changes, [f"s{i % 4}" for i in range(40)]).population == "these 4 subjects"
