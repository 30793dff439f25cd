"""How much memory work takes: counted beforehand on tensors without numbers, and measured while it is done.

Operations on torch's meta device allocate nothing, and make tensors of the sizes that they would make. Who sees each
tensor come and go knows the most that would be held at once, for any model and any method: nothing here knows a formula
of activations.
"""

import ctypes
import gc
import math
import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slimdown.models.sizes import tensors_of

# What Python and the libraries hold of a process on Linux once a run has imported all of them (docs/studies/sizes.md);
# of a GPU's memory torch counts tensors alone.
LIBRARY_BYTES = {"cpu": 740 * 2**20}


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are alive inside, those of a model from the beginning on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}
        self.count(*(tensor for _, tensor in tensors_of(model)))

    def __enter__(self) -> "LiveBytes":
        functional.scaled_dot_product_attention = _attention
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        functional.scaled_dot_product_attention = _of_torch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = _like_one_of(args) if func in _ELEMENTWISE else None
        made = func(*args, **(kwargs or {})) if made is None else made
        self.count(*(one for one in tree_leaves(made) if isinstance(one, torch.Tensor)))
        return made

    def count(self, *tensors: torch.Tensor) -> None:
        """Count tensors that were made before, too."""
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if (place := storage._cdata) not in self._alive:
                self._alive[place] = weakref.ref(
                    storage, partial(self._gone, place, storage.nbytes())
                )
                self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _gone(self, place: int, n_bytes: int, storage: Any) -> None:
        del self._alive[place]
        self.now -= n_bytes


# Of a transformer's operations the most by number; torch's own way to their results is 0.2 ms of Python each.
_ELEMENTWISE = frozenset(
    [
        torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor, torch.ops.aten.mul.Scalar, torch.ops.aten.div.Scalar,
        torch.ops.aten.pow.Tensor_Scalar, torch.ops.aten.neg.default, torch.ops.aten.rsqrt.default,
    ]
)  # fmt: skip


def _like_one_of(args: Any) -> torch.Tensor | None:
    """A tensor like the largest of `args`, where an elementwise result is as that one is."""
    tensors = [one for one in args if isinstance(one, torch.Tensor)]
    largest = max(tensors, key=torch.Tensor.numel)
    fits = all(one.dtype == largest.dtype and one.dim() <= largest.dim() for one in tensors)
    fits = fits and all(
        n in (1, m)
        for one in tensors
        for n, m in zip(one.shape[::-1], largest.shape[::-1], strict=False)
    )
    if not fits or not largest.is_floating_point():
        return None
    if largest.is_contiguous():  # else on the meta device that is Python, too
        return torch.empty(largest.shape, dtype=largest.dtype, device=largest.device)
    return torch.empty_like(largest)


_of_torch = functional.scaled_dot_product_attention


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """As CPUs and GPUs compute it, who hold no scores; on the meta device torch takes the formula apart."""
    mask = attn_mask.to(query.dtype) if attn_mask is not None else None
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return attend(query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale)[0]  # type: ignore[no-any-return]


# Of glibc's `mallopt`: from how many bytes on a block is mapped by itself, and how many may lie free at the heap's end.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_KEPT = 2**30


def release_memory() -> None:
    """Return to the system what is free: a GPU's cache, and what glibc keeps of freed tensors for later ones.

    From then on glibc keeps what is freed until the next time: by itself it returns each large block at once, and the
    system clears the same pages anew in every forward.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another libc
            libc = ctypes.CDLL(None)
            libc.malloc_trim(0)
            libc.mallopt(_MMAP_THRESHOLD, _KEPT)
            libc.mallopt(_TRIM_THRESHOLD, _KEPT)


# What says so besides torch's own allocator: the driver, and cuBLAS, where that one has taken all there was.
_NO_ROOM = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a smaller batch could succeed, on any device."""
    from accelerate.utils.memory import should_reduce_batch_size  # type: ignore[import-untyped]

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and (should_reduce_batch_size(error) or any(said in str(error) for said in _NO_ROOM))
    )


@contextmanager
def peak_memory(device: str) -> Iterator[Callable[[], float]]:
    """The most bytes held from here on, to be asked inside: of the process, or of tensors on a GPU.

    NaN where that cannot be told: the system has no way to begin anew (Linux has), and held more before.
    """
    release_memory()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield lambda: float(torch.cuda.max_memory_allocated())
        return
    before = _High.water = process_peak()
    is_anew = _begin_anew()
    yield lambda: float(now) if (now := _resident_peak()) > before or is_anew else math.nan
    process_peak()


def process_peak() -> int:
    """The most bytes that this process has held so far, on Linux file pages in sight included."""
    _High.water = max(_High.water, _resident_peak())
    return _High.water


class _High:
    water = 0  # before the last time that the system began anew


def _begin_anew() -> bool:
    """Have Linux forget the most that the process held; whether it did."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident_peak() -> int:
    """Since the beginning, or since the system began anew."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes on Linux, bytes on macOS
