"""Today's code answers as b655a84 did: same questions, log-likelihoods, texts, scores and verdicts.

`golden/make.py` stored what b655a84 answered and says how. Bases and given adapters must agree:
log-likelihoods within 1e-3 nats in float32, texts up to a token that led by less. A training may
round otherwise, so of trained models only what they started from and that they learned is compared.
"""

import json
import lzma
import os
from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import slow
from golden.make import ADAPTERS, CASES, HERE, NF4, judge_logs, run_case
from hydra import compose
from mlflow import MlflowClient

from slimdown.config.loader import load_config, open_hydra
from slimdown.models.base_model import load_base_model
from slimdown.models.external import open_tuned_model

# PEFT 0.21 hands prefixes on under the name that transformers 5.24 renames.
pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
NEAR = 1e-3  # nats
# Verdicts of today by case, run and benchmark, where half an added answer shows a change that a
# whole one did not.
NEW_VERDICTS: dict[tuple[str, str, str], str] = {
    ("given", "prefix", "pocket_math"): "forgotten",  # p 0.064 before, 0.044 now
    ("six", "alpha_6", "pocket_instructions"): "improved",  # p 0.063 before, 0.038 now
}


@cache
def load_golden(case: str) -> dict[str, Any]:
    return json.loads(lzma.decompress((HERE / f"{case}.json.xz").read_bytes()))


@cache
def load_model(case: str, run: str | None) -> tuple[Any, Any]:
    """Load the base of a case, or with `run` its tuned model, and the tokenizer."""
    arguments = [argument for argument in CASES[case] if argument != "-m"]
    tuned = next((a for a in arguments if a.startswith("tuned=")), "").removeprefix("tuned=")
    overrides = [argument for argument in arguments if not argument.startswith("tuned=")]
    if run:
        overrides.append("tuned=" + next(t for t in tuned.split(",") if Path(t).name == run))
    with open_hydra():
        config = load_config(compose("config", overrides=overrides))
    base = load_base_model(config.model, config.quantization)
    model = open_tuned_model(config, base).load() if run else base
    return model.model, base.tokenizer


def measure_lead(case: str, run: str | None, prompt: str, first: str, second: str) -> float:
    """Return by how much the best token led where two continuations of a prompt part, in nats."""
    model, tokenizer = load_model(case, run)
    texts = [tokenizer(prompt + text).input_ids for text in (first, second)]
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
    shared = [token for token, _ in pairs]  # all of a text where the other goes on
    with torch.no_grad():
        logits = model(torch.tensor([shared])).logits[0, -1].float()
    best, next_best = logits.topk(2).values.tolist()
    return best - next_best


def compare_answers(
    case: str, run: str | None, stored: dict[str, Any], today: dict[str, Any]
) -> None:
    assert stored.keys() == today.keys()
    for benchmark, answers in stored.items():
        shared = answers.keys() & today[benchmark].keys()
        # Stopped early, the two may stop at other blocks; both begin with the same 32 questions.
        assert len(shared) == len(answers) if case != "decided" else len(shared) >= 32, benchmark
        for question in sorted(shared):
            before, after = answers[question], today[benchmark][question]
            where = f"{case} {run or 'base'} {benchmark} {question}"
            assert after["log_likelihoods"] == pytest.approx(before["log_likelihoods"], abs=NEAR), (
                where
            )
            if before["text"] != after["text"]:
                lead = measure_lead(case, run, after["prompt"], before["text"], after["text"])
                assert lead < NEAR, f"{where}: {before['text']!r} became {after['text']!r}"
                continue
            highest = sorted(before["log_likelihoods"])[-2:]
            if not highest or highest[1] - highest[0] > 2 * NEAR:
                for metric, score in before["scores"].items():
                    assert after["scores"][metric] == pytest.approx(score, abs=1e-6), where


def compare_findings(case: str, run: str, stored: dict[str, Any], today: dict[str, Any]) -> None:
    assert stored.keys() == today.keys()
    for benchmark, before in stored.items():
        after, where = today[benchmark], f"{case} {run} {benchmark}"
        verdict = NEW_VERDICTS.get((case, run, benchmark), before["verdict"])
        assert after["verdict"] == verdict, f"{where}: {before} became {after}"
        if case != "decided":
            for key in ("n", "kept", "lost", "gained", "missed"):
                assert after[key] == before[key], f"{where} {key}"
            assert after["change"] == pytest.approx(before["change"], abs=1e-9), where
            exact = before["mcnemar_p_value"]
            assert after["mcnemar_p_value"] == pytest.approx(exact, abs=1e-9), where


@pytest.fixture
def folder(store: MlflowClient, tmp_path: Path) -> Path:
    """Where today's code answers."""
    return tmp_path


