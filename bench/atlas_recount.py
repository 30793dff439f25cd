"""Count the atlas's rows again with pandas and statsmodels, from the same tables.

Questions that share a passage or a problem are a cluster. Scores are means over clusters, of each
cluster's own mean. Two tests stand beside slimdown's verdict. McNemar's exact test takes every
question as independent and only asks whether the score rose or fell. Where scores are graded or
questions form clusters, the mean of the clusters' changes is tested by least squares with
heteroskedasticity-robust errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import statsmodels.api
from statsmodels.stats.contingency_tables import mcnemar

ALPHA = 0.05


@dataclass(frozen=True)
class Recount:
    """A pair of tables, counted again.

    Attributes:
        n: Questions.
        base, tuned: The mean scores over clusters, shares of 1.
        fell, rose: Questions whose score fell, and rose.
        mcnemar_p: Of McNemar's exact test of `fell` against `rose`.
        mean_p: Of the mean change, by least squares.
        low, high: The mean change's interval of 90 %.
        is_simple: Whether every score is 0 or 1 and no question shares a cluster.
    """

    n: int
    base: float
    tuned: float
    fell: int
    rose: int
    mcnemar_p: float
    mean_p: float
    low: float
    high: float
    is_simple: bool

    @property
    def p_value(self) -> float:
        """The test that fits the scores: McNemar's where they are simple."""
        return self.mcnemar_p if self.is_simple else self.mean_p

    def find_side(self, level: float = ALPHA) -> int:
        """Return -1 or 1 for a fall or rise that is significant, 0 for neither."""
        if self.p_value >= level:
            return 0
        return -1 if self.tuned < self.base else 1

    def matches(self, counts: Sequence[float]) -> bool:
        """Whether slimdown counted the same: n, both scores, and how many scores fell and rose."""
        recounted = [self.n, self.base, self.tuned, self.fell, self.rose]
        return bool(np.allclose(recounted, counts, rtol=0, atol=1e-9))

    def is_within(self, margin: float) -> bool:
        """Whether the interval of the mean change lies within a margin."""
        return -margin < self.low and self.high < margin


def recount(base: Path, tuned: Path, cluster: str = "") -> Recount:
    """Count a pair again from its tables, CSV or Parquet.

    Args:
        base: The table of the earlier model.
        tuned: The table of the later one.
        cluster: The column whose value questions share; empty if there is none.
    """
    tables = [_read(file) for file in (base, tuned)]
    paired = tables[0].merge(
        tables[1], on="id", validate="one_to_one", suffixes=("_base", "_tuned")
    )
    if not len(paired) == len(tables[0]) == len(tables[1]):
        raise ValueError(f"{base.name} and {tuned.name} do not hold the same questions")
    scores = paired[["score_base", "score_tuned"]].astype(float)
    changes = scores["score_tuned"] - scores["score_base"]
    fell, rose = int((changes < 0).sum()), int((changes > 0).sum())
    groups = paired[f"{cluster}_base"] if cluster else paired["id"]
    means = scores.groupby(groups.to_numpy()).mean()
    fitted = statsmodels.api.OLS(
        (means["score_tuned"] - means["score_base"]).to_numpy(), np.ones(len(means))
    ).fit(cov_type="HC1")
    [[low, high]] = fitted.conf_int(alpha=2 * ALPHA)
    has_clusters = len(means) < len(paired)
    return Recount(
        n=len(paired),
        base=float(means["score_base"].mean()),
        tuned=float(means["score_tuned"].mean()),
        fell=fell,
        rose=rose,
        mcnemar_p=float(mcnemar([[0, fell], [rose, 0]], exact=True).pvalue),
        mean_p=float(fitted.pvalues[0]),
        low=float(low),
        high=float(high),
        is_simple=bool(scores.isin([0.0, 1.0]).all(axis=None)) and not has_clusters,
    )


def _read(file: Path) -> "pandas.DataFrame":
    read: Any = pandas.read_parquet if file.suffix == ".parquet" else pandas.read_csv
    return read(file)


def describe_difference(found: Recount, verdict: str, margin: float, n_reports: int) -> str:
    """Say how a recount's test and slimdown's verdict differ; empty where they agree.

    Args:
        found: The recount.
        verdict: slimdown's.
        margin: A smaller change counts as none.
        n_reports: Pairs of a chain, which are corrected together; 1 for a pair by itself.
    """
    if verdict == "retained":
        is_alike = found.is_within(margin)
        interval = f"[{100 * found.low:.2f}, {100 * found.high:.2f}]"
        return "" if is_alike else f"retained, and the 90 % interval is {interval}"
    side = found.find_side(ALPHA / n_reports)
    if side == {"forgotten": -1, "improved": 1}.get(verdict, 0):
        return ""
    return f"{verdict}, and the recount's p-value is {found.p_value:.2g}"
