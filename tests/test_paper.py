"""Table 2 of "Slimming Down LLMs Without Losing Their Minds" (Mai 2025): from its accuracies to its derived numbers.

What the paper prints is held to its own rounding; where its arithmetic gives another last digit, the test says so.
"""

from math import sqrt

import pytest

from slimdown.config.schema import PaperMetric
from slimdown.stats.changes import paper_value, unpaired_standard_error
from slimdown.stats.paired import Difference, difference

N = {"gsm8k": 1319, "hellaswag": 10042, "mmlu_cs": 100}

# benchmark, accuracy and "±" in percent, as printed
PRINTED = [
    ("gsm8k", 33.51, 1.30),  # Llama 3.2 1B, base, flexible and strict
    ("gsm8k", 3.71, 0.52),  # tuned, flexible
    ("gsm8k", 3.11, 0.48),  # tuned, strict
    ("hellaswag", 45.23, 0.50),  # base, acc
    ("hellaswag", 60.77, 0.49),  # base, acc_norm
    ("hellaswag", 45.61, 0.50),  # tuned, acc
    ("hellaswag", 61.20, 0.49),  # tuned, acc_norm
    ("mmlu_cs", 47.00, 5.02),  # base
    ("mmlu_cs", 34.00, 4.76),  # tuned
    ("gsm8k", 2.81, 0.45),  # TinyLlama 1.1B, tuned, flexible
    ("gsm8k", 2.20, 0.40),  # strict
    ("mmlu_cs", 27.00, 4.46),
]


@pytest.mark.parametrize(("benchmark", "accuracy", "printed"), PRINTED)
def test_the_papers_plus_minus_is_one_standard_error(
    benchmark: str, accuracy: float, printed: float
) -> None:
    share = round(accuracy / 100 * N[benchmark]) / N[benchmark]  # of whole questions
    standard_error = 100 * sqrt(share * (1 - share) / (N[benchmark] - 1))
    assert standard_error == pytest.approx(printed, abs=0.0051)
    assert (
        abs(1.96 * standard_error - printed) > 0.3
    )  # and not the 95 % interval that its text calls it


def test_the_forgetting_rate_of_gsm8k() -> None:
    rate = 100 * paper_value(PaperMetric.forgetting_rate, base=0.3351, tuned=0.0371)
    assert rate == pytest.approx(88.92, abs=0.011)
    assert (
        round(rate, 2) == 88.93
    )  # the paper prints 88.92: its accuracies were rounded after it was computed
    # On whole questions, which the accuracies must be of: 442 and 49 of 1,319
    assert (round(442 / 13.19, 2), round(49 / 13.19, 2)) == (33.51, 3.71)
    assert round(100 * paper_value(PaperMetric.forgetting_rate, 442 / 1319, 49 / 1319), 2) == 88.91
    assert (
        round(100 * paper_value(PaperMetric.forgetting_rate, base=0.3351, tuned=0.0311), 2) == 90.72
    )  # strict


def test_what_gsm8k_lost_differs_by_how_it_is_counted() -> None:
    assert [round(33.51 - tuned, 2) for tuned in (3.71, 3.11)] == [29.80, 30.40]  # flexible, strict


def test_the_ability_augmentation_of_hellaswag() -> None:
    assert (
        round(paper_value(PaperMetric.ability_augmentation, base=0.6077, tuned=0.6120), 2) == 0.43
    )
    assert (
        round(paper_value(PaperMetric.ability_augmentation, base=0.4523, tuned=0.4561), 2) == 0.38
    )  # not normalized


def test_the_knowledge_loss_of_mmlu_computer_science() -> None:
    assert round(paper_value(PaperMetric.knowledge_loss, base=0.47, tuned=0.34), 2) == 13.00
    error = unpaired_standard_error(5.02, 4.76)
    assert error == pytest.approx(6.93, abs=0.0151)
    assert round(error, 2) == 6.92  # the paper prints 6.93


def knowledge_lost(lost: int) -> Difference:
    """MMLU college computer science from 47 right answers of 100 to 34, if so many were lost."""
    gained = lost - 13
    before = [1.0] * 47 + [0.0] * 53
    return difference(before, [0.0] * lost + [1.0] * (47 - lost + gained) + [0.0] * (53 - gained))


def test_the_papers_paired_t_test_holds_for_some_answers_that_could_lie_behind_its_scores() -> None:
    """Of "p < 0.05 via paired t-test" for a loss of 13: the answers themselves were not published."""
    possible = {lost: knowledge_lost(lost) for lost in range(13, 48)}
    assert all(round(100 * d.value) == -13 for d in possible.values())
    by_t = [lost for lost, d in possible.items() if d.t_test_p_value < 0.05]
    exact = [lost for lost, d in possible.items() if d.p_value < 0.05]
    assert (by_t, exact) == (list(range(13, 29)), list(range(13, 26)))
    shown = {lost: round(possible[lost].p_value, 3) for lost in (23, 25, 28, 31)}
    assert shown == {23: 0.035, 25: 0.047, 28: 0.066, 31: 0.085}
    assert round(possible[28].t_test_p_value, 3) == 0.047
    assert (
        round(47 * 0.66) == 31
    )  # lost, if the two models' answers had nothing to do with each other


def test_hellaswags_errors_fit_its_size_and_the_papers() -> None:
    for accuracy, printed in ((45.23, 0.50), (60.77, 0.49)):
        for n in (10_000, 10_042):
            assert round(sqrt(accuracy * (100 - accuracy) / (n - 1)), 2) == printed


def test_what_the_paper_could_not_show() -> None:
    """Its knowledge loss of 13 points is not distinguishable from none by its own, unpaired, numbers."""
    half = 1.96 * unpaired_standard_error(5.02, 4.76)
    assert round(half, 1) == 13.6
    assert half > paper_value(PaperMetric.knowledge_loss, base=0.47, tuned=0.34)
