"""`p_right`, the probability of the right choice: one more metric of multiple choice.

It is the softmax over the log-likelihoods of a question's different choices. Like acc, it takes
these as they are, not per character as acc_norm does. lm_eval's `brier_score` uses the same
probabilities; Schaeffer et al. 2024 (arXiv 2406.04391) call it "p(choices) of the correct choice".
It may show a change with fewer questions, but it is not accuracy: a temperature changes it and no
answer.
"""

from collections.abc import Sequence
from math import exp, fsum, inf, isfinite, isnan

from slimdown.config.benchmark_config import CHOICE_PROBABILITY


def compute_probabilities(log_likelihoods: Sequence[float]) -> list[float]:
    """Compute each choice's probability: the softmax over the log-likelihoods.

    Args:
        log_likelihoods: Of each choice, in nats; not divided by the choice's length.

    Returns:
        The probabilities, by choice; empty if a log-likelihood is nan, or the highest is infinite.
    """
    highest = max(log_likelihoods, default=-inf)
    if not isfinite(highest) or any(map(isnan, log_likelihoods)):
        return []
    # Without the highest one, `exp` could give 0 for all of them.
    parts = [exp(value - highest) for value in log_likelihoods]
    total = fsum(parts)
    return [part / total for part in parts]


def score_right_choice(
    choices: Sequence[str], log_likelihoods: Sequence[float], target: str, scores: dict[str, float]
) -> float | None:
    """Compute the probability of the right choice; choices with the same text count once.

    Args:
        choices: Their texts.
        log_likelihoods: Of each choice, in nats.
        target: The right choice's text.
        scores: What the question scored on other metrics, by metric. Its accuracies tell whether
            a single choice is right.

    Returns:
        The probability. None if it is not certain which single choice is right, or if a
        log-likelihood is not finite. It is not certain if the target is not among the choices, if
        all choices have the same text, if no accuracy was scored, or if an accuracy is neither 0
        nor 1, as when several choices are right.
    """
    by_text = dict(zip(choices, log_likelihoods, strict=False))
    has_right = len(by_text) > 1 and target in by_text
    accuracies = [score for metric, score in scores.items() if "acc" in metric]  # and acc_norm
    is_right_or_wrong = bool(accuracies) and all(score in (0, 1) for score in accuracies)
    if not has_right or not is_right_or_wrong or not all(map(isfinite, by_text.values())):
        return None
    probabilities = compute_probabilities(list(by_text.values()))
    return probabilities[list(by_text).index(target)]


def add_p_right(
    scores: dict[str, float], choices: Sequence[str], log_likelihoods: Sequence[float], target: str
) -> dict[str, str]:
    """Add `p_right` to scores if one choice is right, and return the choice that each metric takes.

    Args:
        scores: What the question scored, by metric; it is changed.
        choices: Their texts.
        log_likelihoods: Of each choice, in nats.
        target: The right choice's text.

    Returns:
        By metric, the text of the likeliest choice. For acc_norm and other metrics with "norm" in
        their names, that of the likeliest choice per character.
    """
    p_right = score_right_choice(choices, log_likelihoods, target, scores)
    if p_right is not None:
        scores[CHOICE_PROBABILITY] = p_right
    pairs = zip(log_likelihoods, choices, strict=True)
    per_character = [value / max(len(choice), 1) for value, choice in pairs]  # it may be empty
    likeliest = choices[log_likelihoods.index(max(log_likelihoods))]
    likeliest_per_character = choices[per_character.index(max(per_character))]
    return {metric: likeliest_per_character if "norm" in metric else likeliest for metric in scores}
