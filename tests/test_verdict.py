"""The harness's own logs, as it writes them: read, judged as a run's answers are, refused where they differ."""

import hashlib
import json
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from mlflow import MlflowClient
from recorded import here
from transformers import AutoModelForCausalLM, AutoTokenizer

import slimdown
from slimdown import check, compare
from slimdown.config.schema import Role, RunConfig
from slimdown.evaluation.answers import Evaluation
from slimdown.evaluation.harness import evaluate
from slimdown.evaluation.logs import read_lm_eval
from slimdown.evaluation.questions import load_tasks
from slimdown.models.model import load_model
from slimdown.pocket import MODEL_DIR, TASKS_DIR
from slimdown.stats.budget import Outcome
from slimdown.stats.changes import changes_between
from slimdown.stats.findings import judge
from slimdown.verdict import main

LIMIT = 12
GROUP = {
    "group": "pocket_choices",
    "task": ["pocket_cs", "pocket_commonsense"],
    "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    "metadata": {"version": 1.0},
}


def ask(
    model: Path, folder: Path, tasks: list[str], extra: Path, limit: int = LIMIT, **more: Any
) -> None:
    """What the command line does with `--model hf --log_samples --output_path FOLDER` (lm_eval/_cli/run.py)."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(folder))
    with patch(
        "torch.utils.collect_env.get_pretty_env_info", return_value=""
    ):  # seconds, for a text about the machine
        found = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model), "dtype": "float32"},
            tasks=tasks,
            limit=limit,
            batch_size=16,
            device="cpu",
            task_manager=TaskManager(
                include_path=[str(TASKS_DIR), str(extra)], include_defaults=False
            ),
            evaluation_tracker=tracker,
            **more,
        )
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    for task in found["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])


@pytest.fixture(scope="module")
def tuned_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with noise on its weights, which forgets a part of what it knew."""
    folder = tmp_path_factory.mktemp("models") / "noisy"
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += (
                0.35 * weight.std() * torch.randn(weight.shape, generator=noise)
                if weight.dim() > 1
                else 0
            )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def logs(tuned_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base/ and tuned/, as the harness leaves them."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "group.yaml").write_text(yaml.safe_dump(GROUP))
    for name, model in (("base", MODEL_DIR), ("tuned", tuned_model)):
        ask(
            model,
            folder / name,
            ["pocket_math", "pocket_choices", "pocket_instructions"],
            folder / "tasks",
        )
    return folder


@pytest.fixture
def copied(logs: Path, tmp_path: Path) -> Path:
    """The same logs, to be spoiled."""
    return Path(shutil.copytree(logs, tmp_path / "logs"))


def results_of(folder: Path) -> Path:
    (file,) = folder.glob("*/results_*.json")
    return file


def samples_of(folder: Path, task: str) -> Path:
    (file,) = folder.glob(f"*/samples_{task}_*.jsonl")
    return file


def change(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    results = json.loads(file.read_text())
    edit(results)
    file.write_text(json.dumps(results))


def verdict(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


# --- what is read ---------------------------------------------------------------------------------------


def test_a_group_with_a_score_is_one_benchmark_and_any_other_task_one_by_itself(logs: Path) -> None:
    read = read_lm_eval(logs / "base", targets=["pocket_instructions"])
    benchmarks = {name: report.benchmark for name, report in read.benchmarks.items()}
    assert {name: (b.metric, b.role, b.chance, b.limit) for name, b in benchmarks.items()} == {
        "pocket_math": ("exact_match.strict-match", Role.retained, 0.0, LIMIT),
        "pocket_choices": ("acc", Role.retained, 0.25, LIMIT),
        "pocket_instructions": ("exact_match.strip", Role.target, 0.0, LIMIT),
    }
    group = read.benchmarks["pocket_choices"]
    assert (len(group.samples), set(group.clusters or [])) == (
        2 * LIMIT,
        {"pocket_cs", "pocket_commonsense"},
    )
    assert group.score.value == pytest.approx(sum(group.scores_of("acc")) / (2 * LIMIT))


def test_the_logs_of_two_models_are_judged_as_their_own_measurement_is(
    logs: Path, tuned_model: Path, composed: Callable[..., RunConfig]
) -> None:
    asked = [
        f"benchmark.pocket_{name}.limit={LIMIT}"
        for name in ("math", "instructions", "cs", "commonsense")
    ]
    config = composed("quantization=none", "model.dtype=float32", "model.device=cpu", *asked)
    tasks = load_tasks(config.benchmark)

    def measured(model: Path) -> Evaluation:
        loaded = load_model(replace(config.model, id=str(model)), config.quantization)
        return evaluate(loaded, tasks, config.benchmark, config.evaluation)

    before, after = measured(MODEL_DIR), measured(tuned_model)
    alone = {"pocket_math", "pocket_instructions"}
    kept = [
        replace(
            of, benchmarks={name: report for name, report in of.benchmarks.items() if name in alone}
        )
        for of in (before, after)
    ]
    read = [read_lm_eval(logs / name) for name in ("base", "tuned")]
    for ours, theirs in zip(kept, read, strict=True):
        for name, report in ours.benchmarks.items():
            assert report == replace(theirs.benchmarks[name], seconds=report.seconds)
    theirs = [
        replace(of, benchmarks={name: of.benchmarks[name] for name in kept[0].benchmarks})
        for of in read
    ]
    changes = changes_between(*kept)
    assert changes.benchmarks == changes_between(*theirs).benchmarks
    assert changes.benchmarks["pocket_math"].primary.difference.value < 0  # something to judge
    questions = {
        (s.task, s.doc_id): s
        for of in ("pocket_cs", "pocket_commonsense")
        for s in before.benchmarks[of].samples
    }
    for sample in read[0].benchmarks["pocket_choices"].samples:
        ours = questions[sample.task, sample.doc_id]
        assert ours == replace(sample, log_likelihoods=ours.log_likelihoods)
        assert sample.log_likelihoods == pytest.approx(ours.log_likelihoods, abs=1e-3)


@pytest.mark.parametrize("of", ["the folder", "the model's folder", "the results file"])
def test_a_log_is_named_in_any_of_three_ways(of: str, logs: Path) -> None:
    file = results_of(logs / "base")
    path = {
        "the folder": logs / "base",
        "the model's folder": file.parent,
        "the results file": file,
    }[of]
    assert slimdown.read_lm_eval(path).benchmarks.keys() == {
        "pocket_math",
        "pocket_choices",
        "pocket_instructions",
    }


def test_a_notebook_judges_logs_as_it_judges_what_it_measured(logs: Path) -> None:
    findings = slimdown.judge(
        slimdown.read_lm_eval(logs / "base"), slimdown.read_lm_eval(str(logs / "tuned"))
    )
    assert findings.changes.benchmarks["pocket_choices"].primary.difference.value < 0
    assert not findings.passes(pocket_choices=0.02)


def test_results_named_by_a_file_are_found_by_that_name(logs: Path, tmp_path: Path) -> None:
    """With `--output_path out/base.json` the harness writes out/base_DATE.json, and samples beside it."""
    ask(MODEL_DIR, tmp_path / "out" / "base.json", ["pocket_cs"], logs / "tasks", limit=2)
    assert len(read_lm_eval(tmp_path / "out" / "base.json").benchmarks["pocket_cs"].samples) == 2


def test_of_repeated_results_the_newest_of_each_benchmark_are_read_and_told(copied: Path) -> None:
    ask(MODEL_DIR, copied / "base", ["pocket_math"], copied / "tasks", limit=5)
    told: list[str] = []
    read = read_lm_eval(copied / "base", tell=told.append)
    assert {name: len(report.samples) for name, report in read.benchmarks.items()} == {
        "pocket_math": 5,
        "pocket_choices": 2 * LIMIT,
        "pocket_instructions": LIMIT,
    }
    (line,) = told
    older, newer = sorted((copied / "base").glob("*/results_*"))
    assert (
        f"pocket_instructions, pocket_choices from {older.name}; pocket_math from {newer.name}"
        in line
    )


def test_a_metric_and_a_target_can_be_chosen(logs: Path) -> None:
    metrics = {"pocket_math": "exact_match.flexible-extract"}
    read = read_lm_eval(logs / "base", metrics, ["pocket_math"])
    math = read.benchmarks["pocket_math"].benchmark
    assert (math.metric, math.role) == ("exact_match.flexible-extract", Role.target)


def test_lines_may_come_in_the_order_of_several_processes(copied: Path) -> None:
    """With two processes the harness writes even questions first; its digest is of that order."""
    before = read_lm_eval(copied / "base").benchmarks["pocket_choices"].samples
    file, results = samples_of(copied / "base", "pocket_cs"), results_of(copied / "base")
    lines = file.read_text().splitlines(keepends=True)
    turned = [*lines[::2], *lines[1::2]]
    file.write_text("".join(turned))
    hashes = [
        json.loads(line)[f"{what}_hash"] for line in turned for what in ("doc", "prompt", "target")
    ]
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
    change(results, lambda found: found["task_hashes"].update(pocket_cs=digest))
    assert read_lm_eval(copied / "base").benchmarks["pocket_choices"].samples == before


@pytest.mark.parametrize("version", ["0.4.9", "0.4.13"])
def test_logs_of_another_version_are_read_alike(version: str) -> None:
    """`harness_logs/` was written by these versions' command lines; what they say of the machine is taken out.

    0.4.9 keeps the model's arguments as one text, lists a task as a group of nothing, and a group's tasks in any order.
    """
    read = read_lm_eval(Path(__file__).parent / "harness_logs" / version)
    assert read.harness_version == version
    shown = {
        name: (b.benchmark.metric, len(b.samples), b.score.value)
        for name, b in read.benchmarks.items()
    }
    assert shown == {
        "pocket_math": ("exact_match.strict-match", 4, 1.0),
        "pocket_choices": ("acc", 8, 1.0),
    }
    assert read.conditions["dtype"] == "float32"


def test_versions_may_differ_where_tasks_and_prompts_do_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    older, newer = (
        Path(__file__).parent / "harness_logs" / version for version in ("0.4.9", "0.4.13")
    )
    assert verdict(older, newer) == 0
    assert (
        "made by lm_eval 0.4.9 and 0.4.13; the tasks' settings, questions and prompts are"
        in capsys.readouterr().err
    )


# --- what is answered -----------------------------------------------------------------------------------


def test_the_answer_is_a_table_and_sentences(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verdict(logs / "base", logs / "tuned") == Outcome.within
    shown = capsys.readouterr().out
    assert f"{logs / 'base'} → {logs / 'tuned'}" in shown.replace("\n", "")
    assert re.search(r"pocket_math +strict-match +12 +91\.7", shown)
    assert "Undecided: pocket_choices" in shown or "Forgotten: pocket_choices" in shown


def test_each_format_says_the_same(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both, change = (
        (logs / "base", logs / "tuned"),
        judge(*map(read_lm_eval, (logs / "base", logs / "tuned"))).changes,
    )
    verdict(*both, "--format", "json")
    rows = {
        row["benchmark"]: row
        for row in json.loads(capsys.readouterr().out)["benchmarks"]
        if "verdict" in row
    }
    assert (
        rows["pocket_math"]["change"] == change.benchmarks["pocket_math"].primary.difference.value
    )
    for name in ("page.html", "table.md", "table.csv"):
        verdict(*both, "-o", tmp_path / name)
        assert "pocket_math" in (tmp_path / name).read_text()
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "lm_eval.max_length" in page


@pytest.mark.parametrize(
    ("order", "budget", "outcome"),
    [
        (("base", "tuned"), "pocket_choices=0", Outcome.beyond),
        (("base", "tuned"), "pocket_choices=0.99", Outcome.within),
        (("tuned", "base"), "pocket_choices=0.02", Outcome.within),
        (("base", "tuned"), "pocket_math=0.3", Outcome.undecided),
    ],
)
def test_with_a_budget_the_exit_code_is_the_answer(
    order: tuple[str, str], budget: str, outcome: Outcome, logs: Path
) -> None:
    assert verdict(*(logs / name for name in order), "--max-loss", budget) == outcome


def test_a_verdict_is_recorded_as_a_run_that_compare_and_check_read(
    logs: Path,
    store: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert verdict(logs / "base", logs / "tuned", "--track", "--tracking-uri", here().uri) == 0
    (run_id,) = re.findall("run ([0-9a-f]{32}) in sqlite", capsys.readouterr().err)
    run = store.get_run(run_id)
    expected = judge(*map(read_lm_eval, (logs / "base", logs / "tuned"))).changes.benchmarks[
        "pocket_math"
    ]
    assert run.data.metrics["forgetting/pocket_math/change"] == expected.primary.difference.value
    assert run.data.tags["slimdown.origin"] == str(logs / "tuned")
    assert run.data.params["lm_eval.dtype"] == "float32"
    assert {a.path for a in store.list_artifacts(run_id)} >= {
        "report.html",
        "report.md",
        "plots",
        "samples",
    }
    verdict(logs / "tuned", logs / "base", "--track", "--tracking-uri", here().uri)
    monkeypatch.setattr(
        sys, "argv", ["compare", "--experiment", "slimdown", "--tracking-uri", here().uri]
    )
    compare.main()
    shown = capsys.readouterr().out
    assert "2 finished runs" in shown
    with pytest.raises(SystemExit) as stopped:
        check.main([run_id, "--max-loss", "pocket_choices=0.99", "--tracking-uri", here().uri])
    assert stopped.value.code == Outcome.within


def test_logs_are_judged_without_torch_and_without_the_harness(logs: Path) -> None:
    script = (
        "import sys\nfrom slimdown.verdict import main\n"
        f"try: main([{str(logs / 'base')!r}, {str(logs / 'tuned')!r}])\n"
        "finally: print(sorted({'torch', 'lm_eval', 'transformers', 'mlflow', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_ten_thousand_questions_take_no_longer_than_they_should(copied: Path) -> None:
    """Of a processor's time, not the clock's: 1.4 s where this was written, and as much again for a slower one."""
    for model in ("base", "tuned"):
        file, results = samples_of(copied / model, "pocket_cs"), results_of(copied / model)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        many = [{**lines[i % len(lines)], "doc_id": i} for i in range(10_000)]
        file.write_text("".join(json.dumps(entry) + "\n" for entry in many))
        hashes = [entry[f"{what}_hash"] for entry in many for what in ("doc", "prompt", "target")]
        digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
        change(results, lambda found, digest=digest: found["task_hashes"].update(pocket_cs=digest))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "slimdown.verdict", copied / "base", copied / "tuned"]
    assert "10,012" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


# --- what is refused ------------------------------------------------------------------------------------


def spoiled(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """One line of tuned/'s pocket_math changed."""

    def spoil(logs: Path) -> None:
        file = samples_of(logs / "tuned", "pocket_math")
        lines = file.read_text().splitlines()
        entry = json.loads(lines[3])
        edit(entry)
        lines[3] = json.dumps(entry)
        file.write_text("\n".join(lines) + "\n")

    return spoil


def retold(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """tuned/'s results changed."""
    return lambda logs: change(results_of(logs / "tuned"), edit)


def rewritten(edit: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    """tuned/'s lines of pocket_math changed."""

    def rewrite(logs: Path) -> None:
        file = samples_of(logs / "tuned", "pocket_math")
        file.write_text("".join(edit(file.read_text().splitlines(keepends=True))))

    return rewrite


def asked_again(logs: Path, *tasks: str, **more: Any) -> None:
    shutil.rmtree(logs / "tuned")
    ask(MODEL_DIR, logs / "tuned", list(tasks), logs / "tasks", **more)


REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "no folder",
        lambda logs: shutil.rmtree(logs / "tuned"),
        "there is no folder .*tuned; give the one that",
    ),
    (
        "an empty folder",
        lambda logs: shutil.rmtree(results_of(logs / "tuned").parent),
        "holds no results as lm_eval names them",
    ),
    (
        "no samples",
        lambda logs: [f.unlink() for f in (logs / "tuned").glob("*/samples*")],
        "lm_eval --log_samples keeps",
    ),
    (
        "one file missing",
        lambda logs: samples_of(logs / "tuned", "pocket_cs").unlink(),
        "there is no .*samples_pocket_cs_",
    ),
    (
        "two models",
        lambda logs: shutil.copytree(results_of(logs / "base").parent, logs / "tuned" / "other"),
        "holds logs of several models; give the folder of one: .*other",
    ),
    (
        "results cut short",
        lambda logs: results_of(logs / "tuned").write_text('{"results": {'),
        "was cut short",
    ),
    (
        "results of something else",
        lambda logs: results_of(logs / "tuned").write_text("[1]"),
        "no results file of lm_eval",
    ),
    (
        "a line cut short",
        rewritten(lambda lines: [*lines[:-1], lines[-1][:100]]),
        "line 24, is no line of lm_eval, or",
    ),
    (
        "a line missing",
        rewritten(lambda lines: lines[:-1]),
        "lines are missing, doubled or changed",
    ),
    (
        "a question twice",
        rewritten(lambda lines: [*lines, lines[-1]]),
        "lines are missing, doubled or changed",
    ),
    ("no line at all", rewritten(lambda lines: []), "lines are missing, doubled or changed"),
    (
        "no text",
        lambda logs: samples_of(logs / "tuned", "pocket_math").write_bytes(b"\xff\xfe\0" * 9),
        "line 1, is no line",
    ),
    ("a huge line", rewritten(lambda lines: ["[" * 20_000_000]), "line 1, is no line of lm_eval"),
    (
        "a line of another kind",
        rewritten(lambda lines: ["3\n", *lines]),
        "line 1, is no line of lm_eval",
    ),
    (
        "a score that is none",
        spoiled(lambda e: e.update(exact_match=float("nan"))),
        "question 3 .* is not a number",
    ),
    ("a score that is a text", spoiled(lambda e: e.update(exact_match="high")), "each question"),
    ("no score", spoiled(lambda e: e.pop("exact_match")), "is not logged as lm_eval does it"),
    (
        "a likelihood that is none",
        lambda logs: (file := samples_of(logs / "tuned", "pocket_cs")).write_text(
            re.sub(r'"-[\d.]+"', '"nan"', file.read_text())
        ),
        "question 0 of pocket_cs is not a number",
    ),
    (
        "a limit without end",
        retold(lambda r: r["config"].update(limit=float("inf"))),
        "is not logged as lm_eval does",
    ),
    (
        "another name of a file",
        retold(lambda r: r.update(group_subtasks={"pocket_choices": ["../../base/x"]})),
        "is not logged as lm_eval does it",
    ),
    (
        "other tasks",
        lambda logs: asked_again(logs, "pocket_cs"),
        "benchmarks differ: .*'pocket_math'.* and .*'pocket_cs'",
    ),
    (
        "fewer questions",
        lambda logs: asked_again(
            logs, "pocket_math", "pocket_choices", "pocket_instructions", limit=8
        ),
        "pocket_math: base and tuned cannot be compared, n differs: 12 and 8",
    ),
    (
        "another prompt",
        lambda logs: asked_again(
            logs,
            "pocket_math",
            "pocket_choices",
            "pocket_instructions",
            limit=LIMIT,
            system_instruction="Be brief.",
        ),
        "system_instruction differs: None and Be brief.",
    ),
    (
        "another way to generate",
        lambda logs: asked_again(
            logs,
            "pocket_math",
            "pocket_choices",
            "pocket_instructions",
            limit=LIMIT,
            gen_kwargs={"max_gen_toks": 3},
        ),
        "pocket_.*generation_kwargs differs: .* and .*3",
    ),
    (
        "another version of a task",
        retold(lambda r: r["versions"].update(pocket_math=2.0)),
        "task_version differs: 1.0 and 2",
    ),
    (
        "other shots",
        retold(lambda r: r["n-shot"].update(pocket_math=5)),
        "num_fewshot differs: 0 and 5",
    ),
    (
        "other filters",
        retold(lambda r: r["configs"]["pocket_math"]["filter_list"].pop()),
        "pocket_math.filter_list differs",
    ),
    (
        "another dtype",
        retold(lambda r: r["config"].update(model_dtype="torch.bfloat16")),
        "dtype differs: float32 and bfloat16",
    ),
    (
        "quantized",
        retold(lambda r: r["config"]["model_args"].update(load_in_4bit=True)),
        "load_in_4bit differs: not set and true",
    ),
    (
        "a beginning token",
        retold(lambda r: r["config"]["model_args"].update(add_bos_token=True)),
        "add_bos_token differs",
    ),
    (
        "another window",
        retold(lambda r: r.update(max_length=256)),
        "max_length differs: 512 and 256",
    ),
    (
        "a chat template",
        retold(lambda r: r.update(chat_template="{{ x }}")),
        "apply_chat_template differs: false and true",
    ),
    (
        "another engine",
        retold(lambda r: r["config"].update(model="vllm")),
        "scoring_path differs: hf and vllm",
    ),
]


@pytest.mark.parametrize(("what", "spoil", "answer"), REFUSED, ids=[what for what, *_ in REFUSED])
def test_what_cannot_be_judged_is_said_in_one_line(
    what: str,
    spoil: Callable[[Path], object],
    answer: str,
    copied: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(copied)
    capsys.readouterr()
    began = time.perf_counter()
    code = verdict(copied / "base", copied / "tuned")
    took = time.perf_counter() - began
    said = capsys.readouterr().err
    assert code == Outcome.unasked
    assert re.fullmatch(f"These logs cannot be judged:\n  .*{answer}.*\n", said)
    assert took < 3  # of a machine with other work; a quiet one takes a tenth


def test_what_may_differ_does(copied: Path) -> None:
    free = {
        "device": "cuda:1",
        "peft": "an/adapter",
        "revision": "v2",
        "batch_size": "auto",
        "trust_remote_code": True,
    }
    retold(lambda r: r["config"].update(batch_size=64, device="cuda:0", bootstrap_iters=0))(copied)
    retold(lambda r: r["config"]["model_args"].update(free))(copied)
    assert verdict(copied / "base", copied / "tuned") == 0


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["base", "base"], "BASE and TUNED are the same logs"),
        (["base", "./tasks/../base"], "BASE and TUNED are the same logs"),
        (["base", "tuned", "--max-loss", "pocket_maths=0.1"], "did you mean pocket_math"),
        (
            ["base", "tuned", "--target", "pocket_maths"],
            "pocket_maths was not asked; did you mean pocket_math",
        ),
        (["base", "tuned", "--metric", "pocket_math"], "name one metric a task"),
        (["base", "tuned", "--metric", "a=f1", "a=acc"], "--metric a=acc: name one metric a task"),
        (
            ["base", "tuned", "--metric", "pocket_math=f1"],
            "pocket_math=f1: the answers have no such score",
        ),
        (["base", "tuned", "-o", "/proc/page.html"], "/proc/page.html cannot be written"),
        (
            ["base", "tuned", "--track", "--tracking-uri", "nowhere"],
            "must be a database or a server",
        ),
        (["base"], "the following arguments are required: TUNED"),
        (["base", "tuned", "--format", "pdf"], "invalid choice: 'pdf'"),
    ],
)
def test_a_mistake_in_the_command_is_said(
    arguments: list[str],
    answer: str,
    logs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(logs)
    assert verdict(*arguments) == Outcome.unasked
    said = capsys.readouterr().err
    assert answer in said
    assert "Traceback" not in said


def test_the_same_answers_of_two_models_are_told(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "tuned")
    shutil.copytree(copied / "base", copied / "tuned")
    assert verdict(copied / "base", copied / "tuned") == 0
    assert "every answer is the same to the last digit" in capsys.readouterr().err


def test_a_task_that_cannot_be_paired_is_left_out_and_told(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in ("base", "tuned"):
        change(
            results_of(copied / model),
            lambda r: r["higher_is_better"].update(pocket_instructions={"exact_match": False}),
        )
    assert verdict(copied / "base", copied / "tuned") == 0
    assert "pocket_instructions is left out" in capsys.readouterr().err
