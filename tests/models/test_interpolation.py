"""Whole models between a base and what was tuned from it: their weights, and what is refused."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import Patch, slow
from model_files import edit_json, edit_tensors
from record_builders import compose_config
from tiny_models import build_byte_tokenizer, build_tiny_model, logits_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimdown import pocket
from slimdown.config.schema import ModelConfig, QuantizationConfig, RunConfig, TunedModelConfig
from slimdown.evaluation.families import EXACT_FAMILIES
from slimdown.models.adapters import check_base
from slimdown.models.base_model import (
    LoadedModel,
    load_base_model,
    load_base_tokenizer,
    load_outline,
)
from slimdown.models.external import ExternalModel, open_tuned_model
from slimdown.models.interpolation import Interpolation, pair_models
from slimdown.utils.errors import ModelError


def load_plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def save_changed(folder: Path, change: Callable[[Any], Any] = lambda model: None) -> Path:
    """Save the embedded model in several files, with other numbers in every weight."""
    model = load_plain(pocket.MODEL_DIR).float()
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.1 * weight.std() * torch.randn_like(weight)
    change(model.bfloat16())
    model.save_pretrained(folder, max_shard_size="2MB")
    AutoTokenizer.from_pretrained(pocket.MODEL_DIR).save_pretrained(folder)
    return folder


def pair(config: RunConfig) -> Interpolation:
    outline, tokenizer = check_base(config), load_base_tokenizer(config.model)
    external = open_tuned_model(config, LoadedModel(outline, tokenizer, "", "", outline=outline))
    return pair_models(config.model, external)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_lie_between_base_and_tuned_model_and_plain_transformers_loads_them(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = save_changed(tmp_path / "tuned", lambda model: model.to(dtype))
    assert len(list(folder.glob("*.safetensors"))) > 1
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    expected_names = {file.name for file in folder.iterdir()}
    for name in ("trainer_state.json", "notes.txt", "training_args.bin"):  # stay where they are
        (folder / name).write_text("{}")
    base, tuned = load_plain(pocket.MODEL_DIR), load_plain(folder)
    interpolation, step = pair(compose_config(f"tuned={folder}")), torch.finfo(dtype).eps
    for scale in (0.0, 0.5, 1.0, 1.5):
        (out := tmp_path / str(scale)).mkdir()
        interpolation.save(scale, out)
        read = load_plain(out)
        assert read.lm_head.weight is read.model.embed_tokens.weight
        trios = zip(base.parameters(), tuned.parameters(), read.parameters(), strict=True)
        for before, after, weight in trios:
            expected = before.double() + scale * (after.double() - before.double())
            assert weight.dtype == dtype
            assert torch.allclose(weight.double(), expected, rtol=step, atol=step * 1e-3)
            assert scale != 0 or torch.equal(weight, before.to(dtype))
            assert scale != 1 or torch.equal(weight, after)
        assert {file.name for file in out.iterdir()} == expected_names
        assert AutoTokenizer.from_pretrained(out).chat_template == "{{ messages }}"


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_scaled_model_is_loaded_alone_and_leaves_no_file(
    quantization: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    folder = save_changed(tmp_path / "tuned")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    settings = [f"tuned={folder}", f"quantization={quantization}", "model.dtype=bfloat16"]
    config = compose_config(*settings)
    interpolation, base = pair(config), load_base_model(config.model, config.quantization)
    external = replace(interpolation.external, base=base)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    with replace(interpolation, external=external).open(0.5) as half:
        assert not any(weight.numel() for weight in base.model.parameters())
        [scratch] = (tmp_path / "scratch").iterdir()
        assert AutoTokenizer.from_pretrained(scratch).get_vocab() == base.tokenizer.get_vocab()
        again = load_base_model(replace(config.model, id=str(scratch)), config.quantization)
        assert torch.equal(logits_of(again.model), logits_of(half.model))
        is_plain = torch.equal(logits_of(load_plain(scratch)), logits_of(half.model))
        assert is_plain == (quantization == "none")
    assert not any(weight.numel() for weight in half.model.parameters())
    assert not list((tmp_path / "scratch").iterdir())
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    with pytest.raises(ModelError, match=r"0\.004 GB.*0\.001 GB"):
        interpolation.save(0.5, tmp_path)


QUICK = ["gpt2", "mixtral"]


@pytest.mark.parametrize("family", [*QUICK, *slow(*sorted(EXACT_FAMILIES.difference(QUICK)))])
def test_every_weight_of_a_family_is_scaled(family: str, tmp_path: Path) -> None:
    """GPT-2's `c_attn.bias` looks like a mask; a Mixtral's experts have other names in files."""
    configs = ModelConfig(str(tmp_path / "base")), TunedModelConfig(str(tmp_path / "tuned"))
    for seed, config in enumerate(configs):
        config.args, config.allow_kernels = {}, False
        model = build_tiny_model(family, seed)
        for weight in model.parameters():  # a new model's biases are 0
            weight.data += 0.1 * torch.randn_like(weight)
        model.save_pretrained(config.id)
    tokenizer, outlines = build_byte_tokenizer(), [load_outline(config) for config in configs]
    base = LoadedModel(outlines[0], tokenizer, "", "", outline=outlines[0])
    plain = QuantizationConfig(load_in_4bit=False, load_in_8bit=False)
    external = ExternalModel(base, configs[1], plain, tokenizer, outline=outlines[1])
    interpolation = pair_models(configs[0], external)
    for scale, config in enumerate(configs):
        (out := tmp_path / str(scale)).mkdir()
        interpolation.save(scale, out)
        expected, weights = load_plain(Path(config.id)).state_dict(), load_plain(out).state_dict()
        assert not [name for name in expected if not torch.equal(expected[name], weights[name])]


def untie(model: Any) -> None:
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 1.5)


def test_tied_embeddings_meet_untied_ones(tmp_path: Path) -> None:
    folder = save_changed(tmp_path / "untied", untie)
    (out := tmp_path / "half").mkdir()
    pair(compose_config(f"tuned={folder}")).save(0.5, out)
    shared = load_plain(pocket.MODEL_DIR).lm_head.weight.float()
    pairs = zip(load_plain(out).parameters(), load_plain(folder).parameters(), strict=True)
    tables = [(weight, after) for weight, after in pairs if weight.shape == shared.shape]
    assert len(tables) == 2
    for weight, after in tables:
        assert torch.equal(weight, torch.lerp(shared, after.float(), 0.5).bfloat16())
    tied = save_changed(tmp_path / "tied")
    with pytest.raises(ModelError, match=r"the base .*lm_head\.weight"):
        pair(compose_config(f"tuned={tied}", f"model.id={folder}", "quantization=none"))


def cut(model: Any) -> None:
    model.model.layers = model.model.layers[:3]
    model.config.num_hidden_layers = 3


def round_a_norm(model: Any) -> None:
    whole = torch.ones(192, dtype=torch.int8)
    model.model.norm.weight = torch.nn.Parameter(whole, requires_grad=False)


ROPE = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
QUANTIZED = {"quantization_config": {"quant_method": "fp8"}}


@pytest.mark.parametrize(
    ("change", "settings", "answer"),
    [
        (lambda m: m.resize_token_embeddings(2050), {}, r"embed_tokens.weight .*2050, 192\]"),
        (cut, {}, r"only the base has a layers.3.input_layernorm.weight of its own"),
        (round_a_norm, {}, r" norm.weight is torch.bfloat16 \[192\] in the base and torch.int8"),
        (lambda m: None, ROPE, r"rope_parameters is .*10000.* there and .*500000"),
        (lambda m: None, QUANTIZED, "is quantized, and only floats have a scale"),
    ],
)
def test_what_lies_on_no_line_is_refused_by_its_first_tensor(
    change: Any, settings: dict[str, Any], answer: str, tmp_path: Path
) -> None:
    edit_json(save_changed(tmp_path, change) / "config.json", **settings)
    with pytest.raises(ModelError, match=answer):
        pair(compose_config(f"tuned={tmp_path}", "quantization=none"))


@pytest.mark.parametrize("owner", ["base", "tuned", "both"])
def test_buffers_of_older_versions_stay(owner: str, tmp_path: Path) -> None:
    folders = [save_changed(tmp_path / "base"), save_changed(tmp_path / "tuned")]
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    for folder in folders if owner == "both" else [tmp_path / owner]:
        file = next(folder.glob("*.safetensors"))
        edit_tensors(file, lambda tensors: tensors.update({name: torch.ones(4)}))
        if (index := folder / "model.safetensors.index.json").is_file():
            listed = json.loads(index.read_text())
            listed["weight_map"][name] = file.name
            index.write_text(json.dumps(listed))
    (out := tmp_path / "out").mkdir()
    pair(compose_config(f"model.id={folders[0]}", f"tuned={folders[1]}")).save(0.5, out)
    assert torch.isfinite(logits_of(load_plain(out))).all()
