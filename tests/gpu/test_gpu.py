"""Training and measuring on a GPU agree with stock TRL and lm-eval; `pytest -m gpu` runs it."""

from collections.abc import Callable, Iterator
from importlib.metadata import version

import gpu_checks
import pytest
import torch

from slimdown.utils.errors import describe_error

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def load() -> Iterator[gpu_checks.Load]:
    if not torch.cuda.is_available():
        pytest.exit(f"no GPU: torch {version('torch')} sees no CUDA device here", returncode=1)
    with gpu_checks.make_loader() as load:
        yield load


@pytest.mark.parametrize("name", gpu_checks.CHECKS)
def test_it_agrees_with_stock_libraries(
    name: str, load: gpu_checks.Load, record_property: Callable[[str, object], None]
) -> None:
    try:
        differs, found = gpu_checks.run_check(gpu_checks.CHECKS[name], load)
    except Exception as error:  # of libraries, kernels and drivers
        record_property("gpu check", (name, describe_error(error), ""))
        raise
    record_property("gpu check", (name, differs or "pass", found))
    assert not differs, found
