"""The harness's own numbers come out, every sample is kept, and base and tuned get the same."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import pytest
import torch
from builders import Patch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from stock_harness import ask_harness
from tiny_benchmarks import load_pocket, make_benchmark_config, make_config, wrap_tiny_model
from transformers import LlamaConfig

from slimdown.config.benchmark_config import BenchmarkConfig, Role
from slimdown.config.benchmarks import read_benchmarks
from slimdown.evaluation import evaluation_cache
from slimdown.evaluation.backend import choose_backend
from slimdown.evaluation.evaluator import Evaluator, try_costs
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation, Work
from slimdown.evaluation.tasks import keep_random_states, load_tasks
from slimdown.models.base_model import LoadedModel
from slimdown.pocket import TASKS_DIR
from slimdown.stats.sequential import block_ends
from slimdown.utils.errors import ConfigError, DataError, ModelError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
NAMES = ["pocket_instructions", "pocket_math", "pocket_commonsense", "pocket_cs"]


@pytest.fixture(scope="module")
def pocket() -> LoadedModel:
    return load_pocket()


@pytest.fixture(scope="module")
def evaluation(pocket: LoadedModel) -> Evaluation:
    return Evaluator(load_tasks(read_benchmarks(NAMES, limit=12)), make_config()).evaluate(pocket)


def evaluate_by_harness(model: LoadedModel, tasks: list[str], folder: str, **settings: Any) -> Any:
    lm = HFLM(pretrained=model.model, tokenizer=copy.deepcopy(model.tokenizer))
    manager = TaskManager(include_path=folder, include_defaults=False)
    return ask_harness(lm, tasks=tasks, task_manager=manager, **settings)


@dataclass
class MemoryCache(evaluation_cache.EvaluationCache):
    """Finished evaluations in memory, answers in a folder where there is one.

    One lock is held at a time: two commands with benchmarks in two orders would wait for each other
    for ever.
    """

    folder: Path | None = None
    saved: dict[str, BenchmarkEvaluation] = field(default_factory=dict)
    locked: list[str] = field(default_factory=list)
    is_locked: bool = False

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        assert not self.is_locked
        self.locked.append(key)
        self.is_locked = True
        try:
            yield
        finally:
            self.is_locked = False

    def find(
        self, key: str, name: str, benchmark: BenchmarkConfig, *older: str
    ) -> BenchmarkEvaluation | None:
        found = self.saved.get(key)
        return replace(found, origin="another run") if found else None

    def save(self, key: str, name: str, evaluation: BenchmarkEvaluation) -> None:
        self.saved[key] = evaluation

    def answers_file(self, key: str) -> Path | None:
        return self.folder / f"{key}.jsonl" if self.folder else None


# --- the harness's numbers ----------------------------------------------------------------------


def test_samples_are_what_the_scores_are_made_of(evaluation: Evaluation) -> None:
    assert {name: set(b.scores) for name, b in evaluation.benchmarks.items()} == {
        "pocket_instructions": {"exact_match.strip"},
        "pocket_math": {
            "exact_match.strict-match",
            "exact_match.flexible-extract",
            "flexible_accuracy",
        },
        "pocket_commonsense": {"acc", "acc_norm", "p_right"},
        "pocket_cs": {"acc", "p_right"},
    }
    for benchmark in evaluation.benchmarks.values():
        assert len({s.doc_hash for s in benchmark.samples}) == 12
        assert (benchmark.looks, benchmark.n_available, benchmark.origin) == ((), None, "")
        for metric, score in benchmark.scores.items():
            values = [s.scores[metric] for s in benchmark.samples]
            assert score.value == pytest.approx(mean(values))
            assert score.standard_error == pytest.approx(np.std(values, ddof=1) / np.sqrt(12))


def test_an_answer_scores_when_it_is_the_target(evaluation: Evaluation) -> None:
    for name, metric in (("pocket_cs", "acc"), ("pocket_commonsense", "acc_norm")):
        for sample in evaluation.benchmarks[name].samples:
            assert len(sample.choices) == len(sample.log_likelihoods) == 4
            assert sample.scores[metric] == float(sample.answers[metric] == sample.target)
    n_marked = 0
    for sample in evaluation.benchmarks["pocket_math"].samples:
        marked = re.findall(r"#### (\S+)", sample.response)
        assert sample.answers["exact_match.strict-match"] == [*marked, "[invalid]"][0]
        assert not sample.choices
        n_marked += bool(marked)
    assert n_marked > 6  # of 12: the model knows the format


def test_scores_and_prompts_are_the_harnesss(pocket: LoadedModel, evaluation: Evaluation) -> None:
    stock = evaluate_by_harness(pocket, NAMES, str(TASKS_DIR), limit=12)
    for name, benchmark in evaluation.benchmarks.items():
        for metric, score in benchmark.scores.items():
            if metric not in ("flexible_accuracy", "p_right"):
                key = metric.replace(".", ",") if "." in metric else f"{metric},none"
                assert stock["results"][name][key] == score.value
        lines = {line["doc_id"]: line for line in stock["samples"][name]}
        for sample in benchmark.samples:
            line = lines[sample.doc_id]
            hashes = sample.prompt_hash, sample.doc_hash
            assert hashes == (line["prompt_hash"], line["doc_hash"])
            if sample.choices:
                expected = [float(ll) for ll, _ in line["filtered_resps"]]
                assert sample.log_likelihoods == pytest.approx(expected, abs=5e-4)
            else:
                assert sample.response == line["resps"][0][0]


# --- blocks, stopping, the cache ----------------------------------------------------------------


def with_zero_adapter(loaded: LoadedModel) -> LoadedModel:
    shape = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    identity = {**loaded.identity, "adapter": "zeros"}
    return replace(loaded, model=get_peft_model(loaded.model, shape).eval(), identity=identity)


def test_an_adapter_of_zeros_changes_nothing_in_bfloat16(tmp_path: Path) -> None:
    """Stopped early and after a kill: both models get the same blocks."""
    math = {"task": "pocket_math", "max_gen_toks": 12}
    tasks = load_tasks(read_benchmarks(["pocket_commonsense", math], limit=70))
    base = load_pocket(torch.bfloat16)
    evaluator, cache = Evaluator(tasks, make_config()), MemoryCache(tmp_path)
    before = evaluator.evaluate(base)
    tuned, n_rounds = with_zero_adapter(base), 0

    def stop_after_two(answers: dict[str, BenchmarkEvaluation]) -> set[str]:
        nonlocal n_rounds
        n_rounds += 1
        return set(answers) if n_rounds < 2 else {"pocket_math"} if n_rounds < 3 else set()

    def kill(done: int, total: int, label: str) -> None:
        if (done, label) == (45, "pocket_commonsense"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(tuned, cache, stop_after_two, kill)
    assert list(tmp_path.iterdir())
    n_rounds = 0
    after = evaluator.evaluate(tuned, cache, stop_after_two)
    assert not list(tmp_path.iterdir())
    for name, n in (("pocket_commonsense", 45), ("pocket_math", 70)):
        stopped = after.benchmarks[name]
        assert (stopped.looks[-1], stopped.n_available) == (n, 70)
        assert stopped.looks == block_ends(70)[: len(stopped.looks)]
        assert stopped.samples == before.benchmarks[name].samples[:n]


def test_what_was_found_is_not_asked_again(pocket: LoadedModel) -> None:
    """A stopped evaluation goes on from where it was, under the key of a whole one."""
    tasks = load_tasks(read_benchmarks(["pocket_cs"], limit=70))
    cache, calls = MemoryCache(), list[int]()
    stopped = Evaluator(tasks, make_config()).evaluate(pocket, cache, lambda answers: set())
    assert stopped.benchmarks["pocket_cs"].looks == (32,)
    evaluator = Evaluator(tasks, make_config())
    whole = evaluator.evaluate(pocket, cache, on_progress=lambda done, *_: calls.append(done))
    assert calls[0] == 32
    assert whole.benchmarks["pocket_cs"].samples[:32] == stopped.benchmarks["pocket_cs"].samples
    assert len(cache.saved) == 1
    calls.clear()
    again = evaluator.evaluate(pocket, cache, on_progress=lambda done, *_: calls.append(done))
    assert not calls
    assert again.benchmarks["pocket_cs"].origin == "another run"
    assert again.benchmarks["pocket_cs"].samples == whole.benchmarks["pocket_cs"].samples


@pytest.mark.parametrize("content", [b"no answers \xff", None])
def test_a_damaged_answers_file_is_asked_again(
    content: bytes | None, tmp_path: Path, pocket: LoadedModel, evaluation: Evaluation
) -> None:
    tasks = load_tasks(read_benchmarks(["pocket_cs"], limit=12))

    def spoil(n_done: int, *_: Any) -> None:
        if n_done:
            [file] = tmp_path.iterdir()
            file.write_bytes(content or file.read_bytes()[:-100])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Evaluator(tasks, make_config()).evaluate(pocket, MemoryCache(tmp_path), on_progress=spoil)
    again = Evaluator(tasks, make_config()).evaluate(pocket, MemoryCache(tmp_path))
    assert again.benchmarks["pocket_cs"].samples == evaluation.benchmarks["pocket_cs"].samples


def test_two_readings_of_one_task_are_asked_once(pocket: LoadedModel) -> None:
    """Both have one key, whose lock a second object in the same thread would never get."""
    norm = make_benchmark_config("pocket_commonsense", metric="acc_norm", limit=40)
    plain = replace(norm, metric="acc", margin=0.1, role=Role.target)
    n_asked = []
    for readings in ({"norm": norm}, {"norm": norm, "plain": plain}):
        tasks = load_tasks(readings)
        for stop_when in (None, lambda answers: set(answers)):
            cache, counts = MemoryCache(), list[int]()
            hook = pocket.model.register_forward_hook(lambda *_: counts.append(1))  # noqa: B023
            read = Evaluator(tasks, make_config()).evaluate(pocket, cache, stop_when).benchmarks
            hook.remove()
            n_asked.append(len(counts))
            assert len(cache.locked) == len(readings)
            assert len({*cache.locked}) == 1
    assert n_asked[:2] == n_asked[2:]
    assert read["norm"].samples == read["plain"].samples
    scores = read["norm"].scores
    assert (read["norm"].score, read["plain"].score) == (scores["acc_norm"], scores["acc"])
    assert (read["plain"].benchmark.role, read["plain"].benchmark.margin) == (Role.target, 0.1)


def test_progress_is_told_by_tokens_and_answers(pocket: LoadedModel) -> None:
    reports: list[tuple[int, int, str]] = []
    tasks = load_tasks(read_benchmarks("pocket_math", limit=4))
    evaluator = Evaluator(tasks, make_config(batch_size=2))
    evaluator.evaluate(pocket, on_progress=lambda *report: reports.append(report))
    details = [detail for *counts, detail in reports if counts == [0, 4]]
    assert any("token 3 of" in detail for detail in details)
    done = [n for n, _, _ in reports]
    assert done == sorted(done)
    assert set(done) == {0, 2, 4}


# --- the backend --------------------------------------------------------------------------------


def test_where_memory_runs_out_the_first_model_gets_a_smaller_batch(pocket: LoadedModel) -> None:
    tasks = load_tasks(read_benchmarks(["pocket_cs"], limit=8))
    evaluator, most = Evaluator(tasks, make_config(batch_size=8)), 3

    def need_memory(module: Any, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = pocket.model.register_forward_pre_hook(need_memory, with_kwargs=True)
    try:
        assert "batch size 2" in evaluator.evaluate(pocket).backend
        assert len(evaluator.notes) == 2
        most = 1
        with pytest.raises(ModelError, match=r"evaluation\.batch_size=1"):
            evaluator.evaluate(pocket)
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("gigabytes", "held", "sizes"),
    [(15.8, 1.1, (4, 16)), (85, 1.1, (32, 64)), (25.4, 16.1, (4, 16))],  # most of it: the weights
)
def test_a_gpu_generates_in_larger_batches_than_its_logits_of_choices_allow(
    gigabytes: float, held: float, sizes: tuple[int, int], monkeypatch: Patch
) -> None:
    """A generated answer has logits only at its last place."""
    properties = SimpleNamespace(total_memory=gigabytes * 1e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    llama = SimpleNamespace(device=torch.device("cuda"), config=LlamaConfig())
    llama.config.update({"vocab_size": 128_256, "hidden_size": 2048, "num_hidden_layers": 16})
    model: Any = SimpleNamespace(model=llama, memory_bytes=held * 1e9)
    backend = choose_backend(model, make_config(), share_prefixes=False)
    assert (backend.batch_size, backend.generation_batch_size) == sizes


def test_the_random_state_of_apples_gpu_is_restored(monkeypatch: Patch) -> None:
    states = [torch.ones(1)]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    with keep_random_states():
        states.append(torch.zeros(1))  # the harness drew from it
    assert states[-1] is states[0]


def test_an_answer_that_is_not_a_number_is_no_score() -> None:
    pocket = load_pocket()
    with torch.no_grad():
        pocket.model.model.norm.weight[0] = torch.nan
    evaluator = Evaluator(load_tasks(read_benchmarks(["pocket_cs"], limit=4)), make_config())
    answer = r"pocket:model answers to question \d of pocket_cs is not"
    with pytest.raises(ModelError, match=answer):
        evaluator.evaluate(pocket)


# --- tasks of one's own -------------------------------------------------------------------------

TASK = f"include: {TASKS_DIR}/pocket_cs.yaml\nprocess_docs: !function own_code.take_twelve\n"
YES_OR_NO = "doc_to_choice: ['yes', 'no']\ndoc_to_target: 0\n"
OWN_TASKS = {
    # the choices stand in the context, as WinoGrande's
    "own_winograd": """
