"""Join several datasets to one sequence of rows: one after the other, or mixed by weight."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset


def mix_rows(
    parts: Sequence["Dataset"],
    weights: Sequence[float | None],
    seed: int,
    stopping_strategy: str = "all_exhausted_without_replacement",
) -> "Dataset":
    """Join datasets, each in its own order; no row comes twice.

    Args:
        parts: Datasets with equal columns.
        weights: For each dataset, the chance that the next row is drawn from it, in any unit.
            If all are None, the datasets follow one another.
        seed: The seed of the draws.
        stopping_strategy: As in `datasets.interleave_datasets`: which datasets must be exhausted
            to stop. The default uses all rows.

    Returns:
        The rows in the order in which the trainer gets them; it shuffles them anew.
    """
    from datasets import concatenate_datasets, interleave_datasets

    if None in weights:  # then all are None
        return concatenate_datasets(list(parts))
    pairs = zip(parts, weights, strict=True)
    # A dataset that is never drawn would never be exhausted, and one without rows has none to draw.
    drawn = [(part, weight) for part, weight in pairs if weight and len(part)]
    total = sum(weight for _, weight in drawn)
    return interleave_datasets(
        [part for part, _ in drawn],
        probabilities=[weight / total for _, weight in drawn],
        seed=seed,
        stopping_strategy=stopping_strategy,  # type: ignore[arg-type]
    )
