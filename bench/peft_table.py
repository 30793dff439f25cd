"""Ask which rows of PEFT's public table differ from plain LoRA, and how many questions would tell.

    python -m bench.peft_table

The rows are those of peft@5d602fdbf, `method_comparison/MetaMathQA/results`: Llama 3.2 3B, one
seed, GSM8K's 1,319 test questions. The table has 63 rows, ten of which stand here, so each is
corrected for 62 comparisons. PEFT publishes scores and no answers, so they are compared unpaired.
With pairs fewer questions would do; how many depends on the share of answers that flip, which is
assumed.
"""

from bisect import bisect_left
from functools import partial
from math import sqrt

from scipy.special import ndtr

from slimdown.stats.likelihood import ALPHA
from slimdown.stats.power import POWER, change_power

N_QUESTIONS, N_COMPARISONS = 1319, 62
PLAIN = "LoRA r32"
ACCURACY = {
    "OSF r128": 0.427,
    "DoRA r32": 0.469,
    "full": 0.472,
    "LoRA r64": 0.474,
    PLAIN: 0.478,
    "MiSS": 0.487,
    "OFT r32": 0.491,
    "LoRA r10, MLP only": 0.494,
    "LoRA r64, rsLoRA": 0.513,
    "Lily r140": 0.526,
}
FLIPS = (0.1, 0.2, 0.3)  # assumed shares of answers that only one of the two models has right
MOST = 10**5  # questions that are tried


def compare_unpaired(accuracy: float, other: float) -> float:
    """Return the two-sided p-value of two shares of as many other questions."""
    variance = accuracy * (1 - accuracy) + other * (1 - other)
    return float(2 * ndtr(-abs(accuracy - other) / sqrt(variance / N_QUESTIONS)))


def count_needed(change: float, flips: float) -> str:
    """Return how many pairs of answers show a change in 80 % of cases, corrected."""
    power = partial(change_power, change=abs(change), discordant=flips, alpha=ALPHA / N_COMPARISONS)
    needed = bisect_left(range(MOST), POWER, 2, key=power)
    return f"{needed:,}" if needed < MOST else "more"


def main() -> None:
    """Print a line for each row beside plain LoRA."""
    print(
        f"| beside {PLAIN} | points | p, corrected | pairs: "
        + " | ".join(f"{f:.0%}" for f in FLIPS)
    )
    for name, accuracy in ACCURACY.items():
        change = accuracy - ACCURACY[PLAIN]
        if name != PLAIN:
            p = min(1.0, N_COMPARISONS * compare_unpaired(accuracy, ACCURACY[PLAIN]))
            cells = [f"{100 * change:+.1f}", f"{p:.2f}", *(count_needed(change, f) for f in FLIPS)]
            print(f"| {name} | " + " | ".join(cells))


if __name__ == "__main__":
    main()
