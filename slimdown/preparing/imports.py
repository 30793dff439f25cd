"""The libraries of a run, imported without what some of them do then for nothing."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any


@contextmanager
def imported_quickly() -> Iterator[None]:
    """Inside, what is imported is taken to stay: Python looks for no garbage in it, then or later.

    A million objects are looked through eight times while they come, and once more, for a third of a second, whenever
    memory is released.
    """
    was_on = gc.isenabled()
    gc.disable()
    import torch

    compile_now = torch.compile
    # bitsandbytes (0.50) decorates functions with it that a run on a CPU never calls, and torch (2.13) imports half a
    # second's worth of compiler for that. To be deleted when either waits for a call.
    torch.compile = partial(_compiled_when_called, compile_now)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now
        gc.freeze()
        if was_on:
            gc.enable()


def _compiled_when_called(compile_now: Callable[..., Any], function: Any = None, **how: Any) -> Callable[..., Any]:
    compiled = cache(partial(compile_now, function, **how))
    return lambda *args, **kwargs: compiled()(*args, **kwargs)
