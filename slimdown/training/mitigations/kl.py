"""`keep=kl`: a KL penalty towards the base model is part of the loss (arXiv 2605.29498)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from slimdown.config.fields import POSITIVE, setting
from slimdown.config.mitigation import Mitigation
from slimdown.training.labels import IGNORED, Predictions


@dataclass
class Kl(Mitigation):
    """A KL penalty on every trained token, over all tokens of the vocabulary but the right one."""

    weight: float = setting(
        "weight of the KL penalty, which keeps the model near the base model", POSITIVE
    )

    description: ClassVar[str] = "a KL penalty keeps the model near the base model"

    @property
    def compares_with_base(self) -> bool:
        """Always."""
        return True

    def choose_compared(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Compare every row."""
        return dict(inputs)

    def measure_loss(self, predicted: Predictions, base_predicted: Predictions) -> Any:
        """Compute the KL penalty without the right token, whose likelihood is free to grow."""
        from slimdown.training.divergence import measure_divergence

        is_trained = predicted.target != IGNORED
        base_logits, logits = base_predicted.logits[is_trained], predicted.logits[is_trained]
        divergence = measure_divergence(base_logits, logits, predicted.target[is_trained])
        return self.weight * divergence.sum()
