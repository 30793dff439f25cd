"""The base of the job before, for a next one of the same process: loaded once, handed out as it was published.

A job puts an adapter on the base in place, switches gradients, hooks and settings, or trains the weights. Before
another gets it, every module, parameter and config is put back as it stood when it was loaded, and then compared by
digest; where anything differs, the model is loaded anew.
"""

import copy
import hashlib
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from slimdown.config.schema import ModelConfig, QuantizationConfig
from slimdown.models.identity import identify
from slimdown.models.imports import settle
from slimdown.models.memory import release_memory
from slimdown.models.model import LoadedModel, load_model, resolved_revision

_last: "list[_Kept]" = []  # one at most: two bases are never held at once


def base_of(config: ModelConfig, quantization: QuantizationConfig) -> LoadedModel:
    """What `load_model` returns, or the base that this function returned last where that is the same to the byte.

    What was made of that one may no longer be used.

    Raises:
        SlimdownError: see `load_model`.
    """
    started = time.perf_counter()
    settle()  # while there is no model yet, which one day has to go
    settings = repr((config, quantization))
    base = _last[0].as_published(config) if _last and _last[0].settings == settings else None
    if base is None:
        if _last:
            _last.clear()
            release_memory()
        base = load_model(config, quantization)
        if (
            not quantization.load_in_8bit
        ):  # its layers hand their numbers on between objects of bitsandbytes
            _last.append(_Kept(settings, base))
    return replace(base, load_seconds=time.perf_counter() - started)


class _Kept:
    """A base, and how it stood when it was loaded."""

    def __init__(self, settings: str, base: LoadedModel) -> None:
        self.settings, self._base = settings, base
        self._tokenizer = copy.deepcopy(base.tokenizer)
        parts: list[Any] = [*base.model.modules(), *base.model.parameters()]
        self._parts = [(part, type(part), _contents(vars(part))) for part in parts]
        self._trains = [
            (parameter, parameter.requires_grad) for parameter in base.model.parameters()
        ]
        configs = {id(one): one for one in _configs(vars(part).values() for part in parts)}
        self._configs = [(one, copy.deepcopy(vars(one), dict(configs))) for one in configs.values()]
        self._unsaved = _unsaved_digest(base.model)

    def as_published(self, config: ModelConfig) -> LoadedModel | None:
        """The base as it was loaded; None where it cannot be had, or its files are others by now."""
        base = self._base
        if resolved_revision(str(config.folder or config.id), config.revision) != base.revision:
            return None
        for part, kind, contents in self._parts:
            if type(part) is not kind:
                part.__class__ = kind
            _put_back(vars(part), contents)
        for one, held in self._configs:
            vars(one).clear()
            vars(one).update(copy.deepcopy(held, {id(other): other for other, _ in self._configs}))
        for parameter, trains in self._trains:
            if parameter._backward_hooks:
                return None
            parameter.grad = None
            parameter.requires_grad_(trains)
        tokenizer = copy.deepcopy(self._tokenizer)
        is_same = (
            identify(base.model, tokenizer) == base.identity
            and _unsaved_digest(base.model) == self._unsaved
        )
        return replace(base, tokenizer=tokenizer) if is_same else None


def _contents(space: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The attributes of an object, and what those hold that hold others: a module its hooks, parameters and modules."""
    return {
        name: (one, copy.copy(one) if isinstance(one, (dict, list, set)) else None)
        for name, one in space.items()
    }


def _put_back(space: dict[str, Any], contents: dict[str, tuple[Any, Any]]) -> None:
    space.clear()
    for name, (one, held) in contents.items():
        if held is not None:  # others may hold the same
            one.clear()
            (one.extend if isinstance(one, list) else one.update)(held)
        space[name] = one


def _configs(spaces: Iterable[Iterable[Any]]) -> Iterable[Any]:
    """The configs that modules hold, and those within them."""
    for one in {
        id(one): one for space in spaces for one in space if hasattr(one, "to_dict")
    }.values():
        yield one
        yield from _configs([vars(one).values()])


def _unsaved_digest(model: Any) -> str:
    """Of the buffers that are computed and not saved, as of rotary embeddings: names, dtypes and bytes."""
    saved, content = model.state_dict().keys(), hashlib.sha256()
    for name, buffer in model.named_buffers():
        if name not in saved:
            content.update(f"{name} {buffer.dtype} {list(buffer.shape)}".encode())
            content.update(buffer.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return content.hexdigest()
