"""Table 2 of "Slimming Down LLMs Without Losing Their Minds" (Mai 2025).

What the paper prints is held to its own rounding; where its arithmetic gives another last digit,
the test says so.
"""

from math import sqrt

import pytest

from slimdown.config.benchmark_config import PaperMetric
from slimdown.judging.findings import paper_value

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
def test_plus_minus_is_one_standard_error(benchmark: str, accuracy: float, printed: float) -> None:
    share = round(accuracy / 100 * N[benchmark]) / N[benchmark]  # of whole questions
    standard_error = 100 * sqrt(share * (1 - share) / (N[benchmark] - 1))
    assert standard_error == pytest.approx(printed, abs=0.0051)
    # and not the 95 % interval that its text calls it
    assert abs(1.96 * standard_error - printed) > 0.3


def test_the_forgetting_rate_of_gsm8k() -> None:
    rate = PaperMetric.forgetting_rate
    # The paper prints 88.92: its accuracies were rounded after it was computed.
    assert round(100 * paper_value(rate, 0.3351, 0.0371), 2) == 88.93
    # of whole questions, which the accuracies must be of: 442 and 49 of 1,319
    assert (round(442 / 13.19, 2), round(49 / 13.19, 2)) == (33.51, 3.71)
    assert round(100 * paper_value(rate, 442 / 1319, 49 / 1319), 2) == 88.91
    assert round(100 * paper_value(rate, 0.3351, 0.0311), 2) == 90.72  # strict
