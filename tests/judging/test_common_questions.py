"""What several evaluations have in common: benchmarks, questions, and what is said of the rest."""

from dataclasses import replace
from random import Random

import pytest
from builders import make_benchmark, make_evaluation, make_sample, stop_early

from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation
from slimdown.judging.common_questions import take_common
from slimdown.judging.findings import judge
from slimdown.judging.pairing import pair_evaluations
from slimdown.utils.errors import ConfigError, DataError


def ask(numbers: list[int], start: int = 0, name: str = "doc") -> BenchmarkEvaluation:
    """Answers to some of the questions; a question's number in its log begins at `start`."""
    samples = [
        make_sample(
            {"acc": float(Random(number).random() < 0.6)},
            start + position,
            doc_hash=f"{name}{number}",
            prompt_hash=f"prompt of {name}{number}",
        )
        for position, number in enumerate(numbers)
    ]
    return make_benchmark(samples)


FORTY = ask([*range(40)])


def take(
    base: BenchmarkEvaluation, tuned: BenchmarkEvaluation
) -> tuple[dict[str, Evaluation], list[str]]:
    return take_common({"base": make_evaluation(a=base), "tuned": make_evaluation(a=tuned)})


def test_equal_questions_are_taken_as_they_are() -> None:
    evaluations = {side: make_evaluation(a=FORTY) for side in ("base", "tuned")}
    assert take_common(evaluations) == (evaluations, [])


def test_benchmarks_that_one_side_lacks_are_left_out_and_named() -> None:
    base = make_evaluation(a=FORTY, b=ask([*range(30)]))
    base = replace(base, conditions={"a.stop": "x", "b.stop": "y", "kind": "table"})
    tuned = make_evaluation(a=FORTY)
    tuned = replace(tuned, conditions={"a.stop": "x", "kind": "table"})
    with pytest.raises(DataError, match="benchmarks differs"):
        judge(base, tuned)
    taken, [note] = take_common({"base": base, "tuned": tuned})
    assert "b" in note
    assert "base" in note
    assert list(judge(*taken.values()).benchmarks) == ["a"]


def test_questions_are_matched_by_content_where_numbers_mean_others() -> None:
    taken, [note] = take(FORTY, ask([*range(39, 9, -1)]))  # numbered in another order
    assert "30" in note
    pair = pair_evaluations(*taken.values())["a"]
    hashes = [[sample.doc_hash for sample in side.samples] for side in (pair.base, pair.tuned)]
    assert hashes[0] == hashes[1]
    assert set(hashes[0]) == {f"doc{number}" for number in range(10, 40)}
    for first, second in zip(pair.base.samples, pair.tuned.samples, strict=True):
        assert first.scores == second.scores  # equal questions have equal answers here
    findings = judge(*taken.values())
    assert findings.benchmarks["a"].n == 30
    assert "30 of 40 of a" in findings.part


def test_copies_of_a_question_are_matched_one_by_one() -> None:
    taken, _ = take(ask([7, 7, 7, 1, 2]), ask([1, 7, 7, 3]))
    for evaluation in taken.values():
        hashes = sorted(sample.doc_hash for sample in evaluation.benchmarks["a"].samples)
        assert hashes == ["doc1", "doc7", "doc7"]


def test_three_evaluations_have_in_common_what_all_have() -> None:
    numbers = {"first": range(40), "second": range(30), "third": range(5, 35)}
    sides = {name: make_evaluation(a=ask([*own])) for name, own in numbers.items()}
    taken, _ = take_common(sides)
    assert {len(side.benchmarks["a"].samples) for side in taken.values()} == {25}


def test_other_prompts_and_other_versions_of_a_task_are_refused_and_not_left_out() -> None:
    first, *others = FORTY.samples
    other_prompt = replace(FORTY, samples=(replace(first, prompt_hash="another"), *others))
    for tuned in (other_prompt, replace(FORTY, task_version="2.0")):
        taken, notes = take(FORTY, tuned)
        assert notes == []
        with pytest.raises(DataError, match="cannot be compared"):
            judge(*taken.values())


def test_an_evaluation_that_stopped_early_keeps_its_looks() -> None:
    whole = ask([*range(100)])
    stopped = stop_early(whole, 32)
    taken, notes = take(whole, stopped)
    assert notes == []
    assert taken["tuned"].benchmarks["a"].looks == stopped.looks


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(DataError, match="no benchmark"):
        take_common({"base": make_evaluation(a=FORTY), "tuned": make_evaluation(c=FORTY)})
    with pytest.raises(DataError, match="no question"):
        take(FORTY, ask([*range(9)], name="other"))


def test_only_chooses_and_names_what_is_missing() -> None:
    evaluations = {side: make_evaluation(a=FORTY, b=FORTY) for side in ("base", "tuned")}
    taken, notes = take_common(evaluations, ["b"])
    assert notes == []
    assert list(taken["base"].benchmarks) == ["b"]
    with pytest.raises(ConfigError, match="--only c"):
        take_common(evaluations, ["c"])
