"""`dtype: auto` is decided by a measurement, once a processor."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from slimdown.config.schema import RunConfig, TrackingConfig
from slimdown.models import dtype
from slimdown.models.dtype import auto_dtype, bfloat16_speedup, measured_speedup
from slimdown.models.model import load_model
from slimdown.tracking.write import TrackedRun

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "slimdown"


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The products that were timed, of a processor that takes 20 ms in float32 and 8 in bfloat16, and at times 100."""
    products: list[torch.dtype] = []

    def seconds(kind: torch.dtype) -> float:
        products.append(kind)
        disturbed = len(products) in (1, 4, 6)
        return 0.1 if disturbed else {torch.float32: 0.020, torch.bfloat16: 0.008}[kind]

    monkeypatch.setattr(dtype, "_seconds", seconds)
    return products


@pytest.mark.parametrize(
    ("speedup", "chosen"),
    [
        (12.5, torch.bfloat16),  # AMX
        (2.6, torch.bfloat16),  # AVX512-BF16, AMD
        (0.55, torch.float32),  # AVX512-BF16, Intel
        (0.1, torch.float32),  # emulated
    ],
)
def test_a_cpu_computes_in_what_it_multiplies_faster(
    speedup: float, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtype, "measured_speedup", lambda: speedup)
    assert auto_dtype(CPU) == (
        chosen,
        f"this processor multiplies bfloat16 {speedup:.2g} times as fast as float32",
    )


def test_what_else_the_machine_does_for_a_while_does_not_count(timed: list[torch.dtype]) -> None:
    assert measured_speedup() == pytest.approx(2.5)
    assert timed[:4] == [torch.float32, torch.bfloat16] * 2  # in turn


def test_a_product_is_timed_for_real() -> None:
    assert dtype._seconds(torch.float32) > 1e-6  # 0.45 billion operations


def test_a_processor_is_measured_once(timed: list[torch.dtype], cache: Path) -> None:
    assert bfloat16_speedup() == pytest.approx(2.5)
    timed.clear()
    assert bfloat16_speedup() == pytest.approx(2.5)
    assert not timed
    (file,) = cache.glob("*.json")
    assert json.loads(file.read_text())["bfloat16_speedup"] == pytest.approx(2.5)


def test_another_processor_or_limit_on_instructions_is_measured_by_itself(
    timed: list[torch.dtype], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bfloat16_speedup()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    bfloat16_speedup()
    monkeypatch.setattr(dtype, "_cpuinfo", lambda: {"model name": "another"})
    bfloat16_speedup()
    assert len(list(cache.glob("*.json"))) == 3


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"processor": "x"}', '{"bfloat16_speedup": null}']
)
def test_a_file_that_was_cut_off_is_made_anew(
    content: str, timed: list[torch.dtype], cache: Path
) -> None:
    bfloat16_speedup()
    (file,) = cache.glob("*.json")
    whole = file.read_text()
    file.write_text(content)
    assert bfloat16_speedup() == pytest.approx(2.5)
    assert file.read_text() == whole


def test_a_cache_that_cannot_be_written_costs_the_measurement_only(
    timed: list[torch.dtype], cache: Path
) -> None:
    cache.write_text("a file where the folder should be")
    assert bfloat16_speedup() == pytest.approx(2.5)
    assert timed


def test_runs_that_start_together_choose_alike(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurements: Iterator[float] = iter((2.5, 0.5))  # as if the second one had been disturbed
    monkeypatch.setattr(dtype, "measured_speedup", lambda: next(measurements))
    found: list[float] = []
    together = threading.Barrier(2)

    def ask() -> None:
        together.wait()
        found.append(bfloat16_speedup())

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2.5, 2.5]


def test_weights_and_4_bit_products_take_the_dtype_and_the_record_says_why(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, composed: Callable[..., RunConfig]
) -> None:
    monkeypatch.setattr(dtype, "measured_speedup", lambda: 2.6)
    config = composed("model.dtype=auto", "quantization.bnb_4bit_compute_dtype=auto")
    loaded = load_model(config.model, config.quantization)
    assert loaded.dtype == "bfloat16"
    assert loaded.model.model.layers[0].self_attn.q_proj.compute_dtype == torch.bfloat16
    with TrackedRun(
        TrackingConfig("sqlite:///mlruns/mlflow.db", "slimdown"), "a run", kind="tuned", tags={}
    ) as run:
        run.log_model(loaded)
    tags = store.get_run(run.run_id).data.tags
    assert (
        tags["slimdown.dtype_reason"]
        == "auto: this processor multiplies bfloat16 2.6 times as fast as float32"
    )
