"""The held-out part: the same questions for every run, shown by none, judged by the gate alone."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from recorded import evaluation, right

from slimdown.config.schema import RunConfig
from slimdown.evaluation.answers import Evaluation, Score
from slimdown.report.words import summary
from slimdown.stats.changes import changes_between
from slimdown.stats.holdout import held_out_part, is_held_out, open_part
from slimdown.utils.errors import SlimdownError


def asked(report: Evaluation, name: str = "math") -> list[str]:
    return [sample.doc_hash for sample in report.benchmarks[name].samples]


def limited(report: Evaluation, n: int) -> Evaluation:
    return replace(
        report,
        benchmarks={k: replace(b, samples=b.samples[:n]) for k, b in report.benchmarks.items()},
    )


def test_the_parts_hold_every_question_once() -> None:
    report = evaluation({"math": right(700, 1000)})
    one, other = open_part(report, 0.5), held_out_part(report, 0.5)
    assert sorted(asked(one) + asked(other)) == sorted(asked(report))
    assert (
        abs(len(asked(other)) - 500) < 3 * 16
    )  # the standard deviation of a fair coin's 1,000 tosses
    assert one.benchmarks["math"].score.value == pytest.approx(
        sum(one.benchmarks["math"].scores_of("acc")) / len(asked(one))
    )
    assert open_part(report, 0.0) is report


def test_a_limit_moves_no_question_and_a_larger_share_keeps_those_of_a_smaller() -> None:
    report = evaluation({"math": right(700, 1000)})
    few, many = set(asked(held_out_part(report, 0.2))), set(asked(held_out_part(report, 0.5)))
    assert few < many
    assert set(asked(held_out_part(limited(report, 100), 0.5))) == many & set(
        asked(limited(report, 100))
    )


def test_the_side_of_a_question_is_its_own() -> None:
    sample = evaluation({"math": right(1, 1)}).benchmarks["math"].samples[0]
    sides = {
        is_held_out(replace(sample, prompt_hash=f"{i}", doc_id=i, scores={"acc": i % 2}), 0.5)
        for i in range(20)
    }
    assert len(sides) == 1  # not its prompt's, its place's or its answer's
    assert len({is_held_out(replace(sample, doc_hash=f"{i}"), 0.5) for i in range(20)}) == 2
    assert len({is_held_out(replace(sample, task=f"{i}"), 0.5) for i in range(20)}) == 2


def test_a_benchmark_too_small_to_split_is_refused() -> None:
    with pytest.raises(
        SlimdownError, match=r"evaluation.holdout=0.5 would keep \d of the 3 questions of math"
    ):
        open_part(evaluation({"math": right(1, 3)}), 0.5)
    with pytest.raises(SlimdownError, match="would keep 0 of the 100 questions of math"):
        open_part(evaluation({"math": right(1)}), 1e-6)


def test_a_report_says_which_part_it_is_about_and_parts_are_not_mixed() -> None:
    base, tuned = evaluation({"math": right(80)}), evaluation({"math": right(40)})
    whole = changes_between(base, tuned)
    assert not any("part of" in sentence for sentence in summary(whole))
    found = changes_between(open_part(base, 0.5), open_part(tuned, 0.5))
    assert summary(found)[0].startswith(
        "About the open part of each benchmark's questions; evaluation.holdout=0.5"
    )
    assert found.benchmarks["math"].n < 100
    with pytest.raises(SlimdownError, match="part differs"):
        changes_between(base, open_part(tuned, 0.5))
    with pytest.raises(SlimdownError, match="part differs"):
        changes_between(held_out_part(base, 0.5), open_part(tuned, 0.5))


def test_reports_read_together_are_corrected_together() -> None:
    base, tuned = evaluation({"math": right(80)}), evaluation({"math": right(72)})
    alone, among = changes_between(base, tuned), changes_between(base, tuned, n_reports=30)
    assert (alone.benchmarks["math"].verdict, among.benchmarks["math"].verdict) == (
        "forgotten",
        "undecided",
    )
    assert among.benchmarks["math"].p_value == pytest.approx(30 * alone.benchmarks["math"].p_value)


@pytest.mark.parametrize("share", ["-0.1", "1", "nan"])
def test_a_share_that_is_none_is_refused(share: str, composed: Callable[..., RunConfig]) -> None:
    with pytest.raises(SlimdownError, match=r"evaluation.holdout must be"):
        composed(f"evaluation.holdout={share}")


def test_a_metric_that_is_no_mean_of_its_questions_has_no_value_for_a_part() -> None:
    report = evaluation({"math": right(70, 100)}).benchmarks["math"]
    samples = tuple(replace(s, scores={**s.scores, "perplexity": -3.0}) for s in report.samples)
    both = replace(
        report, samples=samples, scores={**report.scores, "perplexity": Score(20.1, 0.5)}
    )
    part = open_part(Evaluation({"math": both}, "0.4.13", "shared", 1.0), 0.5).benchmarks["math"]
    assert set(part.scores) == {"acc"}
