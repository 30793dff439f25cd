"""How answers are computed: the class that scores, its batch sizes, and what else generates."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
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
    server: str = ""  # the one that answers everything, if it is a server

    @property
    def name(self) -> str:
        """What the record calls it.

        >>> BackendOptions(True, 8, 1).name
        'PrefixLM, batch size 8, 1 to generate'
        """
        if self.server:
            return self.server
        scorer = "PrefixLM" if self.shares_prefixes else "HFLM"
        generator = self.engine or self.generation_batch_size
        return f"{scorer}, batch size {self.batch_size}, {generator} to generate"

    def generate_by(self, packages: Sequence[str]) -> "BackendOptions":
        """Return the same with another engine, which makes its own batches from large chunks."""
        versions = [f"{name} {version(name)}" for name in packages]
        return replace(self, engine=", ".join(versions), generation_batch_size=64)


def choose_backend(
    model: LoadedModel, config: EvaluationConfig, share_prefixes: bool
) -> BackendOptions:
    """Choose the class that scores a model, and the batch sizes.

    The choice depends only on the model, the settings and the device's size, not on the memory that
    other programs use at the moment. So every run rounds alike, and the record's answers can be
    reused.

    Args:
        model: The first model that is measured.
        config: Its `batch_size`, if the user sets it, is taken as it is.
        share_prefixes: Whether `PrefixLM` may score the model at all. `PrefixLM` computes the
            beginning that several prompts share only once.

    Returns:
        Whether `PrefixLM` scores the model, and the batch sizes, in questions.
    """
    shares_prefixes = share_prefixes and not explain_no_sharing(model.model)
    device = model.model.device
    if device.type == "meta":  # a plan has no weights yet, but knows where they will be loaded
        device = torch.device(model.device)
    if config.batch_size or device.type != "cuda":
        size = config.batch_size or 4
        return BackendOptions(shares_prefixes, batch_size=size, generation_batch_size=size)
    shape = model.model.config.get_text_config()
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    # Half of what the weights leave is kept in reserve, because the sizes below are estimates.
    free_bytes = (total_bytes - model.memory_bytes) / 2

    def choose_size(row_bytes: int) -> int:
        """Choose how many rows fit: the largest power of two, from 1 to 64."""
        n_rows = max(1, min(64, int(free_bytes // row_bytes)))
        return 1 << (n_rows.bit_length() - 1)

    # A row is taken to have 1,024 tokens. Scored choices need logits in 16 and in 32 bits;
    # generated answers need keys and values. Both need activations: 64 bytes per hidden unit.
    choices_bytes = 1024 * (6 * shape.vocab_size + 64 * shape.hidden_size)
    generation_bytes = 1024 * (4 * shape.num_hidden_layers + 64) * shape.hidden_size
    return BackendOptions(
        shares_prefixes,
        batch_size=choose_size(choices_bytes),
        generation_batch_size=choose_size(generation_bytes),
    )


def open_lm(model: LoadedModel, config: EvaluationConfig, backend: BackendOptions) -> Any:
    """Wrap a model in the class through which the harness asks it.

    That is a `ServedLM` if a server answers, a `PrefixLM` if prompts may share their beginnings,
    and otherwise a `VirtualTokensLM`, which also takes trained prompts and prefixes of PEFT.

    Args:
        model: With its tokenizer, its server if one answers, and its rules of asking.
        config: Says which token ends the model's thinking.
        backend: What `choose_backend` returned.
    """
    lm_class: Any
    if model.server:
        from slimdown.evaluation.served_lm import ServedLM

        lm_class = partial(ServedLM, server=model.server)
    elif backend.shares_prefixes:
        lm_class = PrefixLM
    else:
        lm_class = VirtualTokensLM
    with without_tying(model.model):  # HFLM would tie an adapter's LM head to the embeddings
        return lm_class(
            model.model,
            tokenizer=copy.deepcopy(model.tokenizer),  # HFLM may add a padding token
            batch_size=backend.batch_size,
            softmax_dtype=torch.float32,
            think_end_token=config.think_end_token,
            rules=model.rules,
        )
