"""Rows are shuffled, held out and mixed by the seed alone, and reach TRL as the user wrote them."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers
import trl

from slimdown import pocket
from slimdown.config.dataset_config import DatasetConfig
from slimdown.data.mixing import mix_rows
from slimdown.data.training_data import TrainingData, load_training_data
from slimdown.utils.errors import DataError, ModelError

CHATML = (
    "{% if tools %}{{ tools }}{% endif %}{{ mood }}{{ date_string }}{% for m in messages %}"
    "{% if loop.index0 % 2 == 0 and m.role == 'assistant' %}{{ raise_exception('no question') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
TURNS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(pocket.MODEL_DIR)
    tokenizer.chat_template = CHATML
    return tokenizer


def write(folder: Path, rows: list[Any], name: str = "rows", **changes: Any) -> DatasetConfig:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return DatasetConfig(str(file), **{"validation_examples": 1, **changes})


def number(n: int, start: int = 0) -> list[dict[str, str]]:
    return [{"text": f"line {i}"} for i in range(start, start + n)]


def load(config: DatasetConfig, tokenizer: Any = None, seed: int = 0) -> TrainingData:
    return load_training_data({"mine": config}, tokenizer, seed)


def count(data: TrainingData) -> tuple[int, int]:
    [part] = data.parts
    return len(part.train), len(part.validation)


def test_held_out_rows_are_never_trained_on(tmp_path: Path) -> None:
    config = write(tmp_path, number(40) * 2, validation_examples=6, max_examples=30)
    data = load(config)
    [part] = data.parts
    assert (count(data), data.notes) == ((30, 6), [])
    assert not set(part.train["text"][:]) & set(part.validation["text"][:])


def test_at_most_a_tenth_is_held_out_and_the_notes_name_it(tmp_path: Path) -> None:
    data = load(write(tmp_path, number(60), validation_examples=100))
    assert count(data) == (54, 6)
    [note] = data.notes
    assert re.match("dataset.mine: 6.*validation_examples=100", note)
    assert count(load(write(tmp_path, number(2)))) == (1, 1)


def test_the_seed_decides_as_datasets_shuffles(tmp_path: Path) -> None:
    config = write(tmp_path, number(20), max_examples=8)
    [part] = load(config, seed=5).parts
    shuffled = datasets.Dataset.from_list(number(20)).shuffle(seed=5)["text"][:9]
    assert [*part.validation["text"][:], *part.train["text"][:]] == shuffled
    more = load(replace(config, max_examples=12), seed=5).parts[0]
    assert more.validation["text"][:] == part.validation["text"][:]
    assert more.train["text"][:8] == part.train["text"][:]
    prints = [load(config, seed=seed).fingerprint for seed in (0, 0, 1)]
    assert len({*prints, load(replace(config, max_examples=9)).fingerprint}) == 3


def test_the_fingerprint_is_of_the_rows_and_not_of_their_file(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(12)]
    config = write(tmp_path, ["", *rows])
    lines = ["completion,prompt", *(f"c{i},p{i}" for i in range(12))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    in_csv = replace(config, path=str(tmp_path / "rows.csv"))
    assert load(config).fingerprint == load(in_csv).fingerprint
    texts = list(load(config).iter_texts())
    assert all(text.text == f"p{text.row - 2}c{text.row - 2}" for text in texts)
    assert len(texts) == 11


def test_bad_rows_end_the_run_or_are_skipped_and_counted(tmp_path: Path, tokenizer: Any) -> None:
    bad = ["{torn", {"messages": []}, {"messages": TURNS[::-1]}, {"text": "a"}]
    sound = [{"messages": [*TURNS, {"role": "user", "content": f"{i}"}]} for i in range(8)]
    config = write(tmp_path, [*sound, bad[2]])
    with pytest.raises(DataError, match=r"dataset\.mine: .*row 9:.*no"):
        load(config, tokenizer)
    data = load(write(tmp_path, [*sound, *bad], skip_bad_rows=True), tokenizer)
    assert count(data) == (7, 1)
    assert "skipped: 4" in data.notes[0]
    mixed = [{"prompt": TURNS[:1], "completion": TURNS[1:]}, {"prompt": "a", "completion": "b"}]
    with pytest.raises(DataError, match=r"row \d: some.*prompt"):
        load(write(tmp_path, mixed), tokenizer)


@pytest.mark.parametrize(
    "rows", [[], number(1), number(1) * 9, ["{torn"] * 5, ["{torn", *number(1)]]
)
def test_a_file_without_rows_to_train_on_is_refused(rows: list[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^dataset\.mine: .*: nothing"):
        load(write(tmp_path, rows, skip_bad_rows=True))


def test_conversations_reach_the_template_unchanged(tmp_path: Path, tokenizer: Any) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"x": {}}}}]
    rows = [
        {"messages": TURNS, "tools": tools},
        {
            "messages": [TURNS[0], {**TURNS[1], "thinking": "Hm."}],
            "chat_template_kwargs": {"mood": "!"},
        },
        {"messages": [*TURNS, *TURNS]},
    ]
    [part] = load(write(tmp_path, rows), tokenizer).parts
    loaded = {row["row"]: row for row in [*part.train, *part.validation]}
    date = {"date_string": "26 Jul 2024"}
    assert [loaded[i]["messages"] for i in (1, 2, 3)] == [row["messages"] for row in rows]
    assert [loaded[i]["tools"] for i in (1, 2, 3)] == [tools, None, None]
    variables = [loaded[i]["chat_template_kwargs"] for i in (1, 2, 3)]
    assert variables == [date, {**date, "mood": "!"}, date]


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking", "none"])
def test_rows_do_not_think_where_questions_do_not(switch: str, tmp_path: Path) -> None:
    """The switch is the template's own variable; a row's own value wins."""
    thinker = transformers.AutoTokenizer.from_pretrained(pocket.MODEL_DIR)
    begin = f"{{% if {switch} is not defined or {switch} %}}Think!{{% endif %}}"
    thinker.chat_template = (begin if switch != "none" else "") + "{{ messages[-1].content }}"
    rows = [{"messages": TURNS}, {"messages": TURNS, "chat_template_kwargs": {switch: True}}]
    config = write(tmp_path, [*rows, {"messages": TURNS[::-1] + TURNS}])
    variables = []
    for enable_thinking in (False, None, True):
        [part] = load_training_data({"a": config}, thinker, 0, None, enable_thinking).parts
        row = {row["row"]: row for row in [*part.train, *part.validation]}
        variables.append([(row[i].get("chat_template_kwargs") or {}).get(switch) for i in (1, 2)])
    off = None if switch == "none" else False
    assert variables == [[off, True], [None, True], [None, True]]


def test_trl_tokenizes_them_with_their_tools_and_arguments(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"messages": TURNS, "tools": [{"name": f"t{i}"}], "chat_template_kwargs": {"mood": f"m{i}"}}
        for i in range(6)
    ]
    [part] = load(write(tmp_path, rows), tokenizer).parts
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_attention_heads=1, **shape))
    arguments = trl.SFTConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    trainer = trl.SFTTrainer(model, arguments, train_dataset=part.train, processing_class=tokenizer)
    for prepared, row in zip(trainer.train_dataset, part.train, strict=True):
        i = row["row"] - 1
        tools = f"[{{'name': 't{i}'}}]m{i}26 Jul 2024"
        expected = tokenizer(f"{tools}<user>What?<assistant>That.", add_special_tokens=False)
        assert prepared["input_ids"] == expected["input_ids"]


def test_without_a_chat_template_nothing_is_read_further(tmp_path: Path) -> None:
    plain = transformers.AutoTokenizer.from_pretrained(pocket.MODEL_DIR)
    for row, setting in (
        ({"messages": TURNS}, "format=messages"),
        ({"instruction": "a", "output": "b"}, "template=chat"),
    ):
        template = "chat" if "instruction" in row else "alpaca"
        with pytest.raises(ModelError, match=rf"^dataset\.mine\.{setting}: .*chat template"):
            load(write(tmp_path, [row] * 3, template=template, skip_bad_rows=True), plain)


def mix(folder: Path, weights: list[float | None], seed: int = 0) -> tuple[TrainingData, list[str]]:
    chosen = {
        name: write(folder, number(310, 1000 * i), name, validation_examples=10, weight=weight)
        for i, (name, weight) in enumerate(zip("abc", weights, strict=False))
    }
    data = load_training_data(chosen, None, seed)
    parts = [part.train for part in data.parts]
    mixed = mix_rows(parts, [part.weight for part in data.parts], seed)
    assert Counter(mixed["text"][:]) == Counter(text.text for text in data.iter_texts())
    return data, mixed["text"][:]


def test_weights_are_chances_until_a_dataset_is_exhausted(tmp_path: Path) -> None:
    unmixed, one_after_the_next = mix(tmp_path, [None, None, None])
    parts = [part.train for part in unmixed.parts]
    assert one_after_the_next == [text for part in parts for text in part["text"][:]]
    for weights in ([3.0, 1.0, 2.0], [3.0, 1.0, 0.0], [1.0, 0.001, 0.001]):
        data, mixed = mix(tmp_path, weights)
        chances = [weight / sum(weights) for weight in weights]
        stock = datasets.interleave_datasets(parts, probabilities=chances, seed=0)["text"][:]
        assert mixed == stock
        assert len(set(mixed)) == len(mixed) == sum(len(part.train) for part in data.parts)
    assert not len(mix(tmp_path, [3.0, 1.0, 0.0])[0].parts[2].train)


def test_a_weight_changes_nothing_of_what_is_held_out(tmp_path: Path) -> None:
    loaded = [mix(tmp_path, [1.0, b])[0] for b in (0.0, 0.5, 3.0)]
    held_out = [[p.validation["text"][:] for p in data.parts] for data in loaded]
    assert held_out[0] == held_out[1] == held_out[2]
    again, with_seed = mix(tmp_path, [1.0, 0.5])[0], mix(tmp_path, [1.0, 0.5], seed=1)[0]
    assert again.fingerprint == loaded[1].fingerprint
    assert len({with_seed.fingerprint, *(data.fingerprint for data in loaded)}) == 4


@pytest.mark.hub
def test_rows_of_the_hub_keep_their_empty_texts() -> None:
    alpaca = "tatsu-lab/alpaca"
    config = DatasetConfig(alpaca, input="input", max_examples=200, validation_examples=100)
    [part] = load(config).parts
    assert len(part.train) == 200
    for path, answer in (("nobody/nothing", "is not on the hub"), (alpaca, "split")):
        with pytest.raises(DataError, match=f"^dataset.mine: {path}: .*{answer}"):
            load(DatasetConfig(path, split="nope" if "alpaca" in path else "train"))
