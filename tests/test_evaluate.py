"""The harness's own numbers come out, every sample is kept, and nothing is left changed."""

import random
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from statistics import mean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from slimdown.config.schema import RunConfig
from slimdown.evaluation.answers import Evaluation
from slimdown.evaluation.harness import choose_scoring, evaluate
from slimdown.evaluation.measure import measure
from slimdown.evaluation.parts import Parts
from slimdown.evaluation.questions import load_tasks, task_manager
from slimdown.models.model import LoadedModel
from slimdown.stats.changes import changes_between
from slimdown.training.fine_tune import adapter_config
from slimdown.utils.errors import SlimdownError

Composed = Callable[..., RunConfig]
LIMITS = [
    f"benchmark.pocket_{name}.limit=12" for name in ("instructions", "math", "commonsense", "cs")
]


@pytest.fixture(scope="module")
def config() -> RunConfig:
    from hydra import compose, initialize_config_dir

    from slimdown.config.files import CONF_DIR
    from slimdown.config.loader import load_config

    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return load_config(compose("config", overrides=LIMITS))


@pytest.fixture(scope="module")
def report(config: RunConfig) -> Evaluation:
    from slimdown.models.model import load_model

    base = load_model(config.model, config.quantization)
    return evaluate(base, load_tasks(config.benchmark), config.benchmark, config.evaluation)


def test_every_benchmark_answers_with_its_metrics(report: Evaluation) -> None:
    assert {name: set(b.scores) for name, b in report.benchmarks.items()} == {
        "pocket_instructions": {"exact_match.strip"},
        "pocket_math": {
            "exact_match.strict-match",
            "exact_match.flexible-extract",
            "flexible_accuracy",
        },
        "pocket_commonsense": {"acc", "acc_norm"},
        "pocket_cs": {"acc"},
    }


def test_the_samples_are_what_the_scores_are_made_of(report: Evaluation) -> None:
    for benchmark in report.benchmarks.values():
        assert len(benchmark.samples) == 12
        assert len({s.doc_hash for s in benchmark.samples}) == 12
        for metric, score in benchmark.scores.items():
            values = [s.scores[metric] for s in benchmark.samples]
            assert score.value == pytest.approx(mean(values))
            # the standard error of a mean, sample variance over n
            assert score.standard_error == pytest.approx(np.std(values, ddof=1) / np.sqrt(12))


def test_a_choice_is_the_likeliest_and_scores_when_it_is_the_target(report: Evaluation) -> None:
    for sample in report.benchmarks["pocket_cs"].samples:
        assert len(sample.choices) == len(sample.log_likelihoods) == 4
        assert sample.answers["acc"] == sample.choices[int(np.argmax(sample.log_likelihoods))]
        assert sample.scores["acc"] == float(sample.answers["acc"] == sample.target)
    for sample in report.benchmarks["pocket_commonsense"].samples:
        assert sample.scores["acc_norm"] == float(sample.answers["acc_norm"] == sample.target)


def test_a_generated_answer_is_kept_whole_and_as_each_filter_leaves_it(report: Evaluation) -> None:
    """Read again by the patterns of the task's file: what stands behind the mark, and the last number."""
    read = []
    for sample in report.benchmarks["pocket_math"].samples:
        behind, numbers = (
            re.findall(r"#### (\S+)", sample.response),
            re.findall(r"-?\d+", sample.response),
        )
        assert sample.answers["exact_match.strict-match"] == [*behind, "[invalid]"][0]
        assert sample.answers["exact_match.flexible-extract"] == ["[invalid]", *numbers][-1]
        assert not sample.choices
        read += behind
    assert len(read) > 6  # of 12: the model knows the format


def test_the_answers_are_the_stock_harness_command_lines(
    config: RunConfig, pocket: LoadedModel, report: Evaluation
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from slimdown.pocket import TASKS_DIR

    stock = lm_eval.simple_evaluate(
        model=HFLM(
            pretrained=pocket.model,
            tokenizer=pocket.tokenizer,
            batch_size=config.evaluation.batch_size,
        ),
        tasks=[b.task for b in config.benchmark.values()],
        limit=12,
        task_manager=TaskManager(include_path=str(TASKS_DIR)),
    )
    for name, benchmark in report.benchmarks.items():
        for metric, score in benchmark.scores.items():
            if metric != "flexible_accuracy":
                key = metric.replace(".", ",") if "." in metric else f"{metric},none"
                assert stock["results"][name][key] == score.value
        hashes = {entry["doc_id"]: entry["prompt_hash"] for entry in stock["samples"][name]}
        assert {s.doc_id: s.prompt_hash for s in benchmark.samples} == hashes


def test_measuring_twice_gives_the_same(
    config: RunConfig, pocket: LoadedModel, report: Evaluation
) -> None:
    tasks = load_tasks(config.benchmark)
    for _ in range(2):  # the same task objects serve base and tuned model
        again = evaluate(pocket, tasks, config.benchmark, config.evaluation)
        assert {n: b.samples for n, b in again.benchmarks.items()} == {
            n: b.samples for n, b in report.benchmarks.items()
        }
        assert {n: b.task_hash for n, b in again.benchmarks.items()} == {
            n: b.task_hash for n, b in report.benchmarks.items()
        }


def seed_all() -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)


