"""Entries of Every Eval Ever beside the logs of lm_eval that its converter made them from."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import Capture, unpack_logs
from replayed_answers import assert_refused, write_logs

from slimdown.commands import verdict
from slimdown.evaluation.logs.read_logs import find_logs, read_logs
from slimdown.judging.findings import judge
from slimdown.utils.errors import DataError

UUID = "f3a1c0de-4b2e-4c1a-9f6d-1b7e5a2c8d40"
Change = Callable[[dict[str, Any], list[dict[str, Any]]], object]


def write_entry(
    folder: Path, summary: dict[str, Any], lines: list[dict[str, Any]], name: str = UUID
) -> Path:
    """Write an entry with the checksum and the number of its lines."""
    folder.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / f"{name}_samples.jsonl").write_text(content)
    if summary.get("detailed_evaluation_results"):
        details = summary["detailed_evaluation_results"]
        details |= {"checksum": hashlib.sha256(content.encode()).hexdigest()}
        details |= {"total_rows": len(lines), "hash_algorithm": "sha256"}
    (folder / f"{name}.json").write_text(json.dumps(summary))
    return folder


def make_entry(scores: list[float]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make an entry as no converter of lm_eval writes it: two metrics, one the less the better.

    It has the fields of schema 0.3 that are read.
    """
    results = [
        {
            "evaluation_result_id": f"arithmetic.{metric}",
            "evaluation_name": "arithmetic",
            "metric_config": {"metric_id": metric, "lower_is_better": metric == "distance"},
        }
        for metric in ("accuracy", "distance")
    ]
    summary = {
        "schema_version": "0.3.0",
        "evaluation_id": "arithmetic/made/model/1750000000",
        "retrieved_timestamp": "1750000001",
        "eval_library": {"name": "mine", "version": "2"},
        "model_info": {"name": "model", "id": "made/model"},
        "evaluation_results": results,
        "detailed_evaluation_results": {"format": "jsonl", "file_path": f"{UUID}_samples.jsonl"},
    }
    lines = [
        {
            "evaluation_id": summary["evaluation_id"],
            "evaluation_name": "arithmetic",
            "evaluation_result_id": result["evaluation_result_id"],
            "sample_id": f"q{number}",
            "input": {"raw": f"{number} + 1 =", "reference": [str(number + 1)]},
            "output": {"raw": [str(number + 1) if score else "?"]},
            "evaluation": {"score": score},
            "metadata": {"subject": "even" if number % 2 else "odd"},
        }
        for number, score in enumerate(scores)
        for result in results
    ]
    return summary, lines


def test_an_entry_has_the_findings_of_the_log_that_it_was_made_from(tmp_path: Path) -> None:
    """Choices, filters, two metrics and an adapter.

    Entries hold no likelihoods and no unfiltered text, so two scores of slimdown's own are missing.
    """
    own_scores = {"p_right", "flexible_accuracy"}
    write_logs("every_eval_ever", tmp_path)
    log_base, log_tuned = map(read_logs, unpack_logs(tmp_path / "logs"))
    base, tuned = (read_logs(tmp_path / "pocket" / side) for side in ("base", "tuned"))
    assert (base.model, tuned.model) == (log_base.model, log_tuned.model)
    assert (base.harness_version, base.backend) == ("lm_eval 0.4.13", "transformers")
    expected, found = judge(log_base, log_tuned), judge(base, tuned)
    assert found.benchmarks.keys() == expected.benchmarks.keys()
    for name, benchmark in expected.benchmarks.items():
        change = found.benchmarks[name]
        assert change.changes.keys() == benchmark.changes.keys() - own_scores
        for metric in change.changes:
            assert change.changes[metric] == benchmark.changes[metric], (name, metric)
        values = "metric chance margin verdict shown_change n_to_decide p_value"
        for value in values.split():
            assert getattr(change, value) == getattr(benchmark, value), (name, value)
    counts = found.benchmarks["pocket_math"].primary.counts
    assert (counts.lost, counts.gained) == (31, 0)


def test_entries_are_found_from_any_folder(tmp_path: Path) -> None:
    base, _ = write_logs("every_eval_ever", tmp_path)
    [file] = (base / "sums").rglob("*.json")
    samples = file.with_name(f"{file.stem}_samples.jsonl")
    assert set(read_logs(base).benchmarks) == {"sums", "words"}
    for path in (base / "sums", base / "sums/made/base", file, samples):
        assert find_logs(path)[0] == "Every Eval Ever"
        assert set(read_logs(path).benchmarks) == {"sums"}


def test_scores_of_other_tools_are_read_by_metric(tmp_path: Path) -> None:
    summary, lines = make_entry([1.0, 0.0, 1.0, 0.0])
    lines += [line | {"evaluation": {"score": 0.0}} for line in lines[:2]]  # q0 was asked twice
    evaluation = read_logs(write_entry(tmp_path, summary, lines))
    [(name, benchmark)] = evaluation.benchmarks.items()
    made_by = (evaluation.model, evaluation.harness_version)
    assert (name, *made_by) == ("arithmetic", "made/model", "mine 2")
    assert benchmark.benchmark.metric == "accuracy"
    assert benchmark.scores_of("accuracy") == [0.5, 0.0, 1.0, 0.0]
    sample = benchmark.samples[1]
    assert set(sample.scores) == {"accuracy"}
    assert (sample.prompt, sample.target, sample.response) == ("1 + 1 =", "2", "?")
    assert sample.category == "even"


