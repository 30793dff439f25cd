"""Texts are scored as a few lines of torch score them, and as the harness does."""

import json
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from commands_and_runs import find_runs, succeed
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from mlflow import MlflowClient
from tiny_benchmarks import make_config
from tiny_models import WINDOW, build_byte_tokenizer, build_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimdown.config.benchmark_config import Role
from slimdown.config.benchmarks import read_benchmarks
from slimdown.config.schema import EvaluationConfig
from slimdown.evaluation.evaluator import Evaluator, count_costs
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation, Work
from slimdown.evaluation.tasks import BenchmarkTask, load_tasks
from slimdown.judging.findings import judge
from slimdown.models.causal import wrap_model
from slimdown.pocket import MODEL_DIR
from slimdown.utils.errors import ConfigError, ModelError

STORY = "A fox met the old owl, and they talked about snow until the moon rose. "
TEXTS = [
    "red",
    STORY,
    "  spaces around it stay \n",
    "Grüße aus 東京 🙂 " * 9,
    STORY * 4,  # more than one window of the tiny model
    STORY * 60,  # several of both
    "x" * WINDOW,  # a window, to the token
    "x" * (WINDOW + 1),
    "Question: what is 2 plus 2?\n\nAnswer: 4",
]
MODELS = ["pocket", "bytes", "windowed"]


def open_model(kind: str) -> tuple[Any, Any]:
    if kind == "pocket":
        model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype="float32")
        return model, AutoTokenizer.from_pretrained(MODEL_DIR)
    settings = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
    family, changes = ("llama", {}) if kind == "bytes" else ("gemma2", settings)
    return build_tiny_model(family, **changes), build_byte_tokenizer()


def score_in_torch(model: Any, tokenizer: Any, text: str) -> float:
    """The geometric mean of the probabilities of a text's bytes, one window after the other."""
    ids = tokenizer(text)["input_ids"]
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    before, most, total = [first, *ids], model.config.max_position_embeddings, 0.0
    for begin in range(0, len(ids), most):
        end = min(begin + most, len(ids))
        window = torch.tensor([before[max(0, end - most) : end]])
        with torch.no_grad():
            logprobs = model(input_ids=window).logits[0].double().log_softmax(-1)
        scored = logprobs[begin - end :].gather(1, torch.tensor(ids[begin:end])[:, None])
        total += float(scored.sum())
    return exp(total / len(text.encode()))


def write_texts(file: Path, texts: Sequence[Any] = TEXTS) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def read_task(file: Path, **settings: Any) -> dict[str, BenchmarkTask]:
    return load_tasks(read_benchmarks({"task": "docs", "path": str(file), **settings}))


def measure_texts(
    file: Path, model: Any, tokenizer: Any, stock: bool = False, **config: Any
) -> Evaluation:
    evaluator = Evaluator(read_task(file), make_config(**config), share_prefixes=not stock)
    return evaluator.evaluate(wrap_model(model, tokenizer))


def list_scores(benchmark: BenchmarkEvaluation) -> dict[str, float]:
    return {sample.prompt: sample.scores["byte_probability"] for sample in benchmark.samples}


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("kind", MODELS)
def test_texts_score_as_in_torch_and_harness(kind: str, batch_size: int, tmp_path: Path) -> None:
    model, tokenizer = open_model(kind)
    file = write_texts(tmp_path / "docs.jsonl")
    expected = {text: score_in_torch(model, tokenizer, text) for text in TEXTS}
    lm = HFLM(model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype=torch.float32)
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in TEXTS]
    sums = lm.loglikelihood_rolling(requests, disable_tqdm=True)
    harness = {t: exp(x / len(t.encode())) for t, x in zip(TEXTS, sums, strict=True)}
    assert harness == pytest.approx(expected, abs=1e-6)
    for stock in (False, True):
        evaluation = measure_texts(file, model, tokenizer, stock, batch_size=batch_size)
        measured = list_scores(evaluation.benchmarks["docs"])
        assert measured == pytest.approx(expected, abs=1e-6)
        assert len(set(measured.values())) == len(TEXTS)
    findings = judge(evaluation, evaluation).benchmarks["docs"]
    bits = -sum(sums) / sum(len(text.encode()) for text in TEXTS) / log(2)  # the harness's own
    [trait] = findings.traits
    assert (trait.base, trait.tuned) == pytest.approx((bits, bits), rel=1e-5)
    assert findings.role is Role.watched
    assert findings.n == len(TEXTS)


@pytest.mark.parametrize("stock", [False, True])
def test_windows_are_read_one_at_a_time(stock: bool, tmp_path: Path) -> None:
    """The logits of a whole batch of windows would not fit in memory."""
    model, tokenizer = open_model("bytes")
    n_rows: list[int] = []

    def count_rows(module: Any, args: Any, output: Any) -> None:
        n_rows.append(len(output.logits))

    model.register_forward_hook(count_rows)
    measure_texts(write_texts(tmp_path / "docs.jsonl"), model, tokenizer, stock, batch_size=4)
    assert len(n_rows) > len(TEXTS)
    assert set(n_rows) == {1}


