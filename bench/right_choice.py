"""Show what `p_right` shows beside accuracy on recorded runs, with all questions and with fewer.

    python -m bench.right_choice --experiment narrow [--tracking-uri URI] [--questions 100,200]

Each benchmark by itself at 5 %, not corrected for their number. Fewer questions are drawn from all
without replacement, 400 times; the columns say in how many draws a change is shown. Those draws
share questions, so they say how often this run would have shown it, and no more.
"""

import argparse

import numpy as np

from slimdown.config.benchmark_config import CHOICE_PROBABILITY
from slimdown.config.tracking_config import TrackingConfig, default_store
from slimdown.judging.pairing import Pair, pair_evaluations
from slimdown.models.quiet import quiet_libraries
from slimdown.stats.estimates import Difference, compare_scores
from slimdown.stats.likelihood import ALPHA
from slimdown.tracking.run_reader import find_runs, read_evaluations

_DRAWS = 400


def read_scores(pair: Pair) -> dict[str, np.ndarray] | None:
    """Return [base and tuned, questions] of accuracy and of `p_right`; None without choices."""
    sides, metric = (pair.base, pair.tuned), pair.base.benchmark.metric
    if not all(CHOICE_PROBABILITY in side.scores for side in sides):
        return None
    by_name = {"accuracy": metric, "p_right": CHOICE_PROBABILITY}
    return {name: np.array([s.scores_of(m) for s in sides]) for name, m in by_name.items()}


def count_shown(scores: np.ndarray, n: int, random: np.random.Generator) -> float:
    """Return the share of draws of n questions in which a change is shown."""
    drawn = (random.permutation(scores.shape[1])[:n] for _ in range(_DRAWS))
    return float(np.mean([is_shown(compare_scores(*scores[:, places])) for places in drawn]))


def is_shown(difference: Difference) -> bool:
    """Whether a change is shown, by this benchmark alone."""
    return difference.p_value < ALPHA


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--tracking-uri", default=default_store())
    parser.add_argument("--questions", default="100,200")
    options = parser.parse_args()
    fewer = [int(n) for n in options.questions.split(",")]
    tracking = TrackingConfig(uri=options.tracking_uri, experiment=options.experiment)
    random = np.random.default_rng(0)
    print("| run | benchmark | n | metric | change, points | " + " | ".join(map(str, fewer)) + " |")
    print("|---|---|---:|---|---|" + "---:|" * len(fewer))
    for run in find_runs(tracking, [options.experiment], with_findings=True):
        if not run.findings:
            continue
        with quiet_libraries():
            evaluations = read_evaluations(tracking, run)
        for name, pair in pair_evaluations(*evaluations).items():
            for metric, scores in (read_scores(pair) or {}).items():
                difference = compare_scores(*scores)
                low, high = difference.interval(ALPHA)
                points = f"{100 * difference.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
                bold = "**" if is_shown(difference) else ""
                shares = [f"{100 * count_shown(scores, n, random):.0f} %" for n in fewer]
                cells = [run.name, name, str(scores.shape[1]), metric, f"{bold}{points}{bold}"]
                print(f"| {' | '.join([*cells, *shares])} |", flush=True)


if __name__ == "__main__":
    main()
