"""Rows as people have them: known by their columns, mixed by weight, read a thousand at a time, bad ones skipped."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from slimdown.config.dataset import DatasetConfig, RowFormat, mixture_problem
from slimdown.data.loading import SftData, load_data
from slimdown.data.row_files import RowError, records
from slimdown.data.rows import check_file, rows_of
from slimdown.models import on_disk
from slimdown.utils.errors import SlimdownError


class Chat(SimpleNamespace):
    """A tokenizer as far as rows are made of it; its template takes turns that alternate."""

    def apply_chat_template(self, turns: list[dict[str, str]], **settings: Any) -> str:
        roles = [turn["role"] for turn in turns if turn["role"] != "system"]
        if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2):
            raise ValueError("roles must alternate")
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in turns)


TOKENIZER = Chat(eos_token="<eos>", bos_token=None, chat_template="there is one")
TURNS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
SHARE_GPT = [
    {"from": "system", "value": ""},
    {"from": "human", "value": "What?"},
    {"from": "gpt", "value": "That."},
]


def jsonl(folder: Path, rows: list[Any], name: str = "rows") -> Path:
    file = folder / f"{name}.jsonl"
    file.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return file


def loaded(file: Path, tokenizer: Any = TOKENIZER, **more: Any) -> SftData:
    return load_data(
        {"mine": DatasetConfig(str(file), **{"validation_examples": 1, **more})}, 0, tokenizer
    )


@pytest.mark.parametrize(
    ("columns", "settings", "format_"),
    [
        (("instruction", "output"), {}, "instruction"),
        (
            ("instruction", "output", "text", "messages"),
            {},
            "instruction",
        ),  # Alpaca has a text, too
        (("question", "answer"), {}, "instruction"),  # which says that they are to be named
        (("messages", "text"), {"template": "chat"}, "instruction"),
        (("prompt", "completion"), {"instruction": "prompt"}, "instruction"),
        (("prompt", "completion", "messages"), {}, "prompt_completion"),  # as in TRL
        (("prompt", "messages", "prompt_id"), {}, "messages"),
        (("id", "conversations"), {}, "messages"),
        (("text", "label"), {}, "text"),
        (("instruction", "text"), {}, "text"),
        (("instruction", "output", "text"), {"format": RowFormat.text}, "text"),
    ],
)
def test_the_format_is_known_by_the_columns(
    columns: tuple[str, ...], settings: dict[str, Any], format_: str
) -> None:
    assert DatasetConfig("rows.jsonl", **settings).format_of(columns).value == format_


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_a_conversation_is_the_same_from_every_file_and_in_sharegpts_words(
    ending: str, tmp_path: Path
) -> None:
    found = []
    for column, turns in (
        ("messages", [{"role": "system", "content": ""}, *TURNS]),
        ("conversations", SHARE_GPT),
    ):
        rows = [{"id": i, column: turns[i % 2 :]} for i in range(4)]
        file = tmp_path / f"{column}.{ending}"
        if ending == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        else:
            file.write_text(
                "\n".join(map(json.dumps, rows)) if ending == "jsonl" else json.dumps(rows)
            )
        data = loaded(file)
        found.append((data.train["messages"][:], data.fingerprint))
    assert found[0] == found[1]
    assert {"role": "assistant", "content": "That."} in found[0][0][0]


def test_texts_end_once_in_the_end_of_the_sequence(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path,
        [{"text": "a tale"}, {"text": "a tale that ends<eos>"}, {"text": "1.50"}, {"text": 1.5}],
    )
    data = loaded(file)
    texts = {*data.train["text"][:], *data.validation["text"][:]}
    assert texts == {"a tale<eos>", "a tale that ends<eos>", "1.50<eos>", "1.5<eos>"}
    pairs = loaded(
        jsonl(tmp_path, [{"prompt": f"p{i} ", "completion": "c<eos>"} for i in range(3)], "pairs")
    ).train
    assert set(pairs["completion"][:]) == {"c<eos>"}
    assert all(
        prompt.startswith("p") for prompt in pairs["prompt"][:]
    )  # as they are, in no template


def test_a_row_knows_where_it_comes_from(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path, ["", *({"text": f"line {i}"} for i in range(2, 9)), "", {"text": "line 10"}]
    )
    [batch] = loaded(file).texts()
    assert len(batch) == 7
    assert all(text == ("mine", int(text.text[5:-5]), f"line {text.row}<eos>") for text in batch)


BAD: list[tuple[Any, str]] = [
    ({"messages": "hello"}, "messages is no list of messages, each with role and content"),
    ({"messages": []}, "messages is empty"),
    ({"messages": [{"role": "user"}]}, "messages message 1 has no role and content"),
    ({"messages": ["hello"]}, "messages message 1 has no role and content"),
    ({"messages": [*TURNS, {"role": "", "content": "a"}]}, "messages message 3 has no role"),
    ({"messages": [TURNS[0], {"role": "assistant", "content": " "}]}, "messages is empty"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages message 1 holds a list; a text"),
    ({"messages": [{"role": "user", "content": b"a".hex() * 600_000}]}, "messages message 1 has 1,200,000 characters"),
    ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "messages message 1 is there twice; keep one"),
    ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "messages message 1 holds half a character"),
    ({"messages": [TURNS[0], {**TURNS[1], "tool_calls": [{}]}]}, "message 2 has tool_calls; turns of text are trained"),
    ({"message": TURNS}, "there is no column messages; there are message; format=messages needs it"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "answer"), BAD, ids=[answer for _, answer in BAD])
def test_a_conversation_that_is_none_is_answered_with_its_row(
    row: Any, answer: str, tmp_path: Path
) -> None:
    file = jsonl(tmp_path, [{"messages": TURNS}] * 2 + [row])
    with pytest.raises(RowError) as caught:
        check_file(DatasetConfig(str(file)))
    assert str(caught.value).startswith(f"{file} row 3: ")
    assert answer in str(caught.value)
    data = loaded(
        jsonl(tmp_path, [{"messages": TURNS}, {"messages": [TURNS[0]]}, row], "skipped"),
        skip_bad_rows=True,
    )
    assert (data.n_skipped, len(data.train), len(data.validation)) == (1, 1, 1)


def test_prompts_are_texts_or_messages_in_all_rows(tmp_path: Path) -> None:
    texts, messages = (
        {"prompt": "a", "completion": "b"},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
    )
    with pytest.raises(
        RowError, match="row 2: prompts are texts in some rows and lists of messages in others"
    ):
        check_file(DatasetConfig(str(jsonl(tmp_path, [texts, messages]))))
    with pytest.raises(
        RowError, match="row 1: prompt and completion are a text and a list of messages; make both"
    ):
        check_file(
            DatasetConfig(str(jsonl(tmp_path, [{**texts, "completion": TURNS[1:]}] * 2, "both")))
        )


def test_what_the_chat_template_does_not_take_is_answered_with_its_row_or_skipped(
    tmp_path: Path,
) -> None:
    file = jsonl(
        tmp_path, [{"messages": TURNS}, {"messages": TURNS[::-1]}, {"messages": TURNS * 2}]
    )
    with pytest.raises(
        SlimdownError,
        match=r"rows\.jsonl row 2: the chat template does not take .*roles must alternate",
    ):
        loaded(file)
    assert loaded(file, skip_bad_rows=True).n_skipped == 1
    with pytest.raises(
        SlimdownError,
        match=r"dataset\.mine\.format=messages: this model's tokenizer has no chat template",
    ):
        loaded(file, SimpleNamespace(eos_token="<eos>", bos_token=None, chat_template=None))


def test_bad_rows_are_skipped_and_counted_by_wish_alone(tmp_path: Path) -> None:
    rows = [{"text": f"sound {i}"} for i in range(8)]
    rows[2:2] = ["{torn", {"text": ""}, {"tex": "a"}, "[1]"]  # type: ignore[list-item]
    file = jsonl(tmp_path, rows)
    with pytest.raises(
        SlimdownError, match=r"dataset\.mine: .*rows\.jsonl row 3: cannot be read as JSON"
    ):
        loaded(file)
    data = loaded(file, skip_bad_rows=True)
    sound = loaded(
        jsonl(tmp_path, [row for row in rows if isinstance(row, dict) and row.get("text")], "sound")
    )
    assert (data.n_skipped, sound.n_skipped) == (4, 0)
    assert data.fingerprint == sound.fingerprint
    assert str(data.sources[0]).endswith(
        "7 rows to train on, 1 held out; 4 cannot be trained on and were skipped"
    )
    with pytest.raises(
        SlimdownError,
        match=r"has 1 row\(s\).*; of those that were skipped the first is .* row 2: cannot",
    ):
        loaded(jsonl(tmp_path, [{"text": "a"}, "{torn"], "one"), skip_bad_rows=True)


def test_a_bad_row_behind_the_first_is_found_when_the_file_is_read(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [*({"text": f"sound {i}"} for i in range(1200)), {"text": ""}])
    check_file(DatasetConfig(str(file)))  # the first thousand are sound
    with pytest.raises(SlimdownError, match=r"rows\.jsonl row 1201: text is empty"):
        loaded(file)


def mixture(folder: Path, weights: dict[str, float | None], seed: int = 0) -> SftData:
    chosen = {}
    for name, weight in weights.items():
        file = jsonl(folder, [{"text": f"{name} {i}"} for i in range(310)], name)
        chosen[name] = DatasetConfig(str(file), validation_examples=10, weight=weight)
    assert mixture_problem(chosen) is None
    return load_data(chosen, seed, TOKENIZER)


def test_weights_are_shares_until_a_dataset_is_exhausted(tmp_path: Path) -> None:
    data = mixture(tmp_path, {"a": 3.0, "b": 1.0})
    rows = data.train["text"][:]
    count = Counter(data.train["dataset"][:])
    assert len(set(rows)) == len(rows)  # none twice
    assert count["a"] == 300
    assert 70 < count["b"] < 130  # a third of them, as the seed draws
    assert {source.name: source.n_train for source in data.sources} == dict(count)
    apart = [[text for text in rows if text.startswith(name)] for name in "ab"]
    unmixed = mixture(tmp_path, {"a": None, "b": None})
    assert (
        unmixed.train["text"][:]
        == [f for part in apart[:1] for f in part] + unmixed.train["text"][300:]
    )
    assert apart[1] == unmixed.train["text"][300 : 300 + count["b"]]  # each in its own order
    stock = [
        datasets.Dataset.from_dict({"text": unmixed.train["text"][i : i + 300]}) for i in (0, 300)
    ]
    assert (
        rows == datasets.interleave_datasets(stock, probabilities=[0.75, 0.25], seed=0)["text"][:]
    )


def test_a_weight_changes_nothing_of_what_is_held_out(tmp_path: Path) -> None:
    parts = [mixture(tmp_path, {"a": 1.0, "b": b}) for b in (0.0, 0.5, 3.0)]
    assert len({tuple(data.validation["text"][:]) for data in parts}) == 1
    assert set(parts[0].train["dataset"][:]) == {"a"}  # a weight of 0 is no row
    assert len({data.fingerprint for data in parts}) == 3
    again, other = (
        mixture(tmp_path, {"a": 1.0, "b": 0.5}),
        mixture(tmp_path, {"a": 1.0, "b": 0.5}, seed=1),
    )
    assert again.fingerprint == parts[1].fingerprint != other.fingerprint


def test_a_mixture_of_nothing_is_refused() -> None:
    def problem(**weights: float | None) -> str | None:
        return mixture_problem(
            {name: DatasetConfig("a.jsonl", weight=w) for name, w in weights.items()}
        )

    assert problem(a=None, b=None) is None
    assert problem(a=0.0, b=1.0) is None
    assert problem(a=0.0, b=0.0) == (
        "dataset.a.weight=0, dataset.b.weight=0: a mixture of nothing; give one of them a weight above 0"
    )
    assert str(problem(a=1.0, b=None)).startswith(
        "dataset.b.weight is not set, and others have one"
    )


@pytest.mark.parametrize("chunk", [1, 7, 2**16])
def test_a_json_list_is_read_member_by_member(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slimdown.data.row_files._CHUNK", chunk)
    rows = [{"a": "[{é]", "b": 1.50, "c": [{"d": None}], "e": "\\"}, {}, {"a": "x" * 50}]
    file = tmp_path / "rows.json"
    for indent in (None, 1):
        file.write_text(f" {json.dumps(rows, indent=indent, ensure_ascii=False)}\n")
        found = dict(records(file))
        assert list(found) == [1, 2, 3]
        assert found[1] == {"a": "[{é]", "b": "1.5", "c": [{"d": None}], "e": "\\"}
    for content, answer in (
        ('[{"a": 1}, {"a" 2}]', "Expecting ':' delimiter (column 17)"),
        ('[{"a": 1},\n  {"a": 2} {"a": 3}]', "Expecting ',' delimiter (line 2, column 12)"),
        ('[{"a": 1}] x', "Extra data (column 12)"),
        ('[{"a": 1}', "Expecting ',' delimiter (column 10)"),
        ('[{"a": "b', "Unterminated string starting at (column 8)"),
        ("", "Expecting value (column 1)"),
    ):
        file.write_text(content)
        with pytest.raises(RowError) as caught:
            list(records(file))
        assert str(caught.value) == f"cannot be read as JSON: {answer}"


ENDLESS = {
    "jsonl": ("", '{{"text": "row {i}"}}\n'),
    "json": ("[", '{{"text": "row {i}"}},\n'),
    "csv": ("text\n", '"row {i}"\n'),
}


@pytest.mark.parametrize("ending", ENDLESS)
def test_a_gigabyte_is_checked_by_its_beginning(ending: str, tmp_path: Path) -> None:
    begin, line = ENDLESS[ending]
    file = tmp_path / f"rows.{ending}"
    file.write_text(begin + "".join(line.format(i=i) for i in range(3000)))
    os.truncate(file, 2**30)  # zeros, which are no rows
    before = time.process_time()
    check_file(DatasetConfig(str(file)))
    assert time.process_time() - before < 0.5


MEASURED = """
import resource, sys
from slimdown.data.loading import load_data
from slimdown.config.dataset import DatasetConfig
from types import SimpleNamespace
data = load_data({"mine": DatasetConfig(sys.argv[1], validation_examples=1)}, 0, SimpleNamespace(eos_token="<eos>"))
n = sum(len(batch) for batch in data.texts())
print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_many_rows_take_the_memory_of_few(tmp_path: Path) -> None:
    held = []
    for n in (1_000, 60_000):  # 60 MB, which as Python's objects are 100
        file = tmp_path / f"{n}.jsonl"
        with file.open("w") as rows:
            for i in range(n):
                rows.write(f'{{"prompt": "{i} {"word " * 150}", "completion": "{"more " * 40}"}}\n')
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, file], capture_output=True, text=True, check=True
        )
        counted, megabytes = map(int, done.stdout.split())
        assert counted == n - 1
        held.append(megabytes)
    assert held[1] - held[0] < 100