def test_a_copy_of_a_text_is_read_once(tmp_path: Path) -> None:
    model, tokenizer = open_model("bytes")
    file = write_texts(tmp_path / "docs.jsonl", [STORY, "red", STORY, "x"])
    [benchmark] = measure_texts(file, model, tokenizer).benchmarks.values()
    texts = {sample.doc_id: sample.prompt for sample in benchmark.samples}
    assert [texts[number] for number in sorted(texts)] == [STORY, "red", "x"]


def test_a_text_never_goes_through_a_prompt(tmp_path: Path) -> None:
    model, tokenizer = open_model("bytes")
    tokenizer.chat_template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    file = write_texts(tmp_path / "docs.jsonl")
    plain = measure_texts(file, model, tokenizer)
    prompts = {"apply_chat_template": True, "system_instruction": "Be brief."}
    chat = measure_texts(file, model, tokenizer, **prompts)
    assert list_scores(chat.benchmarks["docs"]) == list_scores(plain.benchmarks["docs"])
    assert not chat.conditions


QUESTION = {"question": "x", "answer": "y"}


@pytest.mark.parametrize(
    ("rows", "answer"),
    [
        ([{"text": "a"}, {"text": " \n"}], r"row 2: text must hold something to read, got ' \\n'"),
        ([{"text": 3}], "row 1: text must hold something to read, got 3"),
        ([{"text": None}], "row 1: text must hold something to read, got None"),
        ([{"text": "a\0"}], "row 1: it holds a NUL character"),
        ([{"text": "a"}, QUESTION], "row 2: it has question, unlike the rows before"),
        ([QUESTION, {"text": "a"}], "row 2: it has no question, unlike the rows before"),
        ([{"text": "a", "answer": "b"}], "row 1: it has no text in question"),
    ],
)
def test_a_row_that_is_no_text_is_named(rows: list[Any], answer: str, tmp_path: Path) -> None:
    file = tmp_path / "docs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ConfigError, match=answer):
        read_task(file)


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"role": Role.target}, "role=target: a text can become less likely without a loss"),
        ({"score": "contains"}, "only text, which nothing answers; leave out score=contains"),
        ({"max_gen_toks": 8}, "docs has documents, and max_gen_toks, .* for generated answers"),
        ({"num_fewshot": 2}, "num_fewshot=2"),
    ],
)
def test_what_no_text_has_is_refused(settings: dict[str, Any], answer: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=answer):
        read_task(write_texts(tmp_path / "docs.jsonl"), **settings)


def test_one_text_is_measured_and_shows_nothing(tmp_path: Path) -> None:
    model, tokenizer = open_model("bytes")
    file = write_texts(tmp_path / "docs.jsonl", [STORY])
    before = measure_texts(file, model, tokenizer)
    after = measure_texts(file, build_tiny_model("llama", seed=1), tokenizer)
    change = judge(before, after).benchmarks["docs"]
    assert change.verdict is None
    assert change.shown_change.low < 0 < change.shown_change.high
    assert change.n == 1


def test_a_plan_counts_documents_and_the_tokens_that_are_read(tmp_path: Path) -> None:
    model, tokenizer = open_model("bytes")
    tasks = read_task(write_texts(tmp_path / "docs.jsonl"))
    config: EvaluationConfig = make_config()
    ((cost, _),) = count_costs(tasks, config, wrap_model(model, tokenizer), lambda key, name: False)
    n_tokens = sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)
    assert (cost.work, cost.n) == (Work.documents, len(TEXTS))
    assert (cost.prompt_tokens, cost.new_tokens) == (n_tokens, 0)


def test_what_is_no_number_is_named(tmp_path: Path) -> None:
    model, tokenizer = open_model("bytes")
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(ModelError, match=r"benchmark\.docs: .*a number"):
        measure_texts(write_texts(tmp_path / "docs.jsonl"), model, tokenizer)


def test_a_run_shows_texts_and_gives_them_no_verdict(recorded: Path) -> None:
    """A short training was measured on questions and on texts, which may stop early."""
    write_texts(recorded / "docs.jsonl", [f"{i}. {STORY[: 20 + i]}" for i in range(50)])
    settings = ["dataset.pocket_instructions.max_examples=64", "train.max_steps=4"]
    settings += ["benchmark.pocket_cs.limit=40", "evaluation.until=decided"]
    done = succeed(recorded, "run", *settings, "benchmark=pocket_cs,docs.jsonl")
    assert ": docs" in done.stdout
    assert "bits per byte" in next(recorded.glob("mlruns/**/report.html")).read_text()
    [run] = find_runs(MlflowClient(f"sqlite:///{recorded}/mlruns/mlflow.db"))
    findings = json.loads(next(recorded.glob("mlruns/**/findings.json")).read_text())
    change = findings["benchmarks"]["docs"]
    assert (change["verdict"], change["role"], change["n_available"]) == (None, "watched", 50)
    sides = [run.data.metrics[f"bits_per_byte_{side}/docs"] for side in ("base", "tuned")]
    assert sides == pytest.approx([change["traits"][0][side] for side in ("base", "tuned")])
    assert "docs ·" in run.data.tags["slimdown.verdict"]
    for arguments in ([], ["--all"], ["--format", "json"]):
        shown = succeed(recorded, "compare", *arguments)
        assert "docs" in shown.stdout
