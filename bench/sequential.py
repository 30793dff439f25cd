"""Stopping early, by simulation and on recorded answers: false verdicts, power, and how many questions are asked.

    python -m bench.sequential                     every table of docs/studies/sequential.md
    python -m bench.sequential false power         two of them
    python -m bench.sequential --replay STORE...   recorded answers of finished runs, asked again in 200 random orders

What is asked of many thousand runs is computed here in arrays; `agreement` holds it to what the product says.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path

import numpy as np
import scipy

from bench.statistics import HUMANITIES, OTHER, SOCIAL, STEM, percent
from slimdown.config.schema import BenchmarkConfig, TrackingConfig
from slimdown.evaluation.answers import BenchmarkEvaluation
from slimdown.evaluation.order import FIRST, order_of, stages_of
from slimdown.stats import sequential
from slimdown.stats.changes import Verdict, judgements, verdict
from slimdown.stats.paired import ALPHA, difference, holm
from slimdown.stats.sequential import sequential_difference
from slimdown.tracking.read import find_runs, read_evaluation
from slimdown.utils.errors import SlimdownError

MARGIN = BenchmarkConfig.margin
Rows = Iterator[list[object]]
Plan = tuple[int, ...]
Shares = Callable[[Plan], Sequence[float]]


# --- many runs at once ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looks:
    """What each look of each run saw of 0/1 answers, [runs, looks], and what is made of it."""

    plan: Plan
    lost: np.ndarray
    gained: np.ndarray
    shares: np.ndarray
    added_up: bool = (
        False  # the looks' p-values are only added up, and what they have in common left out
    )
    scored: bool = False  # looks before the last are tested as the last is

    @classmethod
    def drawn(
        cls,
        n: int,
        lost: float,
        gained: float,
        runs: int,
        draw: np.random.Generator,
        plan: Plan = (),
        **how: bool,
    ) -> "Looks":
        """So many runs of n questions, of all of which such shares are lost and gained."""
        plan = plan or stages_of(n)
        steps = np.diff([0, *plan])
        counts = np.stack(
            [
                draw.multinomial(step, [lost, gained, 1 - lost - gained], size=runs)
                for step in steps
            ],
            1,
        )
        counts = counts.cumsum(axis=1)
        return cls(plan, counts[..., 0], counts[..., 1], np.array(sequential._shares(plan)), **how)

    @property
    def change(self) -> np.ndarray:
        """At each look."""
        return (self.gained - self.lost) / np.array(self.plan)

    def at_each(self, threshold: float, below: bool) -> np.ndarray:
        """The one-sided p-value of each look by itself; of the last, at all questions, today's."""
        root = self.scores(threshold, below) if self.scored else self.roots(threshold, below)
        p = np.asarray(scipy.special.ndtr(root if below else -root))
        last = self.scores(threshold, below)[:, -1]
        lost, gained = self.lost[:, -1], self.gained[:, -1]
        exact = scipy.special.bdtr(gained if below else lost, lost + gained, 0.5)
        p[:, -1] = scipy.special.ndtr(last if below else -last) if threshold else exact
        return p

    def scores(self, threshold: float, below: bool) -> np.ndarray:
        """`Table.z`, in arrays."""
        n, lost, gained = np.array(self.plan), self.lost, self.gained
        spread = np.sqrt(
            np.maximum(0, 2 * _chance(lost, gained, n, threshold) + threshold * (1 - threshold))
        )
        excess = gained - lost - n * threshold + (0.5 if below else -0.5)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(
                spread > 0,
                excess / (spread * np.sqrt(n)),
                np.where(excess == 0, 0, excess * np.inf),
            )

    def roots(self, threshold: float, below: bool) -> np.ndarray:
        """The signed root of the likelihood ratio, half an answer added against the claim."""
        n = np.array(self.plan) + 0.5
        lost, gained = self.lost + (0 if below else 0.5), self.gained + (0.5 if below else 0)
        chance = np.maximum(_chance(lost, gained, n, threshold), max(0.0, -threshold))
        counts, nats = (lost, gained, n - lost - gained), np.zeros(lost.shape)
        for count, share in zip(
            counts, (chance, chance + threshold, 1 - 2 * chance - threshold), strict=True
        ):
            with np.errstate(divide="ignore", invalid="ignore"):
                nats += np.where(count > 0, count * np.log(count / (n * np.maximum(share, 0))), 0)
        return np.copysign(np.sqrt(2 * np.maximum(0, nats)), gained - lost - n * threshold)

    def at_any(self, threshold: float, below: bool) -> np.ndarray:
        """The one-sided p-value that holds whenever one stops, so far at each look."""
        ratios = np.minimum.accumulate(self.at_each(threshold, below) / self.shares, axis=1)
        if self.added_up:
            return np.minimum(1, ratios)
        return np.minimum(
            1,
            np.exp(_log_chance(np.log(np.maximum(ratios, 1e-300)), self.plan, tuple(self.shares))),
        )

    @cached_property
    def of_none(self) -> np.ndarray:
        """The p-value of no change, so far at each look."""
        below, above = self.at_any(0.0, True), self.at_any(0.0, False)
        return np.where(
            self.change == 0, 1, np.minimum(1, 2 * np.where(self.change < 0, below, above))
        )

    @cached_property
    def of_margin(self) -> np.ndarray:
        """The p-value of a change of the margin or more, so far at each look."""
        return np.maximum(self.at_any(-MARGIN, False), self.at_any(MARGIN, True))

    @cached_property
    def within(self) -> np.ndarray:
        """The p-value of a loss of the margin or more, so far at each look."""
        return self.at_any(-MARGIN, False)

    @cached_property
    def beyond(self) -> np.ndarray:
        """The p-value of a loss of the margin or less, so far at each look."""
        return self.at_any(-MARGIN, True)

    def full(self) -> list[Verdict]:
        """What today's test says of all questions, of each run."""
        fewer, all_ = np.minimum(self.lost, self.gained)[:, -1], (self.lost + self.gained)[:, -1]
        p = np.minimum(1, 2 * scipy.special.bdtr(fewer, all_, 0.5))
        equal = np.maximum(self.at_each(-MARGIN, False), self.at_each(MARGIN, True))[:, -1]
        return [verdict(*one) for one in zip(self.change[:, -1], p, equal, strict=True)]