def test_the_last_message_of_a_conversation_is_its_answer(tmp_path: Path) -> None:
    summary, lines = make_entry([1.0, 0.0])
    messages = [{"turn_idx": 0, "role": "assistant", "content": "first"}]
    messages += [{"turn_idx": 1, "role": "tool", "content": "4"}]
    messages += [{"turn_idx": 2, "role": "assistant", "content": "last"}]
    for line in lines:
        line |= {"output": None, "messages": messages}
    [benchmark] = read_logs(write_entry(tmp_path, summary, lines)).benchmarks.values()
    assert {sample.response for sample in benchmark.samples} == {"last"}


def test_the_newest_entry_of_a_benchmark_is_read(tmp_path: Path) -> None:
    for scores, date, name in (([1.0, 1.0], "2", "0" + UUID[1:]), ([0.0, 0.0], "1", UUID)):
        summary, lines = make_entry(scores)
        write_entry(tmp_path, summary | {"retrieved_timestamp": date}, lines, name)
    notes: list[str] = []
    evaluation = read_logs(tmp_path, on_note=notes.append)
    assert evaluation.benchmarks["arithmetic"].score.value == 1
    assert "the newest are read" in notes[0]


def test_other_settings_of_the_answers_are_refused(tmp_path: Path) -> None:
    for side, temperature in (("base", 0.0), ("tuned", 1.0)):
        summary, lines = make_entry([1.0, 0.0])
        settings = {"generation_args": {"temperature": temperature}}
        summary["evaluation_results"][0]["generation_config"] = settings
        write_entry(tmp_path / side, summary, lines)
    with pytest.raises(DataError, match=r"arithmetic\.generation differs"):
        judge(read_logs(tmp_path / "base"), read_logs(tmp_path / "tuned"))


REFUSED: dict[str, tuple[Change, str]] = {
    "an older schema": (lambda e, _: e.update(schema_version="0.2.2"), "schema version 0.2.2"),
    "a newer schema": (lambda e, _: e.update(schema_version="0.4.0"), "schema version 0.4.0"),
    "no single results": (
        lambda e, _: e.pop("detailed_evaluation_results"),
        "has no results of single questions",
    ),
    "no lines": (lambda _, ls: ls.clear(), "has 0 lines"),
    "lines of another entry": (lambda _, ls: ls[2].update(evaluation_id="x"), "belongs to 'x'"),
    "an error": (lambda _, ls: ls[0].update(error="timeout"), "'q0' ended in an error: timeout"),
    "no score": (lambda _, ls: ls[0].pop("evaluation"), "question 'q0' is not as schema 0.3"),
    "a score in percent": (
        lambda _, ls: ls[0]["evaluation"].update(score=87.5),
        "question 'q0' has accuracy=87.5; a number from 0 to 1 must stand there",
    ),
    "all metrics the less the better": (
        lambda e, _: e["evaluation_results"][0]["metric_config"].update(lower_is_better=True),
        "no metric that is a mean",
    ),
    "no model": (lambda e, _: e.pop("model_info"), "is no entry of Every Eval Ever"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_pair_is_refused_by_name(case: str, tmp_path: Path, capsys: Capture) -> None:
    change, problem = REFUSED[case]
    summary, lines = make_entry([1.0, 0.0, 1.0])
    change(summary, lines)
    folder = write_entry(tmp_path / "base", summary, lines)
    with pytest.raises(DataError, match=problem) as refused:
        read_logs(folder)
    assert UUID in str(refused.value)
    assert "\n" not in str(refused.value)
    tuned = write_entry(tmp_path / "tuned", *make_entry([1.0]))
    assert verdict.main([str(folder), str(tuned)]) == 3
    assert "cannot be judged" in capsys.readouterr().err


@pytest.mark.parametrize("line", [0, 3])
def test_a_score_that_may_belong_to_several_metrics_is_refused(line: int, tmp_path: Path) -> None:
    summary, lines = make_entry([1.0, 0.0])
    lines[line]["evaluation_result_id"] = "another"
    assert_refused(write_entry(tmp_path, summary, lines), f"question 'q{line // 2}' is not as")
    for part in (*summary["evaluation_results"], *lines):
        part.pop("evaluation_result_id")
    assert_refused(write_entry(tmp_path / "unnamed", summary, lines), "question 'q0' is not as")


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_entry(tmp_path, *make_entry([1.0, 0.0]))
    summary, samples = folder / f"{UUID}.json", folder / f"{UUID}_samples.jsonl"
    content = samples.read_text()
    samples.write_text(content.replace("1 + 1", "1 + 2"))
    assert_refused(folder, "its checksum differs")
    samples.unlink()
    assert_refused(folder, f"there is no file .*{UUID}_samples.jsonl")
    samples.write_text(content)
    summary.write_text(summary.read_text()[:100])
    assert_refused(folder, f"{UUID}.json is no entry")
    summary.unlink()
    assert_refused(samples, f"there is no .*{UUID}.json")
