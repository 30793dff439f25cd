"""Answers are drawn several times: a question's score is their mean."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import Patch, make_benchmark, make_evaluation, make_sample
from tiny_benchmarks import load_pocket, make_config

from slimdown.config.benchmark_config import BenchmarkConfig
from slimdown.config.benchmarks import read_benchmarks
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.evaluation.samples import read_samples, write_samples
from slimdown.evaluation.tasks import load_tasks
from slimdown.judging.findings import judge
from slimdown.models.base_model import LoadedModel
from slimdown.pocket import TASKS_DIR
from slimdown.utils.errors import ConfigError

N_QUESTIONS, N_REPEATS = 6, 4


@pytest.fixture(scope="module")
def pocket() -> LoadedModel:
    return load_pocket(torch.bfloat16)


def ask(pocket: LoadedModel, repeats: int | None) -> BenchmarkEvaluation:
    (benchmark,) = read_benchmarks(["pocket_math"], limit=N_QUESTIONS).values()
    drawn = replace(benchmark, temperature=1.5, repeats=repeats)
    evaluation = Evaluator(load_tasks({"math": drawn}), make_config()).evaluate(pocket)
    assert evaluation.conditions["math.temperature"] == "1.5"
    return evaluation.benchmarks["math"]


@pytest.fixture(scope="module")
def repeated(pocket: LoadedModel) -> BenchmarkEvaluation:
    return ask(pocket, N_REPEATS)


def test_a_score_is_the_mean_of_answers(pocket: LoadedModel, repeated: BenchmarkEvaluation) -> None:
    means = np.array(repeated.scores_of(repeated.benchmark.metric))
    assert np.all(means * N_REPEATS % 1 == 0)
    assert np.any((means > 0) & (means < 1))  # at this temperature answers differ
    for sample, mean in zip(repeated.samples, means, strict=True):
        scores = sample.repeated_scores[repeated.benchmark.metric]
        assert (len(scores), np.mean(scores)) == (N_REPEATS, mean)
        assert set(scores) <= {0.0, 1.0}


def test_answers_are_drawn_alike_again(pocket: LoadedModel, repeated: BenchmarkEvaluation) -> None:
    torch.manual_seed(1)  # which decides nothing
    assert ask(pocket, N_REPEATS).samples == repeated.samples
    single = ask(pocket, None)
    assert single.samples == ask(pocket, None).samples
    assert not any(sample.repeated_scores for sample in single.samples)
    firsts = [sample.first.scores for sample in repeated.samples]
    assert firsts != [sample.scores for sample in repeated.samples]


def test_answers_are_drawn_from_all_tokens_whatever_the_model_says(
    pocket: LoadedModel, repeated: BenchmarkEvaluation, monkeypatch: Patch
) -> None:
    """A tuned model may bring another generation_config.json than its base."""
    monkeypatch.setattr(pocket.model.generation_config, "top_k", 1)
    monkeypatch.setattr(pocket.model.generation_config, "top_p", 0.1)
    assert ask(pocket, N_REPEATS).samples == repeated.samples


def test_the_record_keeps_repeated_scores(repeated: BenchmarkEvaluation, tmp_path: Path) -> None:
    write_samples(tmp_path / "math.parquet", "base", "math", repeated)
    again = read_samples(tmp_path / "math.parquet", repeated.benchmark)
    assert again.samples == repeated.samples


def test_repeats_of_what_is_not_drawn_are_refused(tmp_path: Path) -> None:
    (problem,) = BenchmarkConfig("gsm8k", repeats=3).problems()
    assert re.match("repeats=3 .*temperature", problem)
    with pytest.raises(ConfigError, match=r"has choices, .*repeats"):
        load_tasks({"cs": BenchmarkConfig("pocket_cs", repeats=2, temperature=0.7)})
    own = f"include: {TASKS_DIR}/pocket_math.yaml\ntask: own\nrepeats: 3\n"
    (tmp_path / "own.yaml").write_text(own)
    with pytest.raises(ConfigError, match=r"own .*of 3 already"):
        load_tasks({"own": BenchmarkConfig("own", repeats=2, temperature=0.7)}, str(tmp_path))


def draw_answers(right: np.ndarray, luck: np.ndarray) -> BenchmarkEvaluation:
    """Answers to questions, each right with a chance of its own; luck is [K, n]."""
    drawn = (luck < right) * 1.0
    samples = [
        replace(make_sample({"acc": scores.mean()}, i), repeated_scores={"acc": tuple(scores)})
        for i, scores in enumerate(drawn.T)
    ]
    return make_benchmark(samples, repeats=len(luck), temperature=1.0)


def test_causes_of_loss_are_those_of_the_first_answers() -> None:
    """A question that lost one answer of four is no lost question."""
    base = draw_answers(np.ones(40), np.zeros((4, 40)))
    luck = np.zeros((4, 40))
    luck[1] = 1.0
    luck[0, :3] = 1.0
    tuned = draw_answers(np.ones(40), luck)
    losses = judge(make_evaluation(math=base), make_evaluation(math=tuned)).lost_answers["math"]
    assert (losses.n_lost, losses.n_right) == (3, 40)
