"""What a model's files have it served by is read, and every difference is named."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from model_files import edit_json, open_tuned
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.write_gguf import write_gguf
from slimdown.config.schema import TunedModelConfig
from slimdown.models.serving_settings import Serving, compare_serving, read_serving
from slimdown.pocket import MODEL_DIR

TEMPLATE = "{{ bos_token }}" + tiny_models.TEMPLATE
OTHER = TEMPLATE.replace("role }}:", "role }} says:")


@pytest.fixture
def chatty(tmp_path: Path) -> Path:
    """The embedded model with a chat template, in a folder of its own."""
    folder = Path(shutil.copytree(MODEL_DIR, tmp_path / "chatty"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def write(folder: Path, file: Path, template: str = TEMPLATE, **settings: Any) -> Path:
    """Write a folder's model as a GGUF file with some template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return write_gguf(model, tokenizer, file, **settings)


def read(place: Path) -> Serving:
    config = TunedModelConfig(id=str(place), revision="main")
    serving = read_serving(config, config.folder or place)
    assert serving
    return serving


def test_a_folder_and_its_gguf_file_are_served_alike(chatty: Path, tmp_path: Path) -> None:
    serving = read(chatty)
    bos, eos = "<|bos|>", "<|eos|>"
    assert serving == Serving(TEMPLATE, bos, eos, False, True, (eos,))
    assert read(write(chatty, tmp_path / "m.gguf")) == serving
    assert compare_serving(serving, serving) == []


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"template": OTHER}, r"chat template: .* at ' says: {{ m\.content }}\\n{', .* ': {{ m\."),
        ({"template": ""}, "chat template: none"),
        ({"puts_bos": True}, r"puts <\|bos\|> .* begins with <\|bos\|> already: twice"),
    ],
)
def test_what_a_gguf_file_says_otherwise_is_named(
    settings: dict[str, Any], pattern: str, chatty: Path, tmp_path: Path
) -> None:
    after = read(write(chatty, tmp_path / "m.gguf", **settings))
    [line] = compare_serving(after, read(chatty), "the base")
    assert re.match(pattern, line)


def test_a_folder_without_its_stop_token_is_named(chatty: Path, tmp_path: Path) -> None:
    edit_json(chatty / "generation_config.json", eos_token_id=[2, 5])
    folder = Path(shutil.copytree(chatty, tmp_path / "tuned"))
    edit_json(folder / "generation_config.json", eos_token_id=2)
    other = AutoTokenizer.from_pretrained(chatty).convert_ids_to_tokens(5)
    [line] = compare_serving(read(folder), read(chatty), "the base")
    ends = ", ".join(sorted([other, "<|eos|>"]))
    assert line == f"ends an answer at <|eos|>; the base at {ends}"
    [line] = compare_serving(read(chatty), read(folder), "the base")
    assert line == f"ends an answer at {ends}; the base at <|eos|>"
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", eos_token_id=None)
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    [line] = compare_serving(read(folder), read(chatty), "the base")
    assert line.endswith(f" {other}, <|eos|>")


def test_other_rules_of_bos_are_named() -> None:
    plain = Serving(None, "<s>", "</s>", False, False, ("</s>",))
    puts = replace(plain, tokenizer_puts_bos=True)
    other = replace(puts, bos="<b>")
    cases = [(puts, plain, "puts <s> "), (plain, puts, "puts nothing .*<s>$")]
    cases.append((other, puts, "<b>.*<s>$"))
    for after, before, pattern in cases:
        [line] = compare_serving(after, before)
        assert re.search(pattern, line)
    # Llama 3's folder and file both would double it, and whoever serves them takes one away.
    twice = replace(puts, chat_template="{{ bos_token }}", template_writes_bos=True)
    assert compare_serving(twice, twice) == []


def test_settings_of_generation_that_change_a_greedy_answer_are_named_and_asked_for_alone(
    chatty: Path, tmp_path: Path
) -> None:
    """They take no part where the model is asked as the base; what draws answers never does."""
    folder = Path(shutil.copytree(chatty, tmp_path / "tuned"))
    file = folder / "generation_config.json"
    edit_json(file, repetition_penalty=1.0, temperature=0.6, top_p=0.9)
    assert compare_serving(read(folder), read(chatty), "the base") == []
    changed = {"repetition_penalty": 3.0, "suppress_tokens": [*range(20)]}
    edit_json(file, **changed)
    penalty, suppressed = compare_serving(read(folder), read(chatty), "the base")
    assert "repetition_penalty=3.0;" in penalty
    assert "suppress_tokens=[0, 1," in suppressed
    assert "19" not in suppressed  # a long list is cut
    base, external = open_tuned(folder, f"model.id={chatty}", "quantization=none")
    settings = base.model.generation_config.to_dict()
    tuned = external.load()
    assert tuned.model.generation_config.to_dict() == settings
    assert tuned.rules.generation == {}
    served = external.serve(tuned)
    assert served.rules.generation == changed
    assert served.identity != tuned.identity


def test_files_without_a_tokenizer_say_nothing(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(MODEL_DIR).save_pretrained(tmp_path)
    _, external = open_tuned(tmp_path, "quantization=none")
    assert external.serving is None
    assert external.differences == []


def test_a_model_that_is_compared_ends_at_its_stops_and_the_bases(
    chatty: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(chatty, tmp_path / "tuned"))
    edit_json(folder / "generation_config.json", eos_token_id=5)
    edit_json(folder / "tokenizer_config.json", eos_token="<|pad|>")
    _, external = open_tuned(folder, f"model.id={chatty}", "quantization=none")
    tuned = external.load()
    assert tuned.rules.stops == (0, 2, 5)
    assert tuned.tokenizer.eos_token == "<|eos|>"
    served = external.serve(tuned)
    assert (served.rules.stops, served.rules.stops_alone) == ((0, 5), True)
    assert served.tokenizer.eos_token == "<|pad|>"
    assert served.identity != tuned.identity
