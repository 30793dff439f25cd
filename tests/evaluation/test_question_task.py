"""A file of one's own questions is asked and scored as an equal task of the harness."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_benchmarks import load_pocket, make_config, write_rows

from slimdown.config.benchmark_config import BenchmarkConfig
from slimdown.config.benchmarks import complete_benchmark, read_benchmarks
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.tasks import load_tasks
from slimdown.utils.errors import ConfigError

SUM = {"question": "Question: what is 2 plus 2?\nAnswer:", "answer": "4"}
PICK = {"question": "Question: What is red?\nAnswer:", "choices": ["a rose", "snow", "grass"]}
ROWS: dict[str, list[Any]] = {
    "written": [SUM, {"question": "Is it so? ", "answer": "yes {{indeed}}"}],
    "picked": [PICK | {"answer": 0}, {"question": "x", "choices": ["y", "z"], "answer": 1}],
}
TASK = {"dataset_path": "json", "test_split": "test", "doc_to_text": "question"}
TASK |= {"doc_to_target": "answer", "num_fewshot": 0, "metadata": {"version": 1}}
STRIP = [{"function": "regex", "regex_pattern": "(?s).*"}, {"function": "take_first"}]
KINDS: dict[str, dict[str, Any]] = {
    "written": {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "do_sample": False},
        "filter_list": [{"name": "strip", "filter": STRIP}],
        "metric_list": [{"metric": "exact_match"}],
    },
    "picked": {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
}


def test_the_samples_are_those_of_an_equal_task_of_the_harness(tmp_path: Path) -> None:
    loaded = load_pocket(torch.bfloat16)
    specs: list[Any] = []
    for kind, rows in ROWS.items():
        file = write_rows(tmp_path / f"{kind}.jsonl", rows)
        data = {"dataset_kwargs": {"data_files": {"test": str(file)}}}
        task = {"task": f"its_{kind}"} | TASK | KINDS[kind] | data
        (tmp_path / f"{kind}.yaml").write_text(json.dumps(task))
        its = {"task": f"its_{kind}", "metric": "acc" if kind == "picked" else None}
        specs += [{"task": kind, "path": str(file)}, its]
    tasks = load_tasks(read_benchmarks(specs), str(tmp_path))
    benchmarks = Evaluator(tasks, make_config()).evaluate(loaded).benchmarks
    for kind in ROWS:
        own, its = benchmarks[kind], benchmarks[f"its_{kind}"]
        samples, its_samples = (  # names decide the order, and own rows have a rule
            [
                replace(sample, task=kind, doc_hash="")
                for sample in sorted(evaluation.samples, key=lambda sample: sample.doc_id)
            ]
            for evaluation in (own, its)
        )
        assert samples == its_samples
        assert own.benchmark.metric == its.benchmark.metric
        assert own.benchmark.chance == pytest.approx(its.benchmark.chance)
        questions, its_questions = (tasks[name].questions() for name in (kind, f"its_{kind}"))
        assert [q.texts for q in questions] == [q.texts for q in its_questions]
    assert benchmarks["picked"].benchmark.chance == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert benchmarks["written"].scores["exact_match.strip"].value == 0.5
    file = write_rows(tmp_path / "long.jsonl", [SUM | {"question": "x " * 600}])
    tasks = load_tasks(read_benchmarks({"task": "mine", "path": str(file)}))
    with pytest.raises(ConfigError, match=r"prompt of.*\d+ tokens"):
        Evaluator(tasks, make_config()).evaluate(loaded)


@pytest.mark.parametrize("share_prefixes", [True, False])
def test_a_choice_too_long_for_a_forward_is_refused(share_prefixes: bool, tmp_path: Path) -> None:
    loaded = load_pocket(torch.bfloat16)
    row = PICK | {"choices": ["a rose", "the grass and " * 600], "answer": 0}
    file = write_rows(tmp_path / "long.jsonl", [row])
    tasks = load_tasks(read_benchmarks(["pocket_cs", {"task": "mine", "path": str(file)}], limit=2))
    reports: list[Any] = []
    evaluator = Evaluator(tasks, make_config(), share_prefixes)
    with pytest.raises(ConfigError, match=r"benchmark\.mine: .*\d+ tokens"):
        evaluator.evaluate(loaded, on_progress=lambda *report: reports.append(report))
    assert not reports


def test_the_content_and_the_rule_count_and_not_the_place(tmp_path: Path) -> None:
    def hash_row(name: str, row: Any, **settings: Any) -> str:
        file = write_rows(tmp_path / name, [row])
        tasks = load_tasks(read_benchmarks({"task": "mine", "path": str(file), **settings}))
        return tasks["mine"].hash_questions(tasks["mine"].build_requests(None, make_config()))

    written = hash_row("a.jsonl", SUM)
    assert hash_row("b.jsonl", SUM) == written
    assert hash_row("a.jsonl", SUM | {"answer": ["4"]}) == written
    assert hash_row("a.jsonl", SUM | {"answer": 6}) != written
    assert hash_row("a.jsonl", SUM | {"answer": ["4", "four"]}) != written
    assert hash_row("a.jsonl", SUM, score="contains") != written


@pytest.mark.parametrize(
    ("rows", "answer"),
    [
        ([], "it is empty"),
        ([SUM, "{"], "row 2: it cannot be read as JSON"),
        ([[1]], r"row 1: it is \[1\] and no object"),
        ([SUM, {"prompt": "x"}], "row 2: it has no text in question; it has prompt"),
        ([SUM | {"answer": True}], "row 1: answer is"),
        ([SUM | {"answer": float("nan")}], "row 1: answer is"),
        ([PICK | {"choices": ["x", "\ud800"], "answer": 0}], "row 1: 'utf-8' codec can't encode"),
        ([SUM, PICK | {"answer": "B"}], "row 2: it has choices, unlike the rows before"),
        ([PICK | {"answer": 3}], "row 1: answer '3' is none of the choices"),
        ([SUM | {"cluster": []}], "row 1: cluster must be a text or a number"),
        ([{"question": "x\0", "answer": "y"}], "row 1: it holds a NUL character"),
        ([{"question": "x", "answer": "\u200b"}], "row 1: answer is"),
        (
            [{"question": "x", "choices": [f"c{i}" for i in range(30)], "answer": "["}],
            r"row 1: answer '\[' is none of the choices",
        ),
        ([PICK | {"choices": ["7", "0"], "answer": 0}], "row 1: answer '0' may mean two"),
        ([PICK | {"choices": ["x", "x"], "answer": 0}], "row 1: choices must be a list of two"),
    ],
)
def test_a_bad_row_is_named(rows: list[Any], answer: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "mine.jsonl", rows)
    with pytest.raises(ConfigError, match=f"benchmark.mine.path={file}: {answer}"):
        read_benchmarks({"task": "mine", "path": str(file)})


def test_a_file_with_copies_is_asked_whole(tmp_path: Path) -> None:
    """A look could divide them."""
    pocket = load_pocket(torch.bfloat16)
    for n_different in (70, 69):
        questions = [n % n_different for n in range(70)]
        rows = [{"question": f"{n}?", "choices": ["a", "b"], "answer": 0} for n in questions]
        file = write_rows(tmp_path / f"{n_different}.jsonl", rows)
        tasks = load_tasks({"q": complete_benchmark("q", BenchmarkConfig(path=str(file)))})
        evaluator = Evaluator(tasks, make_config())
        evaluation = evaluator.evaluate(pocket, stop_when=lambda _: set()).benchmarks["q"]
        assert (len(evaluation.samples) == 70) is (n_different == 69)
        assert bool(evaluation.looks) is (n_different == 70)


def test_rows_of_one_cluster_are_kept_together(tmp_path: Path) -> None:
    rows = [{"question": f"{n} + 1 =", "answer": n + 1, "cluster": n // 2} for n in range(4)]
    config = BenchmarkConfig(path=str(write_rows(tmp_path / "rows.jsonl", rows)))
    tasks = load_tasks({"sums": complete_benchmark("sums", config)})
    evaluation = Evaluator(tasks, make_config()).evaluate(load_pocket(torch.bfloat16))
    cluster_of = {sample.doc_id: sample.cluster for sample in evaluation.benchmarks["sums"].samples}
    assert cluster_of[0] == cluster_of[1] != cluster_of[2] == cluster_of[3]


def test_a_field_that_documents_lack_is_refused_before_anything_is_asked() -> None:
    (benchmark,) = read_benchmarks(["pocket_math"], limit=2).values()
    problem = r"benchmark\.math\.cluster: question 0 has nothing in 'passage'.* fields are question"
    with pytest.raises(ConfigError, match=problem):
        load_tasks({"math": replace(benchmark, cluster="passage")})
