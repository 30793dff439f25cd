"""Whatever an answer can depend on, changed alone, gives another key; the rest does not."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_benchmarks import load_pocket, make_benchmark_config, make_config

from slimdown.config.benchmark_config import BenchmarkConfig, PaperMetric, Role, Until
from slimdown.config.benchmarks import read_benchmarks
from slimdown.config.engines import Backend
from slimdown.config.schema import EvaluationConfig
from slimdown.evaluation.evaluation_cache import READ_ONLY, evaluation_key
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.tasks import load_tasks
from slimdown.models.base_model import LoadedModel
from slimdown.pocket import TASKS_DIR

MODEL = LoadedModel(None, None, "a model", "float32", identity={"weights": "abc"})
BENCHMARK = make_benchmark_config("pocket_cs")
STORED = Path(__file__).parent / "stored_answers.json"

CHANGES: dict[str, Any] = {
    "benchmark.task": "another",
    "benchmark.num_fewshot": 1,
    "benchmark.limit": 5,
    "benchmark.numeric_tolerance": 0.5,
    "benchmark.scale": 100.0,
    "benchmark.max_gen_toks": 64,
    "benchmark.stop": ["END"],
    "benchmark.temperature": 0.7,
    "benchmark.repeats": 3,
    "benchmark.score": "contains",
    "benchmark.refusal_phrases": ["not my job"],
    "benchmark.cluster": "passage",  # samples hold what the documents say
    "evaluation.apply_chat_template": True,
    "evaluation.system_instruction": "Answer in one word.",
    "evaluation.chat_template_args": {"documents": []},
    "evaluation.enable_thinking": True,
    "evaluation.think_end_token": "</think>",
    "model": replace(MODEL, identity={"weights": "abd"}),
    "backend": "HFLM, batch size 8, 1 to generate",
    "questions": "other",
}
READ: dict[str, Any] = {
    "benchmark.path": "somewhere",
    "benchmark.metric": "acc_norm",
    "benchmark.chance": 0.5,
    "benchmark.role": Role.target,
    "benchmark.paper_metric": PaperMetric.knowledge_loss,
    "benchmark.margin": 0.1,
    "benchmark.max_loss": 0.1,
    "evaluation.limit": 5,  # see `benchmark.limit`
    "evaluation.holdout": 0.5,
    "evaluation.until": Until.decided,
    "evaluation.include_path": "somewhere",
    "evaluation.batch_size": 4,
    "evaluation.backend": list(Backend)[-1],  # what generates is in the key as `backend`
}


def make_key(changed: str = "", value: Any = None) -> str:
    settings: dict[str, Any] = {"benchmark": BENCHMARK, "evaluation": make_config()}
    parts = {"model": MODEL, "backend": "PrefixLM, batch size 8, 1 to generate", "questions": "q"}
    section, _, name = changed.partition(".")
    if name:
        settings[section] = replace(settings[section], **{name: value})
    elif changed:
        parts[changed] = value
    return evaluation_key(*parts.values(), settings["benchmark"], settings["evaluation"])  # type: ignore[arg-type]


def test_every_setting_is_classified() -> None:
    """Does a new setting change answers? Then it is in CHANGES; if not, in READ and READ_ONLY."""
    sections = {"benchmark": BenchmarkConfig, "evaluation": EvaluationConfig}
    known = {f"{section}.{f.name}" for section, kind in sections.items() for f in fields(kind)}
    assert {name for name in (*CHANGES, *READ) if "." in name} == known
    assert {f"{section}.{name}" for section, names in READ_ONLY.items() for name in names} == set(
        READ
    )


def test_settings_that_all_have_their_defaults_have_a_key() -> None:
    default = evaluation_key(MODEL, "PrefixLM", "q", BENCHMARK, EvaluationConfig())
    other = EvaluationConfig(system_instruction="Be brief.")
    assert default != evaluation_key(MODEL, "PrefixLM", "q", BENCHMARK, other)


@pytest.mark.parametrize("changed", CHANGES)
def test_what_changes_answers_changes_the_key(changed: str) -> None:
    assert make_key(changed, CHANGES[changed]) != make_key()


@pytest.mark.parametrize("changed", READ)
def test_how_answers_are_read_does_not(changed: str) -> None:
    assert make_key(changed, READ[changed]) == make_key()


@pytest.mark.parametrize("file", ["own.yaml", "helper.py"])
def test_a_task_file_of_ones_own_is_in_the_questions(file: str, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def score(text):\n    return text\n")
    (tmp_path / "own.yaml").write_text(f"include: {TASKS_DIR}/pocket_cs.yaml\ntask: own\n")
    benchmark = make_benchmark_config("own", limit=2)

    def hash_questions() -> str:
        task = load_tasks({"own": benchmark}, str(tmp_path))["own"]
        return task.hash_questions(task.build_requests(None, make_config()))

    before = hash_questions()
    assert hash_questions() == before
    (tmp_path / file).write_text((tmp_path / file).read_text() + "# a comment\n")
    assert hash_questions() != before


def test_answers_are_those_of_this_measurement_version() -> None:
    """Where this fails on purpose, raise MEASUREMENT_VERSION and dump `answers` into the file."""
    names = ["pocket_math", "pocket_commonsense", "pocket_cs"]
    evaluator = Evaluator(load_tasks(read_benchmarks(names, limit=6)), make_config())
    answers = {
        f"{sample.task} {sample.doc_id}": sample.response or list(sample.log_likelihoods)
        for benchmark in evaluator.evaluate(load_pocket()).benchmarks.values()
        for sample in benchmark.samples
    }
    stored = json.loads(STORED.read_text())
    assert list(answers) == list(stored)  # in the same order
    for question, answer in answers.items():
        expected = stored[question]
        assert answer == (
            expected if isinstance(expected, str) else pytest.approx(expected, abs=1e-3)
        )
