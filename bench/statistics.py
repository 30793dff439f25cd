"""Check what the statistics promise, by exact enumeration and simulation: error rates and power.

    python -m bench.statistics                 all tables, in about half an hour
    python -m bench.statistics --draws 20000   with less noise

Each row of the first table is a claim that slimdown may make wrongly, the truth that makes it wrong
most often among those tried, how often it is made then, and how often it may be. Where nothing else
is said the margin and the budget are 2 points. Then come power, the questions that half an added
answer saves, and those that the probability of the right choice needs beside accuracy.
"""

import argparse
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import cache, partial
from itertools import combinations, pairwise, product
from math import nan
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from bench.sentences import NOT_A_CLAIM, SENTENCES
from slimdown.comparison.scaling import ScaledFindings, build_simultaneous_curves, choose_scale
from slimdown.config.benchmark_config import BenchmarkConfig, Role
from slimdown.evaluation.question_order import order_questions
from slimdown.evaluation.results import Sample
from slimdown.judging.answer_traits import compare_behaviour
from slimdown.judging.budgets import Outcome, check_budgets, decide_outcomes, overall_outcome
from slimdown.judging.findings import compare_subjects
from slimdown.judging.forgetting_rate import forgetting_rate
from slimdown.judging.losses import break_down_losses
from slimdown.judging.mean_change import average_changes
from slimdown.judging.pairing import Pair, describe_sampling
from slimdown.judging.verdicts import Decision, Verdict, decide_verdicts, group_comparable
from slimdown.report.text import FEWEST_RIGHT
from slimdown.scoring.question_files import find_question_file
from slimdown.stats.bootstrap import find_ratio_interval
from slimdown.stats.estimates import (
    Difference,
    Estimate,
    Sampling,
    compare_scores,
    estimate_mean,
    holm,
)
from slimdown.stats.likelihood import (
    ALPHA,
    PSEUDO_ANSWERS,
    added_to_change,
    added_to_margin,
    likelihood_p_values,
)
from slimdown.stats.power import POWER, change_power, minimum_detectable_change, n_to_decide
from slimdown.stats.seeds import (
    MeanTest,
    SeedAnswers,
    SeedSpread,
    add_seed_noise,
    build_difference_tests,
    build_tests,
    split_noise,
)
from slimdown.stats.sequential import block_ends, combine_looks

Floats = NDArray[np.float64]
Row = tuple[str, str, str, str]  # claim, case, measured, bound
Simulation = Callable[[int, np.random.Generator], Iterator[Row]]

MARGIN = BenchmarkConfig.margin
BENCHMARK = SimpleNamespace(metric="acc", refusal_phrases=None)
VALUES = np.array([-1.0, 0.0, 1.0])  # what a question's 0/1 answer may change by
SHARES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)  # of answers gained


class Kind(Enum):
    """Which answers a test adds."""

    margin = "of `retained` and of budgets"
    change = "of `changed` and of its interval of 95 %"
    whole = "one whole answer, as of graded scores"


def p_values(counts: Floats, threshold: float, above: bool, kind: Kind = Kind.margin) -> Floats:
    """One-sided p-values of [..., 3] answers lost, kept and gained, as `Difference` has them."""
    sign = 1 if above else -1
    tables = counts.reshape(-1, 3)
    least = np.full(len(tables), -1 - sign * threshold)
    flips, n = tables[:, 0] + tables[:, 2], tables.sum(axis=1)
    added: Floats | float = PSEUDO_ANSWERS
    if kind is Kind.change:
        added = added_to_change(flips, n)
    elif kind is Kind.margin:
        favorable, adverse = tables[:, 1 + sign], tables[:, 1 - sign]
        added = added_to_margin(sign * threshold, favorable, adverse, n)
    p = likelihood_p_values(sign * (VALUES - threshold), tables, least, added)
    return p.reshape(counts.shape[:-1])


def find_claims(
    counts: Floats, change: float, plan: tuple[int, ...], names: Sequence[str]
) -> dict[str, Floats]:
    """Which claims tables make at each look: [..., looks, 3] counts to [..., looks] booleans.

    Args:
        counts: Answers lost, kept and gained until each look.
        change: The true one, which the interval is to hold.
        plan: Questions at each look; empty: there is one look.
        names: The claims to find.
    """

    def combine(threshold: float, above: bool, kind: Kind = Kind.margin) -> Floats:
        p = p_values(counts, threshold, above, kind)
        looks = [combine_looks(p[..., : k + 1], plan) for k in range(p.shape[-1])]
        return np.stack(looks, axis=-1)

    def find_changed(kind: Kind = Kind.change) -> Floats:
        value = counts[..., 2] - counts[..., 0]
        tail = np.where(value > 0, combine(0.0, True, kind), combine(0.0, False, kind))
        return (value != 0) & (2 * tail < ALPHA)

    claims: dict[str, Callable[[], Floats]] = {
        "changed": find_changed,
        "changed, one added": partial(find_changed, kind=Kind.whole),
        "retained": lambda: (combine(-MARGIN, True) < ALPHA) & (combine(MARGIN, False) < ALPHA),
        "budget kept (exit 0)": lambda: combine(-MARGIN, True) < ALPHA,
        "budget exceeded (exit 1)": lambda: combine(-MARGIN, False) < ALPHA,
        "interval misses": lambda: (
            np.minimum(combine(change, True, Kind.change), combine(change, False, Kind.change))
            <= ALPHA / 2
        ),
    }
    return {name: claims[name]() for name in names}


def list_tables(n: int, most: int | None = None) -> Floats:
    """List all tables of n answers, [tables, 3] lost, kept and gained; `most` of each at most."""
    up_to = np.arange((n if most is None else most) + 1)
    lost, gained = (x.ravel() for x in np.meshgrid(up_to, up_to))
    fits = lost + gained <= n
    return np.stack([lost, n - lost - gained, gained], axis=1)[fits].astype(float)


def enumerate_tables() -> Iterator[Row]:
    """Exact: all tables of n answers, the worst of the truths tried."""
    for n in (20, 50, 100, 200, 300):
        table = list_tables(n)
        most: dict[str, float] = {}
        budgets = ["retained", "budget kept (exit 0)", "budget exceeded (exit 1)"]
        further: dict[float, list[str]] = {change: [] for change in (-0.05, -0.2, -0.5)}
        wrong = {0.0: ["changed"], -MARGIN: budgets, MARGIN: ["retained"], **further}
        for change, names in wrong.items():
            claims = find_claims(table[:, None, :], change, (), [*names, "interval misses"])
            for share in (*SHARES, (1 - abs(change)) / 2):  # at the last every answer flips
                few, many = share + max(0.0, -change), share + max(0.0, change)
                if few + many > 1:
                    continue
                chances = scipy.stats.multinomial.pmf(table, n, [few, 1 - few - many, many])
                for name, is_made in claims.items():
                    worst = float(chances[is_made[:, 0]].sum())
                    most[name] = max(most.get(name, 0.0), worst)
        for name in sorted(most):
            yield name, f"exact, {n} questions", percent(most[name]), "5"


def hold_changed() -> Iterator[Row]:
    """Exact: a change is claimed that is not there, at the levels of 1, 4 and 119 benchmarks."""
    flips = np.append(np.geomspace(0.001, 1, 60), np.linspace(0.02, 0.98, 49))
    for n in (20, 50, 100, 300, 1000, 1319, 10042):
        for level in (0.05, 0.0125, 0.00042):
            made = max(change_power(n, 0.0, share, level) for share in flips)
            yield "changed", f"exact, {n:,} questions", f"{100 * made:.4g}", f"{100 * level:g}"
    # why a group's tasks, whose sizes are fixed, keep one
    lost = np.arange(9.0)
    tables = np.stack([lost, np.full(9, 24.0), 8 - lost], axis=1)
    for added, kind, bound in (
        ("half added, not in use", Kind.change, "-"),
        ("one added", Kind.whole, "5"),
    ):
        p = np.min([p_values(tables, 0.0, above, kind) for above in (True, False)], axis=0)
        made = float(scipy.stats.binom.pmf(lost, 8, 0.5)[2 * p < ALPHA].sum())
        case = "tasks of 24 and 8 questions, all answers to the 8 flip"
        yield "changed", f"exact, {case}; {added}", percent(made), bound


def hold_margins() -> Iterator[Row]:
    """Exact: PASSED and FAILED of a loss of just the budget, at the levels of Holm's steps.

    What is wrong most often at the levels 5 % / 1, 2, 4, 20 and 119 is given in percent of the
    level. Above 410 questions truths of up to a tenth of flips are tried.
    """
    claims = {"budget kept (exit 0), `retained`": True, "budget exceeded (exit 1)": False}
    budgets = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
    for n in (20, 59, 123, 151, 182, 300, 410, 1000):
        table = list_tables(n) if n <= 410 else list_tables(n, 420)
        shares = np.array([*np.geomspace(1e-4, 0.05, 24), 0.0, *np.linspace(0.06, 0.47, 8)])
        shares = shares if n <= 410 else shares[shares <= 0.05]
        worst = dict.fromkeys(claims, 0.0)
        for budget in budgets:
            p = {claim: p_values(table, -budget, above) for claim, above in claims.items()}
            for share in shares[2 * shares + budget <= 1]:
                cells = [share + budget, 1 - 2 * share - budget, share]
                chances = multinomial_chances(table, cells)
                for claim in claims:
                    for k in (1, 2, 4, 20, 119):
                        made = float(chances[p[claim] < ALPHA / k].sum()) * k / ALPHA
                        worst[claim] = max(worst[claim], made)
        for claim, made in worst.items():
            case = f"exact, smaller additions, {n:,} questions, budgets of 0.5 to 10 points"
            yield claim, f"{case}, % of the level", percent(made), "100"


def multinomial_chances(table: Floats, shares: Sequence[float]) -> Floats:
    """Return the chance of each table of lost, kept and gained answers."""
    ways = scipy.special.gammaln(table[0].sum() + 1) - scipy.special.gammaln(table + 1).sum(axis=1)
    return np.asarray(np.exp(ways + scipy.special.xlogy(table, shares).sum(axis=1)))


def count_passed() -> Iterator[tuple[str, ...]]:
    """Questions that show in four of five cases that nothing was lost: one added, the least."""

    def show(n: int, budget: float, flips: float, kind: Kind) -> float:
        most = int(min(n, n * flips + 9 * np.sqrt(n * flips) + 12))
        table = list_tables(n, most)
        is_kept = p_values(table, -budget, True, kind) < ALPHA
        return float(multinomial_chances(table, [flips / 2, 1 - flips, flips / 2])[is_kept].sum())

    for budget in (0.02, 0.05):
        for flips in (0.01, 0.02, 0.05):
            needed = []
            for kind in (Kind.whole, Kind.margin):
                n = 20
                while show(n, budget, flips, kind) < POWER:
                    n += 1
                needed.append(n)
            fewer = percent(1 - needed[1] / needed[0])
            yield f"{100 * budget:g}", percent(flips), *map(str, needed), fewer


def count_needed() -> Iterator[tuple[str, ...]]:
    """Questions of one benchmark that show a change in four of five cases: with one added, half."""
    for change, flips in ((0.03, 0.12), (0.05, 0.06), (0.05, 0.12), (0.1, 0.2), (0.02, 0.03)):
        for level in (0.05, 0.0125, 0.00042):
            truth: dict[str, Any] = {"change": change, "discordant": flips, "alpha": level}
            tests = [partial(change_power, is_simple=is_half, **truth) for is_half in (False, True)]
            needed = [bisect_left(range(10**5), POWER, 2, key=power) for power in tests]
            case = f"{100 * change:g}", percent(flips), f"{100 * level:g}"
            yield *case, *map(str, needed), percent(1 - needed[1] / needed[0])


