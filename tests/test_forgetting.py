"""What two reports say together, and which two may not be compared."""

from dataclasses import replace
from math import isnan

import pytest

from slimdown.config import BenchmarkConfig, PaperMetric, Role
from slimdown.forgetting import forgetting
from slimdown.samples import BenchmarkReport, EvalReport, Sample, Score


def benchmark(
    scores: list[float], paper_metric: PaperMetric | None = None, role: Role = Role.retained
) -> BenchmarkReport:
    n = len(scores)
    mean = sum(scores) / n
    samples = tuple(
        Sample("task", i, f"doc{i}", f"prompt{i}", "q", "t", "", (), (), {"acc": "a"}, {"acc": score})
        for i, score in enumerate(scores)
    )
    config = BenchmarkConfig(
        task="task", metric="acc", num_fewshot=0, chance=0.25, paper_metric=paper_metric, role=role
    )
    error = (sum((s - mean) ** 2 for s in scores) / (n - 1) / n) ** 0.5
    return BenchmarkReport(config, "1.0", "hash", {"acc": Score(mean, error)}, samples, 1.0)


def report(**benchmarks: BenchmarkReport) -> EvalReport:
    return EvalReport(benchmarks, "0.4.13", "shared", 1.0)


def test_a_change_is_tuned_minus_base_with_the_error_of_a_difference() -> None:
    # base 3 of 4: mean .75, variance .25, standard error .25; tuned 1 of 4: the same error
    change = forgetting(report(a=benchmark([1, 1, 1, 0])), report(a=benchmark([0, 1, 0, 0]))).benchmarks["a"].primary
    assert change.value == -0.5
    assert change.standard_error == pytest.approx((0.25**2 + 0.25**2) ** 0.5)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        (PaperMetric.ability_augmentation, -50.0),
        (PaperMetric.knowledge_loss, 50.0),
        (PaperMetric.forgetting_rate, 1 - 0.25 / 0.75),
    ],
)
def test_each_of_the_papers_metrics_has_its_own_sign_and_unit(metric: PaperMetric, value: float) -> None:
    changed = forgetting(report(a=benchmark([1, 1, 1, 0], metric)), report(a=benchmark([0, 1, 0, 0], metric)))
    found = changed.benchmarks["a"].paper_value
    assert found is not None
    assert found.value == pytest.approx(value)


def test_a_base_at_zero_has_no_forgetting_rate() -> None:
    rate = PaperMetric.forgetting_rate
    changed = forgetting(report(a=benchmark([0, 0], rate)), report(a=benchmark([0, 1], rate)))
    assert changed.benchmarks["a"].paper_value is not None
    assert isnan(changed.benchmarks["a"].paper_value.value)


def test_a_model_compared_with_itself_forgets_nothing() -> None:
    same = report(a=benchmark([1, 0, 1]), b=benchmark([0, 0, 1]))
    assert [b.primary.value for b in forgetting(same, same).benchmarks.values()] == [0.0, 0.0]
    assert forgetting(same, same).mean_retained_change == 0.0


def test_the_mean_leaves_the_target_out() -> None:
    base = report(a=benchmark([1, 1, 0, 0]), t=benchmark([0, 0, 0, 0], role=Role.target))
    tuned = report(a=benchmark([1, 0, 0, 0]), t=benchmark([1, 1, 1, 1], role=Role.target))
    assert forgetting(base, tuned).mean_retained_change == -0.25


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("task_version", {"task_version": "2.0"}),
        ("task_hash", {"task_hash": "other"}),
        ("num_fewshot", {"benchmark": replace(benchmark([1, 0]).benchmark, num_fewshot=5)}),
        ("task", {"benchmark": replace(benchmark([1, 0]).benchmark, task="another")}),
        ("n", {"samples": benchmark([1, 0, 1]).samples}),
        ("prompt_hash", {"samples": tuple(replace(s, prompt_hash="x") for s in benchmark([1, 0]).samples)}),
        ("doc_hash", {"samples": tuple(reversed(benchmark([1, 0]).samples))}),
    ],
)
def test_reports_of_unlike_evaluations_are_refused_by_field(field: str, changes: dict[str, object]) -> None:
    base = benchmark([1, 0])
    with pytest.raises(ValueError, match=f"a: base and tuned cannot be compared, {field} differs"):
        forgetting(report(a=base), report(a=replace(base, **changes)))  # type: ignore[arg-type]


def test_another_harness_or_another_choice_of_benchmarks_is_refused() -> None:
    one = report(a=benchmark([1, 0]))
    with pytest.raises(ValueError, match="harness_version differs"):
        forgetting(one, replace(one, harness_version="0.5"))
    with pytest.raises(ValueError, match="benchmarks differ"):
        forgetting(one, report(b=benchmark([1, 0])))
    with pytest.raises(ValueError, match="scoring_path differs: shared and stock"):
        forgetting(one, replace(one, scoring_path="stock"))
