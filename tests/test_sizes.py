"""What is said of sizes before anything is loaded is what is found once it is."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from slimdown.config.files import group_choices
from slimdown.config.schema import RunConfig
from slimdown.models.memory import LiveBytes, peak_memory, process_peak, release_memory
from slimdown.models.model import LoadedModel, bare_outline, load_model, outline_of
from slimdown.models.sizes import count_parameters, predicted_bytes, weight_sizes
from slimdown.report.numbers import size
from slimdown.training.checks import kept_after_a_step, optimizer_bytes
from slimdown.training.footprint import Footprint, checked_footprint, footprint, largest_batch
from slimdown.training.lean import SummedLoss
from slimdown.training.tuning import way_to_tuned
from slimdown.utils.errors import SlimdownError

Composed = Callable[..., RunConfig]


def outlined(config: RunConfig) -> LoadedModel:
    return bare_outline(config.model).loaded(config.quantization)


def of(config: RunConfig, tokens: int | None = None) -> Footprint:
    return footprint(outlined(config), config, tokens)


# --- bytes of weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ("quantization=nf4",),
        ("quantization=fp4",),
        ("quantization=int8",),
        ("quantization=none",),
        ("quantization=none", "model.dtype=bfloat16"),
        ("quantization=nf4", "model.dtype=bfloat16"),
        ("quantization=nf4", "quantization.bnb_4bit_use_double_quant=false"),
    ],
    ids=" ".join,
)
def test_the_bytes_told_are_the_bytes_held(overrides: tuple[str, ...], composed: Composed) -> None:
    config = composed(*overrides)
    told = outlined(config)
    assert {parameter.device.type for parameter in told.model.parameters()} == {"meta"}
    loaded = load_model(config.model, config.quantization)
    held = weight_sizes(loaded.model)
    assert weight_sizes(told.model) == held
    assert told.n_parameters == loaded.n_parameters
    assert told.memory_bytes == loaded.memory_bytes == held.held
    loaded.model(torch.arange(5)[None])  # where 8-bit layers move their scales
    assert weight_sizes(loaded.model) == held


def test_the_bytes_held_are_all_tensors_that_the_process_has(composed: Composed) -> None:
    """Counted once more, from what the garbage collector knows."""
    import gc

    config = composed("quantization=nf4")
    gc.collect()  # what is garbage by now would leave its place, by which a tensor is known here, to another
    before = {id(tensor) for tensor in gc.get_objects() if issubclass(type(tensor), torch.Tensor)}
    loaded = load_model(config.model, config.quantization)
    gc.collect()
    tensors = [
        t
        for t in gc.get_objects()
        if issubclass(type(t), torch.Tensor) and id(t) not in before and not t.is_meta
    ]
    storages = {t.untyped_storage().data_ptr(): t.numel() * t.itemsize for t in tensors}
    table = 1024  # of 8-bit numbers, which bitsandbytes keeps for all layers to come
    assert sum(storages.values()) - loaded.memory_bytes in (0, table)


def test_four_bits_take_their_constants_and_the_rest_as_it_was(composed: Composed) -> None:
    """By hand: a byte two numbers, an 8-bit scale for 64, one in 32 bits for 256 of these, and three tables a layer."""
    config = composed("quantization=nf4")
    told = outlined(config)
    layers = [layer for layer in told.model.modules() if hasattr(layer, "compute_dtype")]
    numbers = [layer.in_features * layer.out_features for layer in layers]
    sizes = weight_sizes(told.model)
    assert sizes.layers == sum(n // 2 for n in numbers)
    blocks = [-(-n // 64) for n in numbers]
    assert sizes.constants == sum(n + 4 * -(-n // 256) + 4 + 4 * 256 + 4 * 16 for n in blocks)
    published = predicted_bytes(told.n_parameters - sum(numbers), 32)
    assert 0 <= sizes.rest - published < 1000  # rotary frequencies, which are no parameters


# --- what is trained ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", ["qkv", "mlp", "all_linear"])
def test_equation_1_2_counts_what_lora_trains(lora: str, composed: Composed) -> None:
    found = of(composed(f"lora={lora}", "lora.r=3"))
    assert found.by_equation == found.n_trainable > 0


# --- peaks --------------------------------------------------------------------------------------------


def test_counted_without_numbers_is_counted_with_them() -> None:
    """Two layers, attention and the loss: the same bytes are alive at the peak on a CPU and on no device."""

    def peak(device: str) -> int:
        embed = torch.nn.Embedding(1000, 64, device=device)
        layer = torch.nn.Linear(64, 192, bias=False, device=device)
        ids = torch.zeros(1, 300, dtype=torch.long, device=device)
        model = torch.nn.ModuleList([embed, layer])
        with LiveBytes(model) as live:
            q, k, v = layer(embed(ids)).view(1, 300, 3, 4, 16).transpose(1, 3).unbind(2)
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            hidden = mixed.transpose(1, 2).reshape(300, 64) * 2 + embed(ids)[0]
            loss, _ = SummedLoss.apply(hidden, embed.weight.detach(), ids[0])  # type: ignore[no-untyped-call]
            torch.autograd.backward(loss)
        return live.peak

    assert peak("meta") == peak("cpu") > 300 * 1000 * 4


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_is_freed_is_taken_again_without_the_system() -> None:
    release_memory()
    one = torch.ones(2**24)  # 64 MiB, beyond all that glibc keeps by itself
    del one
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        one = torch.ones(2**24)
        del one
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        < 2**26 // resource.getpagesize()
    )
    held = psutil.Process().memory_info().rss
    release_memory()
    assert psutil.Process().memory_info().rss < held - 2**25


def test_a_wider_batch_and_whole_activations_take_more(composed: Composed) -> None:
    small, wide = (of(composed(), tokens).training for tokens in (200, 2000))
    kept = of(composed("train.gradient_checkpointing=true"), 2000).training
    assert small
    assert wide
    assert kept
    assert small < kept < wide


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_every_quantization_has_its_peaks(quantization: str, composed: Composed) -> None:
    found = of(composed(f"quantization={quantization}"))
    assert found.reason == ""
    assert found.training
    assert found.evaluation


def test_a_forward_that_cannot_be_counted_says_why(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed()
    base = outlined(config)
    base.model.model.norm.register_forward_hook(
        lambda module, args, output: output * float(output.sum())
    )
    found = footprint(base, config)
    assert found.training is None
    assert found.evaluation is None
    assert "meta" in found.reason
    assert found.n_trainable == of(config).n_trainable


def test_the_largest_batch_is_of_rows_as_they_are_cut_and_drawn(composed: Composed) -> None:
    config = replace(composed().train, per_device_train_batch_size=2, max_length=50, max_steps=-1)
    assert largest_batch([10, 10, 10, 90], config, seed=0) == 60
    assert largest_batch([7], config, seed=0) == 7
    assert largest_batch([10, 10, 10, 90], config, seed=0, is_padded=True) == 100
    lengths = [1] * 100 + [50]
    assert largest_batch(lengths, config, seed=0) == 51
    assert {largest_batch(lengths, replace(config, max_steps=1), seed=n) for n in range(8)} == {2}


@pytest.mark.parametrize(
    ("optim", "n_bytes"), [("adamw_torch", 8), ("sgd", 0), ("adafactor", 0.1), ("adamw_8bit", 2)]
)
def test_an_optimizer_is_counted_by_what_it_keeps(
    optim: str, n_bytes: float, composed: Composed
) -> None:
    config = composed("method=full", "quantization=none", f"train.optim={optim}")
    assert optimizer_bytes(config.train, "cpu") == pytest.approx(n_bytes, abs=0.1)
    assert kept_after_a_step(config.train, "cpu") == pytest.approx(n_bytes, abs=0.1)


def test_an_optimizer_that_keeps_less_needs_less(composed: Composed) -> None:
    def peak(optim: str) -> int:
        config = composed("method=full", "quantization=none", f"train.optim={optim}")
        outline = bare_outline(config.model)
        found = footprint(outline.loaded(config.quantization), config).training
        assert found
        return found

    n_trained = 1_967_808
    assert peak("adamw_torch") - peak("sgd") == pytest.approx(8 * n_trained, rel=0.01)


def memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free})())
    monkeypatch.setattr(
        "slimdown.training.footprint.swap_memory", lambda: type("Memory", (), {"free": 0})()
    )


def test_what_cannot_fit_is_refused_with_numbers(
    pocket: LoadedModel, composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, lengths = composed(), [100] * 50
    found, told = checked_footprint(pocket, config, lengths)
    assert found.tokens == 800
    assert [line.partition(":")[0] for line in told] == ["estimated peak memory"]
    memory(monkeypatch, 2**22)
    with pytest.raises(
        SlimdownError,
        match=r"training needs 0\.\d GiB more than it holds by now, and 0\.0 GiB are free on cpu",
    ):
        checked_footprint(pocket, config, [180] * 50)


def test_what_may_fit_is_only_warned_of(
    pocket: LoadedModel, composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest batch does not fit, one of rows of mean length would."""
    config, lengths = composed("train.per_device_train_batch_size=1"), [10] * 99 + [190]
    memory(monkeypatch, 2**23)
    _, told = checked_footprint(pocket, config, lengths)
    assert "training may not fit: halve train.per_device_train_batch_size (now 1)" in told[1]


