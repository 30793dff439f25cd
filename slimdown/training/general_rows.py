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
    """Return how many rows are a share of all rows beside `n_rows` others; at least one."""
    return max(1, round(n_rows * share / (1 - share)))


@dataclass
class GeneralRows(Mitigation):
    """Rows of something else among those that teach; with a weight, marked ones are compared."""

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
        """Choose the marked rows."""
        import torch
        from torch.nn import functional

        is_marked = find_marked(inputs["labels"])
        if not self.weight or not is_marked.any():
            return {}
        if "position_ids" in inputs:  # one row after another
            row = (inputs["position_ids"] == 0).cumsum(1)
            chosen = torch.isin(row, row[is_marked])[0]
            names = ("input_ids", "labels", "position_ids")
            taken = {name: inputs[name][:, chosen] for name in names}
            starts = (taken["position_ids"][0] == 0).nonzero().flatten()
            ends = functional.pad(starts, (0, 1), value=int(chosen.sum())).int()
            longest = int(ends.diff().max())
            new: dict[str, Any] = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
            new |= {"max_length_q": longest, "max_length_k": longest}
            return taken | {name: new[name] for name in new.keys() & inputs.keys()}
        return {name: values[is_marked.any(1)] for name, values in inputs.items()}

    def measure_loss(self, predicted: Predictions, of_base: Predictions) -> Any:
        """Compute the KL penalty on what is trained of the marked rows."""
        from slimdown.training.divergence import measure_divergence

        pair = of_base.logits[of_base.is_replayed], predicted.logits[predicted.is_replayed]
        return measure_divergence(*pair).sum() * (self.weight or 0.0)