def _chance(lost: np.ndarray, gained: np.ndarray, n: np.ndarray, change: float) -> np.ndarray:
    """`Table.chance_of_loss`, in arrays."""
    linear = (2 * n - gained + lost) * change - gained - lost
    root = np.maximum(0, linear**2 + 8 * n * lost * change * (1 - change))
    return np.asarray((np.sqrt(root) - linear) / (4 * n))


_known: dict[tuple[Plan, tuple[float, ...]], np.ndarray] = {}


def _log_chance(log_ratios: np.ndarray, plan: Plan, shares: tuple[float, ...]) -> np.ndarray:
    grid = sequential._LOG_RATIOS
    if (plan, shares) not in _known:
        levels = [np.minimum(np.exp(r) * np.array(shares), 1 - 1e-12) for r in grid]
        _known[plan, shares] = np.log([sequential._chance_of_any(level, plan) for level in levels])
    inside = np.clip(log_ratios, grid[0], grid[-1])
    return np.interp(inside, grid, _known[plan, shares]) + log_ratios - inside


def first(decided: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """The look at which each run ends, and how many questions it has asked."""
    look = np.where(decided.any(axis=1), decided.argmax(axis=1), len(plan) - 1)
    return look, np.array(plan)[look]


def one(looks: Looks, n_tested: int = 1) -> tuple[list[Verdict], np.ndarray]:
    """What each run says where it stops, its benchmark alone or the first of several, and after how many questions."""
    none, equal = n_tested * looks.of_none, n_tested * looks.of_margin
    known = (none < ALPHA) & (np.abs(looks.change) >= MARGIN)
    look, asked = first(known | (equal < ALPHA), looks.plan)
    runs = range(len(look))
    return [
        verdict(looks.change[i, k], none[i, k], equal[i, k])
        for i, k in zip(runs, look, strict=True)
    ], asked


def is_false(said: Verdict, change: float) -> bool:
    """Whether a verdict is wrong of such a true change."""
    if said is Verdict.retained:
        return abs(change) >= MARGIN - 1e-12
    return (said is Verdict.forgotten and change >= 0) or (said is Verdict.improved and change <= 0)


# --- tables ---------------------------------------------------------------------------------------------


def agreement(runs: int, draw: np.random.Generator) -> Rows:
    """The arrays here against `sequential_difference`: the largest difference of any p-value."""
    yield ["questions", "lost", "gained", "of no change", "of the margin"]
    for n, lost, gained in ((20, 0.3, 0.1), (100, 0.2, 0.07), (1319, 0.06, 0.04)):
        cells = draw.choice(4, size=n, p=[0.5 - lost, lost, gained, 0.5 - gained])
        before, after = (cells < 2).astype(float), ((cells == 0) | (cells == 2)).astype(float)
        plan = stages_of(n)
        counts = [[int(((after - before)[:k] == sign).sum()) for k in plan] for sign in (-1, 1)]
        looks = Looks(plan, *np.array(counts)[:, None, :], np.array(sequential._shares(plan)))
        worst = [0.0, 0.0]
        for k, asked in enumerate(plan):
            d = sequential_difference(before[:asked], after[:asked], None, plan[: k + 1], n)
            said = (d.p_value, d.equivalence_p_value(MARGIN))
            here = (looks.of_none[0, k], looks.of_margin[0, k])
            worst = [max(w, abs(a - b)) for w, a, b in zip(worst, said, here, strict=True)]
        if max(worst) > 1e-9:
            raise SystemExit(f"the arrays say something else than the product: {worst}")
        yield [f"{n:,}", lost, gained, *(f"{w:.0e}" for w in worst)]


def exact(runs: int, draw: np.random.Generator) -> Rows:
    """One look, by exact count of all tables: the most that any share of flips makes of a level, as a share of it.

    Against "a change of so much or more", by counts that look too low: what is tested, and Tango's score beside it.
    """
    levels = (0.02, 0.005, 0.001, 0.0001)
    yield [
        "questions",
        "change",
        *(f"at {level:g}" for level in levels),
        *(f"Tango at {level:g}" for level in levels),
    ]
    for n in (32, 63, 125, 245, 481):
        lost, gained = (x.ravel() for x in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
        lost, gained = lost[lost + gained <= n], gained[lost + gained <= n]
        ways = scipy.special.gammaln(n + 1) - sum(
            scipy.special.gammaln(x + 1) for x in (lost, gained, n - lost - gained)
        )
        looks = Looks((n,), lost[:, None], gained[:, None], np.ones(1))
        for change in (0.0, MARGIN, -MARGIN, -0.05):
            most = np.zeros((2, len(levels)))
            for few in (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.45):
                less, more = few + max(0.0, -change), few + max(0.0, change)
                logs = scipy.special.xlogy(lost, less) + scipy.special.xlogy(gained, more)
                likely = np.exp(
                    ways + logs + scipy.special.xlog1py(n - lost - gained, -less - more)
                )
                for i, root in enumerate((looks.roots(change, True), looks.scores(change, True))):
                    p = scipy.special.ndtr(root[:, 0])
                    most[i] = np.maximum(
                        most[i], [likely[p <= level].sum() / level for level in levels]
                    )
            yield [n, f"{100 * change:+.0f}", *(f"{x:.2f}" for x in most.ravel())]


def false(runs: int, draw: np.random.Generator) -> Rows:
    """False verdicts at any look, the worst moment to stop, and how often the interval at any misses, in percent."""
    yield [
        "true change",
        "questions",
        "answers that flip",
        "`changed`",
        "`retained`",
        "where it stops",
        "interval misses",
    ]
    cases = [("none", n, f, 0.0) for n in (45, 100, 300, 1319, 10042) for f in (0.02, 0.06, 0.2)]
    cases += [("the margin", n, f, MARGIN) for n in (300, 1319, 10042) for f in (0.02, 0.06, 0.2)]
    for name, n, flips, loss in cases:
        looks = Looks.drawn(n, (flips + loss) / 2, (flips - loss) / 2, runs, draw)
        shown = looks.of_none < ALPHA
        wrong_way = shown & ((looks.change > 0) | (loss == 0))
        retained = (looks.of_margin < ALPHA) & (loss >= MARGIN)
        at_stop = [is_false(v, -loss) for v in one(looks)[0]]
        missed = (looks.at_any(-loss, True)[:, -1] <= ALPHA / 2) | (
            looks.at_any(-loss, False)[:, -1] <= ALPHA / 2
        )
        row = (percent(x) for x in (wrong_way.any(axis=1), retained.any(axis=1), at_stop, missed))
        yield [name, f"{n:,}", percent(flips), *row]


def power(runs: int, draw: np.random.Generator) -> Rows:
    """How often each is found, by today's test of all questions and by the end of asking in stages, in percent."""
    yield [
        "true change",
        "questions",
        "flips",
        "found",
        "by all",
        "in stages",
        "asked, median",
        "mean",
        "undecided",
    ]
    cases = [
        (-0.03, 1319, 0.095, Verdict.forgotten),
        (-0.013, 10042, 0.08, Verdict.forgotten),
        (-0.13, 100, 0.27, Verdict.forgotten),
        (-0.07, 300, 0.13, Verdict.forgotten),
        (-0.10, 1319, 0.2, Verdict.forgotten),
        (0.0, 1319, 0.042, Verdict.retained),
        (0.0, 1319, 0.08, Verdict.retained),
        (-0.011, 10042, 0.08, Verdict.retained),
        (0.0, 10042, 0.04, Verdict.retained),
        (0.0, 10042, 0.06, Verdict.retained),
    ]
    for change, n, flips, found in cases:
        looks = Looks.drawn(n, (flips - change) / 2, (flips + change) / 2, runs, draw)
        said, asked = one(looks)
        # A small loss may be shown, or shown to be within the margin: either is right.
        right = (
            {found} if found is Verdict.retained or change < -MARGIN else {found, Verdict.retained}
        )
        shares = [percent([v in right for v in verdicts]) for verdicts in (looks.full(), said)]
        undecided = percent([v is Verdict.undecided for v in said])
        middle, mean = f"{np.median(asked):,.0f}", f"{asked.mean():,.0f}"
        yield [
            f"{100 * change:+.1f}",
            f"{n:,}",
            percent(flips),
            found.value,
            *shares,
            middle,
            mean,
            undecided,
        ]


def contradictions(runs: int, draw: np.random.Generator) -> Rows:
    """How often the verdict on stopping is another than that of all questions, both of them decided, in percent.

    Beside it: who stops at the first verdict, though a change that is shown looks smaller than the margin, of which all
    questions often say `retained`.
    """
    yield [
        "true change",
        "questions",
        "flips",
        "contradicted",
        "asked, mean",
        "first verdict: contradicted",
        "asked",
    ]
    for change, n, flips in (
        (0.0, 10042, 0.04),
        (0.0043, 10042, 0.04),
        (-0.005, 10042, 0.08),
        (-0.01, 10042, 0.08),
        (-0.02, 10042, 0.08),
        (-0.03, 10042, 0.08),
        (-0.015, 1319, 0.085),
        (-0.03, 1319, 0.095),
    ):
        looks = Looks.drawn(n, (flips - change) / 2, (flips + change) / 2, runs, draw)
        full, row, none, equal = looks.full(), [], looks.of_none < ALPHA, looks.of_margin < ALPHA
        for shown in (none & (np.abs(looks.change) >= MARGIN), none):
            look, asked = first(shown | equal, looks.plan)
            ends = range(runs), look
            early = [
                verdict(*one)
                for one in zip(
                    looks.change[ends], looks.of_none[ends], looks.of_margin[ends], strict=True
                )
            ]
            row += [
                percent([_kind(*pair) == 1 for pair in zip(early, full, strict=True)]),
                f"{asked.mean():,.0f}",
            ]
        yield [f"{100 * change:+.1f}", f"{n:,}", percent(flips), *row]


Case = tuple[
    str, int, float, float
]  # a benchmark's name, its questions, the shares lost and gained
MIXES: dict[str, list[Case]] = {
    "Mai 2025, 4 % of HellaSwag flip": [
        ("GSM8K", 1319, 0.318, 0.020),
        ("HellaSwag", 10042, 0.01785, 0.02215),
        ("MMLU CS", 100, 0.20, 0.07),
    ],
    "Mai 2025, 2 % of HellaSwag flip": [
        ("GSM8K", 1319, 0.318, 0.020),
        ("HellaSwag", 10042, 0.00785, 0.01215),
        ("MMLU CS", 100, 0.20, 0.07),
    ],
    "nothing changed": [
        ("GSM8K", 1319, 0.04, 0.04),
        ("HellaSwag", 10042, 0.02, 0.02),
        ("MMLU CS", 100, 0.05, 0.05),
    ],
    "nothing changed, few flips": [
        ("GSM8K", 1319, 0.02, 0.02),
        ("HellaSwag", 10042, 0.01, 0.01),
        ("MMLU CS", 100, 0.03, 0.03),
    ],
    "each lost the margin": [
        ("GSM8K", 1319, 0.05, 0.03),
        ("HellaSwag", 10042, 0.03, 0.01),
        ("MMLU CS", 100, 0.06, 0.04),
    ],
    "each lost 5 points": [
        ("GSM8K", 1319, 0.09, 0.04),
        ("HellaSwag", 10042, 0.065, 0.015),
        ("MMLU CS", 100, 0.1, 0.05),
    ],
}


def together(runs: int, draw: np.random.Generator) -> Rows:
    """The paper's three benchmarks with Holm, each asked until it is decided: `until=decided`, then `until=budget`."""
    yield [
        "case",
        "until",
        "asked, median",
        "share",
        "90 %",
        "GSM8K",
        "HellaSwag",
        "MMLU CS",
        "any false",
        "verdicts",
    ]
    for name, cases in MIXES.items():
        drawn = [Looks.drawn(n, lost, gained, runs // 4, draw) for _, n, lost, gained in cases]
        total, changes = (
            sum(looks.plan[-1] for looks in drawn),
            [gained - lost for _, _, lost, gained in cases],
        )
        for until, ask in (("decided", _until_decided), ("budget", _until_budget)):
            ends = [ask(drawn, i) for i in range(runs // 4)]
            asked = np.array([end[0] for end in ends])
            wrong = [false_of(until, end[1], changes) for end in ends]
            words = ", ".join(
                Counter(end[1][k] for end in ends).most_common(1)[0][0] for k in range(len(cases))
            )
            sums, each = asked.sum(axis=1), (f"{x:,.0f}" for x in np.median(asked, axis=0))
            share, most = (percent(np.quantile(sums, q) / total) for q in (0.5, 0.9))
            yield [
                name,
                until,
                f"{np.median(sums):,.0f}",
                share,
                most,
                *each,
                percent(wrong),
                words,
            ]


def false_of(until: str, said: Sequence[str], changes: Sequence[float]) -> bool:
    """Whether any verdict is wrong of such true changes; of budgets, whether all pass or one fails wrongly."""
    if until == "decided":
        return any(
            is_false(Verdict(word), change) for word, change in zip(said, changes, strict=True)
        )
    over = [change <= -MARGIN + 1e-12 for change in changes]
    passes = any(over) and all(word == "within" for word in said)
    return passes or any(
        word == "beyond" and not lost for word, lost in zip(said, over, strict=True)
    )


def _until_decided(drawn: Sequence[Looks], run: int) -> tuple[list[int], list[str]]:
    """How many questions of each were asked in one run, and its verdicts."""
    columns = [(looks.of_none[run], looks.of_margin[run], looks.change[run]) for looks in drawn]

    def said(at: Sequence[int]) -> list[str]:
        none, equal = (
            holm([float(c[k][i]) for c, i in zip(columns, at, strict=True)]) for k in (0, 1)
        )
        changes = [float(c[2][i]) for c, i in zip(columns, at, strict=True)]
        return [verdict(*one).value for one in zip(changes, none, equal, strict=True)]

    small = [np.abs(changes) < MARGIN for _, _, changes in columns]
    return _until(
        drawn,
        said,
        lambda k, i, word: word == "undecided" or (word != "retained" and bool(small[k][i])),
    )


def _until_budget(drawn: Sequence[Looks], run: int) -> tuple[list[int], list[str]]:
    """The same against a loss of the margin, as `check` does."""
    columns = [(looks.within[run], looks.beyond[run]) for looks in drawn]

    def said(at: Sequence[int]) -> list[str]:
        beyond = holm([float(c[1][i]) for c, i in zip(columns, at, strict=True)])
        passed = [float(c[0][i]) < ALPHA for c, i in zip(columns, at, strict=True)]
        return [
            "within" if ok else "beyond" if p < ALPHA else "undecided"
            for ok, p in zip(passed, beyond, strict=True)
        ]

    return _until(drawn, said, lambda _k, _i, word: word == "undecided")


def _until(
    drawn: Sequence[Looks],
    said: Callable[[Sequence[int]], list[str]],
    is_open: Callable[[int, int, str], bool],
) -> tuple[list[int], list[str]]:
    """Stage by stage, each benchmark while it is open (by its place, look and verdict) and has questions left."""
    at = [0] * len(drawn)
    while True:
        words = said(at)
        more = [
            i + 1 < len(d.plan) and is_open(k, i, words[k])
            for k, (i, d) in enumerate(zip(at, drawn, strict=True))
        ]
        if not any(more):
            return [looks.plan[i] for looks, i in zip(drawn, at, strict=True)], words
        at = [i + go for i, go in zip(at, more, strict=True)]


def subjects(runs: int, draw: np.random.Generator) -> Rows:
    """Subjects that differ by 10 points and on average not at all, or by the margin: false verdicts at any look."""
    yield ["subjects", "questions", "true change", "`changed`", "`retained`", "interval misses"]
    layouts = {
        "MMLU STEM, 19": STEM,
        "MMLU, 57": HUMANITIES + SOCIAL + STEM + OTHER,
        "3 of 200": (200,) * 3,
    }
    for name, sizes in layouts.items():
        order = order_of(
            {f"{i:02}": [f"question {k}" for k in range(size)] for i, size in enumerate(sizes)}
        )
        member, plan = np.array([int(task) for task, _ in order]), stages_of(len(order))
        for change in (0.0, -MARGIN):
            counts = []
            for _ in range(runs // 4):
                differs = draw.normal(0, 0.1, len(sizes))
                differs += change - np.average(differs, weights=sizes)
                by_question = np.clip(differs, -0.3, 0.3)[member]
                u = draw.random(len(member))
                lost, gained = u < 0.15 - by_question / 2, u > 0.85 - by_question / 2
                counts.append(
                    [lost.cumsum()[np.array(plan) - 1], gained.cumsum()[np.array(plan) - 1]]
                )
            looks = Looks(
                plan, *np.array(counts).swapaxes(0, 1), np.array(sequential._shares(plan))
            )
            shown = (looks.of_none < ALPHA) & ((looks.change > 0) | (change == 0))
            retained = (looks.of_margin < ALPHA) & (change != 0)
            low, high = looks.at_any(change, False)[:, -1], looks.at_any(change, True)[:, -1]
            row = (shown.any(axis=1), retained.any(axis=1), np.minimum(low, high) <= ALPHA / 2)
            yield [name, f"{len(order):,}", f"{100 * change:+.0f}", *map(percent, row)]


def graded(runs: int, draw: np.random.Generator) -> Rows:
    """Graded scores, asked to the end: false verdicts at any look, and how often a change is shown."""
    yield [
        "differences",
        "questions",
        "true change",
        "`changed`",
        "`retained`",
        "interval misses",
        "by all: `changed`",
        "`retained`",
    ]

    def rare(n: int) -> np.ndarray:
        return np.where(draw.random(n) < 0.025, -0.8, draw.uniform(-0.01, 0.01, n))

    cases: list[tuple[str, float, Callable[[int], np.ndarray]]] = [
        ("normal, spread 0.2", 0.0, lambda n: draw.normal(0, 0.2, n)),
        ("normal, spread 0.2", -0.03, lambda n: draw.normal(-0.03, 0.2, n)),
        ("0.8 lost of one in forty", -0.02, rare),
    ]
    for name, change, made in cases:
        for n in (100, 600):
            found = []
            for _ in range(runs // 8):
                before = draw.uniform(0.9, 0.98, n) if made is rare else np.full(n, 0.5)
                after = np.clip(before + made(n), 0, 1)
                d = sequential_difference(before, after, None, stages_of(n), n)
                missed = not d.low <= change <= d.high
                full = difference(before, after)
                equal = [one.equivalence_p_value(MARGIN) < ALPHA for one in (d, full)]
                found.append((d.p_value < ALPHA, equal[0], missed, full.p_value < ALPHA, equal[1]))
            yield [name, n, f"{100 * change:+.0f}", *map(percent, zip(*found, strict=True))]


# --- what else was tried --------------------------------------------------------------------------------


def alternatives(runs: int, draw: np.random.Generator) -> Rows:
    """Other ways to share the error, and bets: found by the end, and asked in the median | mean."""
    cases = [
        ("GSM8K collapses", 1319, 0.318, 0.020, Verdict.forgotten),
        ("10 points of 1,319", 1319, 0.15, 0.05, Verdict.forgotten),
        ("3 points of 1,319", 1319, 0.0625, 0.0325, Verdict.forgotten),
        ("`retained` on 1,319, 4.2 % flip", 1319, 0.021, 0.021, Verdict.retained),
        ("HellaSwag +0.43, 4 % flip", 10042, 0.01785, 0.02215, Verdict.retained),
        ("HellaSwag unchanged, 6 % flip", 10042, 0.03, 0.03, Verdict.retained),
    ]
    yield ["way", *(name for name, *_ in cases)]

    def cubic(plan: Plan) -> Sequence[float]:
        return list(np.diff([0, *((np.array(plan) / plan[-1]) ** 3)]))

    def doubling(plan: Plan) -> Sequence[float]:
        spent = np.log(np.array(plan) / 16) / np.log(plan[-1] / 16)
        return list(np.diff([0, *(spent[:-1] / 2), 1]))

    def bell(early: float, middle: float, width: float) -> Callable[[Looks], Looks]:
        def shared(looks: Looks) -> Looks:
            below = scipy.special.ndtr(np.log(np.array(looks.plan) / middle) / width)
            spent = early * below / below[-1]
            return replace(looks, shares=np.diff([0, *spent[:-1], 1]))

        return shared

    ways: dict[str, Callable[[Looks], Looks]] = {
        "as it is": lambda looks: looks,
        "Tango's score at every look": lambda looks: replace(looks, scored=True),
        "nothing in common": lambda looks: replace(looks, added_up=True),
        "a quarter before the end": bell(0.25, 1300, 1.0),
        "half before the end": bell(0.5, 1300, 1.0),
        "the bell's middle at 700": bell(0.6, 700, 1.0),
        "at 2,000": bell(0.6, 2000, 1.0),
        "its width 1.4": bell(0.6, 1300, 1.4),
        "even for each doubling": lambda looks: replace(
            looks, shares=np.array(doubling(looks.plan))
        ),
        "cubic (late, as O'Brien and Fleming)": lambda looks: replace(
            looks, shares=np.array(cubic(looks.plan))
        ),
        "bets": lambda looks: _Betted(looks.plan, looks.lost, looks.gained, looks.shares),
    }
    drawn = [Looks.drawn(n, lost, gained, runs, draw) for _, n, lost, gained, _ in cases]
    by_all = (
        percent([v is case[-1] for v in looks.full()])
        for case, looks in zip(cases, drawn, strict=True)
    )
    yield ["today's test of all", *by_all]
    for name, way in ways.items():
        cells = []
        for (*_, found), looks in zip(cases, drawn, strict=True):
            said, asked = one(way(looks))
            cells.append(
                f"{percent([v is found for v in said])}: {np.median(asked):,.0f} \\| {asked.mean():,.0f}"
            )
        yield [name, *cells]


class _Betted(Looks):
    """Half of the error to bets, looked at each time, half to today's test at the end."""

    def at_any(self, threshold: float, below: bool) -> np.ndarray:
        side, lost, gained = (-1, self.gained, self.lost) if below else (1, self.lost, self.gained)
        kept, bound, won = np.array(self.plan) - lost - gained, side * threshold, []
        for fraction in (
            0.8,
            0.4,
            0.2,
            0.1,
            0.05,
            0.025,
            0.0125,
        ):  # of the highest that cannot go bankrupt
            factors = 1 + fraction / (1 + bound) * (np.array([-1, 1, 0]) - bound)
            won.append(
                np.log(factors[0]) * lost + np.log(factors[1]) * gained + np.log(factors[2]) * kept
            )
        most = np.maximum.accumulate(scipy.special.logsumexp(won, axis=0), axis=1) - np.log(
            len(won)
        )
        p = 2 * np.exp(-most)
        p[:, -1] = np.minimum(p[:, -1], 2 * self.at_each(threshold, below)[:, -1])
        return np.minimum(1, p)


def schedules(runs: int, draw: np.random.Generator) -> Rows:
    """How finely to look: found by the end, and asked in the median | mean."""
    yield [
        "growth",
        "looks of 10,042",
        "3 points of 1,319",
        "10 points of 1,319",
        "HellaSwag +0.43, 4 % flip",
    ]
    for growth in (1.15, 1.25, 1.4, 1.7, 2.0):
        cells: list[object] = [growth, len(_growing(10042, growth))]
        for n, lost, gained, found in (
            (1319, 0.0625, 0.0325, Verdict.forgotten),
            (1319, 0.15, 0.05, Verdict.forgotten),
            (10042, 0.01785, 0.02215, Verdict.retained),
        ):
            said, asked = one(Looks.drawn(n, lost, gained, runs, draw, _growing(n, growth)))
            cells.append(
                f"{percent([v is found for v in said])}: {np.median(asked):,.0f} \\| {asked.mean():,.0f}"
            )
        yield cells


def _growing(n: int, growth: float) -> Plan:
    """`stages_of`, with another growth."""
    stages, size = [], FIRST
    while size * growth**0.5 < n:
        stages.append(size)
        size = ceil(size * growth)
    return (*stages, n)


def bounds(runs: int, draw: np.random.Generator) -> Rows:
    """Questions that any test needs to show `retained`, and how many are asked here, of 10,042 on HellaSwag.

    At best: in half of all runs by a test that looks once, at the best moment, and knows how many answers flip. In the
    mean: by any test that goes on until it knows, log(1 / error) over the information of a question (Wald 1945).
    """
    yield [
        "true change",
        "flips",
        "error",
        "once, at best",
        "until known, mean",
        "here, median",
        "mean",
    ]
    for change, flips in (
        (0.0, 0.02),
        (0.0, 0.04),
        (0.0, 0.06),
        (0.0043, 0.02),
        (0.0043, 0.04),
        (0.0043, 0.06),
    ):
        lost, gained = (flips - change) / 2, (flips + change) / 2
        looks = Looks.drawn(10042, lost, gained, runs, draw)
        for n_tested in (1, 3):
            alpha, n, spread = ALPHA / n_tested, np.arange(50, 10042), np.sqrt(flips - change**2)
            reach = MARGIN / spread * np.sqrt(n) + scipy.special.ndtri(alpha)
            off = change / spread * np.sqrt(n)
            once = n[
                np.argmax(scipy.special.ndtr(reach - off) - scipy.special.ndtr(-reach - off) >= 0.5)
            ]
            wald = np.log(1 / alpha) / min(
                _information(lost, gained, end) for end in (-MARGIN, MARGIN)
            )
            _, asked = first(n_tested * looks.of_margin < ALPHA, looks.plan)
            numbers = (f"{x:,.0f}" for x in (once, wald, np.median(asked), asked.mean()))
            yield [f"{100 * change:+.2f}", percent(flips), f"{100 * alpha:.2f} %", *numbers]


def _information(lost: float, gained: float, change: float) -> float:
    """Nats a question against the nearest shares of lost and gained answers of such a change (Kullback, Leibler)."""
    few = np.linspace(max(0.0, -change) + 1e-9, 0.2, 200_000)
    nearest = np.array([few, few + change, 1 - 2 * few - change])
    true = np.array([lost, gained, 1 - lost - gained])[:, None]
    return float((true * np.log(true / nearest)).sum(axis=0).min())


# --- recorded answers -----------------------------------------------------------------------------------


def replay(stores: Sequence[str], orders: int, draw: np.random.Generator) -> Rows:
    """Recorded answers asked again in random orders: what is said early against what all of them say, in percent."""
    yield [
        "store",
        "run",
        "questions",
        "asked",
        "contradicted",
        "early only",
        "all only",
        "verdicts of all",
    ]
    together = []
    for store in stores:
        config = TrackingConfig(
            uri=store if "://" in store else f"sqlite:///{Path(store).resolve()}", experiment="-"
        )
        for run in find_runs(config):
            try:
                base, tuned = (
                    read_evaluation(config, run, model).benchmarks for model in ("base", "tuned")
                )
            except SlimdownError as error:
                print(f"left out: {error}")
                continue
            pairs = [(one, tuned[name]) for name, one in base.items()]
            if any(report.stages for pair in pairs for report in pair):
                print(f"left out: {run.name} was asked in stages itself")
                continue
            scores = [
                [r.scores_of(one.benchmark.metric) for r in (one, other)] for one, other in pairs
            ]
            margins = [one.benchmark.margin for one, _ in pairs]
            if set(margins) != {MARGIN} or any(set(x) | set(y) > {0.0, 1.0} for x, y in scores):
                print(f"left out: {run.name} has graded scores or other margins")
                continue
            full = [said[0] for said in judgements([difference(x, y) for x, y in scores], margins)]
            drawn = [
                _shuffled(one, *pair, orders, draw)
                for (one, _), pair in zip(pairs, scores, strict=True)
            ]
            ends = [_until_decided(drawn, i) for i in range(orders)]
            n = sum(looks.plan[-1] for looks in drawn)
            kinds = [
                _kind(Verdict(early), of_all)
                for _, said in ends
                for early, of_all in zip(said, full, strict=True)
            ]
            shares = [float(np.mean([sum(asked) for asked, _ in ends])) / n]
            shares += [kinds.count(kind) / len(kinds) for kind in (1, 2, 3)]
            together.append(shares)
            words = ", ".join(f"{name} {said}" for name, said in zip(base, full, strict=True))
            yield [
                Path(store).resolve().parents[1].name,
                run.name,
                f"{n:,}",
                *(f"{100 * x:.1f}" for x in shares),
                words,
            ]
    yield [
        "all",
        f"{len(together)} runs",
        "",
        *(f"{100 * x:.1f}" for x in np.mean(together, axis=0)),
        "",
    ]


def _shuffled(
    asked: BenchmarkEvaluation,
    before: list[float],
    after: list[float],
    orders: int,
    draw: np.random.Generator,
) -> Looks:
    """What each look sees of one benchmark's recorded answers, in so many random orders, dealt out as they are."""
    tasks: dict[str, list[int]] = {}
    for place, sample in enumerate(asked.samples):
        tasks.setdefault(sample.task, []).append(place)
    change, plan = np.array(after) - np.array(before), stages_of(len(before))
    seen = []
    for _ in range(orders):
        salt = str(draw.random())
        order = order_of(
            {task: [f"{salt} {place}" for place in places] for task, places in tasks.items()}
        )
        in_order = change[[tasks[task][k] for task, k in order]]
        seen.append([(in_order == sign).cumsum()[np.array(plan) - 1] for sign in (-1, 1)])
    return Looks(plan, *np.array(seen).swapaxes(0, 1), np.array(sequential._shares(plan)))


def _kind(early: Verdict, of_all: Verdict) -> int:
    """0: the same; 1: both decided, and differ; 2: only early; 3: only of all."""
    if early is of_all:
        return 0
    return 2 if of_all is Verdict.undecided else 3 if early is Verdict.undecided else 1


TABLES: dict[str, Callable[[int, np.random.Generator], Rows]] = {
    "agreement": agreement,
    "exact": exact,
    "false": false,
    "subjects": subjects,
    "graded": graded,
    "power": power,
    "contradictions": contradictions,
    "together": together,
    "bounds": bounds,
    "alternatives": alternatives,
    "schedules": schedules,
}


def show(title: str, rows: Rows) -> None:
    """A table in Markdown, row by row."""
    print(f"### {title}\n")
    for i, row in enumerate(rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
        if i == 0:
            print("|" + "---|" * len(row))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; all without one"
    )
    parser.add_argument(
        "--replay",
        nargs="+",
        metavar="STORE",
        help="an SQLite file of recorded runs, or a store's URI",
    )
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = np.random.default_rng(given.seed)
    if given.replay:
        return show(f"replay, {given.orders} orders", replay(given.replay, given.orders, draw))
    for name in given.tables or TABLES:
        started = time.perf_counter()
        title = f"{name}: {(TABLES[name].__doc__ or '').splitlines()[0].rstrip('.')}"
        show(title, TABLES[name](given.runs, np.random.default_rng(given.seed)))
        print(f"\n{given.runs:,} runs, {time.perf_counter() - started:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