def end_trainings(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """`stop_on_forgetting`: any look ends a training that loses just its budget at every look.

    Exact for looks at models that answer independently of each other, which is the worst: what one
    look shows no other shows. Some looks are also held to what `decide_outcomes` says of them.
    """
    for n, n_looks in ((64, 1), (64, 7), (64, 50), (200, 20)):
        table, level = list_tables(n), ALPHA / n_looks / 2  # Holm's first step, of two benchmarks
        is_beyond = p_values(table, -MARGIN, above=False) < level
        worst = 0.0
        for share in SHARES:
            chances = scipy.stats.multinomial.pmf(
                table, n, [share + MARGIN, 1 - 2 * share - MARGIN, share]
            )
            worst = max(worst, float(chances[is_beyond].sum()))
        for row in random.choice(len(table), 20):
            changes = np.repeat(VALUES, table[row].astype(int))
            found = {"a": change_difference(changes), "b": change_difference(np.zeros(n))}
            decided = decide_outcomes(found, dict.fromkeys(found, MARGIN), ALPHA / n_looks)
            is_claimed = decided["a"].outcome is Outcome.beyond
            assert is_claimed == is_beyond[row], (n, n_looks, table[row])
        case = f"exact, {n_looks} looks at two benchmarks of {n} questions"
        yield "a look ends a training", case, percent(1 - (1 - worst) ** (2 * n_looks)), "5"


def draw_looks(
    n: int, flips: float, change: float, draws: int, random: np.random.Generator
) -> Floats:
    """Draw runs' answers until each look: [draws, looks, 3] lost, kept and gained."""
    shares = [(flips - change) / 2, 1 - flips, (flips + change) / 2]
    steps = np.diff([0, *block_ends(n)])
    counts = np.stack([random.multinomial(step, shares, size=draws) for step in steps], axis=1)
    return counts.cumsum(axis=1).astype(float)


def stop_anywhere(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """`evaluation.until`: claims at any look, the worst moment to stop."""
    for n in (100, 300, 1319, 10042):
        for change, wrong in ((0.0, "changed"), (-MARGIN, "retained")):
            most: dict[str, float] = {}
            for flips in (0.02, 0.06, 0.2):
                counts = draw_looks(n, flips, change, draws, random)
                names = [wrong, "interval misses", *(["budget kept (exit 0)"] if change else [])]
                for name, is_made in find_claims(counts, change, block_ends(n), names).items():
                    most[name] = max(most.get(name, 0.0), float(is_made.any(axis=1).mean()))
            for name, rate in most.items():
                yield name, f"at any look, {n:,} questions, {100 * change:+.0f}", percent(rate), "5"


def check_arrays(random: np.random.Generator) -> None:
    """Hold the arrays here to `compare_scores`, look by look."""
    for n, lost, gained in ((20, 0.3, 0.1), (100, 0.2, 0.07), (1319, 0.06, 0.04)):
        d = random.choice(VALUES, size=n, p=[lost, 1 - lost - gained, gained])
        before, after = (d < 0).astype(float), (d > 0).astype(float)
        plan = block_ends(n)
        counts = np.array([[(d[:k] == value).sum() for value in VALUES] for k in plan], dtype=float)
        for k, end in enumerate(plan):
            sampling = Sampling(looks=plan[: k + 1], n_available=n)
            difference = compare_scores(before[:end], after[:end], sampling)
            p = combine_looks(p_values(counts[: k + 1], -MARGIN, True), plan)
            assert abs(float(p) - difference.p_value_above(-MARGIN)) < 1e-9, (n, k)
            tails = [p_values(counts[: k + 1], 0.0, above, Kind.change) for above in (True, False)]
            p = 2 * min(float(combine_looks(tail, plan)) for tail in tails)
            assert abs(min(1.0, p) - difference.p_value) < 1e-9, (n, k)


def vary_scores(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Graded scores, those of drawn answers too, clusters, and groups that weigh subjects alike."""

    def draw_normal(n: int, change: float) -> tuple[Floats, Sampling]:
        return np.clip(random.normal(change, 0.2, n), -1, 1), Sampling()

    def draw_rare(n: int, change: float) -> tuple[Floats, Sampling]:
        small = random.uniform(-0.01, 0.01, n)
        return np.where(random.random(n) < -change / 0.8, -0.8, small), Sampling()

    def draw_subjects(n: int, change: float) -> tuple[Floats, Sampling]:
        sizes = np.array([0.05, 0.1, 0.15, 0.3, 0.4])
        subject = np.repeat(np.arange(5), np.round(sizes * n).astype(int))
        # Few subjects carry the whole change: of the five, two lose and the others do not.
        changes = change * np.array([2.5, 2.5, 0, 0, 0])
        u = random.random(len(subject))
        flips = 0.1 + np.abs(changes[subject])
        d = np.where(u < (flips - changes[subject]) / 2, -1.0, np.where(u < flips, 1.0, 0.0))
        weights = len(subject) / 5 / np.bincount(subject)[subject]
        return d, Sampling(weights=weights, n_subjects=5)

    def draw_repeated(
        n: int, change: float, n_repeats: int, doubt: float, is_alike: bool = False
    ) -> tuple[Floats, Sampling]:
        # Each question is answered right with its own chance, half of the time on average.
        chances = random.beta(doubt, doubt, n)
        luck = random.random((2, n_repeats, n))
        luck[1] = luck[0] if is_alike else luck[1]
        base, tuned = (luck < [[chances], [chances * (1 + 2 * change)]]).mean(axis=1)
        return tuned - base, Sampling()

    def draw_clusters(
        n: int, change: float, sizes: tuple[int, ...], share: float, n_flips: float = 0.2
    ) -> tuple[Floats, Sampling]:
        # Of each cluster a share of the questions flips as the cluster does.
        clusters = np.repeat(np.arange(n), np.resize(sizes, n))[:n].astype(float)
        u = np.where(
            random.random(n) < share, random.random(n)[clusters.astype(int)], random.random(n)
        )
        d = np.where(u < (n_flips - change) / 2, -1.0, np.where(u < n_flips, 1.0, 0.0))
        return d, Sampling(clusters=clusters)

    def draw_alone(n: int, change: float, size: int) -> tuple[Floats, Sampling]:
        return draw_clusters(n, change, (size,), 1)[0], Sampling()

    cases: list[tuple[str, Callable[[int, float], tuple[Floats, Sampling]]]] = [
        ("three answers drawn", partial(draw_repeated, n_repeats=3, doubt=0.5)),
        ("two, nearly always the same", partial(draw_repeated, n_repeats=2, doubt=0.02)),
        ("three, both models alike", partial(draw_repeated, n_repeats=3, doubt=0.5, is_alike=True)),
        ("clusters of 4 as one, taken for independent", partial(draw_alone, size=4)),
        ("clusters of 8 as one, taken for independent", partial(draw_alone, size=8)),
        ("clusters of 4 as one", partial(draw_clusters, sizes=(4,), share=1)),
        ("clusters of 4, half alike", partial(draw_clusters, sizes=(4,), share=0.7)),
        ("clusters of 1 to 8 as one", partial(draw_clusters, sizes=(1, 2, 3, 8), share=1)),
        (
            "clusters of 1 to 8, all flip",
            partial(draw_clusters, sizes=(1, 2, 8), share=1, n_flips=1),
        ),
        ("graded, normal", draw_normal),
        ("graded, rare large losses", draw_rare),
        ("five subjects, weighted alike", draw_subjects),
    ]
    for name, draw in cases:
        for n in (100, 600):
            for change, claim in ((0.0, "changed"), (-MARGIN, "retained")):
                rates = []
                for _ in range(max(200, draws // 20)):
                    d, sampling = draw(n, change)
                    before = np.maximum(0.0, -d)
                    difference = compare_scores(before, before + d, sampling)
                    is_equal = difference.equivalence_p_value(MARGIN) < ALPHA
                    is_wrong = difference.p_value < ALPHA if change == 0 else is_equal
                    rates.append((is_wrong, not difference.low <= change <= difference.high))
                bound = "-" if name.endswith("independent") else "5"
                for label, hits in zip((claim, "interval misses"), np.mean(rates, 0), strict=True):
                    case = f"{name}, {n} questions, {100 * change:+.0f}"
                    yield label, case, percent(hits), bound


def change_clusters(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Clusters of four questions: a change of one benchmark, and of one of four (Holm)."""
    values = np.linspace(-1, 1, 9)  # the means of four changes
    for n_clusters in (25, 50, 150):
        for flips in (0.1, 0.2, 0.4):
            for share in (0.0, 0.5, 1.0):
                own, shared = (
                    random.random((draws, n_clusters, 4)),
                    random.random((draws, n_clusters)),
                )
                is_shared = random.random(own.shape) < share
                u = np.where(is_shared, shared[..., None], own)
                means = np.where(u < flips / 2, -1.0, np.where(u < flips, 1.0, 0.0)).mean(axis=2)
                counts = np.stack([(means == value).sum(axis=1) for value in values], axis=1)
                added = added_to_change((means != 0).sum(axis=1), n_clusters)
                sides = [likelihood_p_values(s * values, counts, -1.0, added) for s in (1, -1)]
                p = 2 * np.minimum(*sides)
                d = compare_clusters(means[0])
                assert abs(d.p_value - min(1.0, p[0])) < 1e-9 or d.value == 0
                case = (
                    f"{n_clusters} clusters of 4, {percent(flips)} % flip, {percent(share)} % alike"
                )
                yield "changed", case, percent(float(np.mean(p < ALPHA))), "5"
                rate = f"{100 * float(np.mean(p < ALPHA / 4)):.2f}"
                yield "changed, of 4 benchmarks", case, rate, "1.25"
    # Flips that are no chance: eight of 32 questions or clusters flip every time.
    made = 0.0
    for n_lost, chance in enumerate(scipy.stats.binom.pmf(np.arange(9), 8, 0.5)):
        d = count_difference(n_lost, 8 - n_lost, 32)
        made += chance * (d.p_value < ALPHA)
    yield "changed", "8 of 32 questions always flip, the others never; exact", percent(made), "-"
    # One cluster in fifty is large and loses what the others gain; some samples hold none of these.
    for n_clusters in (50, 100):
        hits, n_draws = 0, max(200, draws // 20)
        for _ in range(n_draws):
            is_large = random.random(n_clusters) < 0.02
            gained = random.random(n_clusters) < 0.02 / 0.98
            sizes = np.where(is_large, 40, 1)
            changes = np.repeat(np.where(is_large, -1.0, gained), sizes)
            before = np.maximum(-changes, 0)
            sampling = Sampling(clusters=np.repeat(np.arange(float(n_clusters)), sizes))
            hits += compare_scores(before, before + changes, sampling).p_value < ALPHA
        case = f"{n_clusters} clusters, one in fifty of 40 questions, by chance"
        yield "changed", case, percent(hits / n_draws), "5"


def copy_one(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """How much wider an interval becomes, in percent, if one of 1,000 questions is copied."""
    for lost, gained in ((11, 9), (30, 30), (0, 0)):
        alone = count_difference(lost, gained, 1000)
        width = alone.high - alone.low
        worst = 0.0
        for n_copies in (2, 3, 5, 10):
            documents = np.append(np.arange(1000), np.zeros(n_copies - 1, int))
            changes = np.repeat([-1.0, 0.0, 1.0], [lost, 1000 - lost - gained, gained])[documents]
            before = np.maximum(-changes, 0)
            sampling = Sampling(clusters=documents.astype(float))
            found = compare_scores(before, before + changes, sampling)
            worst = max(worst, (found.high - found.low) / width - 1)
        case = f"1,000 questions, {lost} lost and {gained} gained, one copied 2 to 10 times"
        yield "wider by (%)", f"{case}; exact", percent(worst), "5"


def ask_copies(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Questions that stand in a benchmark several times, counted as one, and one by one."""
    for n in (60, 100, 300):
        for case, copied in (("twice", n), ("three times", 2 * n), ("half of them twice", n // 2)):
            documents = np.arange(n + copied) % n
            samples = [make_sample(doc_hash=str(i)) for i in documents]
            benchmark: Any = SimpleNamespace(samples=samples, looks=(), task_weights=None)
            as_one = describe_sampling(benchmark, benchmark)
            for how, sampling in (("as one", as_one), ("one by one", Sampling())):
                most: dict[str, float] = {}
                for change in (0.0, -MARGIN):
                    for flips in (0.04, 0.1, 0.3):
                        shares = [(flips - change) / 2, 1 - flips, (flips + change) / 2]
                        changes = random.choice(VALUES, (max(200, draws // 2), n), p=shares)
                        found = find_false_claims(changes, change, documents, sampling)
                        for name, rate in found.items():
                            most[name] = max(most.get(name, 0.0), rate)
                for name, rate in most.items():
                    bound = "5" if how == "as one" else "-"
                    yield name, f"{n} questions, {case}, counted {how}", percent(rate), bound


def find_false_claims(
    changes: Floats, change: float, documents: NDArray[np.int64], sampling: Sampling
) -> dict[str, float]:
    """How often 0/1 answers whose true change is 0, or a loss of the margin, are judged wrongly.

    Args:
        changes: [draws, documents], of the answer to each document.
        change: The true one.
        documents: [questions], the document of each.
        sampling: How the questions were drawn.
    """
    kinds = 3 * np.bincount(documents) + np.round(changes + 1).astype(int)  # size and change
    # Draws with the same sizes and changes are judged once.
    kinds = np.sort(kinds, axis=1)
    _, first, count = np.unique(kinds, axis=0, return_index=True, return_counts=True)
    wrong: dict[str, float] = {}
    for i, share in zip(first, count / len(changes), strict=True):
        d = changes[i][documents]
        difference = Difference(float(d.mean()), *[nan] * 5, len(d), sampling, True, d)
        if change:
            claims = {
                "retained": difference.equivalence_p_value(MARGIN) < ALPHA,
                "budget kept (exit 0)": difference.p_value_above(-MARGIN) < ALPHA,
                "budget exceeded (exit 1)": difference.p_value_below(-MARGIN) < ALPHA,
            }
        else:
            test, zero = difference.change_test, np.zeros(1)
            p = 2 * min(test.p_values_above(zero)[0], test.p_values_below(zero)[0])
            claims = {"changed": bool(p < ALPHA and difference.value)}
        for name, is_made in claims.items():
            wrong[name] = wrong.get(name, 0.0) + is_made * share
    return wrong


def keep_large_budgets() -> Iterator[Row]:
    """Exact: exit 0 of a loss of just the budget; above 50 points PASSED is wrong more often."""
    for budget, bound in ((0.2, "5"), (0.5, "-"), (0.6, "-"), (0.8, "-"), (0.99, "-")):
        worst = 0.0
        for n in (*range(5, 61), 100, 200):
            table = list_tables(n)
            is_kept = p_values(table, -budget, above=True) < ALPHA
            for share in (0.0, *np.geomspace(1e-4, (1 - budget) / 2, 16)):
                flips = [share + budget, max(0.0, 1 - budget - 2 * share), share]
                chances = scipy.stats.multinomial.pmf(table, n, flips)
                worst = max(worst, float(chances[is_kept].sum()))
        case = f"exact, a budget of {100 * budget:g} points, 5 to 200 questions"
        yield "budget kept (exit 0)", case, percent(worst), bound


def ask_again(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Further verdicts with more questions, after a first one that could show no change."""
    for n_first, flips in ((100, 0.12), (200, 0.12), (400, 0.2)):
        sides = [flips / 2, 1 - flips, flips / 2]
        first, more = (random.multinomial(n, sides, draws) for n in (n_first, 1_319 - n_first))
        for name, second in (("all 1,319", first + more), ("the others alone", more)):
            verdicts = np.stack([first, second])[:, :, None, :].astype(float)
            is_claimed = find_claims(verdicts, 0.0, (), ["changed"])["changed"]
            case = f"nothing changed, {percent(flips)} % flip; {n_first} questions, then {name}"
            yield "changed, at one of two verdicts", case, percent(is_claimed.any(0).mean()), "-"
    added = [random.multinomial(n, [0.06, 0.88, 0.06], draws) for n in (100, 300, 919, 3_681)]
    verdicts = np.cumsum(added, axis=0)[:, :, None, :].astype(float)
    is_claimed = find_claims(verdicts, 0.0, (), ["changed"])["changed"]
    case = "nothing changed, 12.0 % flip; 100 (of four), 400, 1,319, then 5,000 questions"
    for n, name in ((3, "three"), (4, "four")):
        rate = percent(is_claimed[-n:].any(0).mean())
        yield f"changed, at one of {name} verdicts", case, rate, "-"


def compare_clusters(means: Floats) -> Difference:
    """Compare scores whose changes have these means in clusters of four."""
    n_changed = np.round(np.abs(means) * 4).astype(int)
    changes = (np.arange(4) < n_changed[:, None]) * np.sign(means)[:, None]
    before = np.maximum(0.0, -changes).ravel()
    sampling = Sampling(clusters=np.repeat(np.arange(len(means)), 4).astype(float))
    return compare_scores(before, before + changes.ravel(), sampling)


def draw_choices(
    shape: tuple[int, int], noise: float, loss: float, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """Draw changes of questions with four choices: of p_right, and of 0/1 answers.

    Both models know as much of a question and differ by chance, so that nothing changes on average;
    then the tuned one likes the right choice less.

    Args:
        shape: Runs, and questions of each.
        noise: The standard deviation of a choice's change, in nats.
        loss: Of the right choice, in nats.
        random: Where the numbers come from.
    """
    shared = random.normal(0, 2, (*shape, 4))
    shared[..., 0] += 1
    base, tuned = (shared + random.normal(0, noise / np.sqrt(2), shared.shape) for _ in range(2))
    tuned[..., 0] -= loss
    right = [scipy.special.softmax(nats, axis=-1)[..., 0] for nats in (base, tuned)]
    answers = [(nats.argmax(axis=-1) == 0) * 1.0 for nats in (base, tuned)]
    return right[1] - right[0], answers[1] - answers[0]


def graded_p_values(changes: Floats, threshold: float, above: bool) -> Floats:
    """One-sided p-values of graded changes [runs, questions], as `Difference` has them."""
    sign = 1 if above else -1
    excess, counts = sign * (changes - threshold), np.ones(changes.shape[1])
    return likelihood_p_values(excess, counts, -1 - sign * threshold)


def find_loss(noise: float, change: float, by_answers: bool) -> float:
    """Find the loss in nats that changes p_right, or the share of right answers, by so much."""

    def measure(loss: float) -> float:
        p_right, answers = draw_choices((1, 200_000), noise, loss, np.random.default_rng(1))
        return float((answers if by_answers else p_right).mean()) - change

    return float(scipy.optimize.brentq(measure, 0.0, 5.0, xtol=1e-4))


def change_probabilities(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """p_right, the probability of the right choice, whose mean did not change, or by the margin."""
    for noise in (1.0, 2.0, 3.0):
        loss = find_loss(noise, -MARGIN, by_answers=False)
        for n in (50, 200, 600):
            n_blocks, wrong = max(1, draws // 500), np.zeros(5)
            for _ in range(n_blocks):
                changes, _ = draw_choices((500, n), noise, 0.0, random)
                p = [graded_p_values(changes, 0.0, above) for above in (True, False)]
                wrong[0] += np.mean(2 * np.minimum(*p) < ALPHA)
                d = change_difference(changes[0])
                assert abs(d.p_value - min(1.0, 2 * min(p[0][0], p[1][0]))) < 1e-9, (noise, n)
                fallen, _ = draw_choices((500, n), noise, loss, random)
                lost, within = (graded_p_values(fallen, -MARGIN, above) for above in (False, True))
                is_below = graded_p_values(fallen, MARGIN, above=False) < ALPHA
                wrong[1] += np.mean((within < ALPHA) & is_below)
                wrong[2] += np.mean(lost < ALPHA)
                # At most: the chances of all benchmarks, and of all looks, add up.
                wrong[3] += 4 * np.mean(2 * np.minimum(*p) < ALPHA / 4)
                wrong[4] += 10 * np.mean(lost < ALPHA / 10)
            claims = [f"p_right {claim}" for claim in ("changed", "retained")]
            claims += ["a look at p_right is beyond its budget", "any p_right of 4 changed"]
            claims += ["any of 10 looks at p_right is beyond its budget"]
            for claim, rate in zip(claims, wrong / n_blocks, strict=True):
                yield claim, f"noise of {noise:g} nats, {n} questions", percent(rate), "5"


def judge_kinds(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Four benchmarks by answers and four by p_right, of the same questions: two families."""
    metrics = {f"{metric} {i}": metric for metric in ("acc", "p_right") for i in range(4)}
    for n in (100, 400):
        n_draws, wrong = max(1, draws // 10), dict.fromkeys(("acc", "p_right"), 0)
        for _ in range(n_draws):
            p_right, answers = draw_choices((4, n), 2.0, 0.0, random)
            changes = dict(zip(metrics, [*answers, *p_right], strict=True))
            for names in group_comparable(metrics):
                found = [change_difference(changes[name]) for name in names]
                verdicts = list_verdicts(found, [MARGIN] * len(found))
                wrong[metrics[names[0]]] += bool(verdicts & {Verdict.forgotten, Verdict.improved})
        for metric, n_wrong in wrong.items():
            claim, case = f"any of 4 by {metric} changed, 4 of each kind", f"{n} questions each"
            yield claim, f"{case}, nothing changed", percent(n_wrong / n_draws), "5"


def list_verdicts(
    differences: Sequence[Any], margins: Sequence[float], n_reports: int = 1
) -> set[Verdict | None]:
    """Return the verdicts on benchmarks that are judged together."""
    return {d.verdict for d in decide_verdicts(differences, margins, n_reports)}


def count_needed_by_p_right(draws: int, random: np.random.Generator) -> Iterator[tuple[str, ...]]:
    """Questions that show the same loss in four of five cases: by accuracy, and by p_right."""
    n_runs = max(200, draws // 8)
    for change, noise in (
        (0.02, 1.0),
        (0.03, 1.0),
        (0.03, 2.0),
        (0.05, 1.0),
        (0.05, 2.0),
        (0.05, 3.0),
    ):
        loss = find_loss(noise, -change, by_answers=True)
        [changes], [answers] = draw_choices((1, 400_000), noise, loss, random)
        truth: dict[str, Any] = {"change": change, "discordant": float((answers != 0).mean())}
        power = partial(change_power, is_simple=True, alpha=ALPHA, **truth)
        by_answers = bisect_left(range(10**5), POWER, 2, key=power)

        def show(n: int, changes: Floats = changes) -> float:
            runs = np.random.default_rng(2).choice(changes, (n_runs, n))
            return float((2 * graded_p_values(runs, 0.0, above=False) < ALPHA).mean())

        needed = bisect_left(range(by_answers * 2), POWER, 2, key=show)
        lost = f"{100 * float(changes.mean()):.1f}"
        cells = f"{-100 * change:g}", f"{noise:g}", percent(truth["discordant"]), lost
        yield *cells, str(by_answers), str(needed), percent(1 - needed / by_answers)


def cover_rates(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """The forgetting rate's interval, of weak bases and after a collapse."""
    for base, lost, gained in (
        (0.02, 0.01, 0.01),
        (0.05, 0.04, 0.0),
        (0.10, 0.08, 0.06),
        (0.35, 0.12, 0.06),
        (0.35, 0.345, 0.0),
        (0.60, 0.20, 0.05),
    ):
        for n in (100, 300):
            shares = [base - lost, lost, gained, 1 - base - gained]
            true, shown, misses, n_draws = (lost - gained) / base, 0, 0, draws // 4
            for _ in range(n_draws):
                cells = random.choice(4, size=n, p=shares)
                before, after = (cells < 2) * 1.0, ((cells == 0) | (cells == 2)) * 1.0
                rate = forgetting_rate(before, after)
                if rate and before.sum() >= FEWEST_RIGHT:
                    shown += 1
                    misses += not rate.low <= true <= rate.high
            case = f"rate {true:.2f}, base {base}, {n} questions"
            claim, missed = f"rate's interval misses ({shown} shown)", misses / max(1, shown)
            yield claim, case, percent(missed), "5"
            yield "rate is not shown", case, percent(1 - shown / n_draws), "-"


def cover_bits(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Bits a byte: the interval of the change in percent, and where its condition does not hold."""

    def draw(n: int, kind: str) -> tuple[Floats, Floats]:
        lengths = np.exp(random.normal(6, 1, n)) if "lengths" in kind else np.full(n, 500.0)
        base = lengths * np.exp(random.normal(0, 0.3, n))
        if "skewed" in kind:
            return base * (0.96 + random.exponential(0.04, n)), base
        if "rare" in kind:
            is_lost = random.random(n) < 0.01
            return base * (0.997 + random.normal(0, 0.01, n) + 0.3 * is_lost), base
        return base * random.normal(1, 0.03, n), base

    for kind in ("normal", "unequal lengths", "skewed", "skewed, unequal lengths"):
        for n in (30, 80, 300):
            yield cover_ratio(f"{n} texts, {kind}", partial(draw, n, kind), draws, "5")
    for n in (30, 80, 300):
        case = f"{n} texts, a rare one in 100 takes 30 % more bits, and others make up for it"
        yield cover_ratio(case, partial(draw, n, "rare"), draws, "-")


def cover_ratio(
    case: str, draw: Callable[[], tuple[Floats, Floats]], draws: int, bound: str
) -> Row:
    """How often the interval of a ratio misses 1."""
    n_draws = max(20, draws // 20)
    intervals = (find_ratio_interval(*draw()) for _ in range(n_draws))
    misses = sum(not low <= 1 <= high for low, high in intervals)
    return "bits' interval misses", case, percent(misses / n_draws), bound


def hold_shares(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """A budget that is a share of the base's score, of which the true loss is exactly that share.

    Graded scores: all lose the same, so that the measured base alone decides; or each loses its
    share and some noise.
    """

    def draw(kind: str, base: float, share: float) -> tuple[Floats, Floats]:
        if kind == "0/1":
            gained = 0.03
            lost = share * base + gained
            cells = random.choice(4, n, p=[base - lost, lost, gained, 1 - base - gained])
            return (cells < 2) * 1.0, (cells % 2 == 0) * 1.0
        before = random.choice([base - 0.3, base + 0.3], n)
        if kind == "all lose the same":
            return before, before - share * base
        return before, before * (1 - share) + random.uniform(-0.1, 0.1, n)

    n, n_draws = 300, draws // 8
    for kind, base, share in (
        ("0/1", 0.2, 0.2),
        ("0/1", 0.6, 0.05),
        ("0/1", 0.6, 0.5),
        ("all lose the same", 0.6, 0.3),
        ("a noisy share", 0.6, 0.3),
    ):
        outcomes = []
        for _ in range(n_draws):
            before, after = draw(kind, base, share)
            difference, base_score = compare_scores(before, after), estimate_mean(before)
            primary = SimpleNamespace(difference=difference, base=base_score)
            change = simulate_change(primary=primary, margin=MARGIN, n=n)
            change.forgetting_rate = forgetting_rate(before, after)
            pair = SimpleNamespace(base_scores=before, tuned_scores=after, sampling=Sampling())
            findings: Any = SimpleNamespace(benchmarks={"a": change}, pairs={"a": pair})
            [check] = check_budgets(findings, {}, {"a": share})
            outcomes.append(check.outcome)
        case = f"{kind}, base {base}, {share} of it is lost, {n} questions"
        for outcome in (Outcome.within, Outcome.beyond):
            rate = percent(outcomes.count(outcome) / n_draws)
            yield f"exit {int(outcome)}, a share of the base", case, rate, "5"


def judge_together(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """`check --overall`: "worse" of several benchmarks whose mean did not change, and power."""

    def flip(n: int, change: float, flips: float = 0.1) -> Floats:
        return random.choice(VALUES, n, p=[(flips - change) / 2, 1 - flips, (flips + change) / 2])

    def gain_rarely(n: int) -> list[Floats]:
        return [np.where(random.random(n) < 1 / 51, 0.4, -0.008)]

    cases: list[tuple[str, Callable[[], list[Floats]]]] = [
        *((f"rare gains, {n:,} questions", partial(gain_rarely, n)) for n in (50, 100, 300, 1319)),
        ("20 and 1,000 questions", lambda: [flip(20, 0), flip(1000, 0)]),
        ("+3 in 20, −3 in 1,000", lambda: [flip(20, 0.03, 0.03), flip(1000, -0.03)]),
        ("+2.5 in 20, −2.5 in 10,042", lambda: [flip(20, 0.025, 0.025), flip(10042, -0.025)]),
        ("the same 300 questions in three benchmarks", lambda: [flip(300, 0)] * 3),
        ("power: −3 of 12 %, 3 × 300", lambda: [flip(300, -0.03, 0.12) for _ in range(3)]),
        ("power: −6 of 12 %, 100 and 1,000", lambda: [flip(n, -0.06, 0.12) for n in (100, 1000)]),
        ("−2 and +2, 2 × 300", lambda: [flip(300, -MARGIN), flip(300, MARGIN)]),
    ]
    for case, draw in cases:
        worse, failed, n_draws = 0, 0, max(100, draws // (40 if "10,042" in case else 20))
        pairs = []
        for k, changes in enumerate(draw()):
            prefix = "" if "same" in case else k  # the benchmark that a document belongs to
            samples = [make_sample(doc_hash=f"{prefix} {i}") for i in range(len(changes))]
            base: Any = SimpleNamespace(samples=samples)
            pairs.append(Pair(base, base, Sampling(), ""))
        for _ in range(n_draws):
            by_name = {str(k): change_difference(d) for k, d in enumerate(draw())}
            is_worse = average_changes(list(zip(pairs, by_name.values(), strict=True))).high < 0
            worse += is_worse
            if "+2, 2" in case:
                decided = decide_outcomes(by_name, dict.fromkeys(by_name, MARGIN)).values()
                is_beyond = any(decision.outcome is Outcome.beyond for decision in decided)
                failed += is_worse or is_beyond
        yield "worse", case, percent(worse / n_draws), "-" if "power" in case else "2.5"
    yield "exit 1 with --overall", case, percent(failed / n_draws), "7.5"


def stop_groups(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Groups that weigh unequal tasks alike, and subjects, at any look."""
    for sizes, changes in (((992, 8), (0.4, -0.4)), ((600, 300, 40), (0.1, 0.1, -0.2))):
        order = order_questions(
            {f"t{k}": {i: str(i) for i in range(n)} for k, n in enumerate(sizes)}
        )
        tasks, plan = np.array([int(task[1:]) for task, _ in order]), block_ends(len(order))
        samples = [make_sample(task=task, doc_hash=str(i)) for i, task in enumerate(tasks)]
        weights = dict(enumerate([1.0] * 3))
        whole: Any = SimpleNamespace(samples=samples, task_weights=weights)
        parts: list[Any] = []
        for k, look in enumerate(plan):
            part: Any = SimpleNamespace(
                samples=samples[:look], looks=plan[: k + 1], n_available=len(order)
            )
            parts.append(describe_sampling(whole, part))
        wrong, n_draws = 0, max(100, draws // 40)
        for _ in range(n_draws):
            d = np.sign(np.array(changes))[tasks] * 1.0
            d *= random.random(len(d)) < np.abs(changes)[tasks]
            is_claimed = False
            for sampling in parts:
                _, _, test = sampling.build_test([d[: sampling.looks[-1]]], -1.0, 1.0)
                tails = test.p_values_above(np.zeros(1)), test.p_values_below(np.zeros(1))
                is_claimed |= bool(min(tails[0][0], tails[1][0]) < ALPHA / 2)
            wrong += is_claimed
        case = f"{' and '.join(map(str, sizes))} questions weighted alike, any look"
        yield "group changed", case, percent(wrong / n_draws), "5"
    n, hits, n_draws = 300, 0, max(200, draws // 20)
    subjects = [make_sample(task=str(i % 5)) for i in range(n)]
    for _ in range(n_draws):
        changes = random.choice(VALUES, n, p=[0.1, 0.8, 0.1])
        sampling = Sampling(looks=block_ends(n), n_available=n)
        found = compare_subjects(pair_samples(subjects, changes, sampling))
        hits += any(subject.p_value < ALPHA for subject in found.values())
    yield "a subject changed", f"five of {n} questions, any look", percent(hits / n_draws), "5"


def pair_samples(samples: Sequence[Sample], changes: Floats, sampling: Sampling) -> Any:
    """Make what `compare_subjects` reads of a pair, with scores that change so."""
    return SimpleNamespace(
        base=SimpleNamespace(samples=samples, benchmark=SimpleNamespace(metric="acc")),
        base_scores=np.maximum(-changes, 0),
        tuned_scores=np.maximum(changes, 0),
        sampling=sampling,
    )


def mark_subjects(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """The list of subjects: how many of those that it marks did not change, and how many it finds.

    57 subjects, as MMLU has, of which 20 lose 10 points; an eighth of the answers flips anyway.
    """
    n_subjects, n_lost = 57, 20
    for n in (40, 100, 250):
        wrong, found, by_holm = 0.0, 0, 0
        n_draws = max(5, draws // 100)
        for _ in range(n_draws):
            names = np.repeat(np.arange(n_subjects), n)
            loss = np.where(names < n_lost, 0.1, 0.0)
            u = random.random(len(names))
            d = np.where(u < 0.0625 + loss, -1.0, np.where(u > 1 - 0.0625, 1.0, 0.0))
            samples = [make_sample(task=str(name)) for name in names]
            listed = compare_subjects(pair_samples(samples, d, Sampling()))
            marked = [int(name) for name, change in listed.items() if change.p_value < ALPHA]
            wrong += sum(name >= n_lost for name in marked) / max(1, len(marked))
            found += sum(name < n_lost for name in marked)
            changes = [change_difference(d[names == i]).p_value for i in range(n_subjects)]
            by_holm += sum(p < ALPHA for p in holm(changes)[:n_lost])
        case = f"57 subjects of {n} questions, 20 lose 10 points"
        yield "marked subjects that did not change", case, percent(wrong / n_draws), "5"
        shown = f"{found / n_draws:.1f}; {by_holm / n_draws:.1f}"
        yield "subjects found of 20; by Holm", case, shown, "-"


def count_words(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Counts of words in answers; after the training, one answer in a hundred runs to the limit."""
    limit, true = 256, 0.01 * (256 - 20)
    for n in (40, 100, 300):
        misses, n_draws = 0, max(200, draws // 20)
        for _ in range(n_draws):
            sides: list[Any] = []
            for share in (0.0, 0.01):
                counts = random.binomial(40, 0.5, n)
                counts[random.random(n) < share] = limit
                samples = [make_sample(response="1 " * c, answers={"m": "1"}) for c in counts]
                benchmark = SimpleNamespace(metric="m", refusal_phrases=None)
                side = SimpleNamespace(samples=samples, benchmark=benchmark, max_new_tokens=limit)
                sides.append(side)
            words = compare_behaviour(Pair(*sides, Sampling(), ""))[0]
            misses += not words.low <= true <= words.high
        case = f"one answer in 100 runs on to {limit} words, {n} questions"
        yield "words' interval misses", case, percent(misses / n_draws), "5"


def make_sample(**fields: Any) -> Sample:
    """A question with nothing but what its simulation needs."""
    texts = dict.fromkeys(("task", "doc_hash", "prompt_hash", "prompt", "target", "response"), "")
    empty: dict[str, Any] = {"choices": (), "log_likelihoods": (), "answers": {}, "scores": {}}
    return Sample(**{"doc_id": 0, **texts, **empty, **fields})


def change_difference(changes: Floats, sampling: Sampling | None = None) -> Difference:
    """The difference of questions whose scores changed so much."""
    return compare_scores(np.maximum(-changes, 0), np.maximum(changes, 0), sampling)


def cover_seeds(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """The mean over seeds, by the training's noise in standard errors of the questions."""
    n, n_draws = 200, 5 * draws  # two seeds lie close to the limit: this row takes a finer look
    for n_seeds in (2, 3, 5, 8):
        for ratio in (0.0, 1.0, 5.0, 20.0):
            training, misses = ratio * np.sqrt((0.3**2 + 0.2**2 / n_seeds) / n), 0
            for _ in range(n_draws):
                by_seed = random.normal(0, training, (n_seeds, 1))
                by_question = random.normal(0, 0.3, n)
                changes = by_seed + by_question + random.normal(0, 0.2, (n_seeds, n))
                mean = split_noise(changes)
                misses += not mean.low <= 0 <= mean.high
            case = f"{n_seeds} seeds, noise of training {ratio:g}"
            yield "seeds' interval misses", case, percent(misses / n_draws), "5"
    for n_seeds in (2, 3, 5):  # noise that is not normal: most trainings change nothing
        for chance in (0.1, 0.2):
            misses = 0
            for _ in range(draws):
                loss = 0.8 * (random.random((n_seeds, 1)) < chance)
                question_noise = random.normal(0, 0.3, n) + random.normal(0, 0.2, (n_seeds, n))
                mean = split_noise(question_noise - loss)
                misses += not mean.low <= -0.8 * chance <= mean.high
            case = f"{n_seeds} seeds, one training in {1 / chance:.0f} loses 80 points"
            yield "seeds' interval misses", case, percent(misses / draws), "-"


def average_benchmarks(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """The mean of three benchmarks over seeds; a bad seed is bad on all, to a set degree."""
    n, n_draws = 200, draws // 2
    for n_seeds in (2, 3, 5):
        for ratio, shared in ((0.0, 1.0), (1.0, 1.0), (5.0, 1.0), (5.0, 0.5)):
            misses, widths = 0, []
            noise = ratio * np.sqrt(0.13 / n)
            for _ in range(n_draws):
                common = np.sqrt(shared) * random.normal(0, noise, (n_seeds, 1))
                parts = []
                for size in (n, 2 * n, 3 * n):
                    own = np.sqrt(1 - shared) * random.normal(0, noise, (n_seeds, 1))
                    question_noise = random.normal(0, 0.3, size)
                    question_noise = question_noise + random.normal(0, 0.2, (n_seeds, size))
                    parts.append((common + own + question_noise) / 3)
                mean = split_noise(*parts)
                misses += not mean.low <= 0 <= mean.high
                widths.append(mean.high - mean.low)
            case = (
                f"{n_seeds} seeds, noise of training {ratio:g}, {100 * shared:.0f} % of it shared"
            )
            case += f", {50 * np.median(widths):.1f} points either way"
            yield "mean of benchmarks misses", case, percent(misses / n_draws), "5"
    for n_seeds in (2, 3, 5):  # answers that are lost or gained, and few of them
        misses = 0
        for _ in range(n_draws):
            shift = random.normal(0, 0.1, (n_seeds, 1)).clip(-0.3, 0.3) / 2
            u = random.random((3, n_seeds, 60))
            changes = (u > 0.8 - shift).astype(float) - (u < 0.2 - shift)
            mean = split_noise(changes.mean(axis=0), steps=[1.0])
            misses += not mean.low <= 0 <= mean.high
        case = f"{n_seeds} seeds, 60 answers of each, 40 % of them flip, a bad seed is bad on all"
        yield "mean of benchmarks misses", case, percent(misses / n_draws), "5"


def simulate_findings(changes: Floats, budget: float) -> Any:
    """Findings of one benchmark, `a`, with these changes of its answers and this budget."""
    n, primary = len(changes), SimpleNamespace(difference=change_difference(changes))
    change = simulate_change(primary=primary, margin=budget, n=n)
    return SimpleNamespace(benchmarks={"a": change})


def simulate_change(primary: SimpleNamespace, margin: float, n: int) -> SimpleNamespace:
    """Make what `check_budgets` reads of a retained benchmark's change.

    It counts as stopped, so that it skips how many questions would tell.
    """
    return SimpleNamespace(
        role=Role.retained,
        max_loss=None,
        margin=margin,
        n=n,
        n_available=n,
        is_stopped=True,
        is_measured=True,
        has_no_right_answer=False,
        primary=primary,
    )


def choose_scales(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """`slimdown scale --max-loss 0.02`: going up, the last scale that is shown to be within.

    What is lost at a scale is lost at larger ones, too; 3 % of the answers flip back and forth.
    Beside it stands what was done before: half of the questions chose, without scale 0.1, and the
    other half judged what was chosen.
    """
    budget, n_draws = 0.02, max(10, draws // 20)
    scales = (0.1, 0.25, 0.5, 0.75, 1.0)
    shapes = {
        "a square, 4 points at scale 1": [0.04 * s**2 for s in scales],
        "a line, 3 points at scale 1": [0.03 * s for s in scales],
        "2.05 points from scale 0.5 on": [0.001, 0.005, 0.0205, 0.0205, 0.0205],
        "2.05 points at each scale": [0.0205] * 5,
        "a square, 1.5 points at scale 1": [0.015 * s**2 for s in scales],
    }

    def answer(n: int, losses: Sequence[float]) -> Floats:
        fate, noise = random.random(n), random.random((len(scales), n))
        changes = np.where(fate < np.array(losses)[:, None], -1.0, 0.0)
        changes[(fate >= 0.1) & (noise < 0.015)] = -1.0
        changes[(fate >= 0.1) & (noise > 0.985)] = 1.0
        return changes

    def judge(changes: Floats) -> list[ScaledFindings]:
        return [
            ScaledFindings(scale, simulate_findings(scaled, budget))
            for scale, scaled in zip(scales, changes, strict=True)
        ]

    for n in (600, 1200, 2000):
        for name, losses in shapes.items():
            truth, chosen, before = dict(zip(scales, losses, strict=True)), [], []
            for _ in range(n_draws):
                changes = answer(n, losses)
                found = choose_scale(judge(changes), {})
                chosen.append(found.point.scale if found.gate.outcome is Outcome.within else 0.0)
                halves = judge(changes[:, : n // 2])[1:], judge(changes[:, n // 2 :])
                found = choose_scale(halves[0], {})
                scale = found.point.scale if found.gate.outcome is Outcome.within else 0.0
                held = next((p for p in halves[1] if p.scale == scale), None)
                passes = held and overall_outcome(check_budgets(held.findings, {}))
                before.append(scale if passes is Outcome.within else 0.0)
            for how, taken in (("", chosen), ("before: halves, ", before)):
                kept = np.array(taken)
                over = np.mean([truth.get(scale, 0.0) > budget for scale in taken])
                case = f"{how}{n:,} questions, loss: {name}"
                yield "scale over its budget", case, percent(float(over)), "5"
                passed = f"{percent(float(np.mean(kept > 0)))}; {kept.mean():.2f}"
                yield "exit 0 of scale; mean scale (0: none)", case, passed, "-"


def choose_checkpoints(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Checkpoints of a training: half of 1,200 questions choose one, the other half confirms it.

    The chosen one gained most of 300 target questions, of those whose losses are within 2 points as
    measured. 5 % of the answers flip back and forth at each checkpoint, all else for good.
    """
    n, budget, n_draws = 600, 0.02, draws // 10
    shapes = {
        "2.05 points at each": [0.0205] * 5,
        "0.5 points more at each": [0.005, 0.01, 0.015, 0.02, 0.025],
        "3 points from the second on": [0.0, 0.03, 0.03, 0.03, 0.03],
        "1 point at each": [0.01] * 5,
    }
    gains = np.linspace(0.05, 0.2, 5)

    def answer(losses: Sequence[float]) -> list[Any]:
        fate, points = random.random(n), []
        for loss in losses:
            flips = random.random(n)
            changes = np.where(fate < loss, -1.0, 0.0)
            changes[(fate >= 0.1) & (flips < 0.025)] = -1.0
            changes[(fate >= 0.1) & (flips > 0.975)] = 1.0
            points.append(simulate_findings(changes, budget))
        return points

    for name, losses in shapes.items():
        counts = np.zeros(3)
        for _ in range(n_draws):
            measured = [p.benchmarks["a"].primary.difference.value for p in answer(losses)]
            learned = random.binomial(300, gains) / 300
            within = [i for i, change in enumerate(measured) if change >= -budget]
            if within:
                i = max(within, key=lambda i: learned[i])
                checks = check_budgets(answer(losses)[i], {})
                passes = overall_outcome(checks) is Outcome.within
                counts += losses[i] > budget, losses[i] > budget and passes, passes
        shares = counts / n_draws
        case = f"loss: {name}; 5 checkpoints, 600 questions a half"
        yield "chosen checkpoint over its budget", case, percent(shares[0]), "-"
        yield "chosen checkpoint over, exit 0", case, percent(shares[1]), "5"
        yield "exit 0 of a chosen checkpoint", case, percent(shares[2]), "-"


def change_of(point: ScaledFindings) -> float:
    """The measured change of a simulated benchmark at a scale."""
    return point.findings.benchmarks["a"].primary.difference.value


def contradicts(decision: Decision, shown: Estimate, margin: float) -> bool:
    """Whether a verdict says something else than the interval beside it, or than the change."""
    if not shown.low <= shown.value <= shown.high:
        return True
    if decision.verdict is Verdict.retained:
        return shown.low < -margin or shown.high > margin
    holds_zero = shown.low <= 0 <= shown.high
    if decision.verdict is Verdict.undecided:
        return not holds_zero or (-margin < shown.low and shown.high < margin)
    return holds_zero


def draw_any(random: np.random.Generator) -> Difference:
    """A difference with clusters, weights, looks or graded scores, or with none of them."""
    n, kind = int(random.integers(12, 400)), random.choice(["plain", "clusters", "tasks", "looks"])
    change, flips = random.choice([0, -0.02, -0.1, 0.05]), random.choice([0.0, 0.05, 0.3])
    u = random.random(n)
    d = np.where(u < (flips - change) / 2, -1.0, np.where(u > 1 - (flips + change) / 2, 1.0, 0.0))
    if random.random() < 0.3:
        d = np.clip(random.normal(change, 0.01 + flips, n), -1, 1)
    sampling = Sampling()
    if kind == "clusters":
        sampling = Sampling(clusters=np.sort(random.integers(0, max(2, n // 3), n)).astype(float))
    elif kind == "tasks":
        weights = np.where(np.arange(n) < n // 4, 2.0, 2 / 3)
        sampling = Sampling(weights=weights / weights.mean(), n_subjects=2)
    elif kind == "looks":
        ends = block_ends(2 * n)
        looks = (*(end for end in ends if end < n), n)
        sampling = Sampling(looks=looks, n_available=2 * n)
    return compare_scores(np.maximum(-d, 0), np.maximum(d, 0), sampling)


def find_critical_levels(p_value: float) -> list[float]:
    """Of the levels 5 %/k, k = 1 to 20: the least that shows a p-value, the most that does not."""
    levels = [ALPHA / k for k in range(1, 21)]
    shown = [level for level in levels if p_value < level]
    return [*shown[-1:], *[level for level in levels if level not in shown][:1]]


def remember_intervals(d: Difference) -> Any:
    """Return what an interval beside a verdict is formed of; each is computed once."""
    ends = {"value": d.value, "standard_error": d.standard_error, "low": d.low, "high": d.high}
    intervals = {"interval": cache(d.interval), "margin_interval": cache(d.margin_interval)}
    return SimpleNamespace(**ends, **intervals)


def list_halves(n: int) -> list[tuple[int, int]]:
    """List the tables of `n` answers in which no more are gained than lost.

    A table with lost and gained answers exchanged is the same one turned round.
    """
    return [(a, b) for a in range(n + 1) for b in range(min(a, n - a) + 1)]


def count_contradictions(tables: Sequence[tuple[int, int]], n: int) -> tuple[int, int]:
    """Count contradictions over tables of `n` answers, three margins and all pairs of levels.

    Levels between the critical ones leave a verdict as it is, and its interval wider.

    Returns:
        Contradictions, and pairs of verdict and interval.
    """
    n_wrong = n_all = 0
    for lost, gained in tables:
        d = count_difference(lost, gained, n)
        remembered = remember_intervals(d)
        for margin in (0.02, 0.03, 0.05):
            p_equal = d.equivalence_p_value(margin)
            for change in find_critical_levels(d.p_value):
                for equal in find_critical_levels(p_equal):
                    verdict = Verdict.retained
                    if p_equal >= equal:
                        signs = {-1: Verdict.forgotten, 0: Verdict.undecided, 1: Verdict.improved}
                        verdict = signs[d.shown_sign(change)]
                    decision = Decision(verdict, d.p_value, p_equal, change, equal)
                    n_all += 1
                    shown = decision.form_interval(remembered, margin)
                    n_wrong += contradicts(decision, shown, margin)
    return n_wrong, n_all


def agree_with_verdicts(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Verdicts and the intervals beside them: whether they contradict each other, and cover."""
    for n in (20, 50, 100, 300):
        tables = list_halves(n)
        case = f"all tables of {n} answers"
        if len(tables) > draws and draws < 2_000:  # all of them take three minutes
            chosen = random.choice(len(tables), draws // 4, replace=False)
            case = f"{len(chosen):,} of {len(tables):,} tables of {n} answers"
            tables = [tables[i] for i in chosen]
        n_wrong, n_all = count_contradictions(tables, n)
        yield "contradictions", f"{n_all:,} verdicts on {case}", str(n_wrong), "0"
    n_wrong = 0
    for _ in range(draws // 8):
        margin, found = random.choice([0.02, 0.03, 0.05]), [draw_any(random) for _ in range(4)]
        decided = decide_verdicts(found, [margin] * 4, int(random.choice([1, 5])))
        for d, decision in zip(found, decided, strict=True):
            n_wrong += contradicts(decision, decision.form_interval(d, margin), margin)
            budget = decide_outcomes({"a": d}, {"a": margin}, decision.change_level)["a"]
            bound = budget.find_bound(d, margin)
            n_wrong += (bound < -margin) if budget.outcome is Outcome.within else bound > -margin
    case = f"{draws // 2:,} benchmarks of 4, clusters, weights, looks, graded scores"
    yield "contradictions", case, str(n_wrong), "0"
    for n in (100, 400):
        for n_flips in (0.04, 0.2):
            changes = np.array([0.0, -0.015, -0.05, 0.1 * n_flips])
            misses = dict.fromkeys(Verdict, 0)
            counts = dict.fromkeys(Verdict, 0)
            for _ in range(draws // 10):
                shares = [((n_flips - c) / 2, (n_flips + c) / 2) for c in changes]
                found = [
                    count_difference(*map(int, random.multinomial(n, [a, b, 1 - a - b])[:2]), n)
                    for a, b in ((max(0.0, a), max(0.0, b)) for a, b in shares)
                ]
                truth = [max(0.0, b) - max(0.0, a) for a, b in shares]
                decided = decide_verdicts(found, [0.05] * 4)
                for d, decision, true in zip(found, decided, truth, strict=True):
                    shown = decision.form_interval(d, 0.05)
                    counts[decision.verdict] += 1
                    misses[decision.verdict] += not shown.low <= true <= shown.high
            n_all, case = sum(counts.values()), f"4 benchmarks of {n}, {100 * n_flips:.0f} % flip"
            is_equal = Verdict.retained
            others = sum(misses.values()) - misses[is_equal]
            yield "shown interval misses", f"{case}, not retained", percent(others / n_all), "5"
            yield (
                "shown interval misses",
                f"{case}, retained",
                percent(misses[is_equal] / n_all),
                "10",
            )


def draw_values(
    sizes: Sequence[int],
    n: int,
    noise: tuple[float, float, float],
    random: np.random.Generator,
    *,
    shared: float = 0.0,
    change: float = 0.0,
) -> list[SeedAnswers]:
    """Draw the answers of several values of a setting; on average nothing differs between them.

    Args:
        sizes: Of each value the number of seeds.
        n: Questions.
        noise: The share of questions that flip alike for all seeds of a value, the share that flips
            by seed, and how much a seed shifts all its answers.
        random: The generator.
        shared: How much a seed shifts the answers of all values alike: then all have the same
            seeds, and are compared in pairs.
        change: What the last value loses.
    """
    alike, own, training = noise
    common = random.normal(0, shared, (max(sizes), 1))
    values = []
    for i, n_seeds in enumerate(sizes):
        shift = random.normal(0, training, (n_seeds, 1)) + common[:n_seeds]
        if i == len(sizes) - 1:
            shift = shift - change / (1 - alike)
        by_question, by_seed = random.random(n), random.random((n_seeds, n))
        lost, gained = own / 2 + np.maximum(0, -shift), own / 2 + np.maximum(0, shift)
        flips = np.where(by_seed < lost, -1.0, np.where(by_seed > 1 - gained, 1.0, 0.0))
        common_flips = np.where(by_question < alike / 2, -1.0, 1.0)
        flips = np.where(by_question < alike, common_flips, flips)
        names = tuple(f"{seed}" if shared else f"{i}, {seed}" for seed in range(n_seeds))
        values.append(SeedAnswers([flips], [1.0], 1 / n, is_binary=True, seeds=names))
    return values


def find_differences(
    values: Sequence[SeedAnswers], against: str | None = None
) -> set[tuple[str, str]]:
    """Return which values, by their numbers, are shown to differ; or differ from a reference."""
    groups = {str(i): value for i, value in enumerate(values)}
    pairs = [pair for pair in combinations(groups, 2) if against is None or against in pair]
    tests = build_difference_tests(groups, pairs)
    corrected = holm([test.p_value for test in tests.values()])
    return {pair for pair, p in zip(tests, corrected, strict=True) if p < ALPHA}


def differ_by_luck(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """`compare`: values of a setting that are equally good in the world of these questions.

    Each value flips a tenth of the questions alike for all its seeds, and 2 % by seed. What counts
    is the error of a mean by the questions over the one by the seeds.
    """
    alike, own, n_draws = 0.1, 0.02, max(10, draws // 20)
    for n_seeds, n in product((3, 5), (100, 300, 1000)):
        for ratio in (0.5, 1.0, 2.0, 3.0):
            training = np.sqrt(alike * n_seeds / n) / ratio
            for kind, shared in (("in pairs", training), ("other seeds", 0.0)):
                noise = alike, own, training
                hits = sum(
                    bool(
                        find_differences(
                            draw_values((n_seeds,) * 2, n, noise, random, shared=shared)
                        )
                    )
                    for _ in range(n_draws)
                )
                case = f"2 values of {n_seeds} seeds ({kind}), {n:,} questions"
                case += f", their error {ratio:g} times the seeds'"
                yield "values differ", case, percent(hits / n_draws), "5"


def differ_among_many(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """`compare`: many equally good values, unequal numbers of seeds, unequal spreads."""
    n_draws = max(10, draws // 20)
    for sizes in ((2, 2), (2, 5), (2, 10), (3, 10), (5, 10), (2, 3, 5), (2,) * 6, (3,) * 4):
        for training in (0.0, 0.05):
            for shared in (0.0, 0.05) if len(set(sizes)) == 1 else (0.0,):
                noise = 0.02, 0.05, training
                hits = sum(
                    bool(find_differences(draw_values(sizes, 300, noise, random, shared=shared)))
                    for _ in range(n_draws)
                )
                case = f"values of {', '.join(map(str, sizes))} seeds, 300 questions, shifts of "
                case += f"{100 * training:g} points{', in pairs' if shared else ''}, any claim"
                yield "values differ", case, percent(hits / n_draws), "5"
    for sizes in ((2, 2), (3, 3), (2, 10), (3, 10), (5, 10), (4,) * 6):
        hits = 0
        for _ in range(n_draws):
            wide, *_ = draw_values(sizes, 300, (0.02, 0.05, 0.15), random)
            others = draw_values(sizes, 300, (0.02, 0.05, 0.05), random)[1:]
            hits += bool(find_differences([wide, *others]))
        case = f"values of {', '.join(map(str, sizes))} seeds, the first varies three times as much"
        yield "values differ", f"{case}, any claim", percent(hits / n_draws), "-"


def differ_from_one(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """`compare`: one value beside others, in turn and as the reference (`--against`)."""
    n_draws = max(10, draws // 20)
    for n_seeds in (2, 3, 5):  # as keep=none beside each share of keep=replay
        hits = 0
        for _ in range(n_draws):
            first, *others = draw_values((n_seeds,) * 4, 300, (0.02, 0.05, 0.03), random)
            p = []
            for other in others:
                groups = {"first": first, "other": other}
                [test] = build_difference_tests(groups, [("first", "other")]).values()
                p.append(test.p_value)
            hits += min(holm(p)) < ALPHA
        case = f"{n_seeds} seeds, one value beside three others in turn, any claim (Holm)"
        yield "values differ", case, percent(hits / n_draws), "5"
    for against, how in ((None, "each with each"), ("0", "each with the first alone")):
        shown = lucky = 0
        for _ in range(n_draws):
            noise = 0.02, 0.05, 0.02
            worse = draw_values((3,) * 6, 600, noise, random, shared=0.03, change=0.08)
            shown += ("0", "5") in find_differences(worse, against)
            same = draw_values((3,) * 6, 600, noise, random, shared=0.03)
            lucky += bool(find_differences(same, against))
        case = f"6 values of 3 seeds, 600 questions, in pairs, {how}"
        yield "values differ", f"{case}, any claim", percent(lucky / n_draws), "5"
        case += ", the last loses 8 points, and is shown to differ from the first"
        yield "power", case, percent(shown / n_draws), "-"


def draw_table(
    shape: tuple[int, int, int, int],
    change: float,
    noise: tuple[float, float, float],
    random: np.random.Generator,
    wider: float = 1.0,
) -> list[Floats]:
    """Draw a table of `slimdown compare`: of each benchmark [values, seeds, questions] changes.

    Args:
        shape: Values of a setting, seeds of each, benchmarks, questions of each.
        change: The true one of every value on every benchmark.
        noise: The share of questions that flip for all seeds of all values, the share that flips by
            seed, and how much a seed shifts all its benchmarks.
        random: The generator.
        wider: How many times as much the first value's seeds shift.
    """
    n_values, n_seeds, n_benchmarks, n = shape
    common, own, training = noise
    shift = random.normal(0, training, (n_values, n_seeds, 1))
    shift[0] *= wider
    shift += change / (1 - common)
    drawn = []
    for _ in range(n_benchmarks):
        shared, u = random.random(n), random.random((n_values, n_seeds, n))
        lost, gained = own / 2 + np.maximum(0, -shift), own / 2 + np.maximum(0, shift)
        by_seed = np.where(u < lost, -1.0, np.where(u > 1 - gained, 1.0, 0.0))
        flips = np.where(shared < common / 2, -1.0, np.where(shared > 1 - common / 2, 1.0, 0.0))
        drawn.append(np.where(flips != 0, flips, by_seed))
    return drawn


def build_table(drawn: Sequence[Floats]) -> list[MeanTest]:
    """Build the tests of a table, of benchmarks and of their mean (`kept`)."""
    tests: list[MeanTest] = []
    columns = [*drawn, *([np.mean(drawn, axis=0)] if len(drawn) > 1 else [])]
    for i, column in enumerate(columns):
        step = 1 / column.shape[-1] / (len(drawn) if i == len(drawn) else 1)
        is_binary = i < len(drawn)
        by_value = [SeedAnswers([changes], [1.0], step, is_binary) for changes in column]
        tests += build_tests(dict(enumerate(by_value))).values()
    return tests


def judge_table(drawn: Sequence[Floats], margin: float) -> set[Verdict]:
    """Return the verdicts that a table makes."""
    tests = build_table(drawn)
    return list_verdicts(tests, [margin] * len(tests))


def repeat_seeds() -> Iterator[Row]:
    """Exact: seeds that flip the same answers, so that their means move by whole answers.

    What is wrong most often at the levels 5 % / 1, 4, 12 and 120 is given in percent of the level.
    """
    margin = 0.05
    changes = np.append(np.geomspace(1e-3, 0.5, 40), np.linspace(0.05, 0.5, 20))
    for n_seeds, freedom in ((2, 8), (3, 6), (5, 4), (8, 7)):
        for n in (100, 300):
            table = list_tables(n)
            find_p = partial(find_seeds_p, table, n_seeds, freedom)
            value = table[:, 2] - table[:, 0]
            changed = 2 * np.where(value > 0, find_p(0.0, True), find_p(0.0, False))
            changed = np.where(value == 0, 1.0, changed)
            retained = np.maximum(find_p(-margin, True), find_p(margin, False))
            for claim, p, change in (("changed", changed, 0.0), ("retained", retained, -margin)):
                most = 0.0
                for share in changes[2 * changes - change <= 1]:
                    cells = [share - change, 1 - 2 * share + change, share]
                    chances = multinomial_chances(table, cells)
                    for k in (1, 4, 12, 120):
                        most = max(most, float(chances[p < ALPHA / k].sum()) * k / ALPHA)
                case = f"exact, {n_seeds} seeds that flip the same of {n} questions"
                yield f"{claim} over seeds", f"{case}, % of the level", percent(most), "100"


def find_seeds_p(
    table: Floats, n_seeds: int, freedom: int, threshold: float, above: bool
) -> Floats:
    """One-sided p-values over seeds that flip the same answers, as `MeanTest` has them."""
    n = float(table[0].sum())
    distances = ((table[:, 2] - table[:, 0]) / n - threshold) * (1 if above else -1)
    spread = SeedSpread(1 / n**2 / 2, 0.0, freedom)
    return add_seed_noise(distances, p_values(table, threshold, above), spread, n_seeds)


def show_values(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """The intervals beside verdicts over seeds: do they agree with them, do they hold the truth?"""
    n_draws, margin, change = max(20, draws // 40), 0.05, -0.03
    noise = 0.02, 0.05, 0.02
    for shape in ((1, 2, 1, 400), (4, 2, 3, 400), (2, 5, 3, 400)):
        n_values, n_seeds, n_benchmarks, n = shape
        case = f"{n_values} x {n_seeds} seeds, {n_benchmarks} x {n} questions"
        n_wrong = n_cells = n_missed = 0
        for _ in range(n_draws):
            tests = build_table(draw_table(shape, change, noise, random))
            decisions = decide_verdicts(tests, [margin] * len(tests))
            for test, decision in zip(tests, decisions, strict=True):
                shown = decision.form_interval(test, margin)
                n_wrong += contradicts(decision, shown, margin)
                n_missed += not shown.low <= change <= shown.high
                n_cells += 1
        yield "contradictions over seeds", f"{case}, cells", str(n_wrong), "0"
        yield "intervals over seeds", f"{case}, truth missed", percent(n_missed / n_cells), "5"


def judge_values(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Verdicts over seeds in a table of `slimdown compare`, all of them together.

    The truth is no change everywhere, then a loss of just the margin everywhere.
    """
    n_draws, margin = max(10, draws // 20), 0.05
    noises = {
        "few answers flip": (0.0, 0.02, 0.0),
        "questions flip alike": (0.1, 0.02, 0.0),
        "seeds shift by 1 point": (0.05, 0.1, 0.01),
        "seeds shift by 10 points": (0.02, 0.02, 0.1),
    }
    shapes = (
        (1, 2, 1, 100),
        (1, 5, 1, 100),
        (2, 8, 1, 100),
        (4, 2, 1, 400),
        (4, 2, 3, 400),
        (3, 3, 3, 400),
        (2, 5, 3, 400),
    )
    for shape in shapes:
        for name, noise in noises.items():
            n_values, n_seeds, n_benchmarks, n = shape
            case = f"{n_values} x {n_seeds} seeds, {n_benchmarks} x {n} questions, {name}"
            hits = np.zeros(2)
            for _ in range(n_draws):
                made = judge_table(draw_table(shape, 0.0, noise, random), margin)
                hits[0] += bool(made & {Verdict.forgotten, Verdict.improved})
                made = judge_table(draw_table(shape, -margin, noise, random), margin)
                hits[1] += Verdict.retained in made
            yield "changed over seeds", f"{case}, any cell", percent(hits[0] / n_draws), "5"
            yield "retained over seeds", f"{case}, any cell", percent(hits[1] / n_draws), "5"
    drawn = (draw_table((1, 5, 1, 100), -0.03, (0.0, 0.05, 0.0), random) for _ in range(n_draws))
    n_shown = sum(Verdict.forgotten in judge_table(table, 0.02) for table in drawn)
    case = "1 x 5 seeds, 100 questions, 3 points lost, each seed flips 5 % of its own"
    yield "power", case, percent(n_shown / n_draws), "-"
    for n_seeds in (2, 3):
        shape, shown = (4, n_seeds, 3, 400), np.zeros(2)
        for _ in range(n_draws):
            drawn = draw_table(shape, 0.0, noises["seeds shift by 10 points"], random, wider=3)
            shown[0] += bool(judge_table(drawn, margin) & {Verdict.forgotten, Verdict.improved})
            drawn = draw_table(shape, -0.1, noises["seeds shift by 1 point"], random)
            shown[1] += Verdict.forgotten in judge_table(drawn, margin)
        case = f"4 x {n_seeds} seeds, 3 x 400 questions"
        wider = f"{case}, seeds of one value shift three times as much, any cell"
        yield "changed over seeds", wider, percent(shown[0] / n_draws), "-"
        yield "power", f"{case}, all lose 10 points, any cell", percent(shown[1] / n_draws), "-"


@cache
def count_difference(lost: int, gained: int, n: int) -> Difference:
    """Return the difference of n questions of which so many were lost and gained."""
    before, after = np.zeros(n), np.zeros(n)
    before[:lost], after[lost : lost + gained] = 1, 1
    return compare_scores(before, after)


def select_runs(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Tables of 30 runs and 4 benchmarks in which nothing changed, and the best of 30 runs."""
    n, n_runs, n_draws = 300, 30, max(100, draws // 40)
    alone = together = 0
    for _ in range(n_draws):
        counts = random.multinomial(n, [0.05, 0.05, 0.9], size=(n_runs, 4))
        cells = [[count_difference(int(a), int(b), n) for a, b, _ in run] for run in counts]
        reports = [decide_verdicts(run, [MARGIN] * 4) for run in cells]
        table = decide_verdicts([d for run in cells for d in run], [MARGIN] * 4 * n_runs)
        alone += any(v.verdict is Verdict.forgotten for report in reports for v in report)
        together += any(v.verdict is Verdict.forgotten for v in table)
    case = f"any of {n_runs} x 4 cells, nothing changed"
    yield "forgotten", f"{case}, each run by itself", percent(alone / n_draws), "-"
    yield "forgotten", f"{case}, corrected for the table", percent(together / n_draws), "5"
    halves = random.multinomial(n // 2, [0.06, 0.04, 0.9], size=(draws, 2, n_runs))
    values = halves[..., 1] - halves[..., 0]
    whole, chosen = values.sum(axis=1), values[:, 0].argmax(axis=1)
    best = whole.argmax(axis=1)
    passes = [0, 0]
    for i in range(draws):
        same, held = halves[i].sum(axis=0)[best[i]], halves[i, 1, chosen[i]]
        for k, (counts, size) in enumerate(((same, n), (held, n // 2))):
            difference = count_difference(int(counts[0]), int(counts[1]), size)
            passes[k] += difference.p_value_above(-MARGIN) < ALPHA
    case = f"best of {n_runs} runs at the budget"
    yield "budget kept (exit 0)", f"{case}, the same questions", percent(passes[0] / draws), "-"
    yield "budget kept (exit 0)", f"{case}, held-out half", percent(passes[1] / draws), "5"


def draw_chain(
    n_steps: int, shape: tuple[int, int], flips: float, loss: float, random: np.random.Generator
) -> list[list[Difference]]:
    """Draw the answers of a chain's stages; return each step's changes, and the whole's behind.

    Args:
        n_steps: Behind the base, half of whose answers are right.
        shape: Benchmarks, and questions of each.
        flips: The share of answers that a step turns to right, and that it turns to wrong.
        loss: The share that it turns to wrong besides.
        random: The generator.
    """
    stages, share = [random.random(shape) < 0.5], 0.5
    for _ in range(n_steps):
        now, luck = stages[-1], random.random(shape)
        stages.append(np.where(now, luck >= (flips + loss) / share, luck < flips / (1 - share)))
        share -= loss  # of the world's questions, whatever this sample has
    changes = []
    for before, after in (*pairwise(stages), (stages[0], stages[-1])):
        counts = zip((before & ~after).sum(axis=1), (~before & after).sum(axis=1), strict=True)
        changes.append([count_difference(int(lost), int(won), shape[1]) for lost, won in counts])
    return changes


def list_chain_verdicts(
    steps: Sequence[Sequence[Difference]], margins: Sequence[float]
) -> set[Verdict | None]:
    """Return the verdicts on all steps of a chain, which are corrected together."""
    by_step = [list_verdicts(step, margins, n_reports=len(steps)) for step in steps]
    return set[Verdict | None]().union(*by_step)


def judge_chains(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Chains of 2 to 6 stages behind the base: any false claim in a step or in the whole."""
    n_draws = max(100, draws // 8)
    for n_steps, n in ((2, 1), (2, 4), (4, 4), (6, 1), (6, 4)):
        made = np.zeros(3)
        for _ in range(n_draws):
            same = draw_chain(n_steps, (n, 300), 0.02, 0.0, random)
            worse = draw_chain(n_steps, (n, 2000), 0.002, MARGIN, random)
            same_verdicts = list_chain_verdicts(same, [MARGIN] * n)
            worse_verdicts = list_chain_verdicts(worse, [MARGIN] * n)
            outcomes = set[Outcome]()
            for step in worse[:-1]:
                budgets = {str(k): MARGIN for k in range(n)}
                by_name = dict(zip(budgets, step, strict=True))
                gate = decide_outcomes(by_name, budgets, n_reports=n_steps)
                outcomes |= {decision.outcome for decision in gate.values()}
            is_changed = bool(same_verdicts & {Verdict.forgotten, Verdict.improved})
            made += is_changed, Verdict.retained in worse_verdicts, Outcome.beyond in outcomes
        case = f"any step or the whole, {n_steps} stages, {n}"
        shares = [percent(share) for share in made / n_draws]
        yield "changed", f"{case} × 300 questions, nothing changed", shares[0], "5"
        lost = f"{case} × 2,000 questions, each step loses the margin"
        yield "retained", lost, shares[1], "5"
        yield "exit 1 with --max-loss-at each stage", lost, shares[2], "5"


ASSISTANT_MARGIN = 0.1  # as conf/benchmark/assistant_*.yaml have it


@cache
def summarise_counts(lost: int, gained: int, n: int) -> SimpleNamespace:
    """Return what `decide_verdicts` asks of a benchmark, once for each table."""
    difference = count_difference(lost, gained, n)
    p_equal = difference.equivalence_p_value(ASSISTANT_MARGIN)
    return SimpleNamespace(
        value=difference.value,
        p_value=difference.p_value,
        equivalence_p_value=lambda margin: p_equal,
        shown_sign=difference.shown_sign,
    )


def judge_assistant(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """`suite=assistant`: any false claim where the same model answers twice, with other luck.

    The chance that it answers a question rightly is drawn for each question, and is the same both
    times: mostly near 0 or 1, as with greedy decoding, or anywhere, as with a high temperature.
    """
    folder = find_question_file("assistant:facts").parent
    whole = [len(file.read_text("utf-8").splitlines()) for file in sorted(folder.glob("*.jsonl"))]
    margins = [ASSISTANT_MARGIN] * len(whole)
    n_draws = max(200, draws // 2)
    for size, sizes in (("25", [25] * len(whole)), (f"{min(whole)} to {max(whole)}", whole)):
        for spread, name in ((0.05, "few answers vary"), (0.5, "many vary"), (50.0, "all vary")):
            n_changed = 0
            for _ in range(n_draws):
                differences = list[Any]()
                for n in sizes:
                    chances = random.beta(spread, spread, n)
                    first, second = random.random((2, n)) < chances
                    lost, gained = (first & ~second).sum(), (~first & second).sum()
                    differences.append(summarise_counts(int(lost), int(gained), n))
                decisions = decide_verdicts(differences, margins)
                verdicts = {decision.verdict for decision in decisions}
                n_changed += bool({Verdict.forgotten, Verdict.improved} & verdicts)
            case = f"{len(sizes)} benchmarks of {size} questions, the same model twice, {name}"
            yield "any of suite=assistant changed, Holm", case, percent(n_changed / n_draws), "5"


# The rows of the atlas (bench/atlas.toml): how many are alike, questions or clusters, the share of
# them that flips, and what a flip changes. Graded scores change by half.
ATLAS_ROWS = (
    *((6, 12_032, 0.24, 1.0), (4, 1_000, 0.25, 1.0), (2, 1_319, 0.3, 1.0), (2, 750, 0.19, 1.0)),
    *((2, 1_000, 0.6, 1.0), (1, 500, 0.6, 1.0), (2, 50, 0.4, 1.0), (18, 100, 0.2, 1.0)),
    *((2, 240, 0.35, 1.0), (5, 800, 0.4, 1.0), (6, 92, 0.4, 0.5), (5, 400, 0.2, 0.5)),
)


def judge_atlas(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Holm over a family like the atlas's: any false claim of a change, and of no change."""
    shapes = [shape[1:] for shape in ATLAS_ROWS for _ in range(shape[0])]
    n_draws = max(200, draws // 4)
    for case, changes in (
        ("nothing changed", [0.0] * len(shapes)),
        ("every second row lost 8 points", [0.0, -0.08] * len(shapes)),
        ("each lost the margin", [-MARGIN] * len(shapes)),
    ):
        rows = zip(shapes, changes, strict=False)
        drawn = [draw_pairs(shape, change, n_draws, random) for shape, change in rows]
        n_changed = n_retained = 0
        for i in range(n_draws):
            family: list[Any] = [pairs[i] for pairs in drawn]
            decisions = decide_verdicts(family, [MARGIN] * len(family))
            verdicts = [decision.verdict for decision in decisions]
            unchanged = [v for v, change in zip(verdicts, changes, strict=False) if change == 0]
            changed = [v for v, change in zip(verdicts, changes, strict=False) if change != 0]
            n_changed += bool({Verdict.forgotten, Verdict.improved} & set(unchanged))
            n_retained += Verdict.retained in changed
        name = f"{len(shapes)} pairs of 50 to 12,032 questions, {case}"
        if 0.0 in changes:
            yield "any unchanged pair changed, Holm", name, percent(n_changed / n_draws), "5"
        if changes[1]:
            yield "any changed pair retained, Holm", name, percent(n_retained / n_draws), "5"


def draw_pairs(
    shape: tuple[int, float, float], change: float, n_draws: int, random: np.random.Generator
) -> list[SimpleNamespace]:
    """Draw a pair's answers several times; return what `decide_verdicts` asks of each.

    Args:
        shape: Questions, the share that flips, and what a flip changes.
        change: The true one.
        n_draws: How many times.
        random: The generator.
    """
    n, flips, size = shape
    shares = [flips / 2 - change / size / 2, 1 - flips, flips / 2 + change / size / 2]
    counts = random.multinomial(n, shares, size=n_draws).astype(float)

    def test(threshold: float, above: bool, kind: Kind = Kind.margin) -> Floats:
        if size == 1:
            return p_values(counts, threshold, above, kind)
        sign = 1 if above else -1
        least = np.full(n_draws, -1 - sign * threshold)
        return likelihood_p_values(sign * (size * VALUES - threshold), counts, least)

    tails = [test(0.0, above, Kind.change) for above in (True, False)]
    p_change = np.minimum(1.0, 2 * np.minimum(tails[0], tails[1]))
    p_equal = np.maximum(test(-MARGIN, above=True), test(MARGIN, above=False))
    values = size * (counts[:, 2] - counts[:, 0]) / n
    return [
        SimpleNamespace(
            value=value,
            p_value=p,
            equivalence_p_value=lambda margin, equal=equal: equal,
            shown_sign=lambda alpha, value=value, p=p: int(np.sign(value)) if p < alpha else 0,
        )
        for value, p, equal in zip(values, p_change, p_equal, strict=True)
    ]


def measure_power(draws: int, random: np.random.Generator) -> Iterator[tuple[str, ...]]:
    """How often each truth is shown, of all questions and with `evaluation.until=decided`."""
    for change, n, flips, verdict in (
        (-0.03, 1319, 0.095, "forgotten"),
        (-0.03, 1319, 0.12, "forgotten"),
        (-0.03, 1319, 0.20, "forgotten"),
        (-0.13, 100, 0.27, "forgotten"),
        (-0.10, 1319, 0.20, "forgotten"),
        (0.0, 1319, 0.042, "retained"),
        (0.0, 1319, 0.08, "retained"),
        (0.0, 10042, 0.02, "retained"),
        (0.0, 10042, 0.04, "retained"),
        (0.0, 10042, 0.06, "retained"),
        (-0.011, 10042, 0.08, "retained"),
    ):
        counts, plan = draw_looks(n, flips, change, draws, random), block_ends(n)
        claim = "changed" if verdict == "forgotten" else "retained"
        whole = find_claims(counts[:, -1:], change, (), [claim])[claim]
        names = ["changed, one added", "changed", "retained"]
        claims, n_asked = find_claims(counts, change, plan, names), []
        assert not (claims[names[0]] & ~claims[names[1]]).any()  # half an answer loses no claim
        is_large = np.abs(counts[..., 2] - counts[..., 0]) >= MARGIN * np.array(plan)
        for name in names[:2]:
            decided = claims[name] & is_large | claims["retained"]
            last = np.where(decided.any(axis=1), decided.argmax(axis=1), len(plan) - 1)
            n_asked.append(np.array(plan)[last])
        stopped = claims[claim][np.arange(draws), last]
        shares = [float(x) for x in (whole.mean(), stopped.mean())]
        whole_answer, half_answer = n_asked
        typical = np.median(half_answer), half_answer.mean(), whole_answer.mean()
        questions = [float(number) / n for number in typical]
        cells = map(percent, (*shares, *questions))
        yield (f"{100 * change:+.1f}", f"{n:,}", percent(flips), verdict, *cells)


def decide_as_named(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """How often about N questions decide, as a table names N; 80 % is meant, the margin 2 points.

    First the truth is as measured; then it is not known: one sample names the number, and as many
    other questions of the same world are asked.
    """

    def draw_answers(n: int, flips: float, change: float) -> Floats:
        shares = [(flips - change) / 2, 1 - flips, (flips + change) / 2]
        return random.choice(VALUES, n, p=shares)

    def draw_group(n: int) -> tuple[Floats, Sampling]:
        tasks = np.repeat(np.arange(3), np.round(np.array([0.1, 0.3, 0.6]) * n).astype(int))
        weights = 1 / np.bincount(tasks)[tasks]
        sampling = Sampling(weights=weights / weights.mean(), n_subjects=3)
        return draw_answers(len(tasks), 0.1, -0.05), sampling

    def draw_clusters(n: int) -> tuple[Floats, Sampling]:
        clusters = np.arange(n) // 4
        is_shared = random.random(n) < 0.7
        shared = draw_answers(n, 0.1, -0.05)[clusters]
        own = draw_answers(n, 0.1, -0.05)
        return np.where(is_shared, shared, own), Sampling(clusters=clusters.astype(float))

    def draw_graded(n: int, spread: float, change: float) -> tuple[Floats, Sampling]:
        return np.clip(random.normal(change, spread, n), -1, 1), Sampling()

    cases: dict[str, tuple[int, Callable[[int], tuple[Floats, Sampling]]]] = {
        "0/1 answers, −3 of 12 % flips": (
            300,
            lambda n: (draw_answers(n, 0.12, -0.03), Sampling()),
        ),
        "0/1 answers, nothing lost, 4 %": (300, lambda n: (draw_answers(n, 0.04, 0), Sampling())),
        "graded, spread 2, −3 points": (60, partial(draw_graded, spread=0.02, change=-0.03)),
        "graded, spread 20, nothing lost": (200, partial(draw_graded, spread=0.2, change=0.0)),
        "clusters of 4": (200, draw_clusters),
        "a group that weighs its tasks alike": (200, draw_group),
    }
    for name, (n, draw) in cases.items():
        as_measured, as_it_is = [], []
        for _ in range(max(3, draws // 400)):
            changes, sampling = draw(n)
            needed = n_to_decide(change_difference(changes, sampling), MARGIN)
            if needed is None or needed > 20_000:
                continue
            for _ in range(20):
                again = draw_again(changes, sampling, needed, random)
                as_measured.append(is_decided(change_difference(*again)))
                as_it_is.append(is_decided(change_difference(*draw(needed))))
        case = f"{name}, after {n} questions"
        for truth, decided in (("as measured", as_measured), ("as it is", as_it_is)):
            share = percent(float(np.mean(decided))) if decided else "0"
            yield "about N questions decide, of 80", f"{case}, the truth is {truth}", share, "-"


def show_least_change(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """How often questions show the least change that a table names for them, at 80 % power."""
    n_draws = max(20, draws // 20)
    for n, kind, spread in ((60, "graded", 0.02), (200, "graded", 0.2), (300, "0/1", 0.12)):

        def draw(change: float, n: int = n, kind: str = kind, spread: float = spread) -> Floats:
            if kind == "graded":
                return np.clip(random.normal(change, spread, n), -1, 1)
            flips = max(spread, abs(change))
            return random.choice(
                VALUES, n, p=[(flips - change) / 2, 1 - flips, (flips + change) / 2]
            )

        shown = []
        for _ in range(n_draws):
            smallest = minimum_detectable_change(change_difference(draw(0.0)))
            shown.append(change_difference(draw(-smallest)).p_value < ALPHA)
        measure = "flips" if kind == "0/1" else "spread"
        case = f"{n} questions, {kind}, {measure} {100 * spread:g}; 80 are meant"
        yield "the least change is shown", case, percent(float(np.mean(shown))), "-"


def blame_engine(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Two logs of one model: the engine shifts more than the sentence says that it may.

    It is said where more answers flip one way than by chance: "up to X points may be the engine's".
    """
    for n, shift in ((300, 0.03), (300, 0.06), (1319, 0.02), (1319, 0.04)):
        flips, wrong, n_draws = 0.08, 0, max(20, draws // 10)
        for counts in random.multinomial(
            n, [(flips - shift) / 2, (flips + shift) / 2, 1 - flips], n_draws
        ):
            d = count_difference(int(counts[0]), int(counts[1]), n)
            [decision] = decide_verdicts([d], [MARGIN])
            shown = decision.form_interval(d, MARGIN)
            is_said = decision.verdict in (Verdict.forgotten, Verdict.improved)
            wrong += is_said and max(-shown.low, shown.high) < shift
        case = f"{n:,} questions, 8 % flip, the engine shifts {100 * shift:g} points"
        yield "more is the engine's", case, percent(wrong / n_draws), "5"


def move_to_choice(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """The tuned model is said to have moved to one choice; both choose alike on average."""
    for n, changed in ((40, 0.3), (200, 0.3), (1000, 0.1)):
        wrong, n_draws = 0, max(20, draws // 40)
        letters = "ABCD"
        for _ in range(n_draws):
            right = random.integers(0, 4, n)
            before = np.where(random.random(n) < 0.5, right, random.integers(0, 4, n))
            other = np.where(random.random(n) < 0.5, right, random.integers(0, 4, n))
            after = np.where(random.random(n) < changed, other, before)
            sides: list[Any] = []
            for taken in (before, after):
                samples = [
                    make_sample(
                        choices=tuple(letters),
                        log_likelihoods=tuple(0.0 if i == k else -1.0 for i in range(4)),
                        target=letters[target],
                        answers={"acc": letters[k]},
                        scores={"acc": float(k == target)},
                    )
                    for k, target in zip(taken, right, strict=True)
                ]
                sides.append(SimpleNamespace(samples=samples, benchmark=BENCHMARK))
            losses = break_down_losses(Pair(*sides, Sampling(), ""), is_loss_shown=True)
            wrong += bool(losses.choices and losses.choices.collapsed)
        case = f"{n:,} questions, {100 * changed:g} % are answered anew"
        yield "moved to one choice", case, percent(wrong / n_draws), "5"


def cover_scales(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """The intervals of a benchmark at five scales: whether any of them misses its true change."""
    scales = (0.1, 0.25, 0.5, 0.75, 1.0)
    for n, loss in ((300, 0.0), (300, 0.1), (1200, 0.04)):
        misses, n_draws = 0, max(20, draws // 40)
        for _ in range(n_draws):
            fate, points = random.random(n), []
            for scale in scales:
                luck = random.random(n)
                d = np.where(fate < loss * scale, -1.0, 0.0)
                d[(fate >= 0.2) & (luck < 0.03)] = -1.0
                d[(fate >= 0.2) & (luck > 0.97)] = 1.0
                points.append(ScaledFindings(scale, simulate_findings(d, MARGIN)))
            [curve] = build_simultaneous_curves(points).values()
            misses += any(not e.low <= -loss * scale <= e.high for scale, e in curve)
        case = f"{n:,} questions, {100 * loss:g} points lost at scale 1"
        yield "any scale's interval misses", case, percent(misses / n_draws), "5"


def miss_traits(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Traits of answers that did not change: one whose interval excludes 0; any of eight."""
    for n in (60, 300):
        n_draws = max(20, draws // 40)
        shares = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9]
        misses = np.zeros((n_draws, len(shares)), bool)
        for i, k in product(range(n_draws), range(len(shares))):
            before, after = (random.random((2, n)) < shares[k]).astype(float)
            d = compare_scores(before, after)
            misses[i, k] = not d.low <= 0 <= d.high
        yield "trait's interval misses", f"{n} answers", percent(float(misses.mean())), "5"
        case = f"{n} answers, any of eight independent traits, not corrected"
        yield "trait's interval misses", case, percent(float(misses.any(axis=1).mean())), "-"


def overstate_early(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """What is measured where an evaluation stops once a loss is shown, on average."""
    for n, change, flips in ((1319, -0.03, 0.12), (10_042, -0.011, 0.08)):
        counts, plan = draw_looks(n, flips, change, draws, random), np.array(block_ends(n))
        is_shown = find_claims(counts, change, tuple(plan), ["changed"])["changed"]
        last = np.where(is_shown.any(axis=1), is_shown.argmax(axis=1), len(plan) - 1)
        at_end = counts[np.arange(len(counts)), last]
        measured = (at_end[:, 2] - at_end[:, 0]) / plan[last]
        is_early = last < len(plan) - 1
        case = f"{n:,} questions, {100 * change:g} points, of those that stop early"
        excess = float(measured[is_early].mean()) / change - 1 if is_early.any() else 0.0
        yield "early estimate too large by (%)", case, percent(excess), "-"


def draw_again(
    changes: Floats, sampling: Sampling, n: int, random: np.random.Generator
) -> tuple[Floats, Sampling]:
    """Draw as many questions anew from those of a sample: clusters whole, tasks by their sizes."""
    if sampling.clusters is not None:
        chosen = random.choice(len(changes) // 4, n // 4)  # clusters of four
        members = (chosen[:, None] * 4 + np.arange(4)).ravel()
        return changes[members], Sampling(clusters=np.repeat(np.arange(len(chosen)), 4) * 1.0)
    if sampling.weights is None:
        return random.choice(changes, n), sampling
    kinds = np.unique(sampling.weights, return_inverse=True)[1]
    members = np.concatenate(
        [
            random.choice(np.flatnonzero(kinds == kind), round(n * float(np.mean(kinds == kind))))
            for kind in range(kinds.max() + 1)
        ]
    )
    weights = sampling.weights[members]
    return changes[members], Sampling(weights=weights / weights.mean(), n_subjects=3)


def is_decided(d: Difference) -> bool:
    """Whether a change is shown, or that it is within the margin."""
    return d.p_value < ALPHA or d.equivalence_p_value(MARGIN) < ALPHA


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.1f}"


SIMULATIONS: tuple[Simulation, ...] = (
    end_trainings,
    stop_anywhere,
    vary_scores,
    change_clusters,
    copy_one,
    ask_copies,
    ask_again,
    change_probabilities,
    judge_kinds,
    judge_together,
    stop_groups,
    mark_subjects,
    count_words,
    cover_rates,
    cover_bits,
    hold_shares,
    cover_seeds,
    choose_scales,
    choose_checkpoints,
    agree_with_verdicts,
    differ_by_luck,
    differ_among_many,
    differ_from_one,
    judge_values,
    show_values,
    average_benchmarks,
    select_runs,
    judge_chains,
    judge_atlas,
    decide_as_named,
    show_least_change,
    blame_engine,
    move_to_choice,
    cover_scales,
    miss_traits,
    overstate_early,
    judge_assistant,
)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    check_arrays(np.random.default_rng(options.seed))
    print("| claim | truth | made, % | at most, % |\n|---|---|---:|---:|")
    for row in (
        *hold_changed(),
        *hold_margins(),
        *repeat_seeds(),
        *enumerate_tables(),
        *keep_large_budgets(),
    ):
        print("| " + " | ".join(row) + " |", flush=True)
    for simulate in SIMULATIONS:
        # a generator of its own: a row that is added changes no other
        for row in simulate(options.draws, np.random.default_rng(options.seed)):
            print("| " + " | ".join(row) + " |", flush=True)
    columns = "true change | questions | flips, % | shown as | of all, % | until decided, %"
    print(f"\n| {columns} | asked, median % | mean % | mean %, one added |\n|" + "---|" * 9)
    for cells in measure_power(options.draws, np.random.default_rng(options.seed)):
        print("| " + " | ".join(cells) + " |", flush=True)
    columns = "true change, points | flips, % | level, % | questions, one added | half | fewer, %"
    print(f"\n| {columns} |\n|" + "---|" * 6)
    for cells in count_needed():
        print("| " + " | ".join(cells) + " |", flush=True)
    columns = "budget, points | flips, % | PASSED with one added | with the least | fewer, %"
    print(f"\n| {columns} |\n|" + "---|" * 5)
    for cells in count_passed():
        print("| " + " | ".join(cells) + " |", flush=True)
    columns = "change of accuracy, points | noise, nats | flips, % | change of p_right, points"
    print(f"\n| {columns} | questions by accuracy | by p_right | fewer, % |\n|" + "---|" * 7)
    for cells in count_needed_by_p_right(options.draws, np.random.default_rng(options.seed)):
        print("| " + " | ".join(cells) + " |", flush=True)
    print("\n| sentence | held by |\n|---|---|")
    for sentence, held_by in (pair for written in SENTENCES.values() for pair in written):
        row = held_by if held_by.startswith(NOT_A_CLAIM) else f"row: {held_by}"
        print(f"| {sentence} | {row} |")
    print(f"\n{options.draws:,} draws, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
