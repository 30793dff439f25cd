"""The probability of the right choice: its number, its verdicts, and what it leaves as it is."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import COLOURS, make_benchmark, make_choice, make_evaluation, stop_early

from slimdown.config.benchmark_config import Role, Until
from slimdown.evaluation.logs.read_logs import read_logs
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation, Sample
from slimdown.judging.budgets import check_budgets, judge_look, overall_outcome
from slimdown.judging.findings import Findings, judge
from slimdown.judging.right_choice import ProbabilityVerdict, score_right_choices
from slimdown.judging.stopping import stopping_rule
from slimdown.judging.verdicts import Verdict
from slimdown.report.findings_report import ModelPair, findings_table, pairs_table
from slimdown.report.run_page import render_page
from slimdown.report.tables import write_table
from slimdown.report.text import describe_findings
from slimdown.stats.estimates import compare_scores, holm
from slimdown.utils.errors import DataError

LOGS = Path(__file__).parents[1] / "evaluation" / "harness_logs" / "0.4.13"


def draw_likelihoods(n: int = 300, seed: int = 0) -> np.ndarray:
    """[n, 4] nats; the right one of question i, number i modulo four, leads by 1.5 on average."""
    likelihoods = np.random.default_rng(seed).normal(-20, 2, (n, 4))
    likelihoods[np.arange(n), np.arange(n) % 4] += 1.5
    return likelihoods


def choose(likelihoods: np.ndarray, **settings: Any) -> BenchmarkEvaluation:
    samples = [
        replace(make_choice(int(row.argmax()), i), log_likelihoods=tuple(map(float, row)))
        for i, row in enumerate(likelihoods)
    ]
    return make_benchmark(samples, **settings)


def judge_temperature(scale: float, n: int = 300, **settings: Any) -> Findings:
    nats = draw_likelihoods(n)
    base, tuned = choose(nats, **settings), choose(scale * nats, **settings)
    return judge(make_evaluation(a=base, text=[1, 0, 1]), make_evaluation(a=tuned, text=[1, 0, 0]))


@pytest.mark.heavy
def test_it_is_the_softmax_of_what_the_harness_logs() -> None:
    from lm_eval.utils import softmax

    expected = {}
    for task in ("pocket_cs", "pocket_commonsense"):
        [file] = LOGS.glob(f"base/samples_{task}_*.jsonl")
        for entry in map(json.loads, file.read_text().splitlines()):
            likelihoods = np.array([float(value) for value, _ in entry["filtered_resps"]])
            expected[task, entry["doc_id"]] = softmax(likelihoods)[int(entry["target"])]
    evaluation = read_logs(LOGS).benchmarks["pocket_choices"]
    scores = score_right_choices(evaluation)
    in_order = [expected[sample.task, sample.doc_id] for sample in evaluation.samples]
    assert scores == pytest.approx(in_order, abs=1e-12)
    assert len(scores) == len(expected) == len(set(scores)) == 8


def test_a_temperature_changes_it_and_no_answer() -> None:
    findings = judge_temperature(0.7)
    change, plain = findings.benchmarks["a"], judge_temperature(1.0).benchmarks["a"]
    assert change.p_right.verdict is ProbabilityVerdict.lower
    assert change.p_right.change.high < 0
    assert change.p_right.tuned < change.p_right.base
    assert change.primary.counts == plain.primary.counts
    assert change.verdict is plain.verdict is Verdict.retained
    assert (change.p_value, change.primary.difference.value) == (1, 0)
    higher, steady = (judge_temperature(scale).benchmarks["a"].p_right for scale in (1.5, 0.99))
    assert higher.verdict is ProbabilityVerdict.higher
    assert steady.verdict is ProbabilityVerdict.steady
    few = judge_temperature(0.7, n=8).benchmarks["a"].p_right
    assert few.verdict is ProbabilityVerdict.undecided
    [row, _] = findings_table(findings).records
    assert row["p_right_change"] == change.p_right.change.value
    assert (row["p_right_verdict"], row["verdict"]) == ("lower", "retained")
    [sentence] = [s for s in describe_findings(findings) if "p_right" in s]
    assert "a lower, −" in sentence
    assert "another question than accuracy (a temperature changes it and no answer)" in sentence
    assert "a lower, −" in render_page(findings, "a run")
    paired = write_table(pairs_table([ModelPair("one", "two", findings)]), "markdown")
    assert "a lower, −" in paired.replace("\\", "")


@pytest.mark.parametrize("role", [Role.retained, Role.target])
def test_no_other_finding_moves_by_it(role: Role) -> None:
    """Two tuned models give the same answers, and p_right rises in one and falls in the other."""
    plain, *moved = (judge_temperature(scale, role=role) for scale in (1.0, 0.5, 2.0))
    assert [one.benchmarks["a"].p_right.verdict for one in moved] == ["lower", "higher"]  # type: ignore[union-attr]
    recorded = [one.to_dict() for one in (plain, *moved)]
    for one in recorded:
        assert one["benchmarks"]["a"].pop("p_right")
        assert one["benchmarks"]["text"].pop("p_right") is None
    assert recorded[0] == recorded[1] == recorded[2]  # verdicts, p-values, means over benchmarks
    checks = [check_budgets(one, {"text": 0.5}) for one in (plain, *moved)]
    assert len({overall_outcome(one) for one in checks}) == 1
    assert len({tuple((c.benchmark, c.outcome, c.reason) for c in one) for one in checks}) == 1


def test_a_stopped_evaluation_stops_where_it_did_and_its_p_right_is_of_the_same_looks() -> None:
    nats = draw_likelihoods(400)
    base = make_evaluation(a=choose(nats))
    is_open = stopping_rule(Until.decided, base)
    for n in (32, 63, 200, 400):
        halted = [stop_early(choose(scale * nats), n) for scale in (1.0, 0.5)]
        assert is_open({"a": halted[0]}) == is_open({"a": halted[1]})
        p_right = judge(base, make_evaluation(a=halted[1])).benchmarks["a"].p_right
        assert p_right.difference.sampling.looks == halted[1].looks
        assert p_right.difference.n == n


def test_its_verdicts_are_a_family_of_their_own() -> None:
    nats, other = draw_likelihoods(60), draw_likelihoods(90, seed=1)
    written = {f"text{k}": [1, 0] * 20 for k in range(6)}
    base = make_evaluation(a=choose(nats), b=choose(other), **written)
    tuned = make_evaluation(a=choose(0.6 * nats), b=choose(0.9 * other), **written)
    benchmarks = judge(base, tuned).benchmarks
    changes = [one.p_right for one in benchmarks.values() if one.p_right]
    assert len(changes) == 2
    raw = [
        compare_scores(score_right_choices(choose(x)), score_right_choices(choose(k * x))).p_value
        for x, k in ((nats, 0.6), (other, 0.9))
    ]
    assert [change.p_value for change in changes] == pytest.approx(holm(raw))
    alone = {n: make_evaluation(a=e.benchmarks["a"]) for n, e in (("x", base), ("y", tuned))}
    single = judge(alone["x"], alone["y"]).benchmarks["a"].p_right
    assert single.p_value == pytest.approx(raw[0])


def test_choices_that_read_alike_count_once() -> None:
    twice = ("red", "red", "blue", "grey")
    sample = replace(make_choice(0), choices=twice, log_likelihoods=(-1.0, -1.0, -2.0, -2.0))
    [score] = score_right_choices(make_benchmark([sample]))
    assert score == pytest.approx(np.exp(-1) / (np.exp(-1) + 2 * np.exp(-2)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: replace(s, target="[0, 2]"),  # several right choices
        lambda s: replace(s, scores={"acc": 0.4}),  # a share of the probability, as of mc2
        lambda s: replace(s, choices=(COLOURS[0],) * 4, target=COLOURS[0]),
        lambda s: replace(s, log_likelihoods=(-np.inf, -1.0, -1.0, -1.0)),
        lambda s: replace(s, choices=(), log_likelihoods=()),
    ],
)
def test_without_one_right_choice_there_is_none(spoil: Any) -> None:
    samples: list[Sample] = [make_choice(i % 3, i) for i in range(8)]
    sound, odd = make_benchmark(samples), make_benchmark([*samples[:7], spoil(samples[7])])
    assert score_right_choices(sound)
    assert score_right_choices(odd) == []
    base = make_evaluation(a=odd)
    findings = judge(base, base)
    assert findings.benchmarks["a"].p_right is None
    assert not [s for s in describe_findings(findings) if "p_right" in s]
    with pytest.raises(DataError, match="a has questions without one right choice"):
        judge_look(findings, {"a": 0.05}, 1, by_p_right=True)


def test_a_record_holds_it_without_each_question_and_an_older_one_is_read() -> None:
    findings = judge_temperature(0.7)
    plain = json.loads(json.dumps(findings.to_dict()))
    recorded = plain["benchmarks"]["a"]["p_right"]
    assert recorded["verdict"] == "lower"
    assert len(json.dumps(recorded)) < 1000
    restored, one = Findings.from_dict(plain).benchmarks["a"].p_right, findings.benchmarks["a"]
    assert restored == replace(one.p_right, difference=None)
    for benchmark in plain["benchmarks"].values():
        del benchmark["p_right"]
    older = Findings.from_dict(plain)
    assert older.benchmarks["a"].p_right is None
    assert describe_findings(older)


def make_look(scale: float) -> tuple[Evaluation, Evaluation]:
    nats = draw_likelihoods(200)
    return make_evaluation(a=choose(nats)), make_evaluation(a=choose(scale * nats))


def test_a_look_ends_a_training_by_it_only_where_that_is_chosen() -> None:
    findings = judge(*make_look(0.2))
    assert judge_look(findings, {"a": 0.05}, 4) == (True, "")  # no answer has changed
    is_within, beyond = judge_look(findings, {"a": 0.05}, 4, by_p_right=True)
    assert not is_within
    assert re.fullmatch(r"a lost \d+\.\d points of p_right or more \(5 allowed\)", beyond)
    assert judge_look(judge(*make_look(1.0)), {"a": 0.05}, 4, by_p_right=True) == (True, "")
    # 5 % is shared among the looks
    p_value = findings.benchmarks["a"].p_right.difference.p_value_below(-0.05)  # type: ignore[union-attr]
    n_looks = int(0.05 / p_value)
    assert judge_look(findings, {"a": 0.05}, n_looks, by_p_right=True)[1]
    assert not judge_look(findings, {"a": 0.05}, n_looks + 1, by_p_right=True)[1]
