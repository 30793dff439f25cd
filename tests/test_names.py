"""The names of what is recorded: written and read in one place, and all of them in the reference."""

import re
import subprocess
import sys
from dataclasses import fields, replace
from math import inf, isfinite, isnan, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from made_up import chosen, evaluation, stopped, written

from slimdown.config.schema import PaperMetric
from slimdown.stats.anatomy import EXPLANATIONS
from slimdown.stats.findings import judge
from slimdown.stats.paired import Estimate
from slimdown.stats.runs import UNKNOWN, RecordedChange, RecordedChanges, recorded_changes
from slimdown.tracking.names import from_metrics, reference, to_metrics, to_tags
from slimdown.tracking.tags import Tag

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
MAYBE = st.one_of(NUMBERS, st.just(nan))
ESTIMATES = st.one_of(
    st.just(UNKNOWN),
    st.builds(Estimate, NUMBERS, MAYBE, MAYBE, MAYBE),
    st.builds(
        lambda low: Estimate(nan, nan, low, inf), NUMBERS
    ),  # as `ratio.forgetting_rate` has them
    st.builds(lambda high: Estimate(nan, nan, -inf, high), NUMBERS),
)
CAUSES = st.fixed_dictionaries({}, optional=dict.fromkeys(EXPLANATIONS, NUMBERS)).map(
    lambda found: {cause: found[cause] for cause in EXPLANATIONS if cause in found}
)
ESTIMATED = [
    field.name
    for field in fields(RecordedChange)
    if field.default == UNKNOWN or field.name == "change"
]
CHANGES = st.builds(
    RecordedChange,
    **{
        field.name: ESTIMATES if field.name in ESTIMATED else MAYBE
        for field in fields(RecordedChange)
        if field.name not in ("change", "causes", "verdict")
    },
    change=st.builds(Estimate, NUMBERS, MAYBE, MAYBE, MAYBE),  # without a value there is no change
    causes=CAUSES,
    verdict=st.sampled_from(["", "retained", "forgotten"]),
)  # fmt: skip
NAMES = st.sampled_from(["gsm8k", "mmlu_cs", "mean_retained_change", "change", "a.b", "lost"])


@settings(max_examples=50, deadline=None)
@given(st.builds(RecordedChanges, st.dictionaries(NAMES, CHANGES), ESTIMATES, ESTIMATES))
def test_what_is_written_is_what_is_read(changes: RecordedChanges) -> None:
    metrics = to_metrics(changes)
    assert all(map(isfinite, metrics.values()))
    others = {"base/gsm8k/acc": 1.0, "train/loss": 0.5, "cost/load_seconds": 1.0}
    assert repr(from_metrics({**others, **metrics}, to_tags(changes))) == repr(
        changes
    )  # nan is not equal to itself


def told() -> Any:
    """Findings that have everything: a target of the paper, causes of every kind, an undecided benchmark."""
    said = ["it is four"] * 30
    lost = ["", "it", "it is five or so"] * 10
    texts = [
        replace(
            written([1.0] * 30, said),
            benchmark=replace(written([1.0]).benchmark, paper_metric=metric),
        )
        for metric in (
            PaperMetric.knowledge_loss,
            PaperMetric.ability_augmentation,
            PaperMetric.forgetting_rate,
        )
    ]
    after = [
        replace(written([0.0] * 25 + [1.0] * 5, lost), benchmark=one.benchmark) for one in texts
    ]
    right = [i % 4 for i in range(40)]
    early = [stopped(written([score] * 200), 45) for score in (1.0, 0.0)]
    before = evaluation(a=texts[0], b=texts[1], c=texts[2], d=chosen(right), e=early[0])
    last = chosen([0, *right[1:20], *[0] * 20])
    return judge(before, evaluation(a=after[0], b=after[1], c=after[2], d=last, e=early[1]))


def test_findings_come_back_as_they_were_kept() -> None:
    findings = told()
    kept = recorded_changes(findings)
    read = from_metrics(to_metrics(kept), to_tags(kept))
    assert repr(read) == repr(kept)
    for name, benchmark in findings.changes.benchmarks.items():
        found, d = read.benchmarks[name], benchmark.primary.difference
        assert (found.change.value, found.change.low, found.verdict) == (
            d.value,
            d.low,
            benchmark.verdict,
        )
        assert (found.n, found.p_value, found.p_value_raw) == (
            benchmark.n,
            benchmark.p_value,
            d.p_value,
        )
    assert read.benchmarks["a"].knowledge_loss.value == pytest.approx(100 * 25 / 30)
    assert isnan(read.benchmarks["c"].knowledge_loss.value)
    assert (read.benchmarks["e"].n, read.benchmarks["e"].n_available) == (45, 200)
    assert "forgetting/e/change_stderr" not in to_metrics(kept)
    assert "forgetting/a/n_available" not in to_metrics(kept)
    assert repr(read.mean_retained_change) == repr(findings.changes.mean_retained_change)


def patterns(title: str) -> list[str]:
    """The names in a table of the reference, as regular expressions."""
    rows = re.findall(r"^\| `([^`]+)` \|", reference().partition(title)[2], re.MULTILINE)
    return [re.sub(r"\\\{\w+\\\}|\\\*", "[^/]+", re.escape(row)) for row in rows]


def test_every_number_that_is_kept_is_in_the_reference() -> None:
    kept = to_metrics(recorded_changes(told()))
    ends = r"(_stderr|_low|_high)?"
    unknown = [
        key
        for key in kept
        if not any(re.fullmatch(one + ends, key) for one in patterns("## Changes"))
    ]
    assert (len(kept) > 60, unknown) == (True, [])


def test_every_field_of_a_change_is_in_the_reference_and_no_other() -> None:
    rows = re.findall(r"`forgetting/\{benchmark\}/(\w+)`", reference())
    named = [
        field.name for field in fields(RecordedChange) if field.name not in ("causes", "verdict")
    ]
    assert rows == [*named, *(f"lost_{cause}" for cause in EXPLANATIONS)]
    assert all(f"`{tag}" in reference() for tag in Tag)


def test_the_reference_is_what_the_names_print() -> None:
    command = [sys.executable, "-m", "slimdown.tracking.names"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(
        encoding="utf-8"
    ) == done.stdout
