"""The gate: what passes, what fails, and what it refuses to judge."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from recorded import evaluation, here, record, right
from test_changes import answers, benchmark, report

from slimdown import check, compare, send
from slimdown.check import arguments, main
from slimdown.config.schema import DEFAULT_STORE, Role, RunConfig
from slimdown.stats.budget import Outcome, hold_to_budgets, overall, read_budgets
from slimdown.stats.changes import Changes, changes_between
from slimdown.stats.holdout import is_held_out
from slimdown.tracking import outage
from slimdown.utils.errors import SlimdownError


def changed(role: Role = Role.retained, **counts: tuple[int, int, int, int]) -> Changes:
    scores = {name: answers(*four) for name, four in counts.items()}
    base = report(**{name: benchmark(before, role=role) for name, (before, _) in scores.items()})
    return changes_between(
        base, report(**{name: benchmark(after, role=role) for name, (_, after) in scores.items()})
    )


@pytest.mark.parametrize(
    ("counts", "outcome"),
    [
        ((2000, 20, 20, 960), Outcome.within),
        ((500, 100, 400, 0), Outcome.within),  # a gain is no loss
        ((300, 100, 10, 90), Outcome.beyond),
        ((50, 3, 3, 44), Outcome.undecided),
        ((50, 0, 0, 0), Outcome.undecided),  # too few to rule anything out
    ],
)
def test_a_loss_is_within_beyond_or_cannot_be_told(
    counts: tuple[int, int, int, int], outcome: Outcome
) -> None:
    (judged,) = hold_to_budgets(changed(a=counts), {"a": 0.02})
    assert judged.outcome is outcome


def test_the_budget_decides() -> None:
    lost_ten = changed(a=(500, 110, 10, 380))
    assert overall(hold_to_budgets(lost_ten, {"a": 0.02})) is Outcome.beyond
    assert overall(hold_to_budgets(lost_ten, {"a": 0.10})) is Outcome.undecided
    assert overall(hold_to_budgets(lost_ten, {"a": 0.15})) is Outcome.within


def test_one_loss_beyond_fails_and_one_unknown_keeps_from_passing() -> None:
    found = changed(good=(2000, 20, 20, 960), bad=(300, 100, 10, 90), small=(50, 3, 3, 44))
    assert (
        overall(hold_to_budgets(found, dict.fromkeys(("good", "bad", "small"), 0.02)))
        is Outcome.beyond
    )
    assert (
        overall(hold_to_budgets(found, dict.fromkeys(("good", "small"), 0.02))) is Outcome.undecided
    )
    assert overall(hold_to_budgets(found, {"good": 0.02})) is Outcome.within


def test_losses_looked_for_in_many_benchmarks_are_corrected() -> None:
    borderline = (60, 15, 4, 21)
    alone = hold_to_budgets(changed(a=borderline), {"a": 0.03})
    others = dict.fromkeys("bcdefghij", (50, 3, 3, 44))
    together = hold_to_budgets(changed(a=borderline, **others), dict.fromkeys("abcdefghij", 0.03))
    assert alone[0].outcome is Outcome.beyond
    assert together[0].outcome is Outcome.undecided


def test_an_undecided_judgement_says_how_many_questions_would_tell() -> None:
    (judged,) = hold_to_budgets(changed(a=(50, 3, 3, 44)), {"a": 0.02})
    assert "100 questions cannot tell; about " in judged.reason


@pytest.mark.parametrize(
    ("before", "after", "subjects", "budget", "reason"),
    [
        (*answers(1200, 56, 30, 14), None, 0.02, "it lies too near the budget for any number to"),
        (
            *answers(300, 100, 90, 10),
            [f"s{i % 6}" for i in range(500)],
            0.02,
            "6 subjects differ too much to tell; more subjects",
        ),
        ([5.0] * 40, [4.0] * 40, None, 0.02, "all 40 questions changed by the same"),
        ([0.5], [0.4], None, 0.02, "1 question cannot tell"),
        (
            *answers(30, 3, 3, 4),
            ["a", "b"] * 20,
            0.02,
            "for these 2 subjects: 40 questions cannot tell; about ",
        ),
    ],
)
def test_an_undecided_judgement_gives_its_reason(
    before: list[float], after: list[float], subjects: list[str] | None, budget: float, reason: str
) -> None:
    made = [report(a=benchmark(scores, subjects=subjects)) for scores in (before, after)]
    (judged,) = hold_to_budgets(changes_between(*made), {"a": budget})
    assert judged.outcome is Outcome.undecided
    assert reason in judged.reason
    assert "nan" not in judged.reason


def test_without_budgets_retained_benchmarks_are_held_to_their_margins() -> None:
    (judged,) = hold_to_budgets(changed(a=(5, 1, 1, 3)), {})
    assert (judged.benchmark, judged.budget) == ("a", 0.02)
    with pytest.raises(SlimdownError, match="no retained benchmark"):
        hold_to_budgets(changed(role=Role.target, a=(5, 1, 1, 3)), {})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("gms8k=0.02", "budget of gms8k: no such benchmark was measured; did you mean gsm8k?"),
        ("gsm8k=0.1 gsm8k=0.9", "gsm8k has a budget already, 0.1; keep one of the two"),
        ("=0.1", "give a share"),
        ("gsm8k=2", "give a share from 0 up to, not including, 1; gsm8k=0.02 is two points"),
        ("gsm8k", "give a share"),
        ("gsm8k=nan", "give a share"),
        ("gsm8k=two", "give a share"),
    ],
)
def test_a_budget_that_is_none_is_refused(asked: str, message: str) -> None:
    with pytest.raises(SlimdownError, match=message.replace("?", r"\?")):
        hold_to_budgets(changed(gsm8k=(5, 1, 1, 3)), read_budgets(asked.split()))


@pytest.mark.parametrize("arguments", [[], ["run", "--no-such-option"]])
def test_a_question_that_cannot_be_asked_is_not_an_answer(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == Outcome.unasked
    assert "python -m slimdown.check" in capsys.readouterr().err


def test_a_store_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--tracking-uri", "sqlite:////nowhere/mlflow.db"])
    assert stopped.value.code == Outcome.unasked
    assert "there is no record /nowhere/mlflow.db" in capsys.readouterr().err


def test_an_address_that_is_empty_is_refused_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--tracking-uri", ""])
    assert stopped.value.code == Outcome.unasked
    assert "--tracking-uri must be a database or a server, got ''" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["", " ", "http://server:5000"])
def test_run_compare_check_and_send_read_the_environment_alike(
    value: str, monkeypatch: pytest.MonkeyPatch, composed: Callable[..., RunConfig]
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(outage, "send", lambda folder, uri: sent.append(uri) or (uri, [], []))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    send.main(["folder"])
    read = [
        arguments(["run"]).tracking_uri,
        compare.arguments([]).tracking_uri,
        composed().tracking.uri,
    ]
    assert read == [value.strip() or DEFAULT_STORE] * 3
    assert sent == [value.strip()]  # without one: to where the runs were meant for


def test_the_environment_is_asked_for_the_store_in_one_place() -> None:
    source = Path(check.__file__).parent
    reads = re.compile(r"(environ\b.*|getenv\()[\"']MLFLOW_TRACKING_URI")
    assert [file.name for file in source.rglob("*.py") if reads.search(file.read_text())] == [
        "schema.py"
    ]


def test_a_run_that_was_stopped_is_judged_by_what_holds_whenever_it_was(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, lost = {"math": right(400, 400)}, {"math": [float(i % 3 > 0) for i in range(400)]}
    run_id = record("early", {}, kept, lost, asked={"math": 63})
    outcomes = {}
    for budget in ("0.02", "0.3", "0.9"):
        with pytest.raises(SystemExit) as stopped:
            main([run_id, "--max-loss", f"math={budget}", "--tracking-uri", here().uri])
        outcomes[budget] = (stopped.value.code, capsys.readouterr().out)
    assert [outcome for outcome, _ in outcomes.values()] == [
        Outcome.beyond,
        Outcome.undecided,
        Outcome.within,
    ]
    assert "after 63 of 400 questions: a loss of more than 2 points is shown" in outcomes["0.02"][1]
    assert (
        "evaluation.until=budget benchmark.math.max_loss=0.3 asks until this is known"
        in outcomes["0.3"][1]
    )


def test_a_run_that_held_questions_out_is_judged_on_these_alone(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = evaluation({"math": right(1000, 1000)}).benchmarks["math"].samples
    kept, lost = right(1000, 1000), [0.0 if is_held_out(sample, 0.5) else 1.0 for sample in samples]
    outcomes = {}
    for share in (0.5, 0.0):
        run_id = record(f"run {share}", {}, {"math": kept}, {"math": lost}, holdout=share)
        verdict = store.get_run(run_id).data.tags["slimdown.verdict.math"]
        with pytest.raises(SystemExit) as stopped:
            main([run_id, "--tracking-uri", here().uri])
        outcomes[share] = (
            verdict,
            stopped.value.code,
            "Judged on the held-out part" in capsys.readouterr().out,
        )
    # All losses lie in the held-out part: what the run shows is spotless, and the gate finds them.
    assert outcomes == {
        0.5: ("retained", Outcome.beyond, True),
        0.0: ("forgotten", Outcome.beyond, False),
    }
