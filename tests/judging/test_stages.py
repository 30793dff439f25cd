"""The stages from training to serving: which of them lost what."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Capture, Patch, change_samples, make_benchmark, make_evaluation

from slimdown.commands import verdict
from slimdown.evaluation.results import Evaluation
from slimdown.judging.findings import Findings, judge
from slimdown.judging.stages import StageFindings, judge_served, judge_stages
from slimdown.judging.verdicts import Verdict
from slimdown.report.stages_report import stages_table
from slimdown.report.tables import write_table
from slimdown.utils.errors import DataError

N = 400


def write(findings: Findings) -> str:
    """Everything but the hash, which holds the prompts where they must be equal."""
    benchmarks = findings.to_dict()["benchmarks"]
    return json.dumps({name: plain | {"question_hash": ""} for name, plain in benchmarks.items()})


def answer(n_right: int, noise: int = 0) -> np.ndarray:
    """As many right answers; `noise` of them fell and as many others rose."""
    right = np.arange(N) < n_right + noise
    right[:noise] = False
    return right.astype(float)


@pytest.fixture
def stages() -> dict[str, Evaluation]:
    """A training that changes little, a merge that changes nothing, four bits that lose a tenth."""
    answers = {"base": (240, 0), "tuned": (238, 4), "merged": (238, 4), "q4": (190, 4)}
    return {
        name: make_evaluation(math=answer(n_right, noise), words=answer(200, noise // 2))
        for name, (n_right, noise) in answers.items()
    }


def list_steps(judged: StageFindings) -> list[tuple[str, str]]:
    return [(step.before, step.after) for step in judged.steps]


def test_steps_add_up_and_the_loss_stands_where_it_happened(stages: dict[str, Evaluation]) -> None:
    judged = judge_stages(stages)
    assert list_steps(judged) == [("base", "tuned"), ("tuned", "merged"), ("merged", "q4")]
    for name in judged.benchmarks:
        *steps, whole = [c.primary.difference.value for _, c in judged.list_changes(name)]
        assert sum(steps) == pytest.approx(whole, abs=1e-12)
    assert [step.after for step in judged.find_losses("math")] == ["q4"]
    assert not judged.find_losses("words")
    assert judged.whole.findings.benchmarks["math"].verdict is Verdict.forgotten
    assert re.findall(r"−[\d.]+\d", stages_table(judged).outcome) == ["−12.0", "−17.0", "−7.8"]


def test_each_stage_is_judged_as_alone_but_corrected(stages: dict[str, Evaluation]) -> None:
    judged = judge_stages(stages)
    for step in judged.reported:
        alone = judge(stages[step.before], stages[step.after])
        for name, change in step.findings.benchmarks.items():
            own = alone.benchmarks[name]
            assert change.primary.difference.value == own.primary.difference.value
            assert change.primary.counts == own.primary.counts
            assert change.p_value == pytest.approx(min(1.0, 4 * own.p_value))
            assert change.shown_change.low <= own.shown_change.low
    single = judge_stages({name: stages[name] for name in ("base", "q4")})
    alone = judge(stages["base"], stages["q4"])
    assert single.whole is None
    assert write(single.steps[0].findings) == write(alone)


def test_several_models_are_each_judged_against_the_base(stages: dict[str, Evaluation]) -> None:
    judged = judge_stages(stages, is_chain=False)
    assert judged.reported == judged.steps
    assert list_steps(judged) == [("base", "tuned"), ("base", "merged"), ("base", "q4")]
    corrected = judge(stages["base"], stages["q4"], n_reports=3)
    assert write(judged.steps[-1].findings) == write(corrected)


def ask(evaluation: Evaluation, **fields: Any) -> Evaluation:
    """The same answers, asked otherwise."""
    benchmarks = {n: change_samples(b, **fields) for n, b in evaluation.benchmarks.items()}
    return replace(evaluation, benchmarks=benchmarks)


def test_stages_served_otherwise_are_judged_and_said_to_be(stages: dict[str, Evaluation]) -> None:
    half = {"dtype": "bfloat16"}
    stages = {name: replace(stage, conditions=half) for name, stage in stages.items()}
    served = ask(stages["q4"], prompt_hash="of another template")
    served = replace(served, backend="llama.cpp", conditions={"dtype": "float16"})
    judged = judge_stages(stages | {"q4": served})
    differences = judged.steps[-1].differences
    assert [line.split()[0] for line in differences] == ["backend", "dtype", "400", "400"]
    assert all(line in stages_table(judged).notes[-1] for line in differences)
    assert not judged.steps[0].differences
    with pytest.raises(DataError, match=r"base → q4.*backend"):
        judge_stages(stages | {"q4": served}, is_chain=False)
    scored = replace(stages["q4"], conditions={**half, "math.filter_list": "strict"})
    for field, other in (
        ("doc_hash", ask(stages["q4"], doc_hash="another question")),
        ("target", ask(stages["q4"], target="another answer")),
        (r"math\.filter_list", scored),
    ):
        with pytest.raises(DataError, match=f"merged → q4: .*{field}"):
            judge_stages(stages | {"q4": other})


def test_stages_that_stopped_early_stop_at_one_question(stages: dict[str, Evaluation]) -> None:
    def stop(n: int) -> Evaluation:
        cut = replace(make_benchmark(answer(200)[:n]), looks=(50, n), n_available=N)
        return make_evaluation(math=cut, words=answer(200))

    judged = judge_stages({"base": stages["base"], "weights": stop(100), "served": stop(100)})
    *changes, whole = [change.primary.difference for _, change in judged.list_changes("math")]
    assert sum(change.value for change in changes) == pytest.approx(whole.value)
    assert {change.n for change in (*changes, whole)} == {100}
    assert not any(step.differences for step in judged.steps)
    with pytest.raises(DataError, match=r"^math.*100, q3.*=all"):
        judge_stages(stages | {"q4": stop(100), "q3": stop(200)})


def test_weights_and_template_of_a_served_model_are_told(stages: dict[str, Evaluation]) -> None:
    findings = judge(stages["base"], stages["tuned"])
    assert judge_served(findings) is None
    served = ask(make_evaluation(math=answer(190)), prompt_hash="of another template")
    judged = judge_served(replace(findings, served=served))
    assert judged.benchmarks == ("math",)  # the rest is asked alike
    assert list_steps(judged) == [("base", "weights"), ("weights", "served")]
    assert [step.after for step in judged.find_losses("math")] == ["served"]


def test_of_many_benchmarks_those_come_first_that_changed(stages: dict[str, Evaluation]) -> None:
    still = {f"words{i}": answer(200) for i in range(6)}
    many = {
        name: make_evaluation(math=stage.benchmarks["math"], **still)
        for name, stage in stages.items()
    }
    table = stages_table(judge_stages(many))
    assert {row["benchmark"] for row in table.records} == {"math", *still}
    shown = write_table(table, "table")
    assert "math " in shown
    assert "words" not in shown
    assert "6 more benchmarks" in shown


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: Patch) -> list[str]:
    """Tables of two benchmarks: of a base and of three stages."""
    for name, n_right in (("base", 240), ("tuned", 238), ("merged", 238), ("q4", 190)):
        (tmp_path / name).mkdir()
        for benchmark, n in (("math", n_right), ("words", 200)):
            rows = "\n".join(f"{i},{right:g}" for i, right in enumerate(answer(n)))
            (tmp_path / name / f"{benchmark}.csv").write_text(f"id,score\n{rows}\n")
    monkeypatch.chdir(tmp_path)
    return ["base", "tuned", "merged", "q4"]


def test_a_chain_of_logs_has_one_outcome(logs: list[str], capsys: Capture, tmp_path: Path) -> None:
    assert verdict.main(["--chain", *logs]) == 0
    shown = capsys.readouterr().out
    first, second, *_ = shown.splitlines()
    assert re.findall(r"math|q4|−[\d.]+", first)[:3] == ["math", "q4", "−12.0"]
    assert second.split(" → ") == logs
    assert max(map(len, shown.splitlines())) <= 80
    assert verdict.main(["--chain", *logs, "--max-loss", "0.05"]) == 1
    assert capsys.readouterr().out.startswith("FAILED (1 of 2")
    assert verdict.main(["--chain", *logs[:3], "--max-loss", "0.05", "--overall"]) == 0
    assert verdict.main(["--chain", *logs, "--max-loss", "0.05", "-o", "gate.xml"]) == 1
    assert 'failures="1"' in (tmp_path / "gate.xml").read_text()
    assert verdict.main(["--chain", *logs, "-o", "page.html"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_stage_has_a_budget_of_its_own(logs: list[str], capsys: Capture) -> None:
    at = ["--chain", *logs, "--max-loss-at"]
    assert verdict.main([*at, "q4", "math=0.05"]) == 1
    assert capsys.readouterr().out.startswith("FAILED: math at q4")
    assert verdict.main([*at, "merged", "math=0.05", "--max-loss", "0.5"]) == 0
    assert capsys.readouterr().out.startswith("PASSED (3 budgets)")
    assert verdict.main([*at, "q4", "math=0.05", "--max-loss", "0.5"]) == 1
    for stage, budget, answer in (
        ("q5", "math=0.05", "tuned, merged, q4"),
        ("q4", "mathe=0.05", "did you mean math?"),
        ("q4", "math=5", "--max-loss-at q4 math=5"),
        ("q4", "0.05", "--max-loss-at q4: name the benchmark"),
    ):
        assert verdict.main([*at, stage, budget]) == 3
        assert answer in capsys.readouterr().err
    with pytest.raises(SystemExit):
        verdict.main([*logs[:2], *at[-1:], "tuned", "math=0.05"])
    assert "add --chain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "answer"),
    [
        (["--max-loss", "0.02"], "--chain"),
        (["--lost", "lost.jsonl"], "--lost takes BASE"),
        (["--track"], "--track takes BASE"),
        (["tuned"], "tuned and tuned"),
    ],
)
def test_what_several_logs_cannot_be_asked_is_one_line(
    more: list[str], answer: str, logs: list[str], capsys: Capture
) -> None:
    assert verdict.main([*logs, *more]) == 3
    err = capsys.readouterr().err
    assert answer in err
    assert len(err.splitlines()) == 2


def test_two_logs_with_other_prompts_are_refused_and_the_way_on_is_named(
    logs: list[str], capsys: Capture, monkeypatch: Patch
) -> None:
    plain = make_benchmark([1.0] * 9)
    sides = [make_evaluation(math=change_samples(plain, prompt_hash=key)) for key in "ab"]
    given = iter(sides * 2)
    monkeypatch.setattr(verdict, "read_logs", lambda *_: next(given))
    assert verdict.main(logs[:2]) == 3
    err = capsys.readouterr().err
    assert "prompt_hash differs" in err
    assert "--chain" in err
    assert verdict.main(["--chain", *logs[:2]]) == 0
    assert "9 of 9" in capsys.readouterr().out