def test_nothing_is_left_changed(config: RunConfig, pocket: LoadedModel) -> None:
    tasks = load_tasks(config.benchmark)
    pocket.model.train()
    pocket.tokenizer.padding_side = "right"
    seed_all()
    wanted = random.random(), np.random.rand(), torch.rand(1).item()
    seed_all()
    evaluate(pocket, tasks, config.benchmark, config.evaluation)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == wanted
    assert pocket.model.training
    assert pocket.tokenizer.padding_side == "right"
    assert all(p.grad is None for p in pocket.model.parameters())


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        (
            "benchmark.pocket_cs.task=pocket_sc",
            "the harness has no such task; did you mean pocket_cs",
        ),
        (
            "benchmark.pocket_cs.num_fewshot=3",
            "is a task that is asked without worked examples; set it to 0",
        ),
        ("benchmark.pocket_cs.metric=f1", "pocket_cs has no such metric; it has acc"),
    ],
)
def test_what_the_harness_cannot_ask_is_refused(
    override: str, answer: str, composed: Composed
) -> None:
    with pytest.raises(SlimdownError, match=answer):
        load_tasks(composed(override).benchmark)


def test_only_the_task_files_that_are_needed_are_read() -> None:
    few = task_manager(["hellaswag", "mmlu_college_computer_science", "pocket_math"])
    assert {"hellaswag", "mmlu_college_computer_science", "pocket_math"} <= set(few.all_subtasks)
    assert "gsm8k" not in few.all_tasks
    assert len(few.all_tasks) < 500


@pytest.mark.parametrize("name", ["mmlu", "helaswag"])  # a group, and a name that no file has
def test_for_a_group_or_an_unknown_name_every_task_is_known(name: str) -> None:
    every = task_manager([name])
    assert {"mmlu", "hellaswag", "gsm8k"} <= set(every.all_tasks)


def test_an_answer_that_is_not_a_number_is_no_score(config: RunConfig, pocket: LoadedModel) -> None:
    chosen = {"pocket_cs": config.benchmark["pocket_cs"]}
    with torch.no_grad():
        pocket.model.model.norm.weight[0] = torch.nan
    with pytest.raises(
        SlimdownError, match=r"pocket:model answers to question 0 of pocket_cs is not a number"
    ):
        evaluate(pocket, load_tasks(chosen), chosen, config.evaluation)


def test_base_and_tuned_model_are_scored_alike_whatever_memory_is_left(
    pocket: LoadedModel, composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed("benchmark=[pocket_cs]", "benchmark.pocket_cs.limit=6")
    tasks = load_tasks(config.benchmark)
    scoring = choose_scoring(
        pocket,
        tasks,
        config.benchmark,
        config.evaluation,
        "auto",
        adapter_config(config.method, config.lora, pocket),
    )
    assert scoring.path == "shared-merging-dequantized"

    def measured(loaded: LoadedModel) -> Evaluation:
        nothing_kept = SimpleNamespace(
            lock=lambda key: nullcontext(),
            find=lambda *a: None,
            keep=lambda *a: None,
            parts=lambda key: Parts(),
        )
        told: Any = lambda done, total, note: None  # noqa: E731
        return measure(
            loaded, tasks, config.benchmark, config.evaluation, scoring, nothing_kept, told
        )

    before = measured(pocket)
    monkeypatch.setattr("slimdown.models.dequantize.free_bytes", lambda device: 0)
    tuned = replace(
        pocket,
        model=get_peft_model(pocket.model, adapter_config(config.method, config.lora, pocket)),
    )
    assert changes_between(before, measured(tuned)).benchmarks["pocket_cs"].n == 6


def test_an_adapter_that_looks_at_the_row_takes_stock_for_the_base_too(
    pocket: LoadedModel, composed: Composed
) -> None:
    config = composed("benchmark=[pocket_cs]", "benchmark.pocket_cs.limit=6")
    adapter = LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=[5])
    scoring = choose_scoring(
        pocket, load_tasks(config.benchmark), config.benchmark, config.evaluation, tuned=adapter
    )
    assert scoring.path == "stock-dequantized"
