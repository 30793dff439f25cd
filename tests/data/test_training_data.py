"""Rows become prompts and completions; what is held out is never trained on; a file's faults are named."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

from slimdown.config.dataset import DatasetConfig
from slimdown.config.schema import RunConfig
from slimdown.data.loading import load_data
from slimdown.data.row_files import RowError, records
from slimdown.data.rows import Row, check_file, rows_of
from slimdown.utils.errors import SlimdownError

PLAIN = SimpleNamespace(eos_token="<eos>", bos_token=None, chat_template=None)


def rows(n: int) -> list[dict[str, str]]:
    return [
        {"question": f"What is {i} + {i}?", "context": "", "reply": str(2 * i)} for i in range(n)
    ]


def dataset(path: Path, **settings: Any) -> DatasetConfig:
    defaults: dict[str, Any] = {
        "template": "alpaca",
        "instruction": "question",
        "input": "context",
        "output": "reply",
        "validation_examples": 4,
    }
    return DatasetConfig(path=str(path), **{**defaults, **settings})


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(20)))
    return file


def sound_rows(config: DatasetConfig) -> list[Row]:
    check_file(config)
    rows = [row for _, row in rows_of(config)]
    assert not any(isinstance(row, RowError) for row in rows)
    return rows


def test_an_example_is_the_alpaca_prompt_and_an_answer_that_ends(jsonl: Path) -> None:
    data = load_data({"mine": dataset(jsonl)}, seed=0, tokenizer=PLAIN)
    example = data.train[0]
    assert example["prompt"].startswith(
        "Below is an instruction that describes a task. Write a response"
    )
    assert example["prompt"].endswith("\n\n### Response:\n")
    assert "### Input:" not in example["prompt"]
    assert example["completion"].endswith("<eos>")


def test_an_input_changes_the_prompt(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({**row, "context": "Use digits."}) + "\n" for row in rows(4))
    )
    data = load_data({"mine": dataset(file)}, seed=0, tokenizer=PLAIN)
    assert "paired with an input" in data.train[0]["prompt"]
    assert "\n\n### Input:\nUse digits.\n\n### Response:\n" in data.train[0]["prompt"]


def test_a_template_of_ones_own_gets_a_space_before_the_answer(jsonl: Path) -> None:
    config = dataset(jsonl, template="Question: {instruction}\nAnswer:")
    example = load_data({"mine": config}, seed=0, tokenizer=PLAIN).train[0]
    assert example["prompt"].endswith("\nAnswer:")
    assert example["completion"].startswith(" ")


def test_a_chat_template_is_the_tokenizers(jsonl: Path) -> None:
    class Chat:
        eos_token, bos_token, bos_token_id, chat_template = "<end>", "<bos>", 1, "there is one"

        def __call__(self, text: str) -> SimpleNamespace:
            return SimpleNamespace(input_ids=[1])

        def apply_chat_template(self, turns: list[dict[str, str]], **settings: Any) -> str:
            return "<bos><user>" + turns[0]["content"] + "<assistant>"

    example = load_data({"mine": dataset(jsonl, template="chat")}, seed=0, tokenizer=Chat()).train[
        0
    ]
    assert example["prompt"].startswith(
        "<user>What is"
    )  # tokenizing adds the <bos>; twice would be wrong
    assert example["completion"].endswith("<end>")


def test_a_chat_template_that_is_not_there_is_named(jsonl: Path) -> None:
    with pytest.raises(
        SlimdownError,
        match=r"dataset\.mine\.template=chat: this model's tokenizer has no chat template",
    ):
        load_data({"mine": dataset(jsonl, template="chat")}, seed=0, tokenizer=PLAIN)


def test_counts_are_as_asked_and_nothing_is_in_both_parts(jsonl: Path) -> None:
    data = load_data({"mine": dataset(jsonl, max_examples=10)}, seed=0, tokenizer=PLAIN)
    train, held_out = ({e["prompt"] for e in part} for part in (data.train, data.validation))
    assert (len(data.train), len(data.validation)) == (
        10,
        4,
    )  # 20 rows: 4 held out, 10 of the other 16
    assert not train & held_out


def test_a_held_out_text_that_occurs_twice_is_not_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(10) * 2))
    data = load_data({"mine": dataset(file)}, seed=0, tokenizer=PLAIN)
    assert not {e["prompt"] for e in data.train} & {e["prompt"] for e in data.validation}
    assert len(data.train) < 16


def test_the_choice_of_rows_is_the_seeds(jsonl: Path) -> None:
    def prints(seed: int, n: int) -> str:
        return load_data({"mine": dataset(jsonl, max_examples=n)}, seed, PLAIN).fingerprint

    assert prints(0, 8) == prints(0, 8)
    assert len({prints(0, 8), prints(1, 8), prints(0, 9)}) == 3


def test_fewer_rows_are_validated_on_the_same_text(jsonl: Path) -> None:
    few, many = (load_data({"mine": dataset(jsonl, max_examples=n)}, 0, PLAIN) for n in (4, 12))
    assert few.validation["prompt"] == many.validation["prompt"]
    assert few.train["prompt"] == many.train["prompt"][:4]


def test_several_datasets_are_put_together(jsonl: Path) -> None:
    chosen = {"a": dataset(jsonl, max_examples=3), "b": dataset(jsonl, max_examples=5)}
    data = load_data(chosen, seed=0, tokenizer=PLAIN)
    assert (len(data.train), len(data.validation)) == (8, 8)
    assert [(s.name, s.n_train, s.n_validation) for s in data.sources] == [("a", 3, 4), ("b", 5, 4)]


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_examples(
    ending: str, tmp_path: Path, jsonl: Path
) -> None:
    file = tmp_path / f"again.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(20)), file)
    elif ending == "csv":
        lines = [f'"{r["question"]}","",{r["reply"]}' for r in rows(20)]
        file.write_text("\n".join(["question,context,reply", *lines]))
    elif ending == "json":
        file.write_text(json.dumps(rows(20)))
    else:
        file.write_text(jsonl.read_text())
    assert len(sound_rows(dataset(file))) == 20
    wanted = load_data({"mine": dataset(jsonl)}, 0, PLAIN).fingerprint
    assert load_data({"mine": dataset(file)}, 0, PLAIN).fingerprint == wanted


@pytest.mark.parametrize(
    ("name", "content", "answer"),
    [
        ("absent.jsonl", None, "there is no file"),
        ("empty.jsonl", "", "has 0 row"),
        ("one.jsonl", '{"question": "a", "context": "", "reply": "b"}\n', "has 1 row"),
        ("torn.jsonl", '{"question": "a"', "row 1: cannot be read as JSON: Expecting ',' delimiter (column 17)"),
        ("list.jsonl", "[1, 2]\n", "row 1: it is not an object"),
        ("object.json", '{"a": 1}', "a list of objects is expected"),
        ("names.jsonl", '{"q": "a", "context": "", "reply": "b"}\n',
         "row 1: there is no column question; there are q, context"),
        ("blank.jsonl", '{"question": "a", "context": "", "reply": "b"}\n' * 2
         + '{"question": " ", "context": "", "reply": "b"}\n', "row 3: question is empty"),
        ("short.csv", "question,context,reply\na,b\n", "row 1: it has 2 fields, and the header has 3"),
        ("fake.parquet", "not parquet", "cannot be read as Parquet"),
    ],
)  # fmt: skip
def test_a_bad_file_is_answered_with_its_row(
    name: str, content: str | None, answer: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(RowError) as caught:
        check_file(dataset(file))
    assert answer in str(caught.value)


def test_plain_values_are_the_text_that_they_are_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    answers = ["0", "false", "1.50", "123456789012345678901234567890"]
    file.write_text("".join(f'{{"question": "a", "reply": {answer}}}\n' for answer in answers))
    assert [row["output"] for row in sound_rows(dataset(file, input=None))] == answers


def test_columns_that_are_not_used_may_hold_anything(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    unused = ["[1, {}]", '"\\ud800"', "9" * 5000, "null", "1"]
    file.write_text(
        "".join(f'{{"question": "a", "reply": "b", "notes": {note}}}\n' for note in unused)
    )
    assert len(sound_rows(dataset(file, input=None))) == 5
    table = pyarrow.table(
        {"question": ["a", "b"], "reply": ["c", "d"], "notes": [[b"\xff"], [b"\0"]]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert len(sound_rows(dataset(tmp_path / "rows.parquet", input=None))) == 2


@pytest.mark.parametrize("ending", ["JSONL", "json", "csv"])
def test_a_byte_order_mark_and_capitals_are_no_hindrance(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"rows.{ending}"
    lines = [json.dumps(row) for row in rows(4)]
    content = {
        "JSONL": "\r\n".join(lines),
        "json": f"[{','.join(lines)}]",
        "csv": "question,context,reply\r\n" + "a,,b\r\n" * 4,
    }
    file.write_bytes(b"\xef\xbb\xbf" + content[ending].encode())
    assert len(sound_rows(dataset(file))) == 4


def test_a_text_may_hold_the_name_of_a_slot(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    row = {
        "question": "What does {input} mean in {instruction}?",
        "context": "A {instruction}.",
        "reply": "A slot.",
    }
    file.write_text(f"{json.dumps(row)}\n" * 2 + json.dumps({**row, "reply": "Two."}))
    for template in ("alpaca", "Q: {instruction} I: {input}"):
        example = load_data({"mine": dataset(file, template=template)}, 0, PLAIN).validation[0]
        assert "What does {input} mean in {instruction}?" in example["prompt"]
        assert "A {instruction}." in example["prompt"]


def test_a_file_is_read_once_until_it_changes(jsonl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(
        "slimdown.data.rows.records", lambda file, columns: opened.append(file) or records(file)
    )
    for seed in range(3):
        load_data({"mine": dataset(jsonl, max_examples=seed + 1)}, seed, PLAIN)
    assert opened == [jsonl]
    jsonl.write_text(jsonl.read_text() + json.dumps(rows(1)[0]))
    data = load_data({"mine": dataset(jsonl)}, 0, PLAIN)
    assert len(data.train) + len(data.validation) == 21


def test_rows_are_in_the_order_that_datasets_shuffles(jsonl: Path) -> None:
    shuffled = Dataset.from_list(rows(20)).shuffle(seed=5)["reply"]
    data = load_data({"mine": dataset(jsonl)}, 5, PLAIN)
    taken = [*data.validation["completion"], *data.train["completion"]]
    assert [text.removesuffix("<eos>") for text in taken] == list(shuffled)


def test_the_embedded_instructions_are_there(composed: Callable[..., RunConfig]) -> None:
    data = load_data(composed().dataset, seed=0, tokenizer=PLAIN)
    assert (len(data.train), len(data.validation)) == (1500, 100)