"""What was read is let go of."""


def test_reading_in_batches_gives_every_row_once_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_disk, "_MAPPED", 2000)
    schema = pyarrow.schema({"row": pyarrow.int64()})
    rows = on_disk.written(({"row": i} for i in range(5500)), schema, tmp_path / "rows.arrow")
    shuffled = rows.shuffle(seed=1)
    assert [record["row"] for record in on_disk.records(shuffled)] == shuffled["row"][:]
    assert len(on_disk.written([], schema, tmp_path / "none.arrow")) == 0


names = st.sampled_from(["messages", "conversations", "prompt", "completion", "text", "role"])
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
turns = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value", "tool_calls"]), plain, max_size=3
)
sound_turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": plain})
)
values = plain | st.lists(plain | turns, max_size=3) | sound_turns


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.dictionaries(names, values, max_size=3), max_size=5),
    st.sampled_from(list(RowFormat)),
)
def test_any_rows_are_read_or_answered_with_a_row(
    tmp_path: Path, rows: list[Any], format_: RowFormat
) -> None:
    config = DatasetConfig(str(jsonl(tmp_path, rows)), format=format_, validation_examples=1)
    try:
        check_file(config)
    except RowError as error:
        refused = str(error)
    else:
        refused = ""
    assert "\n" not in refused
    assert not refused or " row " in refused or "row(s)" in refused
    if refused:
        return
    sound = [row for _, row in rows_of(config)]
    assert not any(isinstance(row, RowError) for row in sound)
    if len({json.dumps(row, sort_keys=True) for row in sound}) == len(
        sound
    ):  # none is held out and left out
        written = SimpleNamespace(
            eos_token="<eos>",
            bos_token=None,
            chat_template="one",
            apply_chat_template=lambda turns, **_: "written",
        )
        data = load_data({"mine": config}, 0, written)
        assert len(data.train) + len(data.validation) == len(sound)
