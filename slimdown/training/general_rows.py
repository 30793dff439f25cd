"""What mitigations share that mix in general rows: their share, and the KL penalty on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slimdown.config.fields import POSITIVE, Range, setting
from slimdown.config.mitigation import Mitigation
from slimdown.training.labels import Predictions, find_marked

ADDED_SHARE = Range(
    "must be from 0 to 0.9 (nine general rows beside each of yours)", lambda x: 0 <= x <= 0.9
)


def count_added(n_rows: int, share: float) -> int:
    """Return how many rows to add to `n_rows` so that they are this share of all; at least one."""
    return max(1, round(n_rows * share / (1 - share)))


@dataclass
class GeneralRows(Mitigation):
    """Mixes general rows into the training; with a weight, the marked ones get a KL penalty."""

    share: float = setting("share of general rows among all rows", ADDED_SHARE)
    weight: float | None = setting(
        "weight of the KL penalty, which keeps the model near the base model", POSITIVE, None
    )

    @property
    def added_share(self) -> float:
        """The share of general rows."""
        return self.share

    @property
    def compares_with_base(self) -> bool:
        """Whether the KL penalty has a weight."""
        return bool(self.weight)

    def choose_compared(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch of the marked rows alone, which get the KL penalty.

        The labels of these rows are marked by `mark_labels`: each is moved below `IGNORED`.

        Args:
            inputs: A batch, with padding or laid end to end.

        Returns:
            The marked rows in the form of the batch; empty if there is no penalty or no such row.
        """
        import torch
        from torch.nn import functional

        is_marked = find_marked(inputs["labels"])
        if not self.weight or not is_marked.any():
            return {}
        if "position_ids" not in inputs:  # padded: a row of the batch is a row of the data
            return {name: values[is_marked.any(1)] for name, values in inputs.items()}
        # Rows lie end to end in one row of the batch, and each begins at position 0. All tokens of
        # a row with a marked label are chosen, also those that carry no label.
        row_number = (inputs["position_ids"] == 0).cumsum(1)
        is_chosen = torch.isin(row_number, row_number[is_marked])[0]
        names = ("input_ids", "labels", "position_ids")
        chosen = {name: inputs[name][:, is_chosen] for name in names}
        # Flash attention also reads where rows begin and end, and how long the longest one is. Only
        # for it does TRL's collator give this, so the chosen rows get it only if the batch has it.
        starts = (chosen["position_ids"][0] == 0).nonzero().flatten()
        bounds = functional.pad(starts, (0, 1), value=int(is_chosen.sum())).int()
        n_longest = int(bounds.diff().max())
        for side in ("q", "k"):  # queries and keys
            row_bounds = {f"cu_seq_lens_{side}": bounds, f"max_length_{side}": n_longest}
            chosen |= {name: value for name, value in row_bounds.items() if name in inputs}
        return chosen

    def measure_loss(self, predicted: Predictions, base_predicted: Predictions) -> Any:
        """Compute the KL penalty on the trained tokens of the marked rows."""
        from slimdown.training.divergence import measure_divergence

        base_logits = base_predicted.logits[base_predicted.is_replayed]
        logits = predicted.logits[predicted.is_replayed]
        return measure_divergence(base_logits, logits).sum() * (self.weight or 0.0)
