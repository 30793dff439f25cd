"""How answers are computed: the class that scores, its batch sizes, and what else generates."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch

from slimdown.config.schema import EvaluationConfig
from slimdown.evaluation.families import explain_no_sharing
from slimdown.evaluation.prefix_lm import PrefixLM, VirtualTokensLM, without_tying
from slimdown.models.base_model import LoadedModel


@dataclass(frozen=True)
class BackendOptions:
    """How answers are computed, alike for every model that is compared."""

    shares_prefixes: bool  # PrefixLM, else HFLM
    batch_size: int
    generation_batch_size: int
    engine: str = ""  # the one that generates, if it is another

    @property
    def name(self) -> str:
        """What the record calls it.

        >>> BackendOptions(True, 8, 1).name
        'PrefixLM, batch size 8, 1 to generate'
        """
        kind = "PrefixLM" if self.shares_prefixes else "HFLM"
        generating = self.engine or self.generation_batch_size
        return f"{kind}, batch size {self.batch_size}, {generating} to generate"

    def generate_by(self, packages: Sequence[str]) -> "BackendOptions":
        """Return the same with another engine, which makes its own batches from large chunks."""
        versions = [f"{name} {version(name)}" for name in packages]
        return replace(self, engine=", ".join(versions), generation_batch_size=64)


def choose_backend(
    model: LoadedModel, config: EvaluationConfig, share_prefixes: bool
) -> BackendOptions:
    """Choose how a model is scored; it depends only on model and device, so runs choose alike.

    Args:
        model: The first model that is measured.
        config: If `batch_size` is set, it is taken as it is.
        share_prefixes: Whether `PrefixLM` may score the model at all.

    Returns:
        The language model's class and its batch sizes, in questions.
    """
    shares = share_prefixes and not explain_no_sharing(model.model)
    device = model.model.device
    if device.type == "meta":  # before the weights are loaded
        device = torch.device(model.device)
    if config.batch_size or device.type != "cuda":
        size = config.batch_size or 4
        return BackendOptions(shares, size, size)
    sizes = model.model.config.get_text_config()
    # Bytes of 1,024 tokens: logits in two precisions, or keys and values; and some activations.
    choices = 1024 * (6 * sizes.vocab_size + 64 * sizes.hidden_size)
    text = 1024 * (4 * sizes.num_hidden_layers + 64) * sizes.hidden_size
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    free_bytes = (total_bytes - model.memory_bytes) / 2
    rows = (max(1, min(64, int(free_bytes // row_bytes))) for row_bytes in (choices, text))
    size, generation_size = (1 << (n.bit_length() - 1) for n in rows)
    return BackendOptions(shares, size, generation_size)


def open_lm(model: LoadedModel, config: EvaluationConfig, backend: BackendOptions) -> Any:
    """Wrap a model for the harness: a `PrefixLM`, or `HFLM` where no prefix may be shared."""
    with without_tying(model.model):
        return (PrefixLM if backend.shares_prefixes else VirtualTokensLM)(
            model.model,
            tokenizer=copy.deepcopy(model.tokenizer),  # HFLM may add a padding token
            batch_size=backend.batch_size,
            softmax_dtype=torch.float32,
            think_end_token=config.think_end_token,
            rules=model.rules,
        )