def test_the_outline_of_a_loaded_model_is_that_of_its_files(
    pocket: LoadedModel, composed: Composed
) -> None:
    config = composed()
    again = outline_of(pocket).loaded(config.quantization)
    assert weight_sizes(again.model) == weight_sizes(outlined(config).model)
    assert footprint(again, config) == of(config)
    assert pocket.model.config.quantization_config is not None  # what is loaded is left as it is


@pytest.mark.parametrize("method", group_choices("method"))
def test_as_many_are_counted_as_are_trained(
    method: str, composed: Composed, tmp_path: Path
) -> None:
    config = composed(f"method={method}", "train.max_steps=1", "dataset.pocket_instructions.max_examples=8",
                      "dataset.pocket_instructions.validation_examples=2", "benchmark=[pocket_cs]",
                      f"quantization={'none' if method in ('full', 'last_layer', 'pissa') else 'nf4'}")  # fmt: skip
    told = of(config)
    base = load_model(config.model, config.quantization)
    tuned = way_to_tuned(base, config).obtain(
        tmp_path, lambda record: None, lambda done, total, note: None
    )
    assert tuned.training
    assert told.n_trainable == tuned.training.n_trainable
    assert told.reason == ""
    assert (told.by_equation is not None) == config.method.is_lora


def test_a_peak_is_of_what_runs_inside() -> None:
    held = torch.ones(2**25)  # 128 MiB, before
    with peak_memory("cpu") as peak:
        torch.ones(2**24).sum()
        first = peak()
    del held
    with peak_memory("cpu") as peak:
        small = peak()
    if sys.platform != "linux":
        pytest.skip("this system cannot begin anew")
    assert first - small > 2**27
    assert process_peak() >= first


