"""`keep=kl`: a KL penalty towards the base model is part of the loss (arXiv 2605.29498)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from slimdown.config.fields import POSITIVE, setting
from slimdown.config.mitigation import Mitigation
from slimdown.training.labels import IGNORED, Predictions


@dataclass
class Kl(Mitigation):
    """The KL penalty on every trained token, over all tokens of the vocabulary but it."""

    weight: float = setting(
        "weight of the KL penalty, which keeps the model near the base model", POSITIVE
    )

    about: ClassVar[str] = "a KL penalty keeps the model near the base model"

    @property
    def compares_with_base(self) -> bool:
        """Always."""
        return True

    def choose_compared(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Compare every row."""
        return dict(inputs)

    def measure_loss(self, predicted: Predictions, of_base: Predictions) -> Any:
        """Leave the right token out, so that its own likelihood is free to grow."""
        from slimdown.training.divergence import measure_divergence

        is_trained = predicted.target != IGNORED
        pair = of_base.logits[is_trained], predicted.logits[is_trained]
        return self.weight * measure_divergence(*pair, predicted.target[is_trained]).sum()
