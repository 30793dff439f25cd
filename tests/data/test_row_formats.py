"""Rows become TRL's: each is checked, and keeps its tools and template arguments."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from slimdown.config.dataset_config import DatasetConfig, RowFormat
from slimdown.data.row_checks import check_row_files
from slimdown.data.row_formats import detect_format, format_row
from slimdown.training.written_rows import read_prompts
from slimdown.utils.errors import DataError

TURNS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]


def convert(record: Any, **changes: Any) -> dict[str, Any]:
    config = DatasetConfig("rows.jsonl", **changes)
    return format_row(record, config, detect_format(config, [(1, record)]))


@pytest.mark.parametrize(
    ("columns", "changes", "format_"),
    [
        ("instruction output", {}, "instruction"),
        ("instruction output text messages", {}, "instruction"),  # Alpaca has a text, too
        ("question answer", {}, "instruction"),  # which answers that they are to be named
        ("messages text", {"template": "chat"}, "instruction"),
        ("prompt completion", {"instruction": "prompt"}, "instruction"),
        ("prompt completion messages", {}, "prompt_completion"),  # as in TRL
        ("prompt messages prompt_id", {}, "messages"),
        ("id conversations", {}, "messages"),
        ("text label", {}, "text"),
        ("instruction text", {}, "text"),
        ("instruction output text", {"format": RowFormat.text}, "text"),
    ],
)
def test_columns_show_the_format(columns: str, changes: dict[str, Any], format_: str) -> None:
    record = dict.fromkeys(columns.split(), "")
    config = DatasetConfig("rows.jsonl", **changes)
    assert detect_format(config, [(1, DataError("torn")), (2, record)]) == format_


def test_instructions_are_put_into_the_alpaca_prompt() -> None:
    record = {"instruction": "Add.", "input": "1, 2", "output": 3}
    row = convert({**record, "input": ""}, input="input")
    assert row["prompt"].startswith("Below is an")
    assert row["prompt"].endswith("\n\n### Instruction:\nAdd.\n\n### Response:\n")
    assert row["completion"] == "3"
    row = convert(record, input="input")
    assert ", paired with an" in row["prompt"]
    assert row["prompt"].endswith(":\n1, 2\n\n### Response:\n")


def test_a_template_of_ones_own_gets_a_space_before_the_answer() -> None:
    record = {"instruction": "Why {input}?", "input": "A {instruction}.", "output": "So."}
    row = convert(record, input="input", template="Q:{instruction}|{input}|A:")
    assert row["prompt"] == "Q:Why {input}?|A {instruction}.|A:"  # a text may name a slot
    assert row["completion"] == " So."
    with pytest.raises(DataError, match=r"\{context\}; set input=context"):
        convert({**record, "context": "x"}, template="{context} {instruction}")


def test_instructions_in_the_chat_template_are_messages() -> None:
    record = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    row = convert(record, input="input", template="chat")
    assert row["prompt"] == [{"role": "user", "content": "Add.\n\n1, 2"}]
    assert row["completion"] == [{"role": "assistant", "content": "3"}]


def test_plain_values_become_texts() -> None:
    large = 10**310  # for a float
    texts = [convert({"text": value})["text"] for value in (0, False, 1.5, large)]
    assert texts == ["0", "false", "1.5", str(large)]
    assert convert({"text": "a", "notes": [b"\xff", None]}) == {"text": "a"}  # not used


def test_sharegpt_speaks_in_the_roles_of_chat_templates() -> None:
    turns = [{"from": "system", "value": ""}, {"from": "human", "value": "What?"}]
    row = convert({"conversations": [*turns, {"from": "gpt", "value": "That."}]})
    assert row == {"messages": [{"role": "system", "content": ""}, *TURNS]}


def test_tools_and_template_arguments_are_handed_on() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    row = {"messages": TURNS, "tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    assert convert({**row, "id": 7}) == row
    texts = {name: json.dumps(row[name]) for name in ("tools", "chat_template_kwargs")}
    assert convert({**row, **texts}) == row
    assert convert({**row, "tools": "", "chat_template_kwargs": None}) == {"messages": TURNS}
    pair = {"prompt": TURNS[:1], "completion": TURNS[1:], "tools": tools}
    assert convert(pair) == pair
    assert convert({"text": "a", "tools": "b"}) == {"text": "a"}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    for known in ({}, {"tools": tools}):
        messages = convert({"messages": [TURNS[0], call], **known})["messages"]
        assert messages[1] == {**call, "content": ""}


TOOLS = [{"type": "function", "function": {"name": "add"}}, {"name": "halve"}]
BAD: list[tuple[Any, str]] = [
    ([1, 2], "it is a list, not an object with named values"),
    ({"question": 1, "answer": 2}, "there is no column instruction; there are question"),
    ({"instruction": " ", "output": "a"}, "instruction is empty; fill it or remove the row"),
    ({"instruction": "a", "output": None}, "output is empty"),
    ({"instruction": "a", "output": "\u200d\u200b"}, "output is empty"),
    ({"instruction": "a", "output": float("nan")}, "output holds nan; a text or a finite number"),
    ({"instruction": "a", "output": float("inf")}, "output holds inf; a text or a finite number"),
    ({"instruction": "a", "output": {"b": 1}}, "output holds a value of type dict; a text"),
    ({"text": b"a"}, "text holds a value of type bytes; a text"),
    ({"text": "\ud800"}, "it holds something that is no text: 'utf-8' codec can't encode"),
    ({"text": "a\0b"}, "it holds a NUL character; remove it"),
    ({"prompt": "a", "completion": TURNS[1:]}, "one of prompt and completion is a text, and"),
    ({"prompt": [], "completion": TURNS[1:]}, "prompt is no list of messages, each with"),
    ({"messages": "hello"}, "messages is no list of messages, each with role and content"),
    ({"messages": []}, "messages is no list of messages"),
    ({"messages": ["hello"]}, "message 1 of messages has no role and content"),
    ({"messages": [{"role": "user"}]}, "message 1 of messages has no content"),
    ({"messages": [*TURNS, {"role": "", "content": "a"}]}, "message 3 of messages has no role"),
    ({"messages": [TURNS[0], {**TURNS[1], "content": " "}]}, "the assistant says nothing in it"),
    ({"messages": TURNS[:1]}, "the assistant says nothing in it, so there is nothing to learn"),
    ({"messages": [{"role": "user", "content": [1]}]}, "message 1 of messages holds a value of"),
    ({"messages": TURNS, "tools": "[1"}, "tools cannot be read as JSON: Expecting ',' delimiter"),
    ({"messages": TURNS, "tools": {"a": 1}}, "tools is a dict; list is expected"),
    (
        {"messages": [*TURNS, {**TURNS[1], "tool_calls": [{"name": "x"}]}], "tools": TOOLS},
        "it calls 'x', which is not in tools (add, halve); correct one",
    ),
    ({"messages": TURNS, "chat_template_kwargs": {"x": 1e999}}, "it holds something that is no"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "answer"), BAD)
def test_a_row_that_cannot_be_trained_on_is_answered(record: Any, answer: str) -> None:
    with pytest.raises(DataError) as caught:
        convert(record)
    assert str(caught.value).startswith(answer)


def test_source_code_that_writes_a_nul_character_as_an_escape_is_a_text() -> None:
    text = r"if c == '\u0000' or c == '\\\u0000':"
    assert convert({"text": text}) == {"text": text}
    with pytest.raises(DataError, match="NUL character"):
        convert({"text": text + "\\\0"})


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', "row 2: it cannot be read as JSON"),
        ('{"prompt": "a"}\n{"text": "b"}\n', "row 2: it has no text in prompt"),
        ("[1]\n", "row 1: it has no text in prompt"),
        ("", "it is empty"),
    ],
)
def test_prompts_without_a_text_are_answered(content: str, answer: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(DataError, match=answer):
        read_prompts(str(tmp_path / "p.jsonl"))


def test_rows_of_the_hub_may_be_empty() -> None:
    row = format_row({"text": ""}, DatasetConfig("owner/name"), RowFormat.text)
    assert row == {"text": ""}


def write(folder: Path, rows: list[Any]) -> DatasetConfig:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return DatasetConfig(str(file))


def test_the_first_rows_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    config = write(tmp_path, [{"text": "a"}, {"text": "b"}, "{torn"])
    [problem] = check_row_files({"mine": config, "hub": DatasetConfig("owner/name")})
    assert problem.startswith(f"dataset.mine: {config.path}: row 3: ")
    config.skip_bad_rows = True
    assert not list(check_row_files({"mine": config}))
    config = write(tmp_path, [{"text": "a"}, "", "{torn"])
    config.skip_bad_rows = True
    [problem] = check_row_files({"m": config})
    assert "it has 1 row(s)" in problem
    for content, answer in (("", "0 row(s) to train on"), (None, "there is no such file")):
        Path(config.path).unlink() if content is None else Path(config.path).write_text(content)
        assert answer in next(check_row_files({"mine": config}))
    config = write(tmp_path, [*({"text": f"{i}"} for i in range(100)), "{torn"])
    assert not list(check_row_files({"mine": config}))  # the hundred are sound


names = st.sampled_from(["messages", "conversations", "prompt", "completion", "text", "tools"])
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
keys = st.sampled_from(["role", "content", "from", "value", "tool_calls"])
roles = st.sampled_from(["user", "assistant"])
turns = st.lists(st.fixed_dictionaries({"role": roles, "content": plain}))
values = plain | st.lists(plain | st.dictionaries(keys, plain, max_size=3), max_size=3) | turns


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.dictionaries(names, values, max_size=3), max_size=5), st.sampled_from(RowFormat))
def test_any_rows_are_sound_or_told(tmp_path: Path, rows: list[Any], format_: RowFormat) -> None:
    config = write(tmp_path, rows)
    config.format = format_
    for problem in check_row_files({"mine": config}):
        assert problem.startswith(f"dataset.mine: {config.path}: ")
        assert "\n" not in problem
        assert "row " in problem or "row(s)" in problem
