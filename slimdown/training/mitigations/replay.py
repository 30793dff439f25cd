"""`keep=replay`: rows of a general dataset are mixed in (arXiv 2512.22337)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from slimdown.config.fields import setting
from slimdown.training.general_rows import GeneralRows, count_added
from slimdown.training.labels import mark_labels

if TYPE_CHECKING:
    from slimdown.config.schema import RunConfig
    from slimdown.data.training_data import DatasetPart


@dataclass
class Replay(GeneralRows):
    """The general rows come from one of the chosen datasets."""

    dataset: str | None = setting("the chosen dataset whose rows are replayed", default=None)

    description: ClassVar[str] = "rows of a general dataset are mixed into the training"

    def find_conflicts(self, config: "RunConfig") -> Iterator[str]:
        """Find that no other dataset is replayed, or that weights set the share, too."""
        if self.dataset not in config.dataset or len(config.dataset) < 2:
            chosen = ", ".join(config.dataset)
            yield (
                f"keep.dataset={self.dataset or 'null'} must be one of several chosen datasets "
                f"({chosen}): dataset=[alpaca,dolly] keep.dataset=dolly; or set "
                "keep=self_replay, which needs none"
            )
        if any(member.weight is not None for member in config.dataset.values()):
            yield f"keep.share={self.share} and weights of datasets: set only one of the two"

    def choose_parts(self, parts: Sequence["DatasetPart"]) -> tuple[list["DatasetPart"], list[str]]:
        """Cut the general dataset, whose rows are replayed, to its share of all rows; put it last.

        None of it is held out, so the validation loss covers only the other datasets.

        Args:
            parts: The rows of each dataset, the general one among them.

        Returns:
            The datasets; and lines for the user, if the general dataset has too few rows.
        """
        chosen = [part for part in parts if part.name != self.dataset]
        general = next(part for part in parts if part.name == self.dataset)
        n_wanted = count_added(sum(len(part.train) for part in chosen), self.share)
        n_taken = min(n_wanted, len(general.train))
        if n_taken > 0:
            train = general.train.select(range(n_taken))
            empty = general.validation.select([])
            chosen.append(replace(general, train=train, validation=empty, is_added=True))
        notes = []
        if n_taken < n_wanted:
            share = f"dataset.{self.dataset}: keep.share={self.share:g}"
            notes.append(f"{share} would be {n_wanted:,} rows, but there are only {n_taken:,}")
        return chosen, notes

    def prepare_rows(self, base: Any, rows: Any, config: "RunConfig") -> Any:
        """Mark the replayed rows, which are the last, if they get a KL penalty."""
        if not self.weight:
            return rows
        from datasets import Dataset

        labels = list(rows.train["labels"])
        for i in range(len(labels) - rows.n_added, len(labels)):
            labels[i] = mark_labels(labels[i])
        columns = {"input_ids": rows.train["input_ids"], "labels": labels}
        return replace(rows, train=Dataset.from_dict(columns, rows.train.features))
