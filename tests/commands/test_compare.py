"""`slimdown compare`: which runs, in which form, and what it refuses."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest
from builders import make_scores
from mlflow import MlflowClient
from record_builders import KEPT, LOST, Capture, Patch, compose_config, make_info, record_run

from slimdown.commands import compare
from slimdown.tracking.held_out import take_held_out
from slimdown.tracking.run_reader import find_run, find_runs, read_evaluations
from slimdown.tracking.run_writer import open_run

Show = Callable[..., str]


@pytest.fixture(scope="module")
def world(recorded: Path) -> tuple[Path, dict[str, str]]:
    """Two ranks, the second with two seeds; a run that failed; one of another experiment."""
    seed, half = make_scores(100, 85, 4, 11), "evaluation.holdout=0.5"
    with chdir(recorded):
        ids = {
            "kept": record_run(compose_config("lora.r=2", half), "kept", KEPT, sweep="s"),
            "lost": record_run(compose_config("lora.r=4", half), "lost", LOST),
            "seed": record_run(compose_config("lora.r=4", half, "seed=1"), "lost seed=1", seed),
            "other": record_run(compose_config("tracking.experiment=other"), "other"),
        }
        config = compose_config()
        with pytest.raises(ValueError, match="x"), open_run(config, make_info(config, "bad")):
            raise ValueError("x")
    return recorded, ids


@pytest.fixture
def runs(world: tuple[Path, dict[str, str]], monkeypatch: Patch) -> dict[str, str]:
    monkeypatch.chdir(world[0])
    return world[1]


@pytest.fixture
def show(runs: dict[str, str], capsys: Capture) -> Show:
    """Run the command; its output where it succeeds, its message where it does not."""

    def call(*arguments: str, code: int = 0) -> str:
        assert compare.main(list(arguments)) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return call


def test_finished_runs_stand_side_by_side(show: Show) -> None:
    text = show()
    assert "1 failed" in text
    assert "1 to 2 seeds" in text
    kept, lost = (re.search(rf"^(\w{{8}}|2 runs) +{rank} .*", text, re.M)[0] for rank in (2, 4))
    assert set(re.findall("[=?↓↑]", kept)) == {"="}
    assert set(re.findall("[=?↓↑]", lost)) <= {"?", "↓"}
    assert "seed" in show("--no-group-seeds")
    text = show("--all")
    kept, lost = (re.search(rf"^{rank} .*", text, re.M)[0] for rank in (2, 4))
    assert "retained" in kept
    assert "undecided" in lost  # over the seeds, each of which forgot
    assert re.search(r"^4 +1 ", show("--no-group-seeds", "--all"), re.M)
    rows = list(csv.DictReader(io.StringIO(show("--format", "csv"))))
    records = json.loads(show("--format", "json"))["rows"]
    assert [row["lora.r"] for row in records] == [row["lora.r"] for row in rows] == ["2", "4"]


def test_runs_are_chosen_and_sorted(show: Show, runs: dict[str, str]) -> None:
    for choice in ("experiment other", "sweep s", "filter params.seed='1'"):
        option, value = choice.split()
        heading = show(f"--{option}", value).splitlines()[0]
        assert heading.startswith("1 ")
        assert option in heading
    assert show(runs["kept"][:8], "other").startswith("2 chosen runs")
    down, up = (show("--sort", key) for key in ("-pocket_cs", "pocket_cs"))
    ranks = [re.findall(r"^\w{8} +(\d)  |^2 runs +(\d)", text, re.M) for text in (down, up)]
    assert [["".join(rank) for rank in found] for found in ranks] == [["2", "4"], ["4", "2"]]
    assert "--rows 0" in show("--rows", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment", "nobody"], "there is no experiment nobody"),
        (["--sweep", "nobody"], "there is no finished run of sweep nobody"),
        (["nobody", "kept"], "there is no run nobody"),
        (["kept", "kept"], "two different runs"),
        (["kept", "bad"], "failed: ValueError: x"),
        (["other", "--confirm"], "has no held-out questions"),
        (["--tracking-uri", "sqlite:///gone.db"], "there is no record"),
        (["-o", "/proc/x.html"], "/proc/"),
        (["--sort", "nothing"], "nothing"),
        (["--by", ""], "--by : no run has this setting"),
        (["--by", "lora.r", "--against", "16"], "--against 16: no run has this value of lora.r"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], message: str, show: Show) -> None:
    heading, problem = show(*arguments, code=1).split("\n", 1)
    assert heading.endswith(":")
    assert message in problem
    assert "Traceback" not in problem


WRONG = ["--paired", "kept --sweep s", "--confirm", "--confirm --sort name", "--paired --confirm"]
WRONG += ["--chain", "kept lost --chain --sort pocket_cs", "kept lost --chain --paired"]
WRONG += ["--by seed", "--no-such-option", "--rows -1", "-o page.pdf", "-o nowhere/page.html"]


@pytest.mark.parametrize("arguments", WRONG)
def test_options_that_do_not_go_together_are_refused(arguments: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        compare.main(arguments.split())
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_each_model_that_held_out_questions_judged_is_counted(show: Show) -> None:
    """Whatever command asked them; a run without a sweep is counted by itself."""
    tracking = compose_config().tracking
    counts = []
    for run in find_runs(tracking, with_findings=True):
        if run.held_out:
            pair = read_evaluations(tracking, run)
            for label in ("1", "0.1+0.5", "0.1+0.5"):
                half = take_held_out(tracking, find_run(tracking, run.run_id), pair, 0.5, label)
                counts.append((half.n_models, len(half.explain_looks())))
            assert half.base.part == half.tuned.part
            assert half.base.part.startswith("the held-out questions")
    assert counts == [(1, 0), (2, 1), (2, 1)] * 3
    for arguments in (("kept", "--confirm"), ("lost", "lost seed=1", "--paired")):
        is_said = "judged 2 models" in " ".join(show(*arguments).split())
        assert is_said is (len(arguments) == 2)  # 2 runs are named, and so are corrected for


def test_questions_that_chose_one_of_two_models_are_no_independent_test(show: Show) -> None:
    """The run `other` holds no questions out, so any question may have chosen it."""
    for names, may_be_chance in ((("kept", "lost"), False), (("other", "lost"), True)):
        text = " ".join(show(*names, "--paired").split())
        assert "the held-out questions" in text
        assert ("part of the difference is chance" in text) is may_be_chance


def test_two_models_are_judged_by_what_both_hold_out(store: MlflowClient, capsys: Capture) -> None:
    """A larger share includes a smaller one, whose questions chose neither run."""
    for share in (0.5, 0.3):
        record_run(compose_config(f"evaluation.holdout={share}"), f"share {share}")
    assert compare.main(["share 0.5", "share 0.3", "--paired"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "evaluation.holdout=0.3" in text
    assert "part of the difference is chance" not in text


def test_a_confirmation_has_a_table_of_its_own(show: Show) -> None:
    confirmed = show("kept", "lost", "--confirm")
    assert "held-out questions" in confirmed
    assert "forgotten" in confirmed


def test_runs_are_the_stages_of_one_model(show: Show, runs: dict[str, str]) -> None:
    shown = show("lost", "lost seed=1", "--chain")
    names = ["base", "trained", f"trained {runs['seed'][:8]}"]
    assert shown.splitlines()[1] == " → ".join(names)
    assert "in total" in shown
    table = json.loads(show("lost", "lost seed=1", "--chain", "--format", "json"))
    rows = [row for row in table["rows"] if row["benchmark"] == "pocket_cs"]
    assert [row["stage"] for row in rows] == [*names, names[-1]]
    *steps, whole = [row["change"] for row in rows[1:]]
    assert sum(steps) == pytest.approx(whole, abs=1e-12)
    alone = json.loads(show("lost", "--format", "json"))["rows"]  # of the open half, too
    [own] = [row for row in alone if row["benchmark"] == "pocket_cs"]
    assert [row["score"] for row in rows[:2]] == pytest.approx([own["base"], own["tuned"]])
    assert "part differs" in show("lost", "other", "--chain", code=1)


def test_a_page_replaces_the_old_one_only_when_it_is_whole(show: Show, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    shown = show("-o", str(page), "--by", "lora.r")
    title = shown.splitlines()[0]
    assert title.startswith("By lora.r: 3 ")
    assert "sqlite" not in shown
    assert shown.endswith(f"page     {page}\n")
    assert f"<title>{title}</title>" in page.read_text()
    with pytest.raises(SystemExit):
        show("-o", str(tmp_path))
    assert "--confirm" in show("--format", "html")


def test_a_setting_is_compared_within_one_sweep(store: MlflowClient, capsys: Capture) -> None:
    for sweep, rank in (("a", 2), ("a", 4), ("b", 2), ("b", 4)):
        record_run(compose_config(f"lora.r={rank}"), f"{sweep} {rank}", sweep=sweep)
    for chosen, sweep in (([], "b"), (["--sweep", "a"], "a")):  # the newest, if none is named
        for by, beginning in ((["--by", "lora.r"], "By lora.r: 2 "), ([], "2 ")):
            assert compare.main([*by, *chosen]) == 0
            text = capsys.readouterr().out
            heading = text.splitlines()[0]
            assert heading.startswith(beginning)
            assert heading.endswith(f" {sweep}")
            assert ("b (2), a (2)" in text) is (not chosen)
    assert compare.main(["--experiment", "slimdown"]) == 0
    assert capsys.readouterr().out.startswith("4 ")


def test_a_reference_must_be_a_value_of_one_setting(store: MlflowClient, capsys: Capture) -> None:
    for rank in (2, 4):
        for length in (64, 128):
            config = compose_config(f"lora.r={rank}", f"train.max_length={length}")
            record_run(config, f"lora.r={rank} train.max_length={length}")
    assert compare.main(["--against", "2"]) == 1
    problem = capsys.readouterr().err
    assert "--against 2" in problem
    assert "--by" in problem
    assert compare.main(["--against", "2", "--by", "lora.r"]) == 0


def test_it_imports_neither_torch_nor_transformers(runs: dict[str, str]) -> None:
    script = (
        "import sys\nfrom slimdown.commands import check, compare, status\n"
        f"assert compare.main([]) + status.main([]) + check.main(['{runs['kept']}']) == 0\n"
        "assert not {'torch', 'transformers', 'lm_eval'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
