"""Held-out questions: the same questions for every run, shown by none, judged by the gate alone."""

import ast
from pathlib import Path

import pytest
from builders import change_samples, make_benchmark, make_evaluation, make_scores, stop_early

import slimdown
from slimdown.evaluation.results import Evaluation
from slimdown.judging.findings import judge, judge_pair
from slimdown.judging.holdout import held_part, open_part
from slimdown.utils.errors import DataError

BASE, TUNED = make_scores(600, 100, 60, 240)


def questions_of(evaluation: Evaluation) -> list[str]:
    return [sample.doc_hash for sample in evaluation.benchmarks["a"].samples]


def test_the_halves_hold_every_question_once() -> None:
    whole = make_evaluation(a=BASE)
    opened, held = open_part(whole, 0.5), held_part(whole, 0.5)
    assert sorted(questions_of(opened) + questions_of(held)) == sorted(questions_of(whole))
    assert abs(len(questions_of(held)) - 500) < 3 * 16  # of a fair coin's 1,000 tosses
    scores = opened.benchmarks["a"].scores_of("acc")
    assert opened.benchmarks["a"].score.value == pytest.approx(sum(scores) / len(scores))
    assert open_part(whole, 0.0) is whole


def test_a_limit_moves_no_question_and_a_larger_share_holds_those_of_a_smaller() -> None:
    whole, limited = make_evaluation(a=BASE), make_evaluation(a=BASE[:100])
    few, many = (set(questions_of(held_part(whole, share))) for share in (0.2, 0.5))
    assert few < many
    assert set(questions_of(held_part(limited, 0.5))) == many & set(questions_of(limited))


@pytest.mark.parametrize("field", ["cluster", "doc_hash"])
def test_a_cluster_and_copies_of_a_question_are_never_divided(field: str) -> None:
    """Also not where they are questions of two tasks."""
    names, tasks = [str(n // 5) for n in range(len(BASE))], [*"ab" * 500]
    whole = make_evaluation(a=change_samples(make_benchmark(BASE, tasks), **{field: names}))
    halves = [half(whole, 0.5).benchmarks["a"].samples for half in (open_part, held_part)]
    opened, held = ({getattr(sample, field) for sample in half} for half in halves)
    assert not opened & held
    assert len(opened | held) == 200
    assert judge(whole, whole).benchmarks["a"].primary.difference.observations.shape == (200,)


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(DataError, match="3 questions of a"):
        open_part(make_evaluation(a=[1.0, 0.0, 0.0]), 0.5)
    with pytest.raises(DataError, match="of a into 100 and 0"):
        open_part(make_evaluation(a=BASE[:100]), 1e-6)
    with pytest.raises(DataError, match=r"evaluation\.until=all"):
        held_part(make_evaluation(a=stop_early(make_benchmark(BASE), 63)), 0.5)


def test_findings_say_which_half_they_are_about_and_halves_are_not_mixed() -> None:
    base, tuned = make_evaluation(a=BASE), make_evaluation(a=TUNED)
    findings = judge(open_part(base, 0.5), open_part(tuned, 0.5))
    assert findings.part.startswith("the questions that are not held out")
    assert findings.benchmarks["a"].n < 600
    for half in (base, held_part(base, 0.5)):
        with pytest.raises(DataError, match="part differs"):
            judge(half, open_part(tuned, 0.5))


def test_runs_that_were_chosen_are_paired_on_the_held_part_or_it_is_said() -> None:
    first, second = make_evaluation(a=BASE), make_evaluation(a=TUNED)
    held, whole = judge(held_part(first, 0.5), held_part(second, 0.5)), judge_pair(first, second)
    assert held.part.startswith("the held-out questions")
    assert held.benchmarks["a"].n < 600
    assert "chance" in whole.part
    assert "chance" not in held.part


def test_the_tasks_of_a_half_keep_their_weights() -> None:
    weights = {"x": 0.5, "y": 0.5}
    names = ["x"] * 100 + ["y"] * 900
    pair = [
        make_evaluation(a=make_benchmark(scores, names, weights))
        for scores in ([1.0] * 1000, [0.0] * 100 + [1.0] * 900)
    ]
    findings = judge(held_part(pair[0], 0.5), held_part(pair[1], 0.5))
    assert findings.benchmarks["a"].primary.difference.value == pytest.approx(-0.5)
    assert held_part(pair[1], 0.5).benchmarks["a"].score.value == pytest.approx(0.5)


def test_held_out_answers_are_given_away_in_one_place_which_counts_who_was_judged() -> None:
    """Every command takes them from `take_held_out`; nothing else divides questions."""
    package = Path(slimdown.__file__).parent
    users = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name | ast.alias)
        if (node.id if isinstance(node, ast.Name) else node.name) in ("held_part", "_take_part")
    }
    assert users == {"judging/holdout.py", "tracking/held_out.py"}
