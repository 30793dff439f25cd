"""Files of rows as people have them: every row with its number, every fault in one line."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from slimdown.utils.errors import DataError
from slimdown.utils.row_files import iter_records

ROWS = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(3)]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    match file.suffix.lower():
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        case ".csv":
            lines = [",".join(f'"{value}"' for value in row.values()) for row in rows]
            file.write_text("\n".join([",".join(rows[0]), *lines]))
        case ".json":
            file.write_text(json.dumps(rows, indent=1))
        case _:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("ending", ["json", "jsonl", "JSONL", "csv", "parquet"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_kind_of_file_gives_the_same_rows(ending: str, mark: bytes, tmp_path: Path) -> None:
    file = write(tmp_path / f"rows.{ending}", ROWS)
    if ending != "parquet":
        file.write_bytes(mark + file.read_bytes().replace(b"\n", b"\r\n"))
    assert list(iter_records(file)) == list(enumerate(ROWS, start=1))


def test_a_json_file_may_hold_a_row_a_line(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS).rename(tmp_path / "rows.json")
    assert list(iter_records(file)) == list(enumerate(ROWS, start=1))


def test_cells_of_csv_stay_the_texts_that_they_are(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('a,b\n007,NA\n1.50,"two\nlines, ""quoted"""\n\n,null\n')
    rows = [{"a": "007", "b": "NA"}, {"a": "1.50", "b": 'two\nlines, "quoted"'}]
    assert [row for _, row in iter_records(file)] == [*rows, {"a": "", "b": "null"}]


def test_the_number_of_a_row_of_json_lines_is_that_of_its_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('\n{"a": 1}\n\n{"a": 2}')
    assert list(iter_records(file)) == [(2, {"a": 1}), (4, {"a": 2})]


def test_parquet_adds_no_keys_to_messages(tmp_path: Path) -> None:
    call = [{"function": {"name": "add", "arguments": {"x": 1}}}]
    turns = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "tool_calls": call}]
    file = write(tmp_path / "rows.parquet", [{"messages": turns}, {"messages": turns[:1]}])
    assert [row["messages"] for _, row in iter_records(file)] == [turns, turns[:1]]


BAD_ROWS = [
    ("torn.jsonl", '{"a": "b"', "it cannot be read as JSON: Expecting ',' delimiter: line 1 col"),
    ("deep.jsonl", "[" * 100_000, "it cannot be read as JSON: maximum recursion depth"),
    ("latin.jsonl", b'{"a": "\xe9"}', "it is not UTF-8 text (invalid continuation byte)"),
    ("wide.jsonl", '{"a": "b"}\n'.encode("utf-16"), "it is not UTF-8 text (invalid start"),
    ("nul.jsonl", b"\0" * 50, "it cannot be read as JSON"),
    ("short.csv", "a,b\nc\n", "it has 1 fields, and the header has 2"),
    ("long.csv", "a,b\nc,d,e\n", "it has 3 fields, and the header has 2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "answer"), BAD_ROWS)
def test_a_bad_row_is_answered_and_the_next_one_is_read(
    name: str, content: str | bytes, answer: str, tmp_path: Path
) -> None:
    file, sound = tmp_path / name, b'\n{"a": "b"}\n' if "jsonl" in name else b"c,d\n"
    file.write_bytes((content if isinstance(content, bytes) else content.encode()) + sound)
    first, *_, last = [record for _, record in iter_records(file)]
    assert isinstance(first, DataError)
    assert str(first).startswith(answer)
    assert name == "wide.jsonl" or last in ({"a": "b"}, {"a": "c", "b": "d"})


BAD_FILES = [
    ("absent.jsonl", None, "there is no such file; a relative path starts at /"),
    ("list.json", '[{"a": 1}, {"a" 2}]', "row 1: it cannot be read as json: Expecting ':'"),
    ("latin.csv", b"a,b\n\xe9,c\n", "it is not UTF-8 text (invalid continuation byte); save it"),
    ("quote.csv", 'a,b\n"c"d,e\n', "row 1: it cannot be read as csv: ',' expected after '\"'"),
    ("open.csv", 'a,b\nc,d\n"e,f\n', "row 2: it cannot be read as csv: unexpected end of data"),
    ("huge.csv", f"a,b\nc,{'d' * 200_000}\n", "row 1: it cannot be read as csv: field larger than"),
    ("twice.csv", "a,b,a\nc,d,e\n", "the column a stands there twice; keep one"),
    ("fake.parquet", "not parquet", "row 1: it cannot be read as parquet: "),
    ("empty.parquet", "", "row 1: it cannot be read as parquet: "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "answer"), BAD_FILES)
def test_bad_files_are_told(
    name: str, content: str | bytes | None, answer: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        list(iter_records(tmp_path / name))
    assert str(caught.value).startswith(answer)
    assert "\n" not in str(caught.value)


def test_a_time_zone_that_is_none_is_answered(tmp_path: Path) -> None:
    times = pyarrow.array([0], pyarrow.timestamp("s", tz="No/Where"))
    pyarrow.parquet.write_table(pyarrow.table({"when": times}), tmp_path / "times.parquet")
    with pytest.raises(DataError, match=r"row 1: .*parquet.*No/Where"):
        list(iter_records(tmp_path / "times.parquet"))


def test_a_folder_and_a_pipe_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")  # reading it would wait for ever
    for name in ("folder.json", "pipe.json"):
        with pytest.raises(DataError, match="no such file"):
            list(iter_records(tmp_path / name))
