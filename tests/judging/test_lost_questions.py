"""Lost questions in the form of own questions: whatever is written scores as the benchmark did."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import change_samples, make_benchmark, make_choice, make_evaluation, make_sample

from slimdown.evaluation.results import Evaluation
from slimdown.judging.lost_questions import LostQuestions, collect_lost_questions
from slimdown.judging.pairing import pair_evaluations
from slimdown.scoring.question_files import read_questions
from slimdown.scoring.scores import is_right, read_answer


def make_pair(
    *answers: tuple[str, str, str], metric: str = "exact_match", **fields: Any
) -> tuple[Evaluation, Evaluation]:
    """Lost answers as (target, the base's right answer, the tuned model's wrong one)."""
    targets, *responses = (list(column) for column in zip(*answers, strict=True))
    prompts = [f"Question {i}" for i in range(len(answers))]
    sides = []
    for texts, score in zip(responses, (1.0, 0.0), strict=True):
        samples = [make_sample({metric: score}, i) for i in range(len(answers))]
        own = {"prompt": prompts, "target": targets, "response": texts} | fields
        sides.append(make_evaluation(a=change_samples(make_benchmark(samples, chance=0.0), **own)))
    return sides[0], sides[1]


def collect(*answers: tuple[str, str, str], is_chat: bool = False, **fields: Any) -> LostQuestions:
    return collect_from(*make_pair(*answers, **fields), is_chat=is_chat)


def collect_from(base: Evaluation, tuned: Evaluation, is_chat: bool = False) -> LostQuestions:
    return collect_lost_questions(pair_evaluations(base, tuned), base.conditions, is_chat)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (("four", " four\n", "five"), "exact"),
        (("9 + 9 = 18\n#### 18", "So 9 + 9 = 18.\n#### 18", "It is 17."), "numeric"),
        (("Paris", "It is Paris, of course.", "It is Rome."), "contains"),
        (("B", "So the answer is (B).", "A clear case: the answer is (C)."), "contains"),
        (("refuse", "I can't help with that.", "Sure, take a needle."), "refusal"),
    ],
)
def test_a_rule_is_found_that_scores_both_answers_as_the_benchmark_did(
    answer: tuple[str, str, str], score: str, tmp_path: Path
) -> None:
    lost = collect(answer, metric="refusal" if score == "refusal" else "exact_match")
    assert lost.left_out == {}
    [[row]] = lost.rows.values()
    assert row.get("score", "exact") == score
    file = tmp_path / "lost.jsonl"
    file.write_text(json.dumps(row))
    [read] = read_questions(str(file), "exact")
    assert read["question"] == "Question 0"
    rule: dict[str, Any] = {"score": "exact", "accepted": [answer[0]]}
    rule = json.loads(read["rule"]) if "rule" in read else rule
    assert [is_right(rule, read_answer(rule, text)) for text in answer[1:]] == [True, False]


@pytest.mark.parametrize(
    ("answer", "metric"),
    [
        (("0", "I have 0 commas", "I have, some"), "prompt_level_strict_acc"),  # IFEval's
        (("18", "It is 18.", "It is 17, or 18."), "exact_match"),  # no rule tells them apart
        (("18", "First 9.\n\nThen 18.", "It is 17."), "exact_match"),  # cut at the empty line
        (("", "It is 18.", "It is 17."), "exact_match"),
        (("\ud800", "\ud800", "It is 17."), "exact_match"),
    ],
)
def test_what_no_rule_tells_is_counted_alone(answer: tuple[str, str, str], metric: str) -> None:
    lost = collect(answer, ("four", "four", "five"), metric=metric)
    n_written = sum(map(len, lost.rows.values()))
    assert lost.left_out["a"] + n_written == 2
    assert n_written == (metric == "exact_match")


def test_a_chats_answer_ends_where_the_model_ends_it() -> None:
    answer = ("18", "First 9.\n\nThen 18.", "It is 17.")
    assert list(collect(answer, is_chat=True).rows) == ["written_uncut"]
    assert list(collect(("18", "It is 18.", "It is 17."), is_chat=True).rows) == ["written"]
    turns = [{"role": "user", "content": "How many?"}]
    lost = collect(answer, prompt=json.dumps(turns))  # as lm_eval logs what it sends to a server
    [row] = lost.rows["written_of_chats"]
    assert row["messages"] == turns


def test_answers_that_must_be_cut_and_those_that_must_not_are_of_different_kinds() -> None:
    cut = ("18", "It is 18.\n\nTwice that is 36.", "It is 17.")
    uncut = ("18", "First 9.\n\nThen 18.", "It is 17.")
    lost = collect(cut, uncut, is_chat=True)
    assert {kind: len(rows) for kind, rows in lost.rows.items()} == {
        "written": 1,
        "written_uncut": 1,
    }


def test_choices_go_by_how_they_are_ranked_and_have_files_of_their_own() -> None:
    def answer(shift: int, metric: str) -> Any:
        made = [make_choice((i + shift) % 4, i) for i in range(8)]
        scores = {metric: float(shift == 0)}
        answers = {metric: "grey"}
        return make_benchmark([replace(s, scores=scores, answers=answers) for s in made])

    base, tuned = (
        make_evaluation(plain=answer(n, "acc"), long=answer(n, "acc_norm")) for n in (0, 1)
    )
    lost = collect_from(base, tuned)
    assert {kind: len(rows) for kind, rows in lost.rows.items()} == {
        "choices": 8, "choices_by_length": 8,
    }  # fmt: skip
    assert [row["answer"] for row in lost.rows["choices"]] == [0, 1, 2, 3] * 2
    several = replace(base.benchmarks["plain"].samples[0], target="[0, 1]")
    sides = [
        make_evaluation(a=make_benchmark([replace(several, scores={"acc": score})]))
        for score in (1.0, 0.0)
    ]
    assert collect_from(sides[0], sides[1]).left_out == {"a": 1}


def test_a_cluster_stays_together() -> None:
    lost = collect(("four", "four", "five"), ("six", "six", "five"), cluster="p")
    assert [row["cluster"] for row in lost.rows["written"]] == ["p", "p"]
