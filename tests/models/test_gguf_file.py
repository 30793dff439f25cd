"""A GGUF file answers as the folder that it was written from, or is refused beforehand."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from builders import Patch
from model_files import open_tuned
from record_builders import compose_config
from tiny_models import logits_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.write_gguf import write_gguf
from slimdown import pocket
from slimdown.models.tuned_base import find_base
from slimdown.tracking.resume import run_key
from slimdown.utils.errors import ConfigError, ModelError

FLOAT = "model.dtype=float32"


def write_pocket(file: Path, kind: str = "F32", change: float = 1.0, **settings: Any) -> Path:
    """Write the embedded model, its last norm multiplied by `change`, as a GGUF file."""
    model = AutoModelForCausalLM.from_pretrained(pocket.MODEL_DIR, dtype=torch.float32)
    model.model.norm.weight.data.mul_(change)
    tokenizer = AutoTokenizer.from_pretrained(pocket.MODEL_DIR)
    return write_gguf(model, tokenizer, file, kind, **settings)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pocket(tmp_path_factory.mktemp("gguf") / "pocket.gguf")


def test_unrounded_weights_compute_the_folders_logits(file: Path) -> None:
    base, external = open_tuned(file, FLOAT)
    expected = logits_of(base.model)
    tuned = external.load()
    assert tuned.id == str(file)
    assert (logits_of(tuned.model) - expected).abs().max() < 1e-4
    assert external.differences == []


def round_blocks(weight: torch.Tensor, levels: int) -> torch.Tensor:
    """Round blocks of 32 numbers as llama.cpp describes Q8_0 (127 levels) and Q4_0 (8)."""
    blocks = weight.reshape(-1, 32)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    if levels == 127:
        scale = largest.abs() / levels
        scaled = blocks * (1 / scale)
        numbers = (scaled.abs() + 0.5).floor() * scaled.sign()  # halves go outwards
    else:
        scale = largest / -levels
        numbers = ((blocks / scale + 8.5).floor().clip(0, 15)) - 8
    return (numbers * scale.half().float()).nan_to_num(0).reshape(weight.shape)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_rounded_weights_compute_as_by_hand(kind: str, tmp_path: Path) -> None:
    base, external = open_tuned(write_pocket(tmp_path / "pocket.gguf", kind), FLOAT)
    unrounded = logits_of(base.model)
    by_hand = AutoModelForCausalLM.from_pretrained(pocket.MODEL_DIR, dtype=torch.float32)
    for name, weight in by_hand.named_parameters():
        levels = 8 if kind == "Q4_0" and "embed" not in name else 127
        if weight.ndim == 2:
            weight.data = round_blocks(weight.data, levels)
    expected, logits = logits_of(by_hand), logits_of(external.load().model)
    assert (logits - expected).abs().max() < 0.1 * (logits - unrounded).abs().max()


def test_a_file_counts_by_its_content(file: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copy(file, tmp_path / "other name.gguf"))
    other = write_pocket(tmp_path / "other.gguf", change=2.0)
    places = (file, copied, other)
    identities = [open_tuned(place)[1].load().identity for place in places]
    assert identities[0] == identities[1] != identities[2]
    keys = [run_key(compose_config(f"tuned={place}", "model=pocket")) for place in places]
    assert keys[0] == keys[1] != keys[2]


def test_a_base_in_a_gguf_file_counts_by_its_content(tmp_path: Path) -> None:
    settings = [f"model.id={tmp_path}", "model.args.gguf_file=base.gguf", "quantization=none"]
    shutil.copy(pocket.MODEL_DIR / "config.json", tmp_path)
    keys = []
    for change in (1.0, 2.0):
        write_pocket(tmp_path / "base.gguf", change=change)
        keys.append(run_key(compose_config(*settings)))
    assert keys[0] != keys[1]


def test_a_file_names_no_base(file: Path) -> None:
    tuned = compose_config(f"tuned={file}", "model=pocket").tuned_model
    with pytest.raises(ModelError, match=r"tuned=.* base; .*model=OWNER/NAME"):
        find_base(tuned)


def rename_architecture(file: Path) -> None:
    field = gguf.GGUFReader(file, "r+").fields["general.architecture"]
    field.parts[field.data[0]][:] = list(b"lIama")


def swap_tokens(file: Path) -> None:
    field = gguf.GGUFReader(file, "r+").fields["tokenizer.ggml.tokens"]
    parts = [field.parts[i] for i in field.data]
    first = next(i for i, p in enumerate(parts[300:], 300) if len(p) == len(parts[i + 1]))
    parts[first][:] = parts[first + 1]


@pytest.mark.parametrize(
    ("spoil", "settings", "answer"),
    [
        (lambda file: os.truncate(file, file.stat().st_size // 2), [], "is cut short"),
        (lambda file: os.truncate(file, 5000), [], "tuned=.*pocket.gguf is cut short, or damaged"),
        (rename_architecture, [], "the architecture 'lIama', which transformers does not unpack"),
        (swap_tokens, [], "has another vocabulary than pocket:model: .* is another token"),
        (lambda _: None, ["quantization=nf4"], "is quantized already.* set quantization=none"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_measured(
    spoil: Callable[[Path], None], settings: list[str], answer: str, *, file: Path, tmp_path: Path
) -> None:
    spoil(copied := Path(shutil.copy(file, tmp_path)))
    with pytest.raises(ModelError, match=answer) as refused:
        open_tuned(copied, *settings)
    assert "\n" not in str(refused.value)


def retype(
    source: Path, target: Path, key: str, value: Any, kinds: tuple[Any, Any], *, more: str = ""
) -> Path:
    """Write a file anew with another value of one key; a list has a kind for its values, too.

    `more` names a tensor that is added.
    """
    kind, sub_kind = kinds
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "llama")
    writer.add_key_value(key, value, kind, sub_type=sub_kind)
    for name, field in reader.fields.items():
        if name not in (key, "general.architecture") and not name.startswith("GGUF."):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    if more:
        writer.add_tensor(more, np.ones(192, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


KINDS = gguf.GGUFValueType
NUMBERS, TEXT = (KINDS.ARRAY, KINDS.INT32), (KINDS.STRING, None)


@pytest.mark.parametrize(
    ("key", "value", "kinds"),
    [
        ("tokenizer.ggml.tokens", [1, 2, 3], NUMBERS),
        ("tokenizer.ggml.eos_token_id", [2, 5], NUMBERS),
        ("tokenizer.ggml.bos_token_id", "<s>", TEXT),
        ("tokenizer.ggml.pre", [1], NUMBERS),
        ("general.file_type", "F32", TEXT),
        ("llama.block_count", "4", TEXT),
        ("llama.attention.head_count", [-1], NUMBERS),
        ("llama.context_length", 1.5, (KINDS.FLOAT32, None)),
        ("tokenizer.chat_template", 3, (KINDS.INT32, None)),
        ("split.count", "two", TEXT),
    ],
)
def test_metadata_of_another_type_is_refused_in_one_line(
    key: str, value: Any, kinds: Any, *, file: Path, tmp_path: Path
) -> None:
    spoiled = retype(file, tmp_path / "model.gguf", key, value, kinds)
    with pytest.raises(
        ModelError, match=r"tuned=.* (damaged|cannot be loaded|vocabulary)"
    ) as refused:
        open_tuned(spoiled)
    assert "\n" not in str(refused.value)


def test_a_part_of_a_model_is_always_refused(file: Path, tmp_path: Path) -> None:
    part = shutil.copy(file, tmp_path / "model-00001-of-00002.gguf")
    with pytest.raises(ConfigError, match="one of 2 parts"):
        compose_config(f"tuned={part}")
    writer = gguf.GGUFWriter(renamed := tmp_path / "model.gguf", "llama")
    writer.add_uint16("split.count", 2)
    writer.add_token_list(["a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="one of 2 parts"):
        open_tuned(renamed)


def test_what_is_no_gguf_file_is_refused_at_once(
    file: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    other = tmp_path / "model.gguf"
    with pytest.raises(ConfigError, match=r"tuned=.*model.gguf: .*no such"):
        compose_config(f"tuned={other}")
    other.write_bytes(b"PK\3\4" * 9)
    with pytest.raises(ConfigError, match="is no GGUF file"):
        compose_config(f"tuned={other}")
    shutil.copy(file, other)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"lies beside adapter_config.json"):
        compose_config(f"tuned={other}")
    monkeypatch.setattr("slimdown.config.schema.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"package gguf; .*'.\[gguf\]'"):
        compose_config(f"tuned={file}")


@pytest.mark.parametrize("kind", [KINDS.UINT8, KINDS.INT64, KINDS.STRING, KINDS.ARRAY])
def test_a_list_that_says_it_is_longer_than_its_file_is_refused(
    kind: gguf.GGUFValueType, file: Path, tmp_path: Path
) -> None:
    spoiled = Path(shutil.copy(file, tmp_path))
    field = gguf.GGUFReader(spoiled, "r+").fields["tokenizer.ggml.token_type"]
    field.parts[3][:] = kind  # after the name's length, the name and the word for a list
    field.parts[4][:] = 2**60
    with pytest.raises(ModelError, match=r"pocket.gguf is cut short, or damaged"):
        open_tuned(spoiled)


def test_a_list_that_is_too_long_is_refused(file: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("slimdown.models.gguf_file._MOST_READS", 1000)
    with pytest.raises(ModelError, match="more than 1,000 values beside its weights"):
        open_tuned(Path(shutil.copy(file, tmp_path)))


def test_weights_that_transformers_would_drop_are_refused_by_name(
    file: Path, tmp_path: Path
) -> None:
    short = retype(file, tmp_path / "short.gguf", "llama.block_count", 3, (KINDS.UINT32, None))
    with pytest.raises(ModelError, match=r"does not read, such as blk\.3\..* block_count"):
        open_tuned(short)
    number = (KINDS.UINT32, None)
    biased = retype(file, tmp_path / "biased.gguf", "x.y", 1, number, more="blk.1.attn_q.bias")
    with pytest.raises(ModelError, match=r"such as blk\.1\.attn_q\.bias"):
        open_tuned(biased)
