"""What the statistics promise, by simulation and by exact count: false alarms, coverage of intervals, power.

    python -m bench.statistics                 every table of docs/studies/statistics.md
    python -m bench.statistics seeds rate      two of them

Whatever can be asked of the product is asked of it; what it was chosen against is written out here.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from math import inf, isfinite, sqrt

import numpy as np
from scipy import stats

from slimdown.config.schema import BenchmarkConfig
from slimdown.stats.changes import Verdict, verdict
from slimdown.stats.clusters import Drawn
from slimdown.stats.paired import (
    Difference,
    Table,
    difference,
    holm,
    mean_difference,
    student,
    t_quantile,
)
from slimdown.stats.ratio import forgetting_rate
from slimdown.stats.seeds import seed_noise

MARGIN = BenchmarkConfig.margin
Rows = Iterator[list[object]]

# questions of MMLU's subjects, by the harness's four groups
HUMANITIES = (126, 165, 204, 237, 121, 108, 163, 346, 895, 311, 324, 1534, 171)
SOCIAL = (114, 198, 193, 390, 238, 545, 131, 612, 110, 245, 201, 100)
STEM = (
    100,
    135,
    152,
    144,
    100,
    100,
    100,
    102,
    100,
    235,
    145,
    378,
    310,
    203,
    100,
    270,
    151,
    216,
    112,
)
OTHER = (100, 265, 173, 100, 223, 103, 234, 100, 783, 306, 282, 272, 166)


def percent(hits: object) -> str:
    """The share of hits."""
    return f"{100 * float(np.mean(np.asarray(hits))):.1f}"


def answers(
    n: int, base: float, lost: float, gained: float, repeats: int, draw: np.random.Generator
) -> np.ndarray:
    """[repeats, 2, n] scores, before and after: a share `base` right, of all questions so many lost and gained."""
    cells = draw.choice(
        4, size=(repeats, n), p=[base - lost, lost, gained, 1 - base - gained]
    ).astype(np.int8)
    return np.stack(
        [(cells < 2).astype(float), ((cells == 0) | (cells == 2)).astype(float)], axis=1
    )


# --- one benchmark of independent questions -----------------------------------------------------------


def one_benchmark(repeats: int, draw: np.random.Generator) -> Rows:
    """One benchmark: tests, intervals, verdicts; margin 2 points."""
    tests = ("McNemar", "paired t", "unpaired t", "interval covers", "FR interval covers")
    yield ["case", "n", "true change", *tests, *(v.value for v in Verdict)]
    for name, n, base, lost, gained in (  # lost and gained as shares of all questions
        ("MMLU-CS", 100, 0.47, 0.10, 0.10),
        ("HellaSwag, first 200", 200, 0.37, 0.05, 0.05),
        ("GSM8K", 1319, 0.35, 0.05, 0.05),
        ("HellaSwag", 10042, 0.61, 0.02, 0.02),
        ("at the margin, nothing gained", 200, 0.50, 0.02, 0.0),
        ("at the margin, nothing gained", 1000, 0.50, 0.02, 0.0),
        ("at the margin, GSM8K", 1319, 0.35, 0.06, 0.04),
        ("MMLU-CS, 13 points as in Mai 2025", 100, 0.47, 0.20, 0.07),
        ("HellaSwag, first 200, 5 points", 200, 0.37, 0.08, 0.03),
        ("GSM8K, 3 points", 1319, 0.35, 0.0625, 0.0325),
        ("HellaSwag, 3 points", 10042, 0.61, 0.05, 0.02),
    ):
        pairs = answers(n, base, lost, gained, repeats, draw)
        found = [difference(*pair) for pair in pairs]
        rates = [forgetting_rate(*pair) for pair in pairs]
        change, rate = gained - lost, (lost - gained) / base
        verdicts = [verdict(d.value, d.p_value, d.equivalence_p_value(MARGIN)) for d in found]
        unpaired = [float(stats.ttest_ind(*pair).pvalue) < 0.05 for pair in pairs]
        shown = [
            [d.p_value < 0.05 for d in found],
            [d.t_test_p_value < 0.05 for d in found],
            unpaired,
        ]
        covered = [
            [d.low <= change <= d.high for d in found],
            [r is None or r.low <= rate <= r.high for r in rates],
        ]
        said = [[v is one for v in verdicts] for one in Verdict]
        yield [name, f"{n:,}", f"{100 * change:+.1f}", *map(percent, [*shown, *covered, *said])]


def exact(repeats: int, draw: np.random.Generator) -> Rows:
    """By exact count of all tables: the most that any share of changed answers makes of each error, in percent."""
    yield [
        "n",
        "margin or budget",
        "McNemar, nothing changed",
        "`retained` at the margin",
        "gate passes at the budget",
    ]
    for n, margin in ((20, 0.3), (50, 0.1), (100, 0.05), (200, 0.02), (300, 0.02), (300, 0.01)):
        tables = [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]
        lost, gained = np.array(tables).T
        counts = np.stack([lost, gained, n - lost - gained], axis=1)
        enough = stats.norm.isf(0.05)
        within = np.array([Table(*table, n).z(-margin, -0.5) > enough for table in tables])
        equal = within & np.array([Table(*table, n).z(margin, 0.5) < -enough for table in tables])
        changed = (
            np.minimum(1, 2 * stats.binom.cdf(np.minimum(lost, gained), lost + gained, 0.5)) < 0.05
        )
        most = [0.0, 0.0, 0.0]
        for share in (
            0.0,
            0.002,
            0.005,
            0.01,
            0.02,
            0.05,
            0.1,
            0.15,
            0.2,
            0.3,
        ):  # gained; as many lost, or more
            for i, (wrong, more) in enumerate(((changed, 0.0), (equal, margin), (within, margin))):
                shares = [share + more, share, 1 - more - 2 * share]
                most[i] = max(most[i], float(stats.multinomial.pmf(counts[wrong], n, shares).sum()))
        yield [n, margin, *(f"{100 * x:.2f}" for x in most)]


# --- graded scores ------------------------------------------------------------------------------------


def graded(repeats: int, draw: np.random.Generator) -> Rows:
    """Graded scores: what today's test shows, what Student's t would, and one corrected for skewness (Hall 1992)."""
    kinds, ways = ("`changed`", "`retained`", "interval misses"), ("likelihood", "t", "corrected t")
    yield [
        "differences",
        "questions",
        "true change",
        *(f"{kind}: {way}" for kind in kinds for way in ways),
    ]

    def moved(n: int, change: float) -> np.ndarray:
        return draw.normal(change, 0.2, (repeats // 4, n))

    def rare(n: int, change: float) -> np.ndarray:
        return np.where(
            draw.random((repeats // 4, n)) < -change / 0.8,
            -0.8,
            draw.uniform(-0.01, 0.01, (repeats // 4, n)),
        )

    def flips(n: int, change: float) -> np.ndarray:
        """12 % of answers move by a fifth to all of what can be, and so many more are lost."""
        place, much = draw.random((repeats // 4, n)), draw.uniform(0.2, 1, (repeats // 4, n))
        return np.where(place < 0.06 - change / 0.6, -much, np.where(place > 0.94, much, 0.0))

    for name, made in (
        ("normal, spread 0.2", moved),
        ("12 % of answers, as F1's", flips),
        ("rare, 0.8 each", rare),
    ):
        for n in (32, 100, 300, 1000):
            for change in (0.0, -MARGIN, -0.05):
                with np.errstate(
                    divide="ignore", invalid="ignore"
                ):  # where nothing changed Student has no spread
                    found = np.array([_graded(np.clip(d, -1, 1), change) for d in made(n, change)])
                yield [name, n, f"{100 * change:+.0f}", *map(percent, found.T)]


def _graded(d: np.ndarray, change: float) -> list[bool]:
    """Whether a change, its absence, and another than the true one is shown, by each of three ways."""
    before = np.maximum(0.0, -d)
    today = difference(before, before + d)
    n, spread = len(d), d.std(ddof=1)
    skewness = stats.skew(d)

    def corrected(threshold: float) -> float:
        t = (d.mean() - threshold) / spread
        return float(
            sqrt(n) * (t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / (6 * n))
        )

    shown: list[list[bool]] = []
    for above, below in (
        (today.p_value_above, today.p_value_below),
        *(
            (lambda x, z=z: stats.t.sf(z(x), n - 1), lambda x, z=z: stats.t.cdf(z(x), n - 1))  # type: ignore[misc]
            for z in (lambda x: sqrt(n) * (d.mean() - x) / spread, corrected)
        ),
    ):
        none, equal = min(above(0.0), below(0.0)), max(above(-MARGIN), below(MARGIN))
        shown.append([none < 0.025, equal < 0.05, min(above(change), below(change)) < 0.025])
    return [way[kind] for kind in range(3) for way in shown]


# --- subjects -----------------------------------------------------------------------------------------


def subjects(repeats: int, draw: np.random.Generator) -> Rows:
    """Subjects of unequal size: false alarms where subjects differ but not on average, and power, in percent."""
    yield [
        "subjects",
        "G*",
        "their changes",
        "CR1, t(G - 1)",
        "CR2, Bell-McCaffrey",
        "CR3, t(G* - 1)",
        "jackknife, t(G* - 1)",
    ] + [f"{name}, 10 points" for name in ("CR1", "CR2", "CR3", "jackknife")]
    layouts = {
        "MMLU humanities, 13": HUMANITIES,
        "its first 10": HUMANITIES[:10],
        "its first 9": HUMANITIES[:9],
        "its first 5": HUMANITIES[:5],
        "MMLU social sciences, 12": SOCIAL,
        "MMLU STEM, 19": STEM,
        "MMLU other, 13": OTHER,
        "MMLU, 57": HUMANITIES + SOCIAL + STEM + OTHER,
        "5 of 100": (100,) * 5,
        "8 of 60": (60,) * 8,
        "10, one of 1,000, nine of 100": (1000,) + (100,) * 9,
        "8, each twice the last": (20, 40, 80, 160, 320, 640, 1280, 2560),
    }
    for name, sizes in layouts.items():
        drawn = Drawn.of(
            sum(sizes), [f"{i:02}" for i, size in enumerate(sizes) for _ in range(size)]
        )
        for shape in ("normal", "skewed"):
            alarms = _alarms(np.array(sizes), drawn, shape, 0.0, repeats, draw)
            power = (
                _alarms(np.array(sizes), drawn, shape, -0.1, repeats, draw)
                if shape == "normal"
                else [""] * 4
            )
            yield [name, f"{drawn.degrees_of_freedom + 1:.1f}", shape, *alarms, *power]


def _alarms(
    sizes: np.ndarray,
    drawn: Drawn,
    shape: str,
    shift: float,
    repeats: int,
    draw: np.random.Generator,
) -> list[str]:
    """How often each method shows a change, where a fifth of answers changes and subjects differ by 10 points."""
    n, share = sizes.sum(), sizes / sizes.sum()
    at = np.repeat(np.arange(len(sizes)), sizes)
    # Bell and McCaffrey 2002 with independent questions: Satterthwaite's of the quadratic form that CR2 is
    centre = np.eye(len(sizes)) - np.outer(share, np.ones(len(sizes)))
    form = centre.T @ np.diag(1 / (1 - share)) @ centre * sizes
    quantiles = [
        t_quantile(x)
        for x in (
            len(sizes) - 1,
            np.trace(form) ** 2 / (form * form.T).sum(),
            drawn.degrees_of_freedom,
        )
    ]
    shown = []
    for _ in range(repeats):
        scatter = (
            draw.normal(0, 1, len(sizes))
            if shape == "normal"
            else draw.exponential(1, len(sizes)) - 1
        )
        change = np.clip(shift + 0.1 * scatter, -0.5, 0.5)[at]
        u, changed = draw.random(n), np.maximum(0.2, np.abs(change))
        d = np.where(u < (changed - change) / 2, -1.0, np.where(u < changed, 1.0, 0.0))
        sums = np.bincount(at, d - d.mean())
        errors = [
            sqrt((sums**2).sum() * len(sizes) / (len(sizes) - 1)) / n,
            sqrt((sums**2 / (1 - share)).sum()) / n,
            sqrt((sums**2 / (1 - share) ** 2).sum()) / n,
            sqrt(drawn.variance(d)),
        ]
        reach = [*quantiles, quantiles[-1]]
        shown.append([abs(d.mean()) > q * e for q, e in zip(reach, errors, strict=True)])
    return [percent(column) for column in zip(*shown, strict=True)]


# --- seeds --------------------------------------------------------------------------------------------


_SPREADS = ("spread too large: 1", "5", "root of the variance, share of the truth: 5")


def seeds(repeats: int, draw: np.random.Generator) -> Rows:
    """Several seeds: coverage by the training's noise, in standard errors of the questions, and the spread, in percent.

    Before: Satterthwaite's interval. The spread is too large as often as too small.
    """
    ratios = (0.0, 0.5, 1.0, 2.0, 5.0)
    yield [
        "seeds",
        "questions",
        *(f"{r:g}" for r in ratios),
        *(f"before: {r:g}" for r in ratios),
        *_SPREADS,
    ]
    for kind in ("200", "8 subjects of 25", "200, right or wrong"):
        for n_seeds in (2, 3, 4, 5, 8):
            found = [_seeds(n_seeds, ratio, kind, repeats, draw) for ratio in ratios]
            covered, before, spread, root = zip(*found, strict=True)
            yield [n_seeds, kind, *covered, *before, spread[2], spread[4], root[4]]


def _seeds(
    n_seeds: int, ratio: float, kind: str, repeats: int, draw: np.random.Generator
) -> tuple[str, str, str, str]:
    """Coverage, that of Satterthwaite's interval, how often the spread is too large, and its mean uncorrected."""
    n, subject, question, rest = 200, 0.08 if "subjects" in kind else 0.0, 0.3, 0.2
    training = ratio * sqrt(subject**2 / 8 + question**2 / n + rest**2 / (n_seeds * n))
    clusters = [str(i // 25) for i in range(n)] if subject else None
    drawn = Drawn.of(n, clusters)
    rows = []
    for _ in range(repeats):
        of_seed = draw.normal(0, training, n_seeds)[:, None]
        if (
            "wrong" in kind
        ):  # a tenth of answers changes, mostly of the same questions whatever the seed
            place = stats.norm.cdf(0.8 * draw.normal(size=n) + 0.6 * draw.normal(size=(n_seeds, n)))
            d = 1.0 * (place > 1 - np.maximum(0.05 + of_seed / 2, np.maximum(0, of_seed)))
            d -= place < np.maximum(0.05 - of_seed / 2, np.maximum(0, -of_seed))
        else:
            by_question = np.repeat(draw.normal(0, subject, 8), 25) + draw.normal(0, question, n)
            d = of_seed + by_question + draw.normal(0, rest, (n_seeds, n))
        found = seed_noise(d, clusters)  # type: ignore[arg-type]
        by_seed, questions = d.mean(axis=1), found.question_standard_error**2
        part, spread = by_seed.var(ddof=1) / n_seeds, found.training_standard_error * sqrt(n_seeds)
        total = spread**2 / n_seeds + questions
        freedom = total**2 / (part**2 / (n_seeds - 1) + questions**2 / drawn.degrees_of_freedom)
        plain = student(found.mean.value, sqrt(total), max(1.0, freedom))
        covered = [one.low <= 0 <= one.high for one in (found.mean, plain)]
        rows.append([*covered, found.training_spread > training, spread])
    one, other, larger, spreads = zip(*rows, strict=True)
    root = f"{np.mean(spreads) / training:.2f}" if training else ""
    return percent(one), percent(other), percent(larger) if training else "", root


# --- the forgetting rate ------------------------------------------------------------------------------


def rate(repeats: int, draw: np.random.Generator) -> Rows:
    """The forgetting rate above chance: coverage, and what is shown, in percent."""
    shown = ("covers", "both ends", "one end", "any possible", "covers, of those with both ends")
    yield [
        "base",
        "chance",
        "n",
        "lost",
        "gained",
        "true rate",
        *shown,
        "before: screened bootstrap",
    ]
    for base, chance in (
        (0.27, 0.25),
        (0.30, 0.25),
        (0.35, 0.25),
        (0.50, 0.25),
        (0.35, 0.0),
        (0.05, 0.0),
    ):
        for n in (100, 200, 300):
            for lost, gained in ((0.10, 0.10), (0.12, 0.06)) if base > 0.05 else ((0.02, 0.01),):
                true = (lost - gained) / (base - chance)
                pairs = answers(n, base, lost, gained, repeats, draw)
                found = [forgetting_rate(*pair, chance) for pair in pairs]
                covered = np.array([r is None or r.low <= true <= r.high for r in found])
                ends = np.array(
                    [0 if r is None else isfinite(r.low) + isfinite(r.high) for r in found]
                )
                kinds = [percent(ends == k) for k in (2, 1, 0)]
                full = percent(covered[ends == 2]) if (ends == 2).any() else ""
                screened = [_screened(*pair, chance, true, draw) for pair in pairs[: repeats // 4]]
                defined = [x for x in screened if x is not None]
                told = [percent(covered), *kinds, full, percent(defined) if defined else ""]
                yield [base, chance, n, lost, gained, f"{true:.2f}", *told]


def _screened(
    x: np.ndarray, y: np.ndarray, chance: float, true: float, draw: np.random.Generator
) -> bool | None:
    """Whether the interval used before covers: a bootstrap's, where the base's own interval lies above chance."""
    if not stats.binomtest(int(x.sum()), len(x)).proportion_ci(method="wilson").low > chance:
        return None
    table = np.array(
        [(x * y).sum(), (x > y).sum() + 0.5, (y > x).sum() + 0.5, ((1 - x) * (1 - y)).sum()]
    )
    counts = draw.multinomial(len(x), table / table.sum(), size=2000) / len(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = 1 - (counts[:, 0] + counts[:, 2] - chance) / (counts[:, 0] + counts[:, 1] - chance)
    rates = np.where(counts[:, 0] + counts[:, 1] > chance, rates, inf)
    low, high = np.quantile(rates, [0.025, 0.975], method="inverted_cdf")
    return bool(low <= true <= high)


# --- how many questions -------------------------------------------------------------------------------


def counted(lost: int, gained: int, n: int) -> Difference:
    """The difference of n answers, of which so many were lost and gained."""
    before = [1.0] * lost + [0.0] * (n - lost)
    return difference(before, [0.0] * lost + [1.0] * gained + [0.0] * (n - lost - gained))


def needed(repeats: int, draw: np.random.Generator) -> Rows:
    """Questions to decide (margin 2 points), the smallest change seen, and how often either keeps its word."""
    yield [
        "n",
        "lost",
        "gained",
        "net",
        "to decide",
        "then decided",
        "smallest seen, points",
        "then seen",
    ]
    cases = [(1319, (132 - net) // 2 + net, (132 - net) // 2) for net in range(0, 44, 4)]
    cases += [
        (1319, 66, 65),
        (400, 20, 20),
        (400, 22, 18),
        (100, 3, 3),
        (100, 20, 7),
        (200, 4, 1),
        (200, 0, 0),
    ]
    for n, lost, gained in cases:
        d = counted(lost, gained, n)
        decide, smallest = d.n_to_decide(MARGIN), d.minimum_detectable_change()
        share = (lost + gained + 2) / (n + 2)  # as `difference` counts them
        half = repeats // 2
        changes = (share - d.value) / 2, (share + d.value) / 2
        then = [difference(*p) for p in answers(decide or 1, 0.5, *changes, half, draw)]
        decided = [x.p_value < 0.05 or x.equivalence_p_value(MARGIN) < 0.05 for x in then]
        changed = max(share, smallest)
        seen = answers(n, 0.6, (changed + smallest) / 2, (changed - smallest) / 2, half, draw)
        found = percent([difference(*p).p_value < 0.05 for p in seen])
        yield [
            n,
            lost,
            gained,
            gained - lost,
            f"{decide:,}",
            percent(decided),
            f"{100 * smallest:.1f}",
            found,
        ]


# --- several benchmarks -------------------------------------------------------------------------------


def together(repeats: int, draw: np.random.Generator) -> Rows:
    """Several benchmarks: any false verdict, and true ones found, in percent."""
    yield [
        "benchmarks",
        "any false: apart (Holm)",
        "together (Bonferroni)",
        "shown: apart",
        "together",
    ]
    quiet, edge, fallen = (
        (10042, 0.6, 0.01, 0.01),
        (10042, 0.5, 0.03, 0.01),
        (1319, 0.35, 0.075, 0.045),
    )
    noisy = (1319, 0.35, 0.10, 0.10)  # too many answers change for `retained`
    small, small_edge = (1319, 0.35, 0.05, 0.05), (1319, 0.35, 0.06, 0.04)
    for name, cases in (
        ("4, nothing changed", [small] * 4),
        ("4, all at the margin", [edge] * 4),
        ("2, one unchanged, one at the margin", [noisy, edge]),
        ("6, one unchanged, five at the margin", [noisy, *[edge] * 5]),
        ("4, GSM8K at the margin", [small_edge] * 4),
        ("3: fell by 3 points, fell by 3, unchanged", [fallen, fallen, quiet]),
        ("4: fell by 3 points, three unchanged", [fallen, quiet, quiet, quiet]),
        ("6, each fell by 3 points", [fallen] * 6),
    ):
        wrong: list[list[bool]] = [[], []]
        right: list[list[float]] = [[], []]
        drawn = [_tables(*case, repeats, draw) for case in cases]
        for found in zip(*drawn, strict=True):
            p, equal = [f[1] for f in found], [f[2] for f in found]
            for i, adjust in enumerate((holm, lambda ps: [min(1.0, len(ps) * x) for x in ps])):
                said = [
                    verdict(f[0], a, b)
                    for f, a, b in zip(found, adjust(p), adjust(equal), strict=True)
                ]
                false = [
                    _is_false(v, gained - lost)
                    for v, (_, _, lost, gained) in zip(said, cases, strict=True)
                ]
                wrong[i].append(any(false))
                right[i].append(
                    float(
                        np.mean(
                            [
                                v is not Verdict.undecided and not f
                                for v, f in zip(said, false, strict=True)
                            ]
                        )
                    )
                )
        yield [name, *map(percent, wrong), *map(percent, right)]


def _tables(
    n: int, base: float, lost: float, gained: float, repeats: int, draw: np.random.Generator
) -> list[tuple[float, float, float]]:
    """Change, p-value of no change, and of one beyond the margin, of so many simulated benchmarks."""
    counts = draw.multinomial(n, [lost, gained, 1 - lost - gained], size=repeats)
    tables = [Table(int(a), int(b), n) for a, b, _ in counts]
    p = np.minimum(
        1, 2 * stats.binom.cdf(counts[:, :2].min(axis=1), counts[:, :2].sum(axis=1), 0.5)
    )
    equal = [
        max(stats.norm.sf(t.z(-MARGIN, -0.5)), stats.norm.cdf(t.z(MARGIN, 0.5))) for t in tables
    ]
    return [
        ((t.gained - t.lost) / n, float(x), float(y))
        for t, x, y in zip(tables, p, equal, strict=True)
    ]


def _is_false(said: Verdict, change: float) -> bool:
    if said is Verdict.retained:
        return abs(change) >= MARGIN - 1e-12
    return (said is Verdict.forgotten and change >= 0) or (said is Verdict.improved and change <= 0)


def mean_change(repeats: int, draw: np.random.Generator) -> Rows:
    """The mean change of several benchmarks: coverage of its interval, in percent."""
    yield ["benchmarks", "Satterthwaite's t", "1.96 standard errors"]
    mixes = {
        "2 of 5 subjects": [(100,) * 5] * 2,
        "3 of 8 subjects": [(60,) * 8] * 3,
        "humanities and social sciences": [HUMANITIES, SOCIAL],
        "humanities, GSM8K, HellaSwag's first 1,000": [HUMANITIES, 1319, 1000],
        "4 of 300 questions": [300] * 4,
        "5 subjects, 300 questions": [(100,) * 5, 300],
    }
    for name, mix in mixes.items():
        covered = []
        for _ in range(repeats // 2):
            found = mean_difference([_benchmark(sizes, draw) for sizes in mix])
            covered.append(
                [found.low <= 0 <= found.high, abs(found.value) <= 1.96 * found.standard_error]
            )
        yield [name, *map(percent, zip(*covered, strict=True))]


def _benchmark(sizes: tuple[int, ...] | int, draw: np.random.Generator) -> Difference:
    """A fifth of answers changes; subjects differ by 5 points, on average by none."""
    groups = sizes if isinstance(sizes, tuple) else (sizes,)
    at = np.repeat(np.arange(len(groups)), groups)
    change = (draw.normal(0, 0.05, len(groups)) if len(groups) > 1 else np.zeros(1))[at]
    u = draw.random(len(at))
    lost, gained = u < (0.2 - change) / 2, (u >= (0.2 - change) / 2) & (u < 0.2)
    kept = u > 0.6
    return difference(
        (kept | lost).astype(float), (kept | gained).astype(float), [f"{i:02}" for i in at]
    )


TABLES: dict[str, Callable[[int, np.random.Generator], Rows]] = {
    "one": one_benchmark,
    "exact": exact,
    "graded": graded,
    "subjects": subjects,
    "seeds": seeds,
    "rate": rate,
    "needed": needed,
    "together": together,
    "mean": mean_change,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; all without one"
    )
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in given.tables or TABLES:
        started = time.perf_counter()
        rows = TABLES[name](given.repeats, np.random.default_rng(given.seed))
        print(f"### {name}: {(TABLES[name].__doc__ or '').splitlines()[0].rstrip('.')}\n")
        for i, row in enumerate(rows):
            print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
            if i == 0:
                print("|" + "---|" * len(row))
        print(f"\n{given.repeats:,} draws, {time.perf_counter() - started:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
