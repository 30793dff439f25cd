"""A file of samples gives back the evaluation that was written, or says that it is damaged."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from builders import make_benchmark, make_choice

from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.evaluation.samples import DamagedSamples, read_samples, write_samples
from slimdown.utils.errors import DataError


@pytest.fixture
def evaluation() -> BenchmarkEvaluation:
    return make_benchmark([make_choice(taken, number) for number, taken in enumerate((0, 1, 1, 3))])


def test_what_is_written_is_read(evaluation: BenchmarkEvaluation, tmp_path: Path) -> None:
    huge = replace(evaluation.samples[3], doc_id=2**40)
    stopped = replace(evaluation, samples=(*evaluation.samples[:3], huge), looks=(2, 4))
    stopped = replace(stopped, n_available=9, task_weights={"task": 1.0})
    for number, written in enumerate((evaluation, stopped)):
        write_samples(tmp_path / f"{number}.parquet", "base", "colours", written)
        assert read_samples(tmp_path / f"{number}.parquet", written.benchmark) == written
    rows = pq.read_table(tmp_path / "1.parquet").to_pylist()
    assert [row["answer"] for row in rows] == ["red", "green", "green", "grey"]


def rewrite(file: Path, gone: tuple[str, ...] = (), **changes: Any) -> None:
    """Write a file as another version would, with its own columns and what holds for all."""
    table = pq.read_table(file)
    facts = json.loads(table.schema.metadata[b"slimdown"]) | changes
    facts = {name: value for name, value in facts.items() if value is not None}
    table = table.drop_columns(list(gone)).append_column("new", [["x"] * len(table)])
    digest = sha256(json.dumps([table.to_pylist(), facts]).encode()).hexdigest()
    metadata = {"slimdown": json.dumps(facts), "digest": digest}
    pq.write_table(table.replace_schema_metadata(metadata), file)


def test_another_version_is_named(evaluation: BenchmarkEvaluation, tmp_path: Path) -> None:
    file = tmp_path / "samples.parquet"
    write_samples(file, "base", "colours", evaluation)
    assert read_samples(file, evaluation.benchmark) == evaluation
    for change, message in (
        ({"format": 2}, "format 2, .* format 1"),
        ({"gone": ("prompt_hash",)}, "another version .*prompt_hash"),
    ):
        write_samples(file, "base", "colours", evaluation)
        rewrite(file, **change)
        with pytest.raises(DataError, match=message):
            read_samples(file, evaluation.benchmark)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def change_a_score(file: Path) -> None:
    table = pq.read_table(file)
    column = table.schema.get_field_index("score")
    changed = table.set_column(column, "score", [[0.0] * len(table)])
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), file)


@pytest.mark.parametrize("spoil", [cut, change_a_score, Path.unlink, lambda f: f.write_text("no")])
def test_damage_is_told(spoil: Any, evaluation: BenchmarkEvaluation, tmp_path: Path) -> None:
    file = tmp_path / "samples.parquet"
    write_samples(file, "base", "colours", evaluation)
    spoil(file)
    with pytest.raises(DamagedSamples):
        read_samples(file, evaluation.benchmark)