doc_to_choice: '{{["He met Ann", "He met Bo"]}}'
doc_to_text: '{{label % 2}}'
doc_to_target: was glad.
""",
    "own_sampled": """
output_type: generate_until
generation_kwargs: {until: [], max_gen_toks: 6, do_sample: true, temperature: 1.0}
repeats: 2
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "own_scored": """
output_type: generate_until
generation_kwargs: {until: [], max_gen_toks: 4}
process_results: !function own_code.score
metric_list:
  - {metric: hundred, aggregation: mean, higher_is_better: true}
  - {metric: wrong, aggregation: mean, higher_is_better: false}
  - {metric: spread, aggregation: !function own_code.spread, higher_is_better: true}
""",
    "own_two": YES_OR_NO,
    "own_written": """
output_type: generate_until
generation_kwargs: {until: [], max_gen_toks: 4}
process_results: !function own_code.accept
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "own_samples": f"""{YES_OR_NO}
num_fewshot: 2
fewshot_config: {{sampler: first_n, samples: [{{question: 'one'}}, {{question: 'two'}}]}}
""",
    "own_shown": f"{YES_OR_NO}num_fewshot: 1\nfewshot_split: test\n",
    "own_four": "process_docs: !function own_code.take_five\n",
}
OWN_CODE = """
def score(doc, results):
    return {"hundred": 25.0, "wrong": 0.5, "spread": 0.5}