def compare_case(
    case: str,
    folder: Path,
    arguments: Sequence[str] = (),
    runs: Sequence[str] = (),
    benchmarks: Sequence[str] = (),
) -> dict[str, Any]:
    """Run a case of given adapters, compare it, and return what today's code answered.

    With other arguments, these runs and benchmarks alone are compared.
    """
    stored, today = load_golden(case), run_case(case, folder, arguments)
    if case == "decided":  # today the base is always asked whole
        assert all(len(answers) == 300 for answers in today["base"].values())
        [run] = today["runs"].values()
        assert any(len(answers) < 300 for answers in run["tuned"].values())

    def narrow(answers: dict[str, Any]) -> dict[str, Any]:
        return {name: answers[name] for name in benchmarks or answers}

    compare_answers(case, None, narrow(stored["base"]), today["base"])
    assert today["runs"].keys() == {*(runs or stored["runs"])}
    for run, found in today["runs"].items():
        before = stored["runs"][run]
        compare_answers(case, run, narrow(before["tuned"]), found["tuned"])
        compare_findings(case, run, narrow(before["findings"]), found["findings"])
    return today


WRITTEN_AND_CHOSEN, CHOSEN = ["pocket_math", "pocket_cs"], ["pocket_commonsense", "pocket_cs"]
SHARING = ["rslora", "prefix"]  # one that shares prefixes, and one that does not
FEW_GIVEN = ["-m", "tuned=" + ",".join(str(ADAPTERS / name) for name in SHARING), NF4]
FEW_GIVEN += [f"benchmark=[{','.join(WRITTEN_AND_CHOSEN)}]"]
FEW_GIVEN += [f"benchmark.{name}.limit=40" for name in WRITTEN_AND_CHOSEN]
FEW_DECIDED = [*CASES["decided"], f"benchmark=[{','.join(CHOSEN)}]"]
NEEDS_HUB = pytest.mark.skipif("HF_ENDPOINT" not in os.environ, reason="needs the hub")


@pytest.mark.parametrize(
    ("case", "arguments", "runs", "benchmarks"),
    [
        pytest.param("given", FEW_GIVEN, SHARING, WRITTEN_AND_CHOSEN, id="some given"),
        pytest.param("decided", FEW_DECIDED, [], CHOSEN, id="choices decided early"),
        *slow(*((case, [], [], []) for case in ("tuned", "decided", "given"))),
        pytest.param("smollm2", [], [], [], marks=[pytest.mark.slow, NEEDS_HUB]),
    ],
)
def test_base_and_given_adapters_answer_as_before(
    case: str, arguments: list[str], runs: list[str], benchmarks: list[str], folder: Path
) -> None:
    compare_case(case, folder, arguments, runs, benchmarks)


@pytest.mark.slow
def test_six_runs_compare_and_pass_their_budgets_as_before(folder: Path) -> None:
    stored, today = load_golden("six"), compare_case("six", folder)
    for run, before in stored["check"].items():
        assert today["check"][run]["exit"] == before["exit"], run
    rows = {row["params"]["tuned"]: row["benchmarks"] for row in stored["compare"]["rows"]}
    for row in today["compare"]["rows"]:
        for benchmark, before in rows.pop(row["tuned"]).items():
            assert row[f"{benchmark}.change"] == pytest.approx(before["change"], abs=1e-9)
    assert not rows


def test_logs_of_lm_eval_are_judged_as_before(folder: Path) -> None:
    stored, today = load_golden("verdict")["verdict"], judge_logs(folder)
    assert today["exit"] == stored["exit"]
    rows = {(row["benchmark"], row["metric"]): row for row in today["rows"]["rows"]}
    for before in stored["rows"]["benchmarks"]:  # b655a84 named the rows so
        after = rows[before["benchmark"], before["metric"]]
        for key in ("n", "base", "tuned", "change", "lost", "gained"):
            assert after[key] == pytest.approx(before[key], abs=1e-9), (key, after)
        verdict = NEW_VERDICTS.get(("verdict", "", before["benchmark"]), before["verdict"])
        assert before["verdict"] is None or after["verdict"] == verdict, after


@pytest.mark.slow
@pytest.mark.parametrize("case", ["pocket", "methods", "weights"])
def test_training_starts_from_the_same_base_and_learns(case: str, folder: Path) -> None:
    stored, today = load_golden(case), run_case(case, folder)
    compare_answers(case, None, stored["base"], today["base"])
    assert stored["runs"].keys() == today["runs"].keys()
    for run, before in stored["runs"].items():
        first, second = before["training"], today["runs"][run]["training"]
        assert second["n_trainable"] == first["n_trainable"], run
        for key in ("validation_loss_before", "validation_loss_after"):
            assert second[key] == pytest.approx(first[key], rel=0.1), f"{run} {key}"
