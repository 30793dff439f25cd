"""Answers that are drawn several times: a question's score is their mean, and the noise is told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import make_benchmark, make_evaluation, make_sample
from tiny_benchmarks import make_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimdown.config.benchmarks import read_benchmarks
from slimdown.config.schema import BenchmarkConfig, ResolvedBenchmark
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.evaluation.samples import read_samples, write_samples
from slimdown.evaluation.tasks import load_tasks
from slimdown.judging.findings import judge
from slimdown.models.base_model import LoadedModel
from slimdown.models.causal import wrap_model
from slimdown.pocket import MODEL_DIR
from slimdown.report.text import list_caveats
from slimdown.utils.errors import ConfigError

N_QUESTIONS, N_REPEATS = 10, 4


@pytest.fixture(scope="module")
def pocket() -> LoadedModel:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    return replace(
        wrap_model(model, AutoTokenizer.from_pretrained(MODEL_DIR)),
        id="pocket:model",
        identity={"weights": "pocket"},
    )


def ask(pocket: LoadedModel, repeats: int | None) -> BenchmarkEvaluation:
    (benchmark,) = read_benchmarks(["pocket_math"], limit=N_QUESTIONS).values()
    drawn = replace(benchmark, temperature=1.5, repeats=repeats)
    evaluation = Evaluator(load_tasks({"math": drawn}), make_config()).evaluate(pocket)
    assert evaluation.conditions["math.temperature"] == "1.5"
    return evaluation.benchmarks["math"]


@pytest.fixture(scope="module")
def repeated(pocket: LoadedModel) -> BenchmarkEvaluation:
    return ask(pocket, N_REPEATS)


def test_a_question_scores_the_mean_of_its_answers(
    pocket: LoadedModel, repeated: BenchmarkEvaluation
) -> None:
    means = np.array(repeated.scores_of(repeated.benchmark.metric))
    assert np.all(means * N_REPEATS % 1 == 0)
    assert np.any((means > 0) & (means < 1))  # at this temperature answers differ
    for sample, mean in zip(repeated.samples, means, strict=True):
        expected = mean * (1 - mean) * N_REPEATS / (N_REPEATS - 1)
        assert sample.variances[repeated.benchmark.metric] == pytest.approx(expected)


def test_drawn_answers_are_drawn_alike_again(
    pocket: LoadedModel, repeated: BenchmarkEvaluation
) -> None:
    assert ask(pocket, N_REPEATS).samples == repeated.samples
    single = ask(pocket, None)
    assert single.samples == ask(pocket, None).samples
    assert not any(one.variances for one in single.samples)


def test_the_record_keeps_what_repeated_answers_vary_by(
    repeated: BenchmarkEvaluation, tmp_path: Path
) -> None:
    write_samples(tmp_path / "math.parquet", "base", "math", repeated)
    again = read_samples(tmp_path / "math.parquet", repeated.benchmark)
    assert again.samples == repeated.samples


def test_repeats_of_what_is_not_drawn_are_refused(own_task: str) -> None:
    assert list(BenchmarkConfig("gsm8k", repeats=3).problems()) == [
        "repeats=3 without temperature would be the same answer each time; "
        "set temperature, such as 0.7"
    ]
    with pytest.raises(ConfigError, match=r"has choices, and .* repeats are for generated answers"):
        load_tasks({"cs": BenchmarkConfig("pocket_cs", repeats=2, temperature=0.7)})
    with pytest.raises(ConfigError, match="own makes one answer of 3 already; leave repeats out"):
        load_tasks({"own": BenchmarkConfig("own", repeats=2, temperature=0.7)}, own_task)


@pytest.fixture
def own_task(tmp_path: Path) -> str:
    (tmp_path / "rows.jsonl").write_text('{"q": "one", "a": "two"}\n')
    (tmp_path / "own.yaml").write_text(f"""
task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: generate_until
doc_to_text: '{{{{q}}}}'
doc_to_target: '{{{{a}}}}'
repeats: 3
generation_kwargs: {{until: [], do_sample: true, temperature: 1.0}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""")
    return str(tmp_path)


def draw_answers(
    right: np.ndarray, n_repeats: int, random: np.random.Generator
) -> BenchmarkEvaluation:
    """Answers to questions of which each is answered right with its own chance."""
    drawn = random.random((n_repeats, len(right))) < right
    samples = [
        replace(make_sample({"acc": mean}, i), variances={"acc": variance})
        for i, (mean, variance) in enumerate(zip(drawn.mean(0), drawn.var(0, ddof=1), strict=True))
    ]
    return make_benchmark(samples, repeats=n_repeats, temperature=1.0)


@pytest.mark.parametrize("n_repeats", [2, 5])
def test_the_share_of_the_noise_that_drawing_makes_is_found(n_repeats: int) -> None:
    random = np.random.default_rng(0)
    shares, expected = [], []
    for _ in range(60):
        base = random.beta(1, 1, 400)
        tuned = np.clip(base + random.normal(0, 0.15, 400), 0, 1)
        pair = [draw_answers(chances, n_repeats, random) for chances in (base, tuned)]
        findings = judge(*(make_evaluation(one=one) for one in pair)).benchmarks["one"]
        shares.append(findings.decoding_share)
        drawn = (base * (1 - base) + tuned * (1 - tuned)).mean() / n_repeats
        expected.append(drawn / (drawn + np.var(tuned - base)))
    error = np.std(shares) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - np.mean(expected)) < 3 * error + 0.005
    assert error < 0.01


def test_the_report_says_what_would_narrow_the_interval() -> None:
    random = np.random.default_rng(1)
    base, tuned = (draw_answers(random.beta(1, 1, 100), 3, random) for _ in range(2))
    (line,) = (
        line
        for line in list_caveats(judge(make_evaluation(one=base), make_evaluation(one=tuned)))
        if "drawing" in line
    )
    assert "Twice the questions would narrow its interval by 29 %, twice the answers" in line
    once = [
        make_evaluation(one=make_benchmark([replace(s, variances={}) for s in one.samples]))
        for one in (base, tuned)
    ]
    findings = judge(*once)
    assert np.isnan(findings.benchmarks["one"].decoding_share)
    assert not any("drawing" in line for line in list_caveats(findings))
    assert ResolvedBenchmark.of(BenchmarkConfig("gsm8k")).repeats is None
