"""The libraries of a run, imported without what some of them do then for nothing."""

import functools
import gc
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any
from unittest.mock import patch


@contextmanager
def imported_quickly() -> Iterator[None]:
    """Inside, libraries are imported; from here on Python looks for no garbage, until `settle` is called.

    A million objects that come to stay would be looked through eight times while they come, and once more, for a third
    of a second, whenever memory is released.
    """
    if gc.isenabled():
        gc.disable()
        _off.append(True)
    with ExitStack() as put:
        put.enter_context(patch.object(inspect, "getmodule", _getmodule))
        put.enter_context(patch.object(functools, "lru_cache", _lru_cache))
        put.enter_context(
            patch.object(importlib.metadata, "packages_distributions", _Distributions)
        )
        import torch

        # bitsandbytes (0.50) decorates functions with it that a run on a CPU never calls, and torch (2.13) imports half
        # a second's worth of compiler for that. To be deleted when either waits for a call.
        put.enter_context(
            patch.object(torch, "compile", partial(_compiled_when_called, torch.compile))
        )
        # transformers (5.24) imports scipy.optimize with every model, for the losses of object detection. To be deleted
        # when it is imported by who detects objects.
        with patch("transformers.utils.is_scipy_available", lambda: False):
            import transformers.loss.loss_utils  # noqa: F401
        yield


_off: list[bool] = []  # holds something from `imported_quickly` to `settle`


def settle() -> None:
    """What was imported and read by now stays: no garbage is looked for in it, and from here on in what comes."""
    if _off:
        _off.clear()
        gc.freeze()
        gc.enable()


def _compiled_when_called(
    compile_now: Callable[..., Any], function: Any = None, **how: Any
) -> Callable[..., Any]:
    compiled = cache(partial(compile_now, function, **how))
    return lambda *args, **kwargs: compiled()(*args, **kwargs)


_of_python, _by_file = functools.lru_cache, inspect.getmodule


def _getmodule(frame: Any, _filename: str | None = None) -> Any:
    """Python's, but for a frame that names its module.

    torch (2.13) asks for the module of whoever defines an operation, and Python resolves the paths of all modules to
    find out. To be deleted when `torch.library` asks the frame.
    """
    names = inspect.isframe(frame) and frame.f_globals.get("__name__") in sys.modules
    return sys.modules[frame.f_globals["__name__"]] if names else _by_file(frame, _filename)


def _lru_cache(maxsize: Any = 128, typed: bool = False) -> Any:
    """Python's, but for the search through transformers' models.

    transformers (5.24) reads all their files twice, since it remembers 128 of 500 folders. To be deleted when
    `create_import_structure_from_path` remembers all.
    """
    is_search = getattr(maxsize, "__name__", "") == "create_import_structure_from_path"
    return cache(maxsize) if is_search else _of_python(maxsize, typed)


class _Distributions(dict[str, list[str]]):
    """By which distribution a module came, looked up when asked for.

    trl (1.16) has Python look at every file of every installed package, to find that most are called like their
    modules. To be deleted when trl asks for versions by name first, as transformers does.
    """

    def __missing__(self, module: str) -> list[str]:
        try:
            importlib.metadata.version(module)
        except importlib.metadata.PackageNotFoundError:
            return _looked_through()[module]
        return [module]

    def get(self, module: str, default: Any = None) -> Any:
        try:
            return self[module]
        except KeyError:
            return default


_looked_through = cache(importlib.metadata.packages_distributions)
