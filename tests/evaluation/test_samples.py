"""A file of samples gives back the evaluation that was written, or says that it is damaged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from builders import make_benchmark, make_choice

from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.evaluation.samples import DamagedSamples, read_samples, write_samples


@pytest.fixture
def evaluation() -> BenchmarkEvaluation:
    return make_benchmark([make_choice(taken, number) for number, taken in enumerate((0, 1, 1, 3))])


def test_what_is_written_is_read(evaluation: BenchmarkEvaluation, tmp_path: Path) -> None:
    huge = replace(evaluation.samples[3], doc_id=2**40)
    weights = {"task": 1.0}
    stopped = replace(
        evaluation,
        samples=(*evaluation.samples[:3], huge),
        looks=(2, 4),
        n_available=9,
        task_weights=weights,
    )
    for number, written in enumerate((evaluation, stopped)):
        write_samples(tmp_path / f"{number}.parquet", "base", "colours", written)
        assert read_samples(tmp_path / f"{number}.parquet", written.benchmark) == written
    rows = pq.read_table(tmp_path / "1.parquet").to_pylist()
    assert [row["answer"] for row in rows] == ["red", "green", "green", "grey"]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def change_a_score(file: Path) -> None:
    table = pq.read_table(file)
    column = table.schema.get_field_index("score")
    changed = table.set_column(column, "score", [[0.0] * len(table)])
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), file)


@pytest.mark.parametrize("spoil", [cut, change_a_score, Path.unlink, lambda f: f.write_text("no")])
def test_a_damaged_file_is_told_apart(
    spoil: Any, evaluation: BenchmarkEvaluation, tmp_path: Path
) -> None:
    file = tmp_path / "samples.parquet"
    write_samples(file, "base", "colours", evaluation)
    spoil(file)
    with pytest.raises(DamagedSamples):
        read_samples(file, evaluation.benchmark)
