"""Which questions were asked, alone or in groups -> how sure a mean over them is.

Questions of one subject have something in common, so where a benchmark is a group of subjects these are what was drawn,
and not the questions. What is said then holds for subjects like these. Too few of them cannot say how subjects differ;
what is said then holds for these subjects only, and other questions of theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

FEWEST = 5  # subjects that can say how subjects differ

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """What would be another one in a repetition: the questions, or whole groups of them."""

    n: int  # questions
    n_groups: int  # 0 where the questions are of one kind
    member: NDArray[np.intp] | None  # the group of each question; None where questions are drawn

    @classmethod
    def of(cls, n: int, clusters: Sequence[str] | None) -> "Drawn":
        """Of n questions, with the group that each belongs to; None where they are of one kind."""
        if clusters is None:
            return cls(n, 0, None)
        names, member = np.unique(np.asarray(clusters), return_inverse=True)
        n_groups = len(names)
        return cls(n, n_groups if n_groups > 1 else 0, member if n_groups >= FEWEST else None)

    @property
    def degrees_of_freedom(self) -> float:
        """Of `covariance`: one less than the questions, or than the groups as many as would count if all were equal.

        G* = (sum of n)^2 / (sum of n^2) equal groups weigh as much as G of unequal size.
        """
        if self.member is None:
            return self.n - 1
        sizes = np.bincount(self.member)
        return float(self.n**2 / (sizes**2).sum() - 1)

    def covariance(self, scores: Floats) -> Floats:
        """Of the means of k kinds of scores, [k, n] -> [k, k]; nan for fewer than two questions.

        Groups: the jackknife that leaves out one group at a time (CV3 of MacKinnon, Nielsen and Webb 2023). For groups
        of one size it is that of the groups' means; for others it does not, as CR1 does, forget how far the largest
        group draws the mean to itself.
        """
        if self.n < 2:
            return np.full((len(scores), len(scores)), nan)
        if self.member is None:
            return np.atleast_2d(np.cov(scores)) / self.n
        sizes = np.bincount(self.member)
        rest = scores - scores.mean(axis=1, keepdims=True)
        left_out = np.stack([np.bincount(self.member, row) for row in rest]) / (self.n - sizes)
        return left_out @ left_out.T * (len(sizes) - 1) / len(sizes)

    def variance(self, scores: Floats) -> float:
        """Of the mean of one kind of scores, [n]."""
        return float(self.covariance(scores[None, :])[0, 0])


def population(n_groups: int) -> str:
    """What a statement holds for.

    >>> population(0), population(4), population(13)
    ('questions like these', 'these 4 subjects', 'subjects like these 13')
    """
    if not n_groups:
        return "questions like these"
    return f"these {n_groups} subjects" if n_groups < FEWEST else f"subjects like these {n_groups}"
