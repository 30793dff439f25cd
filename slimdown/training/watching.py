"""The validation loss in the midst of training, for whoever may end it early. It changes nothing of the training."""

from collections.abc import Callable
from typing import Any

from slimdown.evaluation.engine.forward import measuring

Watch = Callable[[float, float], None]
"""Told, at each quarter, the share of the steps that are taken and the validation loss; may raise, which ends them."""


def watching(trainer: Any, watch: Watch, rows: Any, size: int) -> Any:
    """A callback for `trainer` that tells `watch` of the loss on `rows`, so many at once."""
    import transformers

    class Watching(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            quarters = {round(share * state.max_steps): share for share in (0.25, 0.5, 0.75)}
            if state.global_step in quarters:
                watch(quarters[state.global_step], _loss(trainer, rows, size))

    return Watching()


def _loss(trainer: Any, rows: Any, size: int) -> float:
    """Nats a token, by the trainer's own batches; draws from no generator."""
    summed = 0.0
    with measuring(trainer.model):
        for start in range(0, len(rows), size):
            batch = [rows[i] for i in range(start, min(start + size, len(rows)))]
            inputs = trainer._prepare_inputs(trainer.data_collator(batch))
            summed += float(trainer.compute_loss(trainer.model, inputs)) * len(batch)
    return summed / len(rows)
