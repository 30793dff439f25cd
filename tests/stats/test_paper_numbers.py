"""Table 2 of "Slimming Down LLMs Without Losing Their Minds" (Mai 2025).

What the paper prints is held to its own rounding; where its arithmetic gives another last digit,
the test says so.
"""

from math import sqrt

import pytest

from slimdown.config.schema import PaperMetric
from slimdown.stats.estimates import Difference, compare_scores
from slimdown.stats.findings import paper_value, unpaired_standard_error

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
    return compare_scores(
        before, [0.0] * lost + [1.0] * (47 - lost + gained) + [0.0] * (53 - gained)
    )


def test_the_papers_loss_of_13_is_shown_by_some_answers_that_could_lie_behind_its_scores() -> None:
    """The paper says "p < 0.05 via paired t-test"; the answers themselves were not published."""
    possible = {lost: knowledge_lost(lost) for lost in range(13, 48)}
    assert all(round(100 * d.value) == -13 for d in possible.values())
    shown = [lost for lost, d in possible.items() if d.p_value < 0.05]
    exact = [lost for lost, d in possible.items() if d.mcnemar_p_value < 0.05]
    assert (shown, exact) == (list(range(13, 26)), list(range(13, 26)))
    assert round(possible[28].mcnemar_p_value, 3) == 0.066
    # lost, if the two models' answers had nothing to do with each other
    assert round(47 * 0.66) == 31


def test_what_the_paper_could_not_show() -> None:
    """By its own, unpaired, numbers its knowledge loss of 13 points may be none."""
    half = 1.96 * unpaired_standard_error(5.02, 4.76)
    assert round(half, 1) == 13.6
    assert half > paper_value(PaperMetric.knowledge_loss, base=0.47, tuned=0.34)
