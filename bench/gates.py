"""How often a gate refuses a model that did not change, and lets one through that lost 5 points.

    python -m bench.gates                    the table, in about a minute
    python -m bench.gates --draws 1000000    with less noise in the row that is simulated

Every rule sees the same models: the base answers 70 % right in each suite, and a share of its
answers flips. In the model that lost, one suite lost 5 points and the others nothing. All rows are
exact, by the sum over all tables of answers, but that of Benjamini and Hochberg, whose decision
joins the suites: its noise is one standard error.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import scipy
from numpy.typing import NDArray

from bench.statistics import Kind, p_values
from slimdown.stats.likelihood import ALPHA

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

BASE = 0.7  # of the base's answers are right
LOSS = 0.05  # what a gate is to catch: 5 points
FLIPS = (0.05, 0.1)  # of the answers change, as many gained as lost where nothing changed
HEADINGS = ("rule", "unchanged, refused", "lost 5 points, passed", "unchanged, cannot tell")
Q = 0.05  # false discoveries that Benjamini and Hochberg allow


@dataclass(frozen=True, eq=False)
class Tables:
    """Tables of a suite's answers, by what was lost, gained and stayed right; each [tables]."""

    lost: Floats
    gained: Floats
    stayed: Floats
    n: int  # questions of the suite

    @classmethod
    def list_likely(cls, n: int) -> "Tables":
        """List all tables but those that lose or gain more answers than ever happens (1e-9)."""
        flipped = np.arange(scipy.stats.binom.isf(1e-9, n, (max(FLIPS) + LOSS) / 2) + 1)
        lost, gained, stayed = np.meshgrid(flipped, flipped, np.arange(n + 1.0), indexing="ij")
        fits = lost + gained + stayed <= n
        return cls(lost[fits], gained[fits], stayed[fits], n)

    @property
    def change(self) -> Floats:
        """The share of right answers after minus that before."""
        return (self.gained - self.lost) / self.n

    def find_chances(self, flips: float, loss: float) -> Floats:
        """Compute how likely each table is, [tables], where so many points were truly lost."""
        flips = max(flips, loss)
        lost, gained = (flips + loss) / 2, (flips - loss) / 2
        shares = [lost, gained, BASE - lost, 1 - BASE - gained]
        counts = [self.lost, self.gained, self.stayed]
        wrong = self.n - sum(counts)
        return np.asarray(
            scipy.stats.multinomial.pmf(np.stack([*counts, wrong], 1), self.n, shares)
        )

    def test(self, change: float, above: bool, kind: Kind = Kind.margin) -> Floats:
        """Return slimdown's one-sided p-values of a true change of `change`, [tables]."""
        counts = np.stack([self.lost, self.n - self.lost - self.gained, self.gained], axis=1)
        distinct, where = np.unique(counts, axis=0, return_inverse=True)
        return p_values(distinct, change, above, kind)[where.ravel()]


def falls_by_points(tables: Tables) -> Flags:
    """The score fell by more than 5 points; soup-cli's default."""
    return tables.change < -LOSS - 1e-9


def falls_relatively(tables: Tables) -> Flags:
    """The score fell by more than a twentieth of the base's: a point estimate, as NeMo's."""
    before = (tables.stayed + tables.lost) / tables.n
    return tables.change < -0.05 * before - 1e-9


def differs_unpaired(tables: Tables) -> Flags:
    """The scores differ by two standard errors, as lm_eval's own errors suggest."""
    before, after = ((tables.stayed + x) / tables.n for x in (tables.lost, tables.gained))
    errors = sum(share * (1 - share) / (tables.n - 1) for share in (before, after))
    return tables.change < -2 * np.sqrt(errors)


def differs_by_t(tables: Tables) -> Flags:
    """The 95 % interval of a paired t-test lies below zero."""
    n, change = tables.n, tables.change
    variance = ((tables.gained + tables.lost) / n - change**2) * n / (n - 1)
    return change < -scipy.stats.t.isf(0.025, n - 1) * np.sqrt(variance / n)


