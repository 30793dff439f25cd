"""Asking in stages: in which order, how far each goes, and that what is asked is what a whole evaluation asks."""

import copy
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from math import inf
from pathlib import Path

import pytest
import torch
from lm_eval.api.group import AggMetricConfig, Group
from lm_eval.api.instance import Instance
from made_up import written
from mlflow import MlflowClient
from peft import LoraConfig, get_peft_model

from slimdown.config.commandline import check_command_line
from slimdown.config.schema import BenchmarkConfig, RunConfig, Until
from slimdown.evaluation.answers import BenchmarkEvaluation, Evaluation, read_samples, write_samples
from slimdown.evaluation.order import order_of, stages_of
from slimdown.evaluation.parts import Parts
from slimdown.evaluation.questions import in_stages, load_tasks
from slimdown.evaluation.turns import Asking
from slimdown.experiment import experiment
from slimdown.models.dequantize import DequantizedLinear
from slimdown.models.model import LoadedModel, load_model
from slimdown.pocket import DATA_DIR, TASKS_DIR
from slimdown.stats.changes import changes_between
from slimdown.tracking.evaluations import base_records
from slimdown.tracking.provenance import About
from slimdown.tracking.read import find_runs, read_evaluation
from slimdown.tracking.runs import opened_run
from slimdown.training.adapters import adapter_config
from slimdown.training.tuning import way_to_tuned
from slimdown.utils.errors import ConfigError

Composed = Callable[..., RunConfig]


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 38, 45, 100, 1319, 10042])
def test_stages_grow_to_all_questions(n: int) -> None:
    stages = stages_of(n)
    assert stages[-1] == n
    assert list(stages) == sorted(set(stages))
    assert all(later < 1.8 * earlier for earlier, later in pairwise(stages))


def test_the_first_questions_hold_each_task_in_proportion() -> None:
    sizes = {"physics": 100, "law": 1500, "art": 7}
    order = order_of({task: [f"question {i}" for i in range(size)] for task, size in sizes.items()})
    assert sorted(order) == sorted((task, i) for task, size in sizes.items() for i in range(size))
    for n in stages_of(len(order)):
        first = [task for task, _ in order[:n]]
        for task, size in sizes.items():
            assert abs(first.count(task) - n * size / len(order)) < 2, (task, n)


def test_small_tasks_are_among_the_first_questions_too() -> None:
    sizes = {"law": 1500, "history": 1500} | {f"small {i}": 100 for i in range(40)}
    order = order_of({task: [f"question {i}" for i in range(size)] for task, size in sizes.items()})
    small = sum(task.startswith("small") for task, _ in order[:32])
    assert abs(small - 32 * 4000 / 7000) < 7


def test_a_tasks_order_depends_on_its_own_questions_alone() -> None:
    texts = [f"question {i}" for i in range(50)]
    alone = [texts[place] for _, place in order_of({"law": texts})]
    assert alone != texts
    turned = list(reversed(texts))
    beside = order_of({"art": ["a", "b", "c"], "law": turned})
    assert [turned[place] for task, place in beside if task == "law"] == alone
    assert [texts[place] for _, place in order_of({"law": texts[:20]})] == [
        text for text in alone if text in texts[:20]
    ]