def accept(doc, results):
    return {"acc": 1.0}


def spread(values):
    return max(values) - min(values)


def take_five(docs):
    return docs.select(range(5))


def take_twelve(docs):
    return docs.select(range(12))
"""
GROUP = """
group: {name}
task: [own_two, own_four]
aggregate_metric_list: [{{metric: acc, aggregation: mean, weight_by_size: {by_size}}}]
"""


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_code.py").write_text(OWN_CODE)
    for name, text in OWN_TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{TASK}{text}")
    for name, tasks in (
        ("own_shots", "[own_samples, own_shown]"),
        ("own_mixed", "[own_two, own_written]"),
    ):
        group = f"group: {name}\ntask: {tasks}\naggregate_metric_list: [{{metric: acc}}]\n"
        (folder / f"{name}.yaml").write_text(group)
    for name, by_size in (("own_by_task", "false"), ("own_by_size", "true")):
        (folder / f"{name}.yaml").write_text(GROUP.format(name=name, by_size=by_size))
    return str(folder)


def load_own(folder: str, task: str, **changes: Any) -> Any:
    return load_tasks({"own": make_benchmark_config(task, **changes)}, folder)


def test_choices_in_the_context_are_told_apart(own_tasks: str, pocket: LoadedModel) -> None:
    tasks = load_own(own_tasks, "own_winograd", chance=None)
    assert tasks["own"].config.chance == 0.5
    evaluation = Evaluator(tasks, make_config()).evaluate(pocket).benchmarks["own"]
    docs = dict(tasks["own"].tasks["own_winograd"].doc_iterator())
    for sample in evaluation.samples:
        assert sample.prompt == "He met "
        assert sample.choices == ("Ann was glad.", "Bo was glad.")
        assert sample.target == sample.choices[docs[sample.doc_id]["label"] % 2]
        assert sample.scores["acc"] == float(sample.answers["acc"] == sample.target)
    assert {sample.scores["acc"] for sample in evaluation.samples} == {0.0, 1.0}


def test_a_sampled_task_draws_alike_each_time(own_tasks: str) -> None:
    tasks = load_own(own_tasks, "own_sampled", metric="exact_match")
    model = wrap_tiny_model()
    evaluator = Evaluator(tasks, make_config())
    first = evaluator.evaluate(model).benchmarks["own"]
    torch.manual_seed(1)
    assert evaluator.evaluate(model).benchmarks["own"].samples == first.samples
    assert len({sample.response for sample in first.samples}) > 6


@pytest.mark.parametrize(
    ("metric", "scale", "answer"),
    [
        ("hundred", None, "scores 25.0, and a score must lie between 0 and 1; if it is of 100"),
        ("hundred", 10.0, "scores 2.5, and a score must lie"),
        ("wrong", None, "lower is better"),
        ("spread", None, "not the mean of the scores"),
    ],
)
def test_a_metric_that_cannot_be_compared_is_refused(
    metric: str, scale: float | None, answer: str, own_tasks: str
) -> None:
    model = wrap_tiny_model()
    with pytest.raises((ConfigError, DataError), match=answer):
        tasks = load_own(own_tasks, "own_scored", metric=metric, scale=scale)
        Evaluator(tasks, make_config()).evaluate(model)


def test_a_scale_divides_the_primary_metric_and_others_are_left_out(own_tasks: str) -> None:
    model = wrap_tiny_model()
    tasks = load_own(own_tasks, "own_scored", metric="hundred", scale=100.0)
    evaluation = Evaluator(tasks, make_config()).evaluate(model).benchmarks["own"]
    assert {m: score.value for m, score in evaluation.scores.items()} == {"hundred": 0.25}
    assert all(sample.scores == {"hundred": 0.25} for sample in evaluation.samples)


@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_weighs_its_tasks_alike(by_size: bool, own_tasks: str, pocket: LoadedModel) -> None:
    task = "own_by_size" if by_size else "own_by_task"
    tasks = load_own(own_tasks, task, chance=None)
    chance = (12 / 2 + 5 / 4) / 17 if by_size else (1 / 2 + 1 / 4) / 2
    assert tasks["own"].config.chance == pytest.approx(chance)
    rounds: list[int] = []

    def look(answers: dict[str, BenchmarkEvaluation]) -> set[str]:
        rounds.append(len(answers["own"].samples))
        return set()

    evaluator = Evaluator(tasks, make_config())
    evaluation = evaluator.evaluate(pocket, stop_when=look).benchmarks["own"]
    stock = evaluate_by_harness(pocket, [task], own_tasks)
    assert evaluation.score.value == pytest.approx(stock["groups"][task]["acc,none"])
    assert len(evaluation.samples) == 17
    assert {sample.task for sample in evaluation.samples} == {"own_two", "own_four"}
    weights = None if by_size else {"own_two": 0.5, "own_four": 0.5}
    assert evaluation.task_weights == weights


def test_a_group_of_choices_and_generated_answers_is_tried(
    own_tasks: str, pocket: LoadedModel
) -> None:
    tasks = load_own(own_tasks, "own_mixed")
    (cost,) = try_costs(tasks, make_config(), pocket, most_seconds=0)
    assert (cost.work, cost.n) == (Work.answers, 24)
    assert 0 < cost.new_tokens <= 12 * 4
    assert cost.seconds > 0


def test_tasks_of_a_group_have_their_own_examples(own_tasks: str, pocket: LoadedModel) -> None:
    evaluator = Evaluator(load_own(own_tasks, "own_shots", num_fewshot=None), make_config())
    evaluation = evaluator.evaluate(pocket).benchmarks["own"]
    assert evaluation.benchmark.num_fewshot is None
    stock = evaluate_by_harness(pocket, ["own_shots"], own_tasks)
    assert {(s.task, s.doc_id, s.prompt_hash) for s in evaluation.samples} == {
        (task, line["doc_id"], line["prompt_hash"])
        for task, lines in stock["samples"].items()
        for line in lines
    }
    one_shot = load_own(own_tasks, "own_shots", num_fewshot=1)["own"]
    assert {task.config.num_fewshot for task in one_shot.tasks.values()} == {1}
    with pytest.raises(ConfigError, match=r"own_samples.* 2 .*num_fewshot"):
        load_own(own_tasks, "own_shots", num_fewshot=3)


def test_worked_examples_that_stand_in_task_files_are_used() -> None:
    row = {"input": "Is it so?\nOptions:\n- yes\n- no", "target": "yes"}
    rows = datasets.DatasetDict(test=datasets.Dataset.from_list([row] * 2))
    with patch("datasets.load_dataset", return_value=rows):
        task = "bbh_cot_fewshot_boolean_expressions"
        config = make_benchmark_config(task, metric=None, num_fewshot=None)
        bbh = load_tasks({"bbh": config})["bbh"]
    requests = bbh.build_requests(None, make_config())
    assert (bbh.config.num_fewshot, len(requests)) == (3, 2)
    for [request] in requests.values():
        assert request.args[0].count("think step by step") == 4


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"task": "pocket_sc"}, "has no task of this name; did you mean pocket_cs"),
        ({"task": "pocket_cs", "num_fewshot": 3}, "is asked without worked examples; set"),
        ({"task": "pocket_cs", "metric": "f1"}, "has no such metric; choose one of acc"),
        (
            {"task": "pocket_cs", "metric": "flexible_accuracy", "numeric_tolerance": 0.01},
            "has no such metric; choose one of acc",
        ),
        ({"task": "hellaswag"}, "hellaswag cannot be reached"),
    ],
)
def test_what_cannot_be_asked_is_refused(settings: dict[str, Any], answer: str) -> None:
    with pytest.raises((ConfigError, DataError), match=answer):
        load_tasks({"own": make_benchmark_config(**settings)})


def test_what_is_left_open_is_the_tasks_own() -> None:
    open_fields = {"metric": None, "num_fewshot": None, "chance": None}
    configs = {name: make_benchmark_config(name, **open_fields) for name in NAMES}
    tasks = load_tasks(configs)
    filled = {n: (t.config.metric, t.config.num_fewshot, t.config.chance) for n, t in tasks.items()}
    assert filled == {
        "pocket_instructions": ("exact_match.strip", 0, 0.0),
        "pocket_math": ("exact_match.flexible-extract", 0, 0.0),
        "pocket_commonsense": ("acc_norm", 0, 0.25),
        "pocket_cs": ("acc", 0, 0.25),
    }
    [question] = [q for q in tasks["pocket_cs"].questions() if q.name == "pocket_cs 0"]
    [text], [answer] = question.texts, question.answers
    assert (text.split()[-1], answer.split()[0]) == ("kernel?", "manages")