def find_bootstrap_p_values(tables: Tables) -> Floats:
    """Return two-sided p-values of the percentile bootstrap with all resamples, [tables]."""
    n, pairs = tables.n, np.stack([tables.lost, tables.gained], axis=1)
    distinct, where = np.unique(pairs, axis=0, return_inverse=True)
    found = []
    for lost, gained in distinct / n:
        # Of a resample's flips, binomial in number, each is a gain with the same chance.
        flips = np.arange(n + 1)
        chances = scipy.stats.binom.pmf(flips, n, lost + gained)
        share = gained / (lost + gained) if lost + gained else 0.5
        at_most = chances @ scipy.stats.binom.cdf(flips // 2, flips, share)
        at_least = chances @ scipy.stats.binom.sf((flips + 1) // 2 - 1, flips, share)
        found.append(min(1.0, 2 * min(at_most, at_least)))
    return np.array(found)[where.ravel()]


def refuse_any(is_refused: Flags, suites: list[Floats]) -> float:
    """Compute how likely at least one suite is refused; the suites are independent.

    Args:
        is_refused: [tables], whether a suite with this table is refused.
        suites: [tables] each, how likely each table of a suite is.
    """
    return float(1 - np.prod([1 - chances[is_refused].sum() for chances in suites]))


def pass_all(is_passed: Flags, suites: list[Floats]) -> float:
    """Compute how likely all suites pass, see `refuse_any`."""
    return float(np.prod([chances[is_passed].sum() for chances in suites]))


def refuse_by_discoveries(
    tables: Tables, suites: list[Floats], draws: int, random: np.random.Generator
) -> tuple[float, float]:
    """Simulate Benjamini-Hochberg over bootstrap p-values: the rate and its standard error."""
    p, n_suites = find_bootstrap_p_values(tables), len(suites)
    drawn = np.stack([random.choice(len(p), draws, p=x / x.sum()) for x in suites])
    by_suite, losses = p[drawn], tables.change[drawn] < 0
    order = np.sort(by_suite, axis=0)
    is_met = order <= Q * np.arange(1, n_suites + 1)[:, None] / n_suites
    bound = np.where(is_met, order, -1.0).max(axis=0)
    rate = float(((by_suite <= bound) & losses).any(axis=0).mean())
    return rate, float(np.sqrt(rate * (1 - rate) / draws))


def judge_suites(n: int, n_suites: int, draws: int) -> Iterator[tuple[str, ...]]:
    """Yield each rule with its rates at both shares of flips; see `HEADINGS`."""
    tables, random = Tables.list_likely(n), np.random.default_rng(0)
    likely = cache(tables.find_chances)

    def list_models(loss: float) -> list[list[Floats]]:
        """List the suites of a model for each share of flips; the first suite loses so much."""
        return [[likely(f, loss), *[likely(f, 0.0)] * (n_suites - 1)] for f in FLIPS]

    unchanged, lost = list_models(0.0), list_models(LOSS)

    def show(rates: Iterable[float]) -> str:
        return ", ".join(f"{100 * rate:.1f}" for rate in rates)

    above, below = (tables.test(0.0, is_above, Kind.change) for is_above in (True, False))
    is_forgotten = (tables.change < 0) & (2 * np.minimum(above, below) < ALPHA / n_suites)
    rules: dict[str, Callable[[Tables], Flags]] = {
        "a score falls by more than 5 points": falls_by_points,
        "a score falls by more than a twentieth": falls_relatively,
        "two standard errors, unpaired": differs_unpaired,
        "the interval of a paired t-test": differs_by_t,
        "slimdown: something is forgotten": lambda _: is_forgotten,
    }
    for name, rule in rules.items():
        is_refused = rule(tables)
        refused = [refuse_any(is_refused, suites) for suites in unchanged]
        missed = [1 - refuse_any(is_refused, suites) for suites in lost]
        yield name, show(refused), show(missed), "0"
    simulate = partial(refuse_by_discoveries, tables, draws=draws, random=random)
    results = [[simulate(suites) for suites in models] for models in (unchanged, lost)]
    noise = 100 * max(error for pairs in results for _, error in pairs)
    name = f"bootstrap, Benjamini-Hochberg (±{noise:.2f})"
    yield name, show(r for r, _ in results[0]), show(1 - r for r, _ in results[1]), "0"
    # Holm's first step decides whether anything is beyond its budget; all must be within.
    is_beyond = tables.test(-LOSS, above=False) < ALPHA / n_suites
    is_within = tables.test(-LOSS, above=True) < ALPHA
    wrong = [refuse_any(is_beyond, suites) for suites in unchanged]
    rightly_passed = [pass_all(is_within, suites) for suites in unchanged]
    wrongly_passed = [pass_all(is_within, suites) for suites in lost]
    silent = [1 - w - p for w, p in zip(wrong, rightly_passed, strict=True)]
    yield "slimdown: a budget of 5 points", show(wrong), show(wrongly_passed), show(silent)


def main() -> None:
    """Print a table for each size of suites."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=200_000)
    draws = parser.parse_args().draws
    for n, n_suites in ((26, 8), (40, 8), (100, 13), (400, 8)):
        flips = " and ".join(f"{100 * share:.0f}" for share in FLIPS)
        print(f"\n{n_suites} suites of {n} questions; %, where {flips} % of answers flip\n")
        print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|")
        for cells in judge_suites(n, n_suites, draws):
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
