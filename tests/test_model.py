"""The base loads as it was published, and stays trainable after it was measured."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from slimdown.config.schema import RunConfig
from slimdown.models.model import LoadedModel, context_window, load_model
from slimdown.pocket import MODEL_DIR
from slimdown.utils.errors import SlimdownError

Composed = Callable[..., RunConfig]


def test_the_base_is_in_four_bits_and_says_what_it_is(pocket: LoadedModel) -> None:
    assert (pocket.id, pocket.quantization, pocket.dtype, pocket.device) == (
        "pocket:model",
        "nf4",
        "float32",
        "cpu",
    )
    assert pocket.revision.startswith("sha256:")
    four_bit = [m for m in pocket.model.modules() if type(m).__name__ == "Linear4bit"]
    assert len(four_bit) == 7 * pocket.model.config.num_hidden_layers
    assert pocket.memory_bytes < pocket.n_parameters * 2  # smaller than in bfloat16


def test_parameters_are_counted_as_published(pocket: LoadedModel, composed: Composed) -> None:
    config = composed("quantization=none")
    whole = load_model(config.model, config.quantization)
    assert (
        pocket.n_parameters
        == whole.n_parameters
        == sum(p.numel() for p in whole.model.parameters())
    )


def test_a_forward_leaves_the_four_bit_weights_in_their_layout(pocket: LoadedModel) -> None:
    tokens = torch.arange(3, 40)[None]
    before = {name: p.detach().clone() for name, p in pocket.model.named_parameters()}
    with torch.no_grad():
        first = pocket.model(tokens).logits
        second = pocket.model(tokens).logits
    assert all(torch.equal(before[name], p) for name, p in pocket.model.named_parameters())
    assert torch.equal(first, second)
    with torch.no_grad():  # on a packed layout this is off by tens
        assert torch.equal(pocket.model.dequantize()(tokens).logits, first)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_weights_that_compute_no_numbers_are_refused(
    broken: float, composed: Composed, tmp_path: Path
) -> None:
    folder = shutil.copytree(MODEL_DIR, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if n.endswith("layers.1.mlp.down_proj.weight"))
    weights[name][3, 5] = broken
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = composed(f"model.id={folder}")
    with pytest.raises(
        SlimdownError, match=r"computes no numbers: its weights hold NaN or infinity"
    ) as refused:
        load_model(config.model, config.quantization)
    assert "model.dtype=float32" not in str(refused.value)  # it is already


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "none"])
def test_every_quantization_answers(quantization: str, composed: Composed) -> None:
    config = composed(f"quantization={quantization}")
    loaded = load_model(config.model, config.quantization)
    assert loaded.quantization == quantization
    assert torch.isfinite(loaded.model(torch.arange(3, 20)[None]).logits).all()


def test_a_local_folder_is_a_model_too(composed: Composed) -> None:
    config = composed(f"model.id={MODEL_DIR}")
    loaded = load_model(config.model, config.quantization)
    assert context_window(loaded.model) == loaded.model.config.max_position_embeddings


def test_an_absent_device_is_named(composed: Composed) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    config = composed("model.device=cuda")
    with pytest.raises(SlimdownError, match=r"model\.device=cuda: this machine has none; it has cpu"):
        load_model(config.model, config.quantization)


def test_too_little_memory_is_answered_with_what_would_fit(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 5_000_000  # the pocket model needs 7.8 MB in float32, 2.4 MB in 4 bits
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free})())
    config = composed("quantization=none")
    with pytest.raises(SlimdownError, match=r"quantization=(nf4|fp4) would fit"):
        load_model(config.model, config.quantization)


def test_pickled_weights_are_refused(tmp_path: Path, composed: Composed) -> None:
    for file in MODEL_DIR.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    config = composed(f"model.id={tmp_path}")
    with pytest.raises(SlimdownError, match="has no safetensors weights"):
        load_model(config.model, config.quantization)


def damage(folder: Path, how: str) -> None:
    """Make the weights of a model folder what they should not be."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.0.self_attn.q_proj.weight"
    if how == "cut short":
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    elif how == "a tensor is missing":
        save_file(
            {key: w for key, w in weights.items() if key != name}, file, metadata={"format": "pt"}
        )
    elif how == "a tensor has another shape":
        save_file({**weights, name: weights[name][:-4].clone()}, file, metadata={"format": "pt"})
    else:
        torch.save(weights, folder / "weights.bin")  # nothing that torch would stop at
        file.unlink()
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "weights.bin")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize(
    ("how", "answer"),
    [
        ("cut short", r"a \.safetensors file is damaged or cut short"),
        (
            "a tensor is missing",
            r"not those that its config\.json describes: .*q_proj\.weight is not in them",
        ),
        (
            "a tensor has another shape",
            r"q_proj\.weight is \(188, 192\) and should be \(192, 192\)|cannot be loaded",
        ),
        (
            "the index names pickled weights",
            r"its index names weights\.bin, and pickled weights can run code when they are read",
        ),
    ],
)
def test_damaged_weights_are_refused_and_never_made_up(
    how: str, answer: str, quantization: str, tmp_path: Path, composed: Composed
) -> None:
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    damage(tmp_path / "model", how)
    config = composed(f"model.id={tmp_path / 'model'}", f"quantization={quantization}")
    with pytest.raises(SlimdownError, match=answer):
        load_model(config.model, config.quantization)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[1]"),
        ("config.json", '{"model_type": "nope"}'),
        ("config.json", '{"model_type": "llama", "hidden_size": "wide"}'),
        ("config.json", '{"model_type": "llama", "hidden_size": -4}'),
        ("tokenizer.json", "{"),
    ],
)
def test_files_that_are_not_a_models_are_answered_in_one_line(
    file: str, content: str, tmp_path: Path, composed: Composed
) -> None:
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    (tmp_path / "model" / file).write_text(content)
    config = composed(f"model.id={tmp_path / 'model'}")
    with pytest.raises(SlimdownError, match=r"^model\.id=.* cannot be loaded: .*") as caught:
        load_model(config.model, config.quantization)
    assert "\n" not in str(caught.value)
