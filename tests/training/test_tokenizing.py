"""Rows are tokenized and masked by TRL, whatever they are mixed with, and then counted and cut."""

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from builders import Patch
from record_builders import compose_config
from tiny_models import build_tiny_model
from trl import SFTConfig, SFTTrainer

from slimdown.config.schema import DatasetConfig, RunConfig
from slimdown.data.training_data import TrainingData, load_training_data
from slimdown.models.base_model import load_tokenizer
from slimdown.training.tokenizing import tokenize_rows
from slimdown.utils.errors import DataError

CHAT = (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
TURNS = [{"role": "user", "content": "two and two?"}, {"role": "assistant", "content": "four"}]
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": f"the number {i} is a number"} for i in range(12)],
    "pairs": [{"prompt": f"what is {i}?", "completion": f" it is {i}"} for i in range(12)],
    "messages": [
        {"messages": [{"role": "user", "content": f"{i}?"}, TURNS[1], *TURNS[: i % 2]]}
        for i in range(12)
    ],
    "turns": [
        {"prompt": [{"role": "user", "content": f"what is {i}?"}], "completion": TURNS[1:]}
        for i in range(12)
    ],
}


def prepare(folder: Path, kinds: list[str], *settings: str) -> tuple[RunConfig, Any, TrainingData]:
    datasets = {}
    for kind in kinds:
        file = folder / f"{kind}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]))
        datasets[kind] = DatasetConfig(path=str(file), validation_examples=4)
    path = f"dataset.file.path={file}"  # which may hold conversations
    config = compose_config("dataset=[file]", path, *settings)
    tokenizer = load_tokenizer(str(config.model.folder))
    tokenizer.chat_template = CHAT
    return config, tokenizer, load_training_data(datasets, tokenizer, config.seed)


def read_columns(rows: Any) -> list[tuple[list[int], list[int]]]:
    return [(row["input_ids"], row["labels"]) for row in rows]


def tokenize_by_trl(
    config: RunConfig, tokenizer: Any, data: TrainingData, folder: Path, **losses: bool
) -> Any:
    settings: Any = {"max_length": config.train.max_length, "completion_only_loss": False} | losses
    arguments = SFTConfig(str(folder), report_to="none", use_cpu=True, **settings)
    model, rows = build_tiny_model("llama"), data.parts[0].train
    trainer: Any = SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
    return trainer.train_dataset


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = files("trl").joinpath("chat_templates/qwen2_5.jinja").read_text()
OPEN_END = CHAT.replace("{{ eos_token }}{% endgeneration %}", "{% endgeneration %}{{ eos_token }}")
ANSWERS, COMPLETIONS = {"assistant_only_loss": True}, {"completion_only_loss": True}
BOTH, NEITHER = ANSWERS | COMPLETIONS, dict[str, bool]()
AUTO = {"assistant_only_loss": "auto"}


@pytest.mark.parametrize(
    ("kind", "template", "chosen", "losses"),
    [
        *((kind, CHAT, losses, losses) for kind in ROWS for losses in (COMPLETIONS, NEITHER)),
        ("messages", CHAT, ANSWERS, ANSWERS),
        ("turns", CHAT, ANSWERS, ANSWERS),
        ("messages", CHAT, AUTO, ANSWERS),
        ("turns", CHAT, AUTO, BOTH),
        ("messages", QWEN, AUTO, ANSWERS),  # TRL has a marked one of its family
        ("turns", QWEN, AUTO, BOTH),
        ("messages", CHATML, AUTO, NEITHER),
        ("turns", CHATML, AUTO, COMPLETIONS),
        ("messages", OPEN_END, AUTO, NEITHER),  # it would not learn to stop
        ("turns", OPEN_END, AUTO, COMPLETIONS),
        ("text", CHAT, AUTO, NEITHER),
        ("pairs", CHAT, AUTO, NEITHER),
    ],
)
def test_the_loss_is_trls_of_what_was_chosen_or_of_the_answers_where_they_can_be_told(
    kind: str, template: str, chosen: dict[str, Any], losses: dict[str, bool], tmp_path: Path
) -> None:
    config, tokenizer, data = prepare(tmp_path, [kind])
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = template
    plain = replace(config.train, assistant_only_loss=False, completion_only_loss=False)
    rows = tokenize_rows(data, tokenizer, replace(plain, **chosen), True, 0)
    stock = tokenize_by_trl(config, tokenizer, data, tmp_path, **losses)
    assert read_columns(rows.train) == read_columns(stock)
    is_whole = chosen is AUTO and kind == "messages" and not losses
    assert any("whole conversations" in note for note in rows.notes) is is_whole


def test_datasets_of_unlike_formats_are_tokenized_apart(tmp_path: Path) -> None:
    config, tokenizer, data = prepare(tmp_path, ["text", "messages", "pairs"])
    mixed = tokenize_rows(data, tokenizer, config.train, True, 0)
    alone = []
    for kind in ("text", "messages", "pairs"):
        config, tokenizer, data = prepare(tmp_path, [kind])
        alone += list(tokenize_rows(data, tokenizer, config.train, True, 0).train)
    assert sorted(map(str, mixed.train)) == sorted(map(str, alone))
    assert len(mixed.validation) == sum(part.validation.num_rows for part in data.parts) * 3


def test_what_trl_cannot_mask_names_the_dataset(tmp_path: Path) -> None:
    config, tokenizer, data = prepare(tmp_path, ["text"])
    config.train.assistant_only_loss = True
    with pytest.raises(DataError, match=r"dataset\.text"):
        tokenize_rows(data, tokenizer, config.train, True, 0)


def test_long_rows_are_cut_and_counted_as_trl_cuts_them(tmp_path: Path, monkeypatch: Patch) -> None:
    prompts = [f"{i} " + "a b c " * (1 + i) for i in range(12)]
    rows = [{"prompt": prompt, "completion": " h i j k l m"} for prompt in prompts]
    monkeypatch.setitem(ROWS, "long", rows)
    config, tokenizer, data = prepare(tmp_path, ["long"], "train.max_length=40")
    tokenized = tokenize_rows(data, tokenizer, config.train, True, 0)
    stock = tokenize_by_trl(config, tokenizer, data, tmp_path, completion_only_loss=True)
    assert read_columns(tokenized.train) == read_columns(stock)
    assert tokenized.n_truncated == sum(len(row["input_ids"]) == 40 for row in stock) > 0
    assert tokenized.n_untrained == len(data.parts[0].train) - len(stock)
    assert any("train.max_length=40 cuts" in note for note in tokenized.notes)


@pytest.mark.parametrize("n_long", [8, 12])  # the rows that are trained on; all rows
def test_rows_whose_prompts_fill_the_length_are_refused(
    n_long: int, tmp_path: Path, monkeypatch: Patch
) -> None:
    rows = [{"prompt": f"{i} " + "a b c " * 20, "completion": " d"} for i in range(12)]
    monkeypatch.setitem(ROWS, "long", rows)
    config, tokenizer, data = prepare(tmp_path, ["long"], "train.max_length=10")
    if n_long < 12:
        [part] = data.parts
        short = part.validation.map(lambda _: {"prompt": "a"})
        data = replace(data, parts=(replace(part, validation=short),))
    with pytest.raises(DataError, match="leaves no row"):
        tokenize_rows(data, tokenizer, config.train, True, 0)
