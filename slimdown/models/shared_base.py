"""One base for many adapters: jobs that follow each other in a process load it once."""

from dataclasses import replace
from typing import Any

from slimdown.config.schema import RunConfig


class SharedBase:
    """Keeps the base of a job for the next one, which puts another adapter on it.

    A base is kept only if it is as it was loaded once its adapter is taken off: one that trains
    biases, adds tokens or takes its start from the base's weights leaves another model behind.
    """

    def __init__(self) -> None:
        """Keep nothing yet."""
        # Both are a `LoadedModel` or None; the class itself would import torch.
        self._kept: Any = None  # for the next job
        self._in_use: Any = None  # by the current job
        self._settings = ""  # with which the base was loaded
        self._state: object = None  # of its layers and numbers then, see `_describe_state`

    def load(self, config: RunConfig, tokenizer: Any, outline: Any) -> Any:
        """Return the base of a run: the one that was kept, or a freshly loaded one.

        Args:
            config: The settings of the run.
            tokenizer: The base's, as this run asks it.
            outline: See `load_outline`.

        Returns:
            A `LoadedModel`, which belongs to the run until `keep_base_of`.

        Raises:
            ModelError: It cannot be loaded.
        """
        from slimdown.models.base_model import describe_base_model, load_base_model
        from slimdown.models.device_memory import release_weights

        kept, self._kept, self._in_use = self._kept, None, None  # nothing is kept if loading fails
        settings = repr((config.model, config.quantization))
        if kept is not None:
            described = describe_base_model(config.model, config.quantization, tokenizer, outline)
            has_same_files = described.files == kept.files and described.revision == kept.revision
            is_same = settings == self._settings and has_same_files
            if config.tuned and is_same:  # a run that trains loads a base of its own
                # This run may ask with another tokenizer, for example with a chat template. All
                # that is known only after loading is taken from the base that was kept.
                self._in_use = replace(
                    described,
                    model=kept.model,
                    license=kept.license,
                    memory_bytes=kept.memory_bytes,
                    identity={**kept.identity, "tokenizer": described.identity["tokenizer"]},
                )
                return self._in_use
            release_weights(kept.model)
        self._in_use = load_base_model(config.model, config.quantization, tokenizer, outline)
        self._settings, self._state = settings, _describe_state(self._in_use.model)
        return self._in_use

    def keep_base_of(self, tuned: Any) -> None:
        """Take the adapter off the base that `load` returned, and keep the base for the next job.

        It is not kept if it is not as it was loaded. Then the next job loads its base anew.

        Args:
            tuned: The `LoadedModel` of the base with the adapter on it.
        """
        from slimdown.models.adapters import remove_adapter

        base, self._in_use = self._in_use, None
        try:
            model = remove_adapter(tuned.model)
        except Exception:  # PEFT refuses, as for IA3 in 4 bits
            return
        if model is base.model and _describe_state(model) == self._state:
            self._kept = base


def _describe_state(model: Any) -> object:
    """Return what changes when a model's layers, hooks or numbers change; two can be compared.

    The numbers are not read: torch counts the changes of each tensor in `_version`.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    try:
        layers = [
            (name, type(layer), len(layer._forward_hooks)) for name, layer in model.named_modules()
        ]
        numbers = [(name, t.data_ptr(), t.shape, t._version) for name, t in tensors]
    except AttributeError:  # a torch that has renamed these: nothing equals this, so it is loaded
        return object()
    return layers, numbers
