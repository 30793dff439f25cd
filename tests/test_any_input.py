"""Whatever comes in, the answer is a sound value or a message; no other exception."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st

from slimdown.config.commandline import check_command_line
from slimdown.config.dataset import DatasetConfig
from slimdown.config.naming import flatten
from slimdown.config.schema import RunConfig
from slimdown.data.row_files import RowError
from slimdown.data.rows import check_file, rows_of
from slimdown.utils.errors import ConfigError

COLUMNS = ("question", "context", "reply")

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
names = st.sampled_from([*COLUMNS, "notes"]) | st.text(max_size=5)
objects = st.dictionaries(names, values, max_size=5) | st.fixed_dictionaries(
    dict.fromkeys(COLUMNS, values)
)
rows = st.lists(objects | values, max_size=6)


def parquet(table: pyarrow.Table) -> bytes:
    written = io.BytesIO()
    pyarrow.parquet.write_table(table, written)
    return written.getvalue()


SOUND = parquet(pyarrow.table({name: [f"{name} {i}" for i in range(50)] for name in COLUMNS}))
columns = st.one_of(
    *(
        st.lists(st.none() | kind, min_size=3, max_size=3)
        for kind in (st.text(), st.binary(), st.integers(0, 9))
    ),
    st.lists(st.lists(st.text(), max_size=2), min_size=3, max_size=3),
    st.lists(st.datetimes(), min_size=3, max_size=3),
    st.lists(st.floats(), min_size=3, max_size=3),
)


@st.composite
def damaged_tables(draw: st.DrawFn) -> bytes:
    """A sound table with some bytes changed, and perhaps its end lost."""
    content = bytearray(SOUND)
    for position in draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[position] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.just(len(content)) | st.integers(0, len(content)))])


@st.composite
def odd_tables(draw: st.DrawFn) -> bytes:
    """A table whose columns hold what they like; a name may come twice."""
    there = draw(st.lists(names, min_size=1, max_size=4)) + draw(
        st.sampled_from([[], list(COLUMNS)])
    )
    try:
        return parquet(
            pyarrow.Table.from_arrays([pyarrow.array(draw(columns)) for _ in there], names=there)
        )
    except (UnicodeEncodeError, pyarrow.ArrowException):  # Parquet cannot hold it
        assume(False)
        raise


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """The ending of a file, and what it holds: anything, or what it should hold with something wrong."""
    ending = draw(st.sampled_from(["json", "jsonl", "csv", "parquet", "JSONL"]))
    if draw(st.integers(0, 3)) == 0:
        return ending, draw(st.binary(max_size=200))
    if ending == "parquet":
        return ending, draw(damaged_tables() | odd_tables())
    if ending == "csv":
        lines = draw(st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=3), max_size=5))
        quoted = draw(st.booleans())
        cells = [
            ",".join(f'"{cell}"' if quoted else cell for cell in line) for line in [COLUMNS, *lines]
        ]
        return ending, "\n".join(cells).encode("utf-8", "surrogatepass")
    content = draw(rows)
    text = json.dumps(content) if ending == "json" else "\n".join(map(json.dumps, content))
    return ending, draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.encode()


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(files(), st.sampled_from([None, "context"]))
@example(("jsonl", b'{"question": 0, "context": [1], "reply": false}\n' * 2), None)
@example(
    (
        "jsonl",
        b'{"question": 123456789012345678901234567890, "context": "\\ud800", "reply": "b"}\n' * 2,
    ),
    None,
)
@example(("parquet", SOUND), "context")
def test_a_file_of_rows_loads_or_is_answered_with_a_row(
    tmp_path: Path, file: tuple[str, bytes], further: str | None
) -> None:
    ending, content = file
    path = tmp_path / f"rows.{ending}"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    config = DatasetConfig(str(path), instruction="question", input=further, output="reply")
    try:
        check_file(config)
        found = [row for _, row in rows_of(config)]
    except RowError as error:
        said = str(error).removeprefix(f"{path} ")
        assert "\n" not in said
        whole = (
            "" if ending.lower() in ("jsonl", "csv") else "|cannot be read as"
        )  # a file that has no rows yet
        assert re.match(rf"row \d+: |has \d row\(s\){whole}", said)
    else:
        assert len(found) >= 2
        for row in found:
            assert row["instruction"].strip()
            assert row["output"].strip()
            "".join(row.values()).encode()


KEYS = [
    "dataset.pocket_instructions", "benchmark.pocket_cs", "lora", "train", "model", "hydra.launcher", "hydra.run.dir",
    "hydra", "dataset", "~lora.r", "+lora.r", "++model.id", "lora@x", "x", "",
]  # fmt: skip


@st.composite
def overrides(draw: st.DrawFn) -> str:
    """A setting with any text for its value, as it is or in quotes; or any text."""
    key = draw(st.sampled_from(KEYS) | st.sampled_from(sorted(SETTINGS)))
    text = draw(st.text(max_size=12) | scalars.map(str) | values.map(str))
    quoted = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return draw(
        st.sampled_from(
            [
                f"{key}={text}",
                f"{key}={quoted}",
                f"{key}=[{quoted}]",
                f"{key}=choice({text},1)",
                text,
            ]
        )
    )


SETTINGS: set[str] = set()


@pytest.fixture
def known(composed: Callable[..., RunConfig]) -> None:
    SETTINGS.update(flatten(composed()))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), sweep=st.booleans())
def test_a_setting_composes_or_is_answered(
    known: None, data: Any, sweep: bool, composed: Callable[..., RunConfig]
) -> None:
    override = data.draw(overrides())
    assume(not override.startswith("-"))  # a flag
    try:
        check_command_line([*(["-m"] if sweep else []), override])
    except ConfigError:
        return
    if not sweep:
        assert isinstance(
            composed(override), RunConfig
        )  # what was found sound is what Hydra makes of it
