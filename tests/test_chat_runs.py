"""Runs of models that chat and think: how they are asked, and what is said of it."""

import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from builders import make_benchmark, make_evaluation, make_sample
from commands_and_runs import call_verb, find_page, read_findings, succeed
from mlflow import MlflowClient
from record_builders import Compose, Patch
from tiny_models import TEMPLATE, save_chatty_pocket

from slimdown.comparison.trials import summarize_trial
from slimdown.config.benchmark_config import Role
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.judging.budgets import Outcome, check_budgets, judge_look
from slimdown.judging.findings import judge
from slimdown.judging.verdicts import Verdict
from slimdown.pocket import DATA_DIR
from slimdown.report.text import describe_findings
from slimdown.tracking.resume import run_key

FEW = ["train.max_steps=2", "dataset.file.validation_examples=2", "quantization=none"]
FEW += ["benchmark=[pocket_math,pocket_cs]"]
FEW += ["benchmark.pocket_math.limit=4", "benchmark.pocket_cs.limit=4"]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"dataset.file.path={file}"


def read_instructions(n: int) -> list[dict[str, str]]:
    text = (DATA_DIR / "pocket_instructions_train.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()[:n]]


@pytest.fixture(scope="module")
def folder(recorded: Path) -> Path:
    """A copy of the pocket model that has a chat template, and rows that are conversations."""
    save_chatty_pocket(recorded / "chatty")
    turns = [("user", "prompt"), ("assistant", "completion")]
    messages = [
        {"messages": [{"role": role, "content": row[text]} for role, text in turns]}
        for row in read_instructions(40)
    ]
    write_rows(recorded / "chat.jsonl", messages)
    write_rows(recorded / "plain.jsonl", read_instructions(40))
    return recorded


def test_conversations_are_asked_about_through_the_template(folder: Path) -> None:
    model = ["model=pocket", "model.id=chatty", "dataset=[file]", *FEW]
    chat = succeed(folder, "run", *model, "dataset.file.path=chat.jsonl")
    conditions = read_findings(folder, chat)["conditions"]
    assert conditions["pocket_math.apply_chat_template"] == "True"
    assert not any(key.startswith("pocket_cs.") for key in conditions)
    page = find_page(folder, chat).read_text()
    assert "apply_chat_template=True: pocket_math" in page

    places = (folder / "mlruns/artifacts/models").glob("*/artifacts/adapter_config.json")
    adapter = next(places).parent
    assert (adapter / "chat_template.jinja").is_file()
    tuned = succeed(folder, "run", "model=pocket", "model.id=chatty", *FEW[2:], f"tuned={adapter}")
    assert read_findings(folder, tuned)["conditions"] == conditions

    plain = succeed(folder, "run", *model, "dataset.file.path=plain.jsonl")
    assert "pocket_math.apply_chat_template" not in read_findings(folder, plain)["conditions"]
    compared = call_verb(folder, "compare")
    assert compared.returncode == 1
    assert "pocket_math" in compared.stderr


def test_a_run_keeps_what_its_base_answered(folder: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    model = ["model=pocket", "model.id=chatty", "dataset=[file]", *FEW]
    keep = ["dataset.file.path=chat.jsonl", "keep=auto"]
    done = succeed(folder, "run", *model, *keep)
    page = find_page(folder, done)
    assert "dialogues: " in unescape(page.read_text())
    rows = page.with_name("written_rows.jsonl")
    first = json.loads(rows.read_text().splitlines()[0])
    assert [turn["role"] for turn in first["messages"]] == ["user", "assistant"]
    assert "whole conversations" in " ".join(done.stdout.split())
    # its rows are a dataset like any other, and an equal command is finished
    succeed(folder, "run", *model, f"dataset.file.path={rows}", "--plan")
    again = call_verb(folder, "run", *model, *keep)
    assert "finished before" in again.stdout


def test_a_plan_says_where_rows_and_prompts_part_and_what_is_thought_about(folder: Path) -> None:
    switched = TEMPLATE + "{% if enable_thinking %}<think>{% endif %}"
    shutil.copytree(folder / "chatty", folder / "thinking", dirs_exist_ok=True)
    (folder / "thinking" / "chat_template.jinja").write_text(switched)

    def plan(*settings: str) -> str:
        done = succeed(folder, "run", "model=pocket", "dataset=[file]", *FEW, "--plan", *settings)
        return done.stdout

    chat = ["model.id=chatty", "dataset.file.path=chat.jsonl"]
    assert "prompts are plain" in plan(*chat, "evaluation.apply_chat_template=false")
    assert "The rows " not in plan(*chat)
    shown = plan(
        "model.id=thinking",
        "dataset.file.path=plain.jsonl",
        "evaluation.apply_chat_template=true",
        "evaluation.enable_thinking=true",
        "evaluation.think_end_token='</think>'",
    )
    assert "48 tokens, thinking" in shown
    assert "The rows are plain" in shown


def test_a_plan_doubts_messages_whose_answers_are_compared_letter_by_letter(folder: Path) -> None:
    question = {"messages": [{"role": "user", "content": "Which river is it?"}], "answer": "Neckar"}
    write_rows(folder / "quiz.jsonl", [question] * 3)
    model = ["model=pocket", "model.id=chatty", "dataset=[file]", "dataset.file.path=chat.jsonl"]
    for score, is_doubted in (("exact", True), ("contains", False)):
        benchmark = ["benchmark=quiz.jsonl", f"benchmark.quiz.score={score}"]
        shown = succeed(folder, "run", *model, *benchmark, "--plan").stdout
        assert ("score=contains" in " ".join(shown.split())) is is_doubted


def test_a_suites_benchmark_without_data_is_not_run(store: MlflowClient, tmp_path: Path) -> None:
    suite = tmp_path / "own" / "suite" / "mine.yaml"
    suite.parent.mkdir(parents=True)
    suite.write_text(
        "# @package _global_\n"
        "defaults:\n  - override /benchmark: [pocket_cs, gone]\n  - _self_\n"
        "suite: mine\nbenchmark:\n  pocket_cs: {limit: 4}\n"
    )
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "gone.yaml").write_text(
        "task: gone\ndataset_path: nobody/none\noutput_type: multiple_choice\ntest_split: test\n"
        "doc_to_text: a\ndoc_to_target: a\ndoc_to_choice: [a, b]\n"
    )
    settings = ["train.max_steps=2", "dataset.pocket_instructions.max_examples=20"]
    settings.append(f"evaluation.include_path={tmp_path / 'tasks'}")
    done = succeed(tmp_path, "run", *settings, "--config-dir", "own", "suite=mine")
    assert "Not measured: gone" in " ".join(done.stdout.split())
    assert read_findings(tmp_path, done)["not_run"].keys() == {"gone"}
    alone = call_verb(tmp_path, "run", *settings, "benchmark=[gone]")
    assert alone.returncode == 1
    assert "benchmark.gone.task=gone" in alone.stderr


def test_auto_keeps_the_keys_of_plain_runs(composed: Compose, folder: Path) -> None:
    def make_key(*settings: str) -> str:
        return run_key(composed(*settings, "quantization=none"))

    chat = f"dataset.file.path={folder / 'chat.jsonl'}"
    for setting in ("evaluation.apply_chat_template=false", "train.assistant_only_loss=false"):
        assert make_key() == make_key(setting)
        assert make_key("dataset=[file]", chat) != make_key("dataset=[file]", chat, setting)


# --- thinking, judged ---------------------------------------------------------------------------


def make_thinking(n_open: int, n: int = 100, **facts: Any) -> BenchmarkEvaluation:
    """Of n answers, all right, n_open did not end their thinking."""
    samples = [
        make_sample(
            {"em": float(i >= n_open)}, i, thinking="a b c", never_ended=i < n_open, **facts
        )
        for i in range(n)
    ]
    return make_benchmark(samples)


@pytest.mark.parametrize(("n_open", "is_decided"), [(5, True), (40, False)])
def test_thinking_that_never_ends_leaves_a_verdict_undecided(n_open: int, is_decided: bool) -> None:
    base = make_evaluation(math=make_thinking(0))
    findings = judge(base, make_evaluation(math=make_thinking(n_open)))
    change = findings.benchmarks["math"]
    traits = {trait.name: (trait.base, trait.tuned) for trait in change.traits}
    assert traits["thinks"] == (1.0, 1.0)
    assert traits["words thought"] == pytest.approx((3.0, 3.0))
    assert traits["thinking never ended"] == pytest.approx((0.0, n_open / 100))
    assert (change.never_ended is None) is is_decided
    assert not any("think," in line for line in describe_findings(findings))  # both think
    if not is_decided:
        assert change.verdict is Verdict.undecided
        assert "benchmark.math.max_gen_toks" in " ".join(describe_findings(findings))
        (check,) = check_budgets(findings, {"math": 0.01})
        assert check.outcome is Outcome.undecided
        assert "benchmark.math.max_gen_toks" in check.reason


def test_nothing_is_claimed_about_thinking_that_never_ended() -> None:
    """Neither a mean, nor a look, nor a trial of a search takes the limit of tokens for a loss."""
    calm = [1.0] * 60 + [0.0] * 40
    base = make_evaluation(math=make_thinking(0), calm=calm)
    tuned = make_evaluation(math=make_thinking(40), calm=calm)
    only_calm = make_evaluation(calm=calm)
    findings, alone = judge(base, tuned), judge(only_calm, only_calm)
    assert findings.benchmarks["math"].primary.difference.value == pytest.approx(-0.4)
    assert findings.mean_change(Role.retained) == alone.mean_change(Role.retained)
    assert judge_look(findings, {"math": 0.02, "calm": 0.02}, 1) == (False, "")
    trial = summarize_trial(findings, 0.02)
    assert (trial.excess.keys(), trial.unmeasured, trial.is_within) == ({"calm"}, ("math",), False)
    assert trial.order[:2] > summarize_trial(alone, 0.02).order[:2]


def test_a_model_that_stops_to_think_is_told() -> None:
    samples = [make_sample({"em": 1.0}, number) for number in range(100)]
    base = make_evaluation(math=make_thinking(0))
    findings = judge(base, make_evaluation(math=make_benchmark(samples)))
    [line] = (line for line in describe_findings(findings) if "think" in line)
    assert re.findall(r"(\d+) %", line) == ["100", "0"]
