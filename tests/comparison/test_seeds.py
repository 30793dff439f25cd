"""Several seeds of one configuration: what is noise of the questions, and what of the training."""

from math import isnan, sqrt

import numpy as np
import pytest
from builders import judge_pairs, judge_scores, make_benchmark, make_run, stop_early
from scipy.stats import ttest_1samp
from statsmodels.regression.mixed_linear_model import MixedLM

from slimdown.comparison.run_comparison import average_seeds, compare_runs
from slimdown.stats.seeds import split_noise


def test_training_that_differs_from_seed_to_seed_is_seen_beside_the_questions() -> None:
    draw, kept = np.random.default_rng(0), [0.9, 0.5, 0.7, 0.3]
    seeds = [judge_scores(np.ones(400), (draw.random(400) < share) * 1.0) for share in kept]
    mean = average_seeds([findings.benchmarks["a"] for findings in seeds])
    assert mean.value == pytest.approx(-0.4, abs=0.03)
    assert mean.training_error > 5 * mean.question_error
    assert -1 <= mean.low < -0.4 < mean.high <= 1
    assert mean.sd_over_seeds == pytest.approx(np.std(kept, ddof=1), rel=0.2)


def test_seeds_that_all_do_the_same_leave_only_the_questions() -> None:
    same = judge_scores([1.0, 1.0, 0.0, 0.0] * 50, [1.0, 0.0, 0.0, 1.0] * 50)
    mean = average_seeds([same.benchmarks["a"]] * 3)
    assert mean.training_error == 0
    assert mean.question_error == pytest.approx(mean.standard_error)


def test_seeds_that_answered_other_questions_or_stopped_early_have_no_noise_but_a_mean() -> None:
    scores = [1.0, 0.0] * 100
    whole, few = judge_scores(scores, scores), judge_scores(scores[:50], scores[:50])
    early = judge_scores(scores, stop_early(make_benchmark(scores), 63))
    for unlike in ([whole, few], [early, early]):
        mean = average_seeds([findings.benchmarks["a"] for findings in unlike])
        assert (mean.value, isnan(mean.low), isnan(mean.training_error)) == (0, True, True)


def test_the_variance_between_seeds_agrees_with_statsmodels() -> None:
    draw = np.random.default_rng(6)
    changes = draw.normal(0, 0.5, 6)[:, None] + draw.normal(0, 2, (6, 50))
    # without a part of the questions, the two-way analysis is a random intercept by seed
    fitted = MixedLM(changes.ravel(), np.ones(300), groups=np.repeat(range(6), 50)).fit(reml=True)
    spread = split_noise(changes).training_error * sqrt(6)
    assert spread == pytest.approx(sqrt(float(fitted.cov_re[0, 0])), rel=0.05)


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
@pytest.mark.parametrize("ratio", [0.0, 1.0, 5.0])
def test_the_mean_covers_the_truth_and_its_standard_error(n_seeds: int, ratio: float) -> None:
    draw, covered = np.random.default_rng(n_seeds), []
    spread = ratio * 0.3 / sqrt(200)
    for _ in range(600):
        changes = draw.normal(0, spread, n_seeds)[:, None] + draw.normal(0, 0.3, 200)
        mean = split_noise(changes + draw.normal(0, 0.2, (n_seeds, 200)))
        assert mean.high - mean.low >= 2 * 1.95 * mean.standard_error
        covered.append(mean.low <= 0 <= mean.high)
    assert np.mean(covered) >= 0.92


def test_of_seeds_that_answer_alike_the_interval_is_students() -> None:
    changes = np.random.default_rng(1).normal(0, 0.3, 200)
    mean = split_noise(np.tile(changes, (3, 1)))
    expected = ttest_1samp(changes, 0).confidence_interval()
    assert (mean.low, mean.high) == pytest.approx((expected.low, expected.high))


def test_two_seeds_whose_means_are_equal_have_an_interval() -> None:
    rows = np.zeros((2, 100))
    rows[0, :5], rows[1, 50:55] = -1.0, -1.0
    mean = split_noise(rows, steps=[1])
    assert mean.low < mean.value < mean.high


def test_the_mean_of_benchmarks_is_taken_seed_by_seed() -> None:
    draw, runs, changes = np.random.default_rng(0), [], []
    for seed, shift in enumerate((0.25, 0.0, -0.25)):  # a bad seed is bad on all
        p = [0.2 - shift / 2, 0.6, 0.2 + shift / 2]
        drawn = {name: draw.choice([-1, 0, 1], 60, p=p) for name in "abc"}
        pairs = {n: (np.maximum(0, -c), np.maximum(0, c)) for n, c in drawn.items()}
        runs.append(make_run(judge_pairs(**pairs), seed, seed=str(seed)))
        changes.append(np.mean(list(drawn.values()), axis=0))
    mean = compare_runs(runs).rows[0].retained
    assert mean == split_noise(np.array(changes), steps=[1.0])
    assert mean.training_error > 3 * mean.question_error


def test_the_same_questions_in_two_benchmarks_count_once() -> None:
    draw = np.random.default_rng(3)
    seeds = [judge_scores(np.ones(300), (draw.random(300) < 0.8) * 1.0) for _ in range(3)]
    changes = [findings.benchmarks["a"] for findings in seeds]
    alone, twice = average_seeds(changes), average_seeds(changes, changes)
    assert (twice.low, twice.high) == pytest.approx((alone.low, alone.high))