def test_bytes_are_said_in_the_unit_that_suits() -> None:
    assert [size(n) for n in (2_471_628_800, 269_030_144, 55_568)] == [
        "2.30 GiB",
        "256.6 MiB",
        "0.1 MiB",
    ]


# --- the command ----------------------------------------------------------------------------------------


def sizes(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slimdown.sizes", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_commas_are_rows() -> None:
    done = sizes("lora.r=4,8", "quantization=nf4,none")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(" lora.r=")]
    assert [row[:3] for row in rows] == [
        ["lora.r=4", "quantization=nf4", "14,336"],
        ["lora.r=4", "quantization=none", "14,336"],
        ["lora.r=8", "quantization=nf4", "28,672"],
        ["lora.r=8", "quantization=none", "28,672"],
    ]
    assert "pocket:model: 1,967,808 parameters" in done.stdout
    assert " nf4 " in done.stdout
    assert "equation 1.1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lora.rank=4",), "lora.rank"),
        (("lora.r=4", "lora.r=8"), "lora.r is given 2 times"),
        (("quantization=nf5",), "there is no such quantization"),
        (("lora.r=0,4",), "lora.r"),
        (("model.id=./nowhere",), "there is no folder ./nowhere"),
        (("tuned=someone/something",), "nothing is trained"),
        (("--cfg", "job"), "only --config-dir"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_said_as_a_run_says_them(arguments: tuple[str, ...], said: str) -> None:
    done = sizes(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_without_config_is_one_line(tmp_path: Path) -> None:
    done = sizes(f"model.id={tmp_path}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"model.id={tmp_path}" in done.stderr


def test_help_names_the_groups() -> None:
    assert "Usage: python -m slimdown.sizes" in sizes("--help").stdout


@pytest.mark.hub
def test_smollm2_is_told_from_its_config_alone(tmp_path: Path, composed: Composed) -> None:
    done = sizes("model=smollm2", "lora.r=4,8", HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "134,515,008 parameters" in done.stdout
    assert " 645,120 " in done.stdout
    assert [file.name for file in tmp_path.rglob("*.safetensors")] == []
    config = composed("model=smollm2")
    loaded: Any = load_model(config.model, config.quantization)
    assert weight_sizes(outlined(config).model) == weight_sizes(loaded.model)
    assert count_parameters(loaded.model) == 134_515_008


@pytest.mark.hub
def test_a_gated_or_missing_model_is_one_line() -> None:
    for model, said in (
        ("meta-llama/Llama-3.2-1B", "is gated"),
        ("nobody/nothing", "there is no such model"),
    ):
        done = sizes(f"model.id={model}")
        assert done.returncode == 1
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 2
