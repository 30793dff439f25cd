"""The probability of the right choice: one more metric, its family of tests, its causes of loss."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import (
    COLOURS,
    add_p_right,
    judge_scores,
    make_benchmark,
    make_choice,
    make_evaluation,
    make_run,
    stop_early,
)

from slimdown.comparison.run_comparison import compare_runs
from slimdown.comparison.value_verdicts import judge_configurations
from slimdown.config.benchmark_config import Role, Until
from slimdown.evaluation.logs.read_logs import read_logs
from slimdown.evaluation.results import BenchmarkEvaluation, Sample
from slimdown.evaluation.right_choice import score_right_choice
from slimdown.judging.budgets import judge_look
from slimdown.judging.findings import Findings, judge
from slimdown.judging.losses import find_changed_answers
from slimdown.judging.pairing import pair_benchmark
from slimdown.judging.stopping import stopping_rule
from slimdown.judging.verdicts import Verdict
from slimdown.report.findings_report import findings_table
from slimdown.stats.estimates import holm

LOGS = Path(__file__).parents[1] / "evaluation" / "harness_logs" / "0.4.13"


def score(sample: Sample) -> float | None:
    return score_right_choice(sample.choices, sample.log_likelihoods, sample.target, sample.scores)


def draw_likelihoods(n: int = 300, seed: int = 0) -> np.ndarray:
    """[n, 4] nats; the right one of question i, number i modulo four, leads by 1.5 on average."""
    likelihoods = np.random.default_rng(seed).normal(-20, 2, (n, 4))
    likelihoods[np.arange(n), np.arange(n) % 4] += 1.5
    return likelihoods


def choose(likelihoods: np.ndarray, **settings: Any) -> BenchmarkEvaluation:
    samples = []
    for i, row in enumerate(likelihoods):
        plain = make_choice(int(row.argmax()), i)
        samples.append(add_p_right(replace(plain, log_likelihoods=tuple(map(float, row)))))
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
        for logged in map(json.loads, file.read_text().splitlines()):
            likelihoods = np.array([float(value) for value, _ in logged["filtered_resps"]])
            expected[task, logged["doc_id"]] = softmax(likelihoods)[int(logged["target"])]
    evaluation = read_logs(LOGS, metrics={"pocket_choices": "p_right"}).benchmarks["pocket_choices"]
    scores = evaluation.scores_of("p_right")
    in_order = [expected[sample.task, sample.doc_id] for sample in evaluation.samples]
    assert scores == pytest.approx(in_order, abs=1e-12)
    assert len(scores) == len(expected) == len(set(scores)) == 8
    shares = [1 / len(sample.choices) for sample in evaluation.samples]
    assert evaluation.benchmark.chance == pytest.approx(np.mean(shares))
    plain = read_logs(LOGS).benchmarks["pocket_choices"]
    assert plain.benchmark.metric != "p_right"
    assert plain.scores_of("p_right") == scores


def test_a_temperature_changes_it_and_no_answer() -> None:
    def find_verdict(scale: float, n: int = 300) -> Verdict | None:
        return judge_temperature(scale, n, metric="p_right").benchmarks["a"].verdict

    assert find_verdict(0.7) is Verdict.forgotten
    assert find_verdict(1.5) is Verdict.improved
    assert find_verdict(0.99) is Verdict.retained
    assert find_verdict(0.7, n=8) is Verdict.undecided
    by_answers = judge_temperature(0.7).benchmarks["a"]
    assert by_answers.verdict is Verdict.retained
    assert by_answers.primary.difference.value == 0
    assert by_answers.changes["p_right"].difference.high < 0
    records = findings_table(judge_temperature(0.7)).records
    shown = {r["metric"]: r["change"] for r in records if r["benchmark"] == "a"}
    assert shown["p_right"] < 0 == shown["acc"]


@pytest.mark.parametrize("role", [Role.retained, Role.target])
def test_where_it_is_not_the_metric_no_other_finding_moves_by_it(role: Role) -> None:
    plain, *moved = (judge_temperature(scale, role=role) for scale in (1.0, 0.5, 2.0))
    recorded = [findings.to_dict() for findings in (plain, *moved)]
    changes = [plain["benchmarks"]["a"]["changes"].pop("p_right") for plain in recorded]
    assert changes[1] != changes[0] != changes[2]
    assert recorded[0] == recorded[1] == recorded[2]  # verdicts, p-values, means over benchmarks


@pytest.mark.parametrize(("metric", "is_equal"), [("acc", True), ("p_right", False)])
def test_an_evaluation_stops_by_it_where_it_is_the_metric(metric: str, is_equal: bool) -> None:
    nats = draw_likelihoods(400)
    base = make_evaluation(a=choose(nats, metric=metric))
    is_open = stopping_rule(Until.decided, base)
    opened = []
    for scale in (0.97, 0.3):  # neither changes an answer
        halted = [stop_early(choose(scale * nats, metric=metric), n) for n in (32, 63, 200)]
        opened.append([is_open({"a": benchmark}) for benchmark in halted])
        d = judge(base, make_evaluation(a=halted[1])).benchmarks["a"].primary.difference
        assert (d.sampling.looks, d.n) == (halted[1].looks, 63)
    assert (opened[0] == opened[1]) is is_equal


def test_each_kind_is_a_family_of_its_own() -> None:
    nats, other = draw_likelihoods(60), draw_likelihoods(90, seed=1)
    answers = [1.0] * 12 + [0.0] * 8
    written = {f"text{k}": answers for k in range(6)}
    changed = {f"text{k}": [0.0] * k + answers[k:] for k in range(6)}
    base = make_evaluation(
        a=choose(nats, metric="p_right"), b=choose(other, metric="p_right"), **written
    )
    tuned = make_evaluation(
        a=choose(0.6 * nats, metric="p_right"), b=choose(0.9 * other, metric="p_right"), **changed
    )
    found = judge(base, tuned)
    for names in (("a", "b"), tuple(written)):
        raw = [found.benchmarks[n].primary.difference.p_value for n in names]
        assert [found.benchmarks[n].p_value for n in names] == pytest.approx(holm(raw))
    alone = judge(make_evaluation(**written), make_evaluation(**changed))
    assert found.mean_changes == alone.mean_changes  # of one kind, answers first
    only = judge_scores(base.benchmarks["a"], tuned.benchmarks["a"])
    value = found.benchmarks["a"].changes["p_right"].difference.value
    assert only.mean_change(Role.retained).value == value


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_a_comparison_averages_one_kind_too(n_seeds: int) -> None:
    """`kept` of two benchmarks by answers and two by p_right is the mean of the first two."""
    nats, answers = draw_likelihoods(60), [1.0] * 48 + [0.0] * 12
    runs = []
    for rank, scale in (("4", 0.9), ("8", 0.5)):
        for seed in range(n_seeds):
            written = {f"text{k}": [0.0] * (3 * k + seed) + answers[3 * k + seed :] for k in (1, 2)}
            chosen = {n: choose(scale * nats, metric="p_right") for n in ("a", "b")}
            before = choose(nats, metric="p_right")
            base = make_evaluation(text1=answers, text2=answers, a=before, b=before)
            found = judge(base, make_evaluation(**written, **chosen))
            runs.append(make_run(found, len(runs), lora__r=rank, seed=str(seed)))
    comparison = compare_runs(runs)
    for row, judged in zip(comparison.rows, judge_configurations(comparison), strict=True):
        expected = np.mean([-(3 * k + seed) / 60 for k in (1, 2) for seed in range(n_seeds)])
        assert row.retained.value == pytest.approx(expected)
        assert judged["kept"].value == pytest.approx(expected)
    named = [note.partition(" ")[0] for note in comparison.notes if "judged by p_right" in note]
    assert named == ["a", "b"]


def test_a_stopping_rule_corrects_each_kind_as_the_verdict_does() -> None:
    """Four open benchmarks of written answers take nothing from the level of p_right."""
    nats, written = draw_likelihoods(320), {f"text{k}": [1.0, 0.0] * 160 for k in range(4)}
    base = make_evaluation(a=choose(nats, metric="p_right"), **written)
    rule = stopping_rule(Until.decided, base)
    for scale in (0.9, 0.8, 0.75, 0.7, 0.6):
        tuned = {"a": stop_early(choose(scale * nats, metric="p_right"), 160)}
        tuned |= {name: stop_early(base.benchmarks[name], 160) for name in written}
        single = stopping_rule(Until.decided, make_evaluation(a=base.benchmarks["a"]))
        assert ("a" in rule(tuned)) is bool(single({"a": tuned["a"]}))


def test_choices_that_read_alike_count_once() -> None:
    twice = ("red", "red", "blue", "grey")
    sample = replace(make_choice(0), choices=twice, log_likelihoods=(-1.0, -1.0, -2.0, -2.0))
    assert score(sample) == pytest.approx(np.exp(-1) / (np.exp(-1) + 2 * np.exp(-2)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: replace(s, target="[0, 2]"),  # several right choices
        lambda s: replace(s, scores={"acc": 0.4}),  # a share of the probability, as of mc2
        lambda s: replace(s, scores={"f1": 1.0}),
        lambda s: replace(s, choices=(COLOURS[0],) * 4, target=COLOURS[0]),
        lambda s: replace(s, log_likelihoods=(-np.inf, -1.0, -1.0, -1.0)),
        lambda s: replace(s, choices=(), log_likelihoods=()),
    ],
)
def test_without_one_right_choice_there_is_none(spoil: Any) -> None:
    assert score(make_choice(1, 7)) is not None
    assert score(spoil(make_choice(1, 7))) is None


def test_an_answer_is_lost_by_it_where_the_likeliest_choice_is_another() -> None:
    nats = draw_likelihoods(80)
    turned = nats[:, [1, 0, 2, 3]]
    lost = {}
    for metric in ("acc", "p_right"):
        pair = pair_benchmark("a", *(choose(x, metric=metric) for x in (nats, turned)))
        changed = find_changed_answers(pair)
        numbers = [[e.base.doc_id for e in part] for part in (changed.lost, changed.gained)]
        lost[metric] = numbers, changed.n_right
        causes = judge_scores(pair.base, pair.tuned).lost_answers["a"].causes
        assert sum(cause.count for cause in causes) == len(changed.lost) > 0
    assert lost["acc"] == lost["p_right"]


def test_a_look_ends_a_training_by_it_where_it_is_the_metric() -> None:
    findings = judge_temperature(0.2, 200, metric="p_right")
    is_within, beyond = judge_look(findings, {"a": 0.05}, 4)
    assert not is_within
    assert beyond.startswith("a lost ")
    for within in (judge_temperature(0.2), judge_temperature(1.0, metric="p_right")):
        assert judge_look(within, {"a": 0.05}, 4) == (True, "")
    # 5 % is shared among the looks
    p_value = findings.benchmarks["a"].primary.difference.p_value_below(-0.05)
    n_looks = int(0.05 / p_value)
    assert judge_look(findings, {"a": 0.05}, n_looks)[1]
    assert not judge_look(findings, {"a": 0.05}, n_looks + 1)[1]
