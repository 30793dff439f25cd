"""Asked alike, a benchmark has one metric and verdict: by run, measure, verdict and callback."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands_and_runs import find_runs, succeed
from mlflow import MlflowClient
from stock_harness import run_lm_eval
from transformers import AutoModelForCausalLM, AutoTokenizer

import slimdown
from slimdown.config.benchmarks import read_benchmarks
from slimdown.evaluation.tasks import load_tasks
from slimdown.pocket import MODEL_DIR, TASKS_DIR

SCORES = """
def score(doc, results):
    return {"thirds": len(results[0]) % 4 / 3, "halves": len(results[0]) % 3 / 2}
"""
CHOICES = f"include: {TASKS_DIR}/pocket_cs_dev.yaml\n"
OWN = {
    "own_zero": CHOICES,
    "own_two": f"{CHOICES}num_fewshot: 2\nfewshot_split: dev\n",
    "own_scores": f"""
include: {TASKS_DIR}/pocket_math_dev.yaml
generation_kwargs: {{until: ["\\n"], max_gen_toks: 6, do_sample: false}}
process_results: !function own_scores.score
filter_list: null
metric_list:
  - {{metric: halves, aggregation: mean, higher_is_better: true}}
  - {{metric: thirds, aggregation: mean, higher_is_better: true}}
""",
}
GROUP = """
group: own_group
task: [own_zero, own_two]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
METRICS = {
    "own_scores": "halves",
    "own_group": "acc",
    "pocket_commonsense_dev": "acc_norm",
    "pocket_math_dev": "exact_match.flexible-extract",
    "pocket_cs_dev": "acc",
    "pocket_instructions_dev": "exact_match.strip",
}

LIMIT = 12  # questions of each task


def write_own_tasks(folder: Path) -> Path:
    folder.mkdir()
    (folder / "own_scores.py").write_text(SCORES)
    for name, text in OWN.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{text}")
    (folder / "own_group.yaml").write_text(GROUP)
    return folder


def judge_everywhere(
    base: str,
    tuned: str,
    tasks: list[str],
    own: Path,
    folder: Path,
    *settings: str,
    max_gen_toks: int | None = None,
    topics: Sequence[str] = (),
) -> dict[str, tuple[str, str]]:
    """Metric and verdict by benchmark, which are the same in each of the four ways to ask."""
    folder.mkdir(exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    models = [AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32) for m in (base, tuned)]
    prompts: Any = {"limit": LIMIT, "include_path": str(own), "max_gen_toks": max_gen_toks}
    before = slimdown.measure(models[0], tokenizer, tasks, **prompts)
    judged: dict[str, Any] = {
        "measure": slimdown.judge(before, slimdown.measure(models[1], tokenizer, before))
    }
    callback = slimdown.ForgettingCallback(tasks, every=0, **prompts)
    state = SimpleNamespace(
        is_world_process_zero=True, global_step=0, max_steps=1, epoch=None, log_history=list[Any]()
    )
    trained: Any = {"model": models[0], "processing_class": tokenizer}
    callback.on_train_begin(None, state, None, **trained)
    models[0].load_state_dict(models[1].state_dict())
    callback.on_train_end(None, state, None, **trained)
    judged["callback"] = callback.findings
    shown = {
        way: {name: (b.metric, b.verdict.name) for name, b in findings.benchmarks.items()}
        for way, findings in judged.items()
    }
    stock: Any = {"limit": LIMIT, "topics": topics}
    if max_gen_toks:
        stock["gen_kwargs"] = {"max_gen_toks": max_gen_toks}
    for name, model in (("base", base), ("tuned", tuned)):
        run_lm_eval(folder / name, tasks, own, model=model, **stock)
    done = succeed(folder, "verdict", "base", "tuned", "--format", "json")
    rows = [row for row in json.loads(done.stdout)["rows"] if row["verdict"]]
    shown["verdict"] = {row["benchmark"]: (row["metric"], row["verdict"]) for row in rows}
    chosen = [f"benchmark=[{','.join(tasks)}]", f"evaluation.include_path={own}"]
    for name in tasks:
        chosen.append(f"benchmark.{name}.limit={LIMIT}")
        if max_gen_toks and before.benchmarks[name].benchmark.max_gen_toks:  # it generates
            chosen.append(f"benchmark.{name}.max_gen_toks={max_gen_toks}")
    chosen += [f"tuned={tuned}", "quantization=none", "model.dtype=float32"]
    done = succeed(folder, "run", *settings, *chosen)
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    [run] = find_runs(client)
    file = client.download_artifacts(run.info.run_id, "findings.json")
    findings = json.loads(Path(file).read_text())
    shown["run"] = {n: (b["metric"], b["verdict"]) for n, b in findings["benchmarks"].items()}
    measured: dict[str, tuple[str, str]] = shown.pop("measure")
    for way, found in shown.items():
        assert found == measured, way
    return measured


def spoil(model: str, folder: Path, strength: float) -> str:
    spoiled = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in spoiled.parameters():
            parameter += strength * torch.randn_like(parameter)
    spoiled.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return str(folder)


def test_six_tasks_have_one_verdict(store: MlflowClient, tmp_path: Path) -> None:
    own = write_own_tasks(tmp_path / "own")
    tuned = spoil(str(MODEL_DIR), tmp_path / "tuned_model", 0.03)
    shown = judge_everywhere(str(MODEL_DIR), tuned, list(METRICS), own, tmp_path, "model=pocket")
    assert {name: metric for name, (metric, _) in shown.items()} == METRICS
    assert {verdict for _, verdict in shown.values()} > {"forgotten"}


def test_a_task_of_ones_own_stands_before_one_of_the_harness(tmp_path: Path) -> None:
    (tmp_path / "piqa.yaml").write_text(f"task: piqa\n{CHOICES}")
    [task] = load_tasks(read_benchmarks("piqa"), str(tmp_path))["piqa"].tasks.values()
    assert task.config.dataset_kwargs["rows"] == "pocket_cs"


TOPICS = ["arc", "piqa", "mmlu", "gsm8k", "ifeval"]
REAL = [
    "arc_challenge",
    "arc_challenge_chat",
    "piqa",
    "mmlu_anatomy",
    "mmlu_astronomy",
    "mmlu_anatomy_continuation",
    "mmlu_virology_generative",
    "mmlu_flan_cot_zeroshot_anatomy",
    "mmlu_flan_n_shot_loglikelihood_virology",
    "gsm8k_cot_zeroshot",
    *(["ifeval"] if find_spec("langdetect") else []),  # which it needs
]


@pytest.mark.hub
def test_real_tasks_have_one_verdict(store: MlflowClient, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    base = snapshot_download("local/stories260K")
    tuned = spoil(base, tmp_path / "tuned_model", 0.05)
    model = ["model=smollm2", f"model.id={base}"]
    own = tmp_path / "own"
    own.mkdir()  # empty: all tasks are the harness's
    few: Any = {"max_gen_toks": 12, "topics": TOPICS}  # their own are 256 and 1,280
    shown = judge_everywhere(base, tuned, REAL, own, tmp_path, *model, **few)
    assert len(shown) == len(REAL)
