"""Several seeds of one configuration: what is noise of the questions, and what of the training."""

import numpy as np
import pytest
from test_forgetting import benchmark, report

from slimdown.seeds import seeds_changes


def test_training_that_differs_from_seed_to_seed_is_seen_beside_the_questions() -> None:
    draw = np.random.default_rng(0)
    base = report(a=benchmark([1.0] * 400))
    kept = [0.9, 0.5, 0.7, 0.3]  # of seed to seed: a standard deviation of .26
    pairs = [(base, report(a=benchmark((draw.random(400) < share).astype(float).tolist()))) for share in kept]
    (found,) = seeds_changes(pairs)
    assert (found.benchmark, found.metric, found.n, found.noise.n_seeds) == ("a", "acc", 400, 4)
    assert found.noise.mean.value == pytest.approx(-0.4, abs=0.03)
    assert found.noise.training_spread == pytest.approx(np.std(kept, ddof=1), abs=0.05)
    assert found.noise.training_standard_error > 5 * found.noise.question_standard_error
    assert -1 <= found.noise.mean.low < -0.4 < found.noise.mean.high <= 1


def test_seeds_that_all_do_the_same_leave_only_the_questions() -> None:
    base, tuned = report(a=benchmark([1.0, 1.0, 0.0, 0.0] * 50)), report(a=benchmark([1.0, 0.0, 0.0, 1.0] * 50))
    (found,) = seeds_changes([(base, tuned)] * 3)
    assert found.noise.training_spread == 0
    assert found.noise.question_standard_error == pytest.approx(found.noise.mean.standard_error)


def test_seeds_asked_other_questions_are_refused() -> None:
    one, other = report(a=benchmark([1.0, 0.0])), report(a=benchmark([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="a: the seeds were not asked the same questions"):
        seeds_changes([(one, one), (other, other)])