def test_a_file_of_samples_says_when_they_were_looked_at(tmp_path: Path) -> None:
    whole = written([1.0] * 40)
    stopped = replace(
        whole, samples=tuple(reversed(whole.samples)), stages=(32, 40), n_available=200
    )
    for report in (whole, stopped):
        write_samples(tmp_path / "samples.parquet", "base", "written", report)
        assert read_samples(tmp_path / "samples.parquet", whole.benchmark) == report


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["evaluation.until=soon"], "evaluation.until"),
        (["evaluation.until=decided", "evaluation.holdout=0.5"], "set one of the two"),
        (["evaluation.until=budget", "evaluation.holdout=0.5"], "set one of the two"),
        (
            ["benchmark.pocket_cs.max_loss=2"],
            "max_loss must be a share from 0 up to, not including, 1 (",
        ),
        (["benchmark.pocket_cs.max_loss=-0.1"], "benchmark.pocket_cs.max_loss must be a share"),
        (
            ["evaluation.until=budget", "benchmark=[pocket_instructions]"],
            "benchmark.pocket_instructions.max_loss=0.02",
        ),
        (
            ["-m", "evaluation.until=decided", "+search.space={lora.r:{choices:[2,4]}}"],
            "a search compares its trials by their scores",
        ),
    ],
)
def test_what_cannot_be_stopped_so_is_refused_on_the_command_line(
    given: list[str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        check_command_line(given)


def test_a_budget_may_be_given_and_is_that_of_what_is_to_be_retained_otherwise(
    composed: Composed,
) -> None:
    assert composed().evaluation.until is Until.all
    assert composed("evaluation.until=budget").benchmark["pocket_cs"].max_loss is None
    budget = ["benchmark=[pocket_instructions]", "benchmark.pocket_instructions.max_loss=0"]
    target = composed("evaluation.until=budget", *budget)
    assert target.benchmark["pocket_instructions"].max_loss == 0


# --- asking ------------------------------------------------------------------------------------------------------

FEW = 12  # questions, in stages of 4, 6, 9 and 12
IN_STAGES = (
    "benchmark=[pocket_cs]",
    f"benchmark.pocket_cs.limit={FEW}",
    "evaluation.until=decided",
)


class Memory:
    """A record in memory, with parts in a folder where there is one."""

    def __init__(
        self, folder: Path | None = None, kept: dict[str, BenchmarkEvaluation] | None = None
    ) -> None:
        self.folder, self.kept, self.stage = folder, {} if kept is None else kept, 0
        self.made: list[tuple[str, int]] = []
        self.asked: dict[str, BenchmarkEvaluation] = {}

    def lock(self, key: str) -> AbstractContextManager[None]:
        return nullcontext()

    def find(self, name: str, key: str, benchmark: BenchmarkConfig) -> BenchmarkEvaluation | None:
        return self.kept.get(key)

    def keep(self, name: str, key: str, report: BenchmarkEvaluation) -> None:
        self.kept[key] = report
        self.made.append((name, self.stage))

    def keep_asked(self, evaluation: Evaluation) -> None:
        self.asked |= evaluation.benchmarks

    def parts(self, key: str) -> Parts:
        return Parts(self.folder / f"{key}.jsonl", 0.0, stays=True) if self.folder else Parts()

    def of_stage(self, n: int) -> "Memory":
        record = copy.copy(self)
        record.stage = n
        return record

    def find_loss(self, key: str) -> None:
        return None

    def keep_loss(self, key: str, loss: float) -> None:
        pass


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimdown.evaluation.order.FIRST", 4)


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded tasks, and of them one with worked examples and a group."""
    folder = Path(shutil.copytree(TASKS_DIR, tmp_path_factory.mktemp("tasks") / "tasks"))
    finder = (folder / "dataset.py").read_text()
    (folder / "dataset.py").write_text(f"{finder}\nDATA_DIR = Path({str(DATA_DIR)!r})\n")
    shots = "include: pocket_cs.yaml\ntask: pocket_shots\nfewshot_split: test\nnum_fewshot: 2\n"
    (folder / "pocket_shots.yaml").write_text(shots)
    group = "group: pocket_group\ntask: [pocket_cs, pocket_cs_dev]\naggregate_metric_list: [{metric: acc}]\n"
    (folder / "pocket_group.yaml").write_text(group)
    return folder


def asking_of(config: RunConfig, base: LoadedModel) -> Asking:
    return Asking.alike(base, load_tasks(config.benchmark), config, None)


def tuned_from(base: LoadedModel) -> LoadedModel:
    """An adapter that was not trained, and moves every answer."""
    torch.manual_seed(0)  # small random weights may move none of a few answers
    modules = ["q_proj", "v_proj"]
    shape = LoraConfig(
        r=8, lora_alpha=64, target_modules=modules, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base.model, shape).eval()
    return replace(base, model=model, identity={**base.identity, "adapter": "random"})


def questions(report: BenchmarkEvaluation) -> list[tuple[str, int, str, str]]:
    return [(s.task, s.doc_id, s.doc_hash, s.prompt_hash) for s in report.samples]


def told(done: int, total: int, note: str) -> None:
    assert 0 <= done <= total


@pytest.mark.parametrize("task", ["pocket_math", "pocket_shots", "pocket_group"])
def test_what_is_asked_in_stages_is_what_a_whole_evaluation_asks(
    task: str, composed: Composed, tasks_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts and worked examples, and in float32 the answers; in bfloat16 what is computed side by side moves them."""
    monkeypatch.setattr("slimdown.evaluation.questions.TASKS_DIR", tasks_dir)
    exact = ("model.dtype=float32", "quantization=none")
    config = composed("benchmark=[pocket_cs,pocket_math]", "evaluation.until=decided", *exact)
    known = config.benchmark["pocket_math" if task == "pocket_math" else "pocket_cs"]
    config.benchmark = {
        task: replace(known, task=task, limit=FEW, num_fewshot=2 if task == "pocket_shots" else 0)
    }
    base = load_model(config.model, config.quantization)
    asking = asking_of(config, base)
    staged = asking.base(base, Memory(), told, stays=False).benchmarks[task]
    whole = replace(asking, config=replace(config.evaluation, until=Until.all))
    at_once = whole.base(base, Memory(), told, stays=False).benchmarks[task]
    assert staged.n_available == staged.stages[-1] == len(at_once.samples)
    assert staged.stages == stages_of(len(at_once.samples))
    assert questions(staged) != questions(at_once)
    assert sorted(questions(staged)) == sorted(questions(at_once))
    assert staged.task_version == at_once.task_version
    answers = {(s.task, s.doc_id): s for s in at_once.samples}
    for sample in staged.samples:
        other = answers[sample.task, sample.doc_id]
        assert (sample.prompt, sample.target, sample.answers) == (
            other.prompt,
            other.target,
            other.answers,
        )
        assert sample.log_likelihoods == pytest.approx(other.log_likelihoods, abs=1e-4)
    assert staged.score.value == pytest.approx(at_once.score.value)


@pytest.mark.parametrize(
    ("sizes", "weighs", "n_stages"), [((6, 6), False, 4), ((9, 3), True, 4), ((9, 3), False, 0)]
)
def test_a_group_that_weighs_unequal_tasks_alike_is_asked_whole(
    sizes: tuple[int, int], weighs: bool, n_stages: int, composed: Composed
) -> None:
    """Its score is not the mean of its questions' scores."""
    task = next(iter(load_tasks({"a": composed().benchmark["pocket_cs"]})["a"]["tasks"].values()))
    tasks = {name: copy.copy(task) for name in ("one", "other")}
    for (name, one), size in zip(tasks.items(), sizes, strict=True):
        one._instances = [
            Instance("loglikelihood", {"q": f"{name} {i}"}, ("", ""), 0, (name, i, 1))
            for i in range(size)
        ]
    how = AggMetricConfig("acc", weight_by_size=weighs)
    loaded = {"tasks": tasks, "groups": {"both": Group("both", aggregate_metric_list=[how])}}
    staged = in_stages(loaded, replace(composed().benchmark["pocket_cs"], task="both"))
    assert (len(staged.ends) if staged else 0) == n_stages


def test_both_are_asked_as_far_as_need_be_and_a_stage_of_the_base_once(composed: Composed) -> None:
    config = composed("benchmark=[pocket_cs,pocket_commonsense]", "evaluation.until=decided")
    config.benchmark["pocket_cs"].limit, config.benchmark["pocket_commonsense"].limit = (
        4,
        FEW,
    )  # one stage: asked whole
    base = load_model(config.model, config.quantization)
    asking, record, own = asking_of(config, base), Memory(), Memory()
    before = asking.base(base, record, told, stays=True)
    assert record.made == [("pocket_cs", 0), ("pocket_commonsense", 4)]
    looks: list[int] = []

    def until_nine(before: Evaluation, after: Evaluation, until: Until) -> set[str]:
        for one in (before, after):
            looks.append(len(one.benchmarks["pocket_commonsense"].samples))
        return {"pocket_cs", "pocket_commonsense"} if looks[-1] < 9 else {"pocket_cs"}

    tuned = tuned_from(base)
    before, after = asking.both(before, base, tuned, (record, own), until_nine, told)
    assert looks == [4, 4, 6, 6, 9, 9]
    assert record.made[2:] == [("pocket_commonsense", 6), ("pocket_commonsense", 9)]
    for evaluation, kept in ((before, record), (after, own)):
        report = evaluation.benchmarks["pocket_commonsense"]
        assert (report.stages, report.n_available, len(report.samples)) == ((4, 6, 9), FEW, 9)
        assert kept.asked == {"pocket_commonsense": report}
        assert (
            evaluation.benchmarks["pocket_cs"].stages,
            len(evaluation.benchmarks["pocket_cs"].samples),
        ) == ((), 4)
    assert changes_between(before, after).benchmarks["pocket_commonsense"].n == 9
    again = load_model(config.model, config.quantization)
    later = Memory(kept=record.kept)
    found = asking_of(config, again).base(
        again, later, told, stays=False
    )  # as before a training of its weights
    assert later.made == [("pocket_commonsense", 12)]
    assert (
        found.benchmarks["pocket_commonsense"].samples[:9]
        == before.benchmarks["pocket_commonsense"].samples
    )


@pytest.mark.parametrize("until", ["all", "decided"])
def test_what_the_base_answered_is_a_draft_of_the_tuned_models_answers(
    until: str, composed: Composed
) -> None:
    exact = ("model.dtype=float32", "quantization=none", f"evaluation.until={until}")
    config = composed("benchmark=[pocket_math]", f"benchmark.pocket_math.limit={FEW}", *exact)
    base = load_model(config.model, config.quantization)
    asking = asking_of(config, base)
    before = asking.base(base, Memory(), told, stays=False)
    same = replace(base, identity={**base.identity, "adapter": "none"})
    _, after = asking.both(
        before, base, same, (Memory(), Memory()), lambda *_: set(config.benchmark), told
    )
    assert after.benchmarks["pocket_math"].samples == before.benchmarks["pocket_math"].samples
    assert after.accepted_draft_share > before.accepted_draft_share + 0.3
    with_adapter = tuned_from(base)
    _, drafted = asking.both(
        before, base, with_adapter, (Memory(), Memory()), lambda *_: set(config.benchmark), told
    )
    alone = asking.base(with_adapter, Memory(), told, stays=False)
    assert drafted.benchmarks["pocket_math"].samples == alone.benchmarks["pocket_math"].samples
    assert drafted.benchmarks["pocket_math"].samples != before.benchmarks["pocket_math"].samples


def test_scores_that_are_no_shares_are_asked_to_the_end_and_not_looked_at(
    composed: Composed,
) -> None:
    config = composed(*IN_STAGES)
    base = load_model(config.model, config.quantization)
    asking = asking_of(config, base)
    [task] = asking.tasks["pocket_cs"]["tasks"].values()
    task.process_results = lambda doc, results: {"acc": 7.0}
    before = asking.base(base, Memory(), told, stays=True)
    records = Memory(), Memory()
    both = asking.both(
        before, base, tuned_from(base), records, lambda before, after, until: set(), told
    )
    for one in both:
        report = one.benchmarks["pocket_cs"]
        assert (len(report.samples), report.stages, report.score.value) == (FEW, (), 7.0)


def test_a_base_that_is_gone_by_then_is_asked_before_and_no_more(composed: Composed) -> None:
    config = composed(*IN_STAGES)
    base, tuned = (load_model(config.model, config.quantization) for _ in range(2))
    asking = asking_of(config, base)
    all_asked = asking.base(base, Memory(), told, stays=False)
    for tensor in base.model.parameters():
        tensor.data = tensor.data.new_empty(0)
    before, after = asking.both(
        all_asked, base, tuned, (Memory(), Memory()), lambda *looked: set(), told
    )
    report = before.benchmarks["pocket_cs"]
    assert (all_asked.benchmarks["pocket_cs"].stages, report.stages, len(report.samples)) == (
        (4, 6, 9, 12),
        (4,),
        4,
    )
    assert report.samples == after.benchmarks["pocket_cs"].samples
    assert report.task_hash == after.benchmarks["pocket_cs"].task_hash


@pytest.mark.filterwarnings("ignore")
def test_4_bit_weights_are_not_unpacked_twice_to_ask_base_and_tuned_model_in_turn(
    composed: Composed, tmp_path: Path
) -> None:
    base, other = (load_model(composed().model, composed().quantization) for _ in range(2))
    tuned_from(other).model.save_pretrained(tmp_path)
    given = (*IN_STAGES, f"tuned='{tmp_path}'")
    assert way_to_tuned(
        base, composed(*given, "quantization.dequantize_for_evaluation=false")
    ).keeps_base
    config = composed(*given, "quantization.dequantize_for_evaluation=true")
    way = way_to_tuned(base, config)
    asking = Asking.alike(base, load_tasks(config.benchmark), config, way.adapter)
    before = asking.base(base, Memory(), told, way.keeps_base)
    tuned = way.obtain(tmp_path, print, print).model

    def look(*unused: object) -> set[str]:
        unpacked = [
            any(isinstance(m, DequantizedLinear) for m in one.model.modules())
            for one in (base, tuned)
        ]
        assert unpacked == [False, True]
        return {"pocket_cs"}

    asking.both(before, base, tuned, (Memory(), Memory()), look, told)


def test_a_killed_asking_goes_on_from_what_was_answered(composed: Composed, tmp_path: Path) -> None:
    config = composed(
        *IN_STAGES, "quantization=none", "evaluation.token_budget=96"
    )  # a few rows a forward
    base = load_model(config.model, config.quantization)
    asking = asking_of(config, base)
    before, tuned = asking.base(base, Memory(), told, stays=False), tuned_from(base)
    forwards, most = 0, inf

    def count(*_: object) -> None:
        nonlocal forwards
        if forwards >= most:
            raise KeyboardInterrupt
        forwards += 1

    def asked(folder: Path) -> Evaluation:
        return asking.both(
            before, base, tuned, (Memory(), Memory(folder)), lambda *looked: {"pocket_cs"}, told
        )[1]

    tuned.model.get_input_embeddings().register_forward_pre_hook(count)
    whole = asked(tmp_path / "a")
    n_whole, forwards, most = forwards, 0, 2 * forwards // 3
    with pytest.raises(KeyboardInterrupt):
        asked(tmp_path / "b")
    most = inf
    again = asked(tmp_path / "b")
    assert again.benchmarks["pocket_cs"].samples == whole.benchmarks["pocket_cs"].samples
    assert forwards <= n_whole + 1


def test_a_run_keeps_what_was_asked_of_both_and_the_next_finds_the_stages_of_the_base(
    store: MlflowClient, composed: Composed, tmp_path: Path
) -> None:
    rows = [
        "dataset.pocket_instructions.max_examples=16",
        "dataset.pocket_instructions.validation_examples=4",
    ]
    config = composed(*IN_STAGES, *rows, "train.max_steps=2")
    findings = experiment(config, About("in stages", "", [], tmp_path / "scratch"))
    [run] = find_runs(config.tracking)
    for model, evaluation in (("base", findings.before), ("tuned", findings.after)):
        assert read_evaluation(config.tracking, run, model).benchmarks == evaluation.benchmarks
        score = evaluation.benchmarks["pocket_cs"].score
        assert store.get_run(run.run_id).data.metrics[f"{model}/pocket_cs/acc"] == score.value
    samples = {file.path for file in store.list_artifacts(run.run_id, "samples")}
    assert samples == {"samples/base-pocket_cs.parquet", "samples/tuned-pocket_cs.parquet"}
    asked = findings.before.benchmarks["pocket_cs"]
    files = sorted(file.name for file in (tmp_path / "mlruns").rglob("base-pocket_cs-to-*.parquet"))
    assert files == sorted(f"base-pocket_cs-to-{n}.parquet" for n in asked.stages)
    assert (
        len({file.parent for file in (tmp_path / "mlruns").rglob("base-pocket_cs-to-*.parquet")})
        == 1
    )
    assert len(asked.stages) > 1  # before the training and after it
    assert not list((tmp_path / "mlruns").rglob("*.jsonl"))
    base = load_model(config.model, config.quantization)
    asking = Asking.alike(
        base, load_tasks(config.benchmark), config, adapter_config(config.method, config.lora, base)
    )
    with (
        opened_run(config, About("next", "", [], tmp_path), nullcontext(), print) as next_run,
        base_records(config, base, next_run)() as record,
    ):
        found = asking.base(base, record, told, stays=False).benchmarks["pocket_cs"]
    assert found.samples[: len(asked.samples)] == asked.samples
    for n in found.stages:
        assert len(list((tmp_path / "mlruns").rglob(f"base-pocket_cs-to-{n}.parquet"))) == 1
