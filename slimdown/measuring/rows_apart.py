"""Rows laid end to end without padding, each attending within itself, on a CPU."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import torch

from slimdown.measuring.engine.forward import virtual_tokens
from slimdown.preparing.model import LoadedModel


def tells_rows_apart(base: LoadedModel, model: Any = None) -> bool:
    """Whether rows laid end to end can be told apart: by attention over all that came before, and by nothing else.

    Args:
        base: the model, which decides how rows attend.
        model: PEFT's around it, where there is one: its virtual tokens stand before a whole batch's rows, not in them.
    """
    kinds = set(getattr(base.model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    window = getattr(base.model.config.get_text_config(), "sliding_window", None)
    attention = base.model._supports_attention_backend and base.model.config._attn_implementation == "sdpa"
    plain = attention and not base.model._is_stateful and kinds == {"full_attention"} and window is None
    return base.device == "cpu" and bool(plain) and not virtual_tokens(model)


@contextmanager
def attention_by_row(base: LoadedModel, model: Any = None, lengths: Sequence[int] = ()) -> Iterator[None]:
    """The model attending within each row of a batch without padding; on leaving it attends as before.

    torch's attention on a CPU takes a mask but skips nothing that it hides, and a batch's rows hide most of it.

    Args:
        base: the model.
        model: PEFT's around it, where there is one.
        lengths: of the rows, where no tensor can be asked where they begin: on the meta device.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    starts = [0, *accumulate(lengths)] if lengths else []  # of the batch's rows, and its end

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if "position_ids" in kwargs and not lengths:  # what every trl gives; the boundaries themselves came with 1.16
            positions = kwargs["position_ids"][0]
            starts[:] = [*(positions == 0).nonzero().flatten().tolist(), len(positions)]

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: None, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        if not starts:
            raise RuntimeError("nobody told where the rows of this batch begin")
        kwargs |= {"is_causal": True}
        rows = [
            sdpa_attention_forward(module, *(x[:, :, start:end] for x in (query, key, value)), None, **kwargs)[0]
            for start, end in pairwise(starts)
        ]
        return torch.cat(rows, dim=1), None

    if not tells_rows_apart(base, model):
        yield
        return
    AttentionInterface.register("slimdown_by_row", attend)
    usual = base.model.config._attn_implementation
    base.model.set_attn_implementation("slimdown_by_row")
    # Either is called, by TRL's loss and by ours; OPT's head goes past `base_model` to the decoder in it.
    called = (base.model, base.model.base_model)
    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in called]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        base.model.set_attn_implementation(usual)
