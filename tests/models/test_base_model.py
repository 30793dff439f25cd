"""Loading: whole, safe, canonical models in the dtype that pays, identified by their content."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from builders import Patch
from model_files import edit_json, edit_tensors, load_base
from record_builders import compose_config
from safetensors.torch import load_file
from tiny_models import build_tiny_model
from torch.torch_version import TorchVersion

from slimdown import pocket
from slimdown.commands import sizes
from slimdown.config.schema import Device, Dtype
from slimdown.models.adapters import check_base
from slimdown.models.base_model import (
    describe_base_model,
    fix_dtypes,
    load_base_model,
    load_outline,
    pick_device,
    pick_dtype,
)
from slimdown.models.device_memory import is_out_of_memory
from slimdown.models.memory_estimates import estimate_step_bytes, estimate_weight_bytes
from slimdown.utils.errors import ConfigError, ModelError
from slimdown.utils.hashing import hash_json

WEIGHTS, NORM = "model.safetensors", "model.norm.weight"


def copy_pocket(folder: Path) -> Path:
    return Path(shutil.copytree(pocket.MODEL_DIR, folder))


def test_a_quantized_model_keeps_its_canonical_layout_and_its_facts() -> None:
    base = load_base()
    layers: list[Any] = [m for m in base.model.modules() if hasattr(m, "quant_state")]
    assert len(layers) == 4 * 7
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert (base.quantization, base.dtype, base.device) == ("nf4", "float32", "cpu")
    assert base.n_parameters == 1_967_808
    assert base.revision.startswith("sha256:")
    assert not base.model.training


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8", "none"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_estimated_bytes_are_those_held(quantization: str, dtype: str) -> None:
    config = compose_config(f"quantization={quantization}", f"model.dtype={dtype}")
    model = load_base_model(config.model, config.quantization).model
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    for parameter in model.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            held += state.absmax.nbytes + state.state2.absmax.nbytes
    for module in model.modules():  # 8-bit layers take their scales along in the first forward
        scales = getattr(getattr(module, "state", None), "SCB", None)
        held += 0 if scales is None else scales.nbytes
    outline, kind = load_outline(config.model), getattr(torch, dtype)
    assert estimate_weight_bytes(outline, config.quantization, kind) == pytest.approx(
        held, rel=0.01
    )


def test_estimated_activations_are_those_kept() -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 768, "vocab_size": 64, "head_dim": 64}
    model = build_tiny_model("llama", **sizes).to(torch.bfloat16).train()
    lora = peft.LoraConfig(target_modules=["q_proj", "k_proj", "v_proj"])
    adapted = peft.get_peft_model(model, lora)
    own = {parameter.untyped_storage().data_ptr() for parameter in adapted.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted(input_ids=torch.zeros(1, 128, dtype=torch.int64), use_cache=False)
    held = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    train = compose_config("train.per_device_train_batch_size=1", "train.max_length=128").train
    estimated = estimate_step_bytes(adapted, train, torch.bfloat16)
    estimated -= 128 * (8 + 2) * 64  # all but the logits, of two layers and one layer's gradients
    assert estimated == pytest.approx(1.5 * held, rel=0.1)


def test_a_quantized_base_is_loaded_as_it_is(tmp_path: Path) -> None:
    base = load_base()
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"already.*quantization=none"):
        check_base(compose_config(f"model.id={tmp_path}"))
    again = load_base(f"model.id={tmp_path}", "quantization=none")
    assert again.quantization == "bitsandbytes"
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        expected = base.model(input_ids=tokens).logits
        assert torch.equal(again.model(input_ids=tokens).logits, expected)


def test_an_identity_is_of_content_and_not_of_place(tmp_path: Path) -> None:
    base = load_base()
    same = load_base(f"model.id={copy_pocket(tmp_path / 'copy')}")
    assert same.identity == base.identity
    edited = copy_pocket(tmp_path / "edited")
    edit_tensors(edited / WEIGHTS, lambda tensors: tensors[NORM].mul_(1.5))
    templated = copy_pocket(tmp_path / "templated")
    (templated / "chat_template.jinja").write_text("{{ messages[0].content }}")
    others = [f"model.id={edited}", f"model.id={templated}", "model.dtype=bfloat16"]
    others += ["quantization=none", "model.args.attn_implementation=eager"]
    digests = {hash_json(load_base(setting).identity) for setting in others}
    assert len(digests - {hash_json(base.identity)}) == len(others)


def spoil_norm(folder: Path) -> None:
    edit_tensors(folder / WEIGHTS, lambda tensors: tensors[NORM].fill_(float("nan")))


def leave_out_norm(folder: Path) -> None:
    edit_tensors(folder / WEIGHTS, lambda tensors: tensors.pop(NORM))


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def bring_code(folder: Path) -> None:
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    edit_json(folder / "config.json", **own)


@pytest.mark.parametrize(
    ("damage", "answer"),
    [
        (spoil_norm, "computes no numbers in torch.float32: its weights hold NaN"),
        (leave_out_norm, "1 of the weights that its config.json describes are not in its files"),
        (lambda folder: os.truncate(folder / WEIGHTS, 1000), "file that is damaged"),
        (pickle_weights, "has no safetensors weights, and pickled ones can run code"),
        (bring_code, "needs code of its own, which slimdown does not run"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged; get it"),
    ],
)
def test_a_model_that_cannot_be_trusted_is_refused_in_one_line(
    damage: Callable[[Path], object], answer: str, tmp_path: Path
) -> None:
    folder = copy_pocket(tmp_path / "requests-safetensors")  # no reason to blame the hub
    damage(folder)
    with pytest.raises(ModelError, match=answer) as refused:
        load_base(f"model.id={folder}", "quantization=none")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"attn_implementation": "evil/kernel"}, "attn_implementation=evil/kernel, which is comp"),
        ({"attn_implementation": "paged|evil/kernel"}, "is compiled code from the hub"),
        ({"experts_implementation": "evil/kernel"}, "model.args.experts_implementation=eager"),
        ({"num_hidden_layers": 100_000}, "num_hidden_layers=100,000, and slimdown builds 1,000"),
        (
            {"model_type": "gemma3", "attn_implementation": {"text_config": "evil/kernel"}},
            "is compiled code from the hub",
        ),
    ],
)
def test_a_config_asks_for_no_code_and_no_endless_model(
    changes: dict[str, Any], answer: str, tmp_path: Path
) -> None:
    edit_json(copy_pocket(tmp_path / "model") / "config.json", **changes)
    model = compose_config(f"model.id={tmp_path / 'model'}").model
    with pytest.raises(ModelError, match=answer):
        load_outline(model)
    if isinstance(changes.get("attn_implementation"), str):
        load_outline(replace(model, args={"attn_implementation": "eager"}))


def test_a_configs_private_key_for_attention_is_refused_or_ignored(tmp_path: Path) -> None:
    changes = {"_attn_implementation": "evil/kernel@v1:f"}  # transformers 5.25 ignores it
    edit_json(copy_pocket(tmp_path / "model") / "config.json", **changes)
    try:
        attention = load_outline(
            compose_config(f"model.id={tmp_path / 'model'}").model
        ).config._attn_implementation
    except ModelError:
        attention = "refused"
    assert attention in ("sdpa", "refused")


def test_compiled_kernels_of_the_hub_are_used_and_in_the_key_only_if_they_are_asked_for() -> None:
    base = load_base("quantization=none")
    assert base.model.use_kernels is False  # transformers 5.25 would use them on a GPU
    config = compose_config("quantization=none", "model.allow_kernels=true")
    assert load_base_model(config.model, config.quantization).model.use_kernels is False
    with_kernels = replace(config.model, args={"use_kernels": True})
    described = describe_base_model(with_kernels, config.quantization, base.tokenizer, base.outline)
    assert described.identity == {**base.identity, "args": {"use_kernels": True}}


def test_what_cannot_fit_or_is_not_there_is_refused(monkeypatch: Patch) -> None:
    with pytest.raises(ModelError, match="hub does not answer"):
        load_base("model.id=nobody/nothing")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"model\.device=cuda: .*cpu"):
        load_base("model.device=cuda")
    monkeypatch.setattr("slimdown.models.base_model.free_memory", lambda device: 2**20)
    with pytest.raises(ModelError, match=r"0\.0 GiB .*quantization=nf4"):
        load_base()


def test_auto_takes_bfloat16_by_the_processors_instructions(monkeypatch: Patch) -> None:
    cpu = torch.device("cpu")
    fast = ("GenuineIntel\nflags : avx512_bf16 amx_bf16 amx_tile", "AuthenticAMD avx512_bf16")
    slow = ("GenuineIntel\nflags : avx512_bf16", "AuthenticAMD avx2", "fp asimd bf16", "")
    for processor in (*fast, *slow):
        monkeypatch.setattr(
            "slimdown.models.base_model._read_processor", lambda text=processor: text
        )
        expected = torch.bfloat16 if processor in fast else torch.float32
        assert pick_dtype(Dtype.auto, cpu) == expected
    assert pick_dtype(Dtype.float16, cpu) == torch.float16
    assert pick_dtype(Dtype.auto, torch.device("mps")) == torch.float32


def test_fixed_dtypes_leave_nothing_to_choose() -> None:
    config = compose_config("model.dtype=auto", "quantization.bnb_4bit_compute_dtype=auto")
    fixed = fix_dtypes(config)
    assert Dtype.auto not in (fixed.model.dtype, fixed.quantization.bnb_4bit_compute_dtype)
    assert fix_dtypes(fixed) == fixed
    chosen = compose_config("model.dtype=float16", "quantization.bnb_4bit_compute_dtype=bfloat16")
    assert fix_dtypes(chosen) == chosen


def test_apples_gpu_is_taken_with_a_torch_that_pads_right_there(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, device in (("2.13.0", "mps"), ("2.15.1", "mps"), ("2.9.1", "cpu")):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        assert pick_device(Device.auto).type == device
    with pytest.raises(ModelError, match=r"torch is older than 2\.13"):
        pick_device(Device.mps)


def test_a_process_takes_the_gpu_of_its_number_on_its_machine(monkeypatch: Patch) -> None:
    """The second of two machines, on which two of four GPUs are used."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert pick_device(Device.cuda) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "x")
    with pytest.raises(ConfigError, match="LOCAL_RANK=x is no"):
        pick_device(Device.cuda)


def test_a_system_without_unix_is_told_what_runs_there(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on Windows: a line, no traceback."""
    for name in ("device_memory", "base_model"):  # they are imported again
        monkeypatch.delitem(sys.modules, f"slimdown.models.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert sizes.main(["model=pocket"]) == 1
    assert "on Windows use WSL" in capsys.readouterr().err


def test_errors_of_every_device_count_as_out_of_memory() -> None:
    texts = ["CUBLAS_STATUS_ALLOC_FAILED", "Invalid buffer size: 9.27 GiB"]
    texts.append("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
    full = [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), *map(RuntimeError, texts)]
    assert all(map(is_out_of_memory, full))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


@pytest.mark.hub
def test_a_hub_model_is_named_by_its_commit_and_brings_its_license() -> None:
    base = load_base("model=smollm2")
    assert len(base.revision) == 40
    assert base.license == "apache-2.0"
