"""Stopping early: what is said at a look holds however long one went on looking.

The chances come from published tables, the verdicts from simulation, and `ville` is another's test of the same.
"""

import numpy as np
import pytest
import ville
from scipy.special import ndtr
from scipy.stats import binom, multinomial

from slimdown.evaluation.order import stages_of
from slimdown.stats.paired import difference
from slimdown.stats.sequential import (
    _LOG_RATIOS,
    _chance_of_any,
    _Counts,
    _Full,
    _log_chances,
    _shares,
    sequential_difference,
)

MARGIN = 0.02


def answers(
    n: int, lost: float, gained: float, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Scores before and after, of which such shares are lost and gained."""
    cells = draw.choice(4, size=n, p=[0.5 - lost, lost, gained, 0.5 - gained])
    return (cells < 2).astype(float), ((cells == 0) | (cells == 2)).astype(float)


# --- the chance of being beyond a bound at any look -----------------------------------------------------


@pytest.mark.parametrize(("looks", "bound"), [(1, 1.960), (2, 2.178), (5, 2.413), (10, 2.555)])
def test_pococks_bounds_leave_five_percent(looks: int, bound: float):
    levels = np.full(looks, ndtr(-bound))  # Jennison and Turnbull 2000, table 2.1
    assert 2 * _chance_of_any(levels, tuple(range(1, looks + 1))) == pytest.approx(0.05, abs=0.0002)


@pytest.mark.parametrize(("looks", "last"), [(2, 1.977), (5, 2.040), (10, 2.087)])
def test_obriens_and_flemings_bounds_leave_five_percent(looks: int, last: float):
    levels = ndtr(-last * np.sqrt(looks / np.arange(1, looks + 1)))  # the same, table 2.3
    assert 2 * _chance_of_any(levels, tuple(range(1, looks + 1))) == pytest.approx(0.05, abs=0.0002)


def test_a_look_that_adds_almost_nothing_is_charged_in_full():
    assert _chance_of_any(np.array([0.01, 0.02, 0.02]), (100, 101, 102)) == pytest.approx(0.05)


# --- what counts of lost and gained answers say at one look ---------------------------------------------


def test_a_loss_that_was_never_seen_is_ruled_out_by_hand():
    """Of 300 answers none flipped, half a loss is added: 0.5 against 2 % of 300.5, and 300 against the other 98 %."""
    nats = 0.5 * np.log(0.5 / (0.02 * 300.5)) + 300 * np.log(300 / (0.98 * 300.5))
    assert _Counts(0, 0, 300).p_value_above(-MARGIN) == pytest.approx(ndtr(-np.sqrt(2 * nats)))


@pytest.mark.parametrize("change", [0.0, -0.02, 0.02, -0.1])
def test_counts_as_rare_as_their_level_are_no_more_frequent_by_exact_count(change: float):
    n = 60
    tables = [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]
    p = np.array([_Counts(*table, n).p_value_below(change) for table in tables])
    counts = np.array([(lost, gained, n - lost - gained) for lost, gained in tables])
    for few in (0.001, 0.01, 0.05, 0.15, 0.3):
        shares = [few + max(0, -change), few + max(0, change)]
        likely = multinomial.pmf(counts, n, [*shares, 1 - sum(shares)])
        for level in (0.03, 0.01, 0.001, 0.0001):
            assert likely[p <= level].sum() <= level


@pytest.mark.parametrize("n", [200, 300, 600, 1319])
@pytest.mark.parametrize(("margin", "error"), [(0.02, 0.05), (0.05, 0.05), (0.05, 0.0125)])
def test_losses_alone_of_the_margin_are_called_retained_within_the_error_by_exact_count(
    n: int, margin: float, error: float
):
    """Where nothing is gained p-values are coarse, and one of a look can be too small by two fifths; all looks not."""
    plan = stages_of(n)
    ratio = np.exp(np.interp(np.log(error), _log_chances(plan), _LOG_RATIOS))
    likely, retained, asked = (
        np.ones(1),
        0.0,
        0,
    )  # of each number of losses, where it is not yet called so
    for stage, share in zip(plan, _shares(plan), strict=True):
        new = np.arange(stage - asked + 1)
        likely, asked = np.convolve(likely, binom.pmf(new, len(new) - 1, margin)), stage
        for lost in range(int(margin * stage) + 1):
            test = _Counts(lost, 0, stage) if stage < n else _Full(difference(*lost_of(lost, n)))
            if test.p_value_above(-margin) > ratio * share:
                break
            retained, likely[lost] = retained + likely[lost], 0.0
    assert retained <= error


def lost_of(lost: int, n: int) -> tuple[list[float], list[float]]:
    """Scores of which so many are lost."""
    return [1.0] * n, [0.0] * lost + [1.0] * (n - lost)


# --- 0/1 scores -----------------------------------------------------------------------------------------


def test_questions_asked_at_once_are_tested_as_today():
    before, after = answers(30, 0.4, 0.1, np.random.default_rng(0))
    full, found = difference(before, after), sequential_difference(before, after, None, (30,), 30)
    assert found.p_value == pytest.approx(full.p_value)
    assert found.p_value_above(-0.5) == pytest.approx(full.p_value_above(-0.5))


def test_a_collapse_is_shown_after_few_questions_with_an_interval_that_holds_it():
    before, after = answers(1000, 0.3, 0.01, np.random.default_rng(0))
    stages = stages_of(1000)[:4]
    d = sequential_difference(before[: stages[-1]], after[: stages[-1]], None, stages, 1000)
    assert d.p_value < 0.001
    assert d.low < -0.29 < d.high < 0
    assert d.n == stages[-1]


def test_the_interval_ends_where_the_tests_do():
    before, after = answers(200, 0.2, 0.1, np.random.default_rng(5))
    stages = (32, 63, 200)
    d = sequential_difference(before, after, None, stages, 600)
    assert d.p_value_above(d.low) == pytest.approx(0.025, abs=1e-4)
    assert d.p_value_below(d.high) == pytest.approx(0.025, abs=1e-4)


def test_at_the_end_the_full_test_is_asked_with_most_of_the_error():
    before, after = answers(500, 0.06, 0.03, np.random.default_rng(1))
    full, found = (
        difference(before, after),
        sequential_difference(before, after, None, stages_of(500), 500),
    )
    assert full.p_value < found.p_value < 1.6 * full.p_value


def test_a_p_value_never_rises_at_a_later_look():
    before, after = answers(1000, 0.08, 0.03, np.random.default_rng(2))
    stages = stages_of(1000)
    found = [
        sequential_difference(before[:n], after[:n], None, stages[: i + 1], 1000).p_value_below(
            0.02
        )
        for i, n in enumerate(stages)
    ]
    assert found == sorted(found, reverse=True)


def test_a_change_that_turned_is_shown_by_no_earlier_look():
    """A loss of all of the first questions and a gain of all later ones: now the change is a gain."""
    before, after = np.repeat([1.0, 0.0], [40, 160]), np.repeat([0.0, 1.0], [40, 160])
    early = sequential_difference(before[:45], after[:45], None, (32, 45), 200)
    late = sequential_difference(before[:100], after[:100], None, (32, 45, 63, 100), 200)
    assert early.value < 0 and early.p_value < 1e-4  # noqa: PT018
    assert late.value > 0
    assert late.p_value == 2 * late.p_value_above(0.0) > 0.05
    assert late.low <= late.high


@pytest.fixture(scope="module")
def unchanged() -> list[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(6)
    return [answers(600, 0.1, 0.1, draw) for _ in range(300)]


def test_whoever_stops_when_a_change_shows_is_wrong_in_five_percent_at_most(
    unchanged: list[tuple[np.ndarray, np.ndarray]],
):
    stages, shown, naive = stages_of(600), 0, 0
    for before, after in unchanged:
        d = sequential_difference(before, after, None, stages, 600)
        shown += (
            min(d.p_value_above(0.0), d.p_value_below(0.0)) <= 0.025
        )  # at any look: neither rises at a later one
        naive += any(difference(before[:n], after[:n]).p_value <= 0.05 for n in stages)
    assert naive / 300 > 0.12  # looking as often at today's test
    assert shown / 300 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)


def test_a_loss_of_the_margin_is_called_retained_in_five_percent_at_most():
    draw, stages, said = np.random.default_rng(7), stages_of(1200), 0
    for _ in range(300):
        before, after = answers(1200, 0.025, 0.005, draw)
        said += (
            sequential_difference(before, after, None, stages, 1200).equivalence_p_value(MARGIN)
            < 0.05
        )
    assert 0 < said / 300 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)


def test_at_the_end_it_says_what_todays_test_says_nearly_always():
    draw, same = np.random.default_rng(8), []
    for loss in (0.0, 0.03, 0.06):
        for _ in range(60):
            before, after = answers(500, 0.05 + loss, 0.05, draw)
            found = sequential_difference(before, after, None, stages_of(500), 500)
            same.append((found.p_value < 0.05) == (difference(before, after).p_value < 0.05))
    assert np.mean(same) > 0.93


# --- graded scores --------------------------------------------------------------------------------------


def test_graded_losses_too_rare_to_have_been_seen_are_not_ruled_out_early():
    draw = np.random.default_rng(9)
    before = draw.uniform(0.5, 0.9, 45)
    after = before + draw.normal(0, 0.001, 45)
    assert (
        sequential_difference(before, after, None, (32, 45), 1000).equivalence_p_value(MARGIN)
        > 0.05
    )


def test_graded_scores_are_looked_at_as_counts_are():
    """The looks and shares of 0/1 scores; of the same answers, one of them half a hair off, the same p-value."""
    before, after = answers(200, 0.2, 0.1, np.random.default_rng(5))
    counted = sequential_difference(before, after, None, (32, 63, 200), 600)
    graded = sequential_difference(before, np.clip(after, 1e-9, 1), None, (32, 63, 200), 600)
    assert graded.graded
    assert graded.p_value_above(-0.15) == pytest.approx(counted.p_value_above(-0.15), rel=1e-3)
    assert graded.p_value == pytest.approx(counted.p_value, rel=1e-3)


def test_graded_losses_end_the_asking_about_when_villes_bets_do():
    """Another's test, which may be looked at after each answer; ours saves most of the error for more answers."""
    draw, ours, theirs = np.random.default_rng(10), [], []
    stages = stages_of(4000)
    for loss in (0.03, 0.05, 0.1) * 4:
        differences = np.clip(draw.normal(-loss, 0.2, 4000), -1, 1)
        theirs.append(
            ville.BettingTest(0.5, alternative="less").fit((differences + 1) / 2).stopping_time()
        )
        before, after = np.clip(-differences, 0, 1), np.clip(differences, 0, 1)
        found = (
            sequential_difference(before[:n], after[:n], None, stages[: i + 1], 4000)
            for i, n in enumerate(stages)
        )
        ours.append(next(d.n for d in found if d.p_value_below(0.0) < 0.05))
    assert 0.5 < np.exp(np.log(np.array(ours) / np.array(theirs)).mean()) < 2


def test_scores_without_bounds_are_tested_at_the_end_only():
    draw = np.random.default_rng(11)
    before = draw.normal(0, 5, 100)
    after = before - 3 + draw.normal(0, 1, 100)
    early = sequential_difference(before[:45], after[:45], None, (32, 45), 100)
    assert early.p_value == 1.0
    assert np.isnan(early.low)
    end = sequential_difference(before, after, None, (32, 45, 63, 100), 100)
    assert end.p_value < 1e-6


# --- another's answer, and what is asked wrongly --------------------------------------------------------


def test_villes_test_of_the_answers_that_flipped_agrees_about_when_a_loss_is_known():
    """Its e-process may be looked at after each answer, which costs it some of what ours has at a few looks."""
    draw, ours, theirs = np.random.default_rng(12), [], []
    for _ in range(20):
        before, after = answers(1000, 0.16, 0.06, draw)
        stages = stages_of(1000)
        p = [
            sequential_difference(before[:n], after[:n], None, stages[: i + 1], 1000)
            for i, n in enumerate(stages)
        ]
        ours.append(next(n for n, d in zip(stages, p, strict=True) if d.p_value < 0.05))
        flips = np.flatnonzero(before != after)
        stop = ville.BernoulliTest(0.5).fit(after[flips]).stopping_time()
        theirs.append(flips[stop - 1] + 1)
    assert np.median(theirs) / 1.6 < np.median(ours) < 1.6 * np.median(theirs)


def test_subjects_are_these_only():
    before, after = answers(60, 0.1, 0.1, np.random.default_rng(3))
    d = sequential_difference(before, after, [f"subject {i % 6}" for i in range(60)], (32, 60), 100)
    assert d.population == "these subjects alone"  # of which some may not be asked yet
    assert d.table


@pytest.mark.parametrize("stages", [(), (32,), (40, 32, 60), (32, 32, 60)])
def test_stages_that_are_not_those_of_the_answers_are_refused(stages: tuple[int, ...]):
    before, after = answers(60, 0.1, 0.1, np.random.default_rng(4))
    with pytest.raises(ValueError, match="do not fit 60 scores"):
        sequential_difference(before, after, None, stages, 100)
