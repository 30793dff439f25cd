"""Records that earlier versions left are read as those versions read them."""

import csv
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from earlier import unpack
from mlflow import MlflowClient
from recorded import here
from test_baseline import measured

from slimdown import check, compare, merge
from slimdown.config.naming import flatten, section
from slimdown.config.schema import EvaluationConfig, RunConfig, Until
from slimdown.models.model import LoadedModel
from slimdown.tracking.evaluations import base_records
from slimdown.tracking.read import find_runs, read_evaluation, read_run
from slimdown.tracking.write import TrackedRun

# What `compare --format csv` of each version said itself, of its runs with lora.r=4 and 8.
SAID = {
    "forgetting/pocket_math/change": (-0.95, -0.95),
    "forgetting/pocket_math/n": (20, 20),
    "forgetting/pocket_math/p_value": (7.62939453125e-06, 7.62939453125e-06),
    "forgetting/pocket_math/lost": (19, 19),
    "forgetting/pocket_cs/change": (-0.75, -0.7),
    "forgetting/pocket_cs/change_stderr": (0.1182930182504102, 0.12103982244526287),
    "forgetting/pocket_cs/change_low": (-0.9136682372115251, -0.8735973290514745),
    "forgetting/pocket_cs/change_high": (-0.4499681264248384, -0.39912994367579824),
    "forgetting/pocket_cs/p_value": (6.103515625e-05, 0.0001220703125),
    "forgetting/pocket_cs/forgetting_rate": (0.7894736842105263, 0.736842105263158),
    "forgetting/mean_retained_change": (-0.85, -0.825),
}
WORDS = {
    "forgetting/pocket_math/verdict": ("forgotten", "forgotten"),
    "forgetting/pocket_cs/verdict": ("forgotten", "forgotten"),
    "forgetting/pocket_math/main_cause": ("wrong_result", "empty"),
    "forgetting/pocket_cs/main_cause": ("clearly_behind", "clearly_behind"),
}


@pytest.fixture(params=["d4691e7", "096faa8"])
def earlier(request: pytest.FixtureRequest, store: MlflowClient, tmp_path: Path) -> MlflowClient:
    unpack(Path(__file__).parent / "records" / f"{request.param}.tar.xz", tmp_path / "mlruns")
    return store


def ids() -> list[str]:
    """The runs with lora.r=4 and 8."""
    return [run.run_id for run in sorted(find_runs(here()), key=lambda run: run.started)]


@pytest.fixture
def compared(
    earlier: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What `slimdown.compare` prints."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["compare", "--tracking-uri", here().uri, *arguments])
        compare.main()
        return capsys.readouterr().out

    return run


def test_they_are_compared_with_their_numbers_and_verdicts(compared: Callable[..., str]) -> None:
    rows = sorted(
        csv.DictReader(io.StringIO(compared("--format", "csv"))), key=lambda row: row["lora.r"]
    )
    for key, values in SAID.items():
        assert tuple(float(row[key]) for row in rows) == pytest.approx(values, rel=1e-9), key
    for key, words in WORDS.items():
        assert tuple(row[key] for row in rows) == words


def test_their_answers_are_paired(
    compared: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    said = " ".join(compared(*ids(), "--paired").replace("\N{MINUS SIGN}", "-").split())
    assert (
        "pocket_math strict-match 20 0.0 ±0.0 0.0 ±0.0 +0.0 [-12.6, +12.6] 1.000 undecided" in said
    )
    assert "pocket_cs acc 20 20.0 ±9.2 25.0 ±9.9 +5.0 [-18.9, +28.0] 1.000 undecided" in said


def test_their_losses_are_checked(
    earlier: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        check.main([ids()[0], "--max-loss", "pocket_math=0.02", "--tracking-uri", here().uri])
    assert ended.value.code == 1
    said = capsys.readouterr().out.replace("\N{MINUS SIGN}", "-")
    assert "changed by -95.0 points [-100.0, -67.3]: a loss of more than 2 points is shown" in said


def test_a_base_is_measured_anew_once_and_that_is_said(
    earlier: MlflowClient, pocket: LoadedModel, composed: Callable[..., RunConfig]
) -> None:
    limits = [f"benchmark.{name}.limit=20" for name in ("pocket_math", "pocket_cs")]
    config = replace(composed("benchmark=[pocket_math,pocket_cs]", *limits), tracking=here())
    told: list[str] = []
    before = []
    for _ in range(2):
        with (
            TrackedRun(config.tracking, "today", "tuned", {}) as run,
            base_records(config, pocket, run, told.append)() as record,
        ):
            run.log_settings(flatten(config))
            run.log_model(pocket)
            before.append(measured(pocket, config, record))
    assert before[0] == before[1]
    [base] = earlier.search_runs(
        ["1"], "tags.`slimdown.kind` = 'baseline'", order_by=["attributes.start_time"]
    )[:1]
    begin = "{} is measured anew: the record's evaluation of it with these settings, in run {}, was made by another"
    assert [
        line.startswith(begin.format(name, base.info.run_id))
        for line, name in zip(told, before[0], strict=True)
    ]
    first = read_evaluation(here(), read_run(here(), ids()[0]), "base").benchmarks
    for (
        name,
        report,
    ) in first.items():  # with the versions of this machine or others: answers, not digits
        assert [s.scores for s in report.samples] == [s.scores for s in before[0][name].samples]


def test_a_run_of_before_questions_were_held_out_or_left_out_was_asked_all() -> None:
    """`slimdown.merge --evaluate` asks as the run did."""
    recorded = {"evaluation.batch_size": "8", "evaluation.apply_chat_template": "False"}
    params = merge._EARLIER | {"evaluation.token_budget": "None", **recorded}
    asked = section(params, "evaluation", EvaluationConfig)
    assert (asked.holdout, asked.until) == (0.0, Until.all)
