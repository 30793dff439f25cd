"""lm_eval's own logs, made by the harness and spoiled: what is read, and what is refused."""

import json
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from replayed_answers import assert_refused
from stock_harness import run_lm_eval
from tiny_benchmarks import load_pocket, make_config

from slimdown.config.benchmark_config import Role
from slimdown.config.benchmarks import read_benchmarks
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.logs.read_logs import find_logs, read_logs
from slimdown.evaluation.tasks import load_tasks
from slimdown.utils.errors import ConfigError, DataError

LIMIT = 12
TASKS = ["pocket_math", "pocket_choices", "pocket_instructions"]
GROUP = {
    "group": "pocket_choices",
    "task": ["pocket_cs", "pocket_commonsense"],
    "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    "metadata": {"version": 1.0},
}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "group.yaml").write_text(yaml.safe_dump(GROUP))
    run_lm_eval(folder / "base", TASKS, folder / "tasks", limit=LIMIT)
    return folder


@pytest.fixture
def copied(logs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(logs, tmp_path / "logs"))


def find_one(folder: Path, pattern: str) -> Path:
    (file,) = folder.glob(f"base/*/{pattern}")
    return file


def edit_results(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(logs: Path) -> None:
        file = find_one(logs, "results_*")
        results = json.loads(file.read_text())
        edit(results)
        file.write_text(json.dumps(results))

    return spoil


def edit_lines(edit: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def spoil(logs: Path) -> None:
        file = find_one(logs, "samples_pocket_math_*")
        file.write_text("".join(edit(file.read_text().splitlines(keepends=True))))

    return spoil


def edit_fourth_line(task: str, **changes: Any) -> Callable[[Path], None]:
    def spoil(logs: Path) -> None:
        file = find_one(logs, f"samples_{task}_*")
        lines = file.read_text().splitlines()
        lines[3] = json.dumps(json.loads(lines[3]) | changes)
        file.write_text("\n".join([*lines, ""]))

    return spoil


def replace_lines(logs: Path, lines: list[str]) -> None:
    """Write other lines of pocket_cs, and in the results the digest of them."""
    find_one(logs, "samples_pocket_cs_*").write_text("".join(lines))
    parts = [json.loads(x)[f"{w}_hash"] for x in lines for w in ("doc", "prompt", "target")]
    digest = sha256("".join(parts).encode()).hexdigest()
    edit_results(lambda r: r["task_hashes"].update(pocket_cs=digest))(logs)


# --- what is read -----------------------------------------------------------------------------


def test_logs_hold_what_our_own_measurement_gives(logs: Path) -> None:
    read = read_logs(logs / "base", targets=["pocket_instructions"])
    shown = {
        name: (b.benchmark.metric, b.benchmark.role, b.benchmark.chance, len(b.samples))
        for name, b in read.benchmarks.items()
    }
    assert shown == {
        "pocket_math": ("exact_match.strict-match", Role.retained, 0.0, LIMIT),
        "pocket_choices": ("acc", Role.retained, 0.25, 2 * LIMIT),
        "pocket_instructions": ("exact_match.strip", Role.target, 0.0, LIMIT),
    }
    assert {s.task for s in read.benchmarks["pocket_choices"].samples} == set(GROUP["task"])
    names = ["pocket_math", "pocket_cs", "pocket_commonsense"]
    evaluator = Evaluator(load_tasks(read_benchmarks(names, limit=LIMIT)), make_config())
    measured = evaluator.evaluate(load_pocket()).benchmarks.values()
    ours = {(s.task, s.doc_id): s for benchmark in measured for s in benchmark.samples}
    for name in ("pocket_math", "pocket_choices"):
        for sample in read.benchmarks[name].samples:
            own = ours[sample.task, sample.doc_id]
            for fact in ("prompt", "target", "response", "prompt_hash", "doc_hash"):
                assert getattr(sample, fact) == getattr(own, fact)
            assert sample.log_likelihoods == pytest.approx(own.log_likelihoods, abs=5e-4)
            own_scores = {metric: own.scores[metric] for metric in sample.scores}
            assert sample.scores == pytest.approx(own_scores, abs=1e-4 * (name != "pocket_math"))


def test_a_file_of_samples_is_a_log_of_its_task(logs: Path, tmp_path: Path) -> None:
    """Its results file lies beside it; alone it does not say how it was asked."""
    for task in ("pocket_math", "pocket_cs"):  # the second one is a task of a group
        file = find_one(logs, f"samples_{task}_*")
        read = read_logs(file)
        assert list(read.benchmarks) == [task]
        assert all(sample.task == task for sample in read.benchmarks[task].samples)
    alone = tmp_path / file.name
    shutil.copy(file, alone)
    assert_refused(alone, r"results_.*\.json beside it")


def test_a_log_is_named_by_its_folder_the_models_folder_or_its_results(copied: Path) -> None:
    file = find_one(copied, "results_*")
    for path in (copied / "base", file.parent, file):
        assert set(read_logs(str(path)).benchmarks) == set(TASKS)
    renamed = file.rename(file.with_name(file.name.replace("results_", "base_")))
    assert find_logs(renamed) == ("lm_eval", [renamed])


def test_results_named_by_a_file_and_asked_again_are_found(copied: Path) -> None:
    """`--output_path out/base.json` is written as out/base_DATE.json; the newest answers count."""
    run_lm_eval(copied / "out" / "base.json", ["pocket_cs"], copied / "tasks", limit=2)
    assert len(read_logs(copied / "out" / "base.json").benchmarks["pocket_cs"].samples) == 2
    run_lm_eval(copied / "base", ["pocket_math"], copied / "tasks", limit=5)
    notes: list[str] = []
    read = read_logs(copied / "base", on_note=notes.append)
    assert {name: len(b.samples) for name, b in read.benchmarks.items()} == {
        "pocket_math": 5,
        "pocket_choices": 2 * LIMIT,
        "pocket_instructions": LIMIT,
    }
    assert "newest are read" in notes[0]


def test_lines_may_come_in_the_order_of_several_processes(copied: Path) -> None:
    """With two processes the harness writes even questions first; its digest is of that order."""
    before = read_logs(copied / "base").benchmarks["pocket_choices"].samples
    lines = find_one(copied, "samples_pocket_cs_*").read_text().splitlines(keepends=True)
    replace_lines(copied, [*lines[::2], *lines[1::2]])
    assert read_logs(copied / "base").benchmarks["pocket_choices"].samples == before


@pytest.mark.parametrize("version", ["0.4.9", "0.4.13"])
def test_logs_of_another_version_are_read_alike(version: str) -> None:
    """What these versions' command lines wrote; 0.4.9 keeps the model's arguments as one text."""
    read = read_logs(Path(__file__).parent / "harness_logs" / version)
    assert read.harness_version == version
    shown = {
        n: (b.benchmark.metric, len(b.samples), b.score.value) for n, b in read.benchmarks.items()
    }
    assert shown == {
        "pocket_math": ("exact_match.strict-match", 4, 1.0),
        "pocket_choices": ("acc", 8, 1.0),
    }
    assert read.conditions["dtype"] == "float32"


def test_a_group_weighs_its_tasks_as_the_harness_reports(copied: Path) -> None:
    samples = read_logs(copied / "base").benchmarks["pocket_choices"].samples
    by_task = {t: [s.scores["acc"] for s in samples if s.task == t] for t in GROUP["task"]}
    lines = find_one(copied, "samples_pocket_cs_*").read_text().splitlines(keepends=True)
    replace_lines(copied, lines[:5])
    five, others = by_task["pocket_cs"][:5], by_task["pocket_commonsense"]
    alike = (sum(five) / 5 + sum(others) / LIMIT) / 2
    by_size = (sum(five) + sum(others)) / (5 + LIMIT)
    assert alike != by_size
    for score, weights in ((by_size, None), (alike, dict.fromkeys(sorted(GROUP["task"]), 0.5))):
        edit_results(
            lambda r, score=score: r["results"]["pocket_choices"].update({"acc,none": score})
        )(copied)
        evaluation = read_logs(copied / "base").benchmarks["pocket_choices"]
        assert (evaluation.score.value, evaluation.task_weights) == (pytest.approx(score), weights)


def test_a_field_of_the_documents_tells_clusters_apart(logs: Path) -> None:
    read = read_logs(logs / "base", clusters={"pocket_choices": "label"}).benchmarks
    places = {(s.cluster, s.choices.index(s.target)) for s in read["pocket_choices"].samples}
    assert len({cluster for cluster, _ in places}) == len(places) == 4
    with pytest.raises(DataError, match="nothing in 'page'"):
        read_logs(logs / "base", clusters={"pocket_math": "page"})


LESS, OTHER = {"pocket_instructions": {"exact_match": False}}, {"exact_match,strip": 0.123}
LEFT_OUT: dict[str, Callable[[Path], None]] = {
    "less is better": edit_results(lambda r: r["higher_is_better"].update(LESS)),
    "no mean": edit_results(lambda r: r["results"]["pocket_instructions"].update(OTHER)),
    "scores of no share": edit_fourth_line("pocket_instructions", exact_match=-1e9),
    "a score that is a text": edit_fourth_line("pocket_instructions", exact_match="high"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_cannot_be_compared_is_left_out_and_noted(name: str, copied: Path) -> None:
    LEFT_OUT[name](copied)
    notes: list[str] = []
    read = read_logs(copied / "base", on_note=notes.append)
    assert set(read.benchmarks) == {"pocket_math", "pocket_choices"}
    assert notes[0].startswith("pocket_instructions ")


# --- what is refused --------------------------------------------------------------------------


def write(pattern: str, text: str) -> Callable[[Path], object]:
    return lambda logs: find_one(logs, pattern).write_text(text)


def remove_results(logs: Path) -> None:
    shutil.rmtree(find_one(logs, "results_*").parent)


def copy_results(logs: Path) -> None:
    shutil.copytree(find_one(logs, "results_*").parent, logs / "base" / "other")


def remove_likelihoods(logs: Path) -> None:
    file = find_one(logs, "samples_pocket_cs_*")
    file.write_text(re.sub(r'"-[\d.]+"', '"nan"', file.read_text()))


def group(**groups: list[str]) -> Callable[[Path], None]:
    return edit_results(lambda r: r.update(group_subtasks=groups))


UNLIKE = "is not logged as lm_eval does it"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda logs: shutil.rmtree(logs / "base"), "there is no folder .*base; give the"),
    "no results": (remove_results, "holds no results as lm_eval names them"),
    "no samples": (lambda logs: find_one(logs, "samples_pocket_cs_*").unlink(), "no file .*_cs_"),
    "two models": (copy_results, "of several models; .*: slimdown verdict .*other"),
    "results cut short": (write("results_*", '{"results": {'), "cut short"),
    "other results": (write("results_*", "[1]"), "no results file of"),
    "a line cut short": (edit_lines(lambda x: [*x[:-1], x[-1][:100]]), "line 24, is no line"),
    "a line missing": (edit_lines(lambda x: x[:-1]), "lines are missing, doubled or changed"),
    "a huge line": (write("samples_pocket_math_*", "[" * 2_000_000), "line 1, is no line of"),
    "half a character": (edit_fourth_line("pocket_math", target="\ud800"), "line 4, is no line of"),
    "a huge number": (edit_fourth_line("pocket_math", doc_id=2**70), "line 4, .* than 64 bits"),
    "no score": (edit_fourth_line("pocket_math", metrics=["f1"]), UNLIKE),
    "a likelihood that is none": (remove_likelihoods, "question 0 of pocket_cs is not finite"),
    "better than what": (edit_results(lambda r: r.update(higher_is_better={TASKS[0]: 7})), UNLIKE),
    "another file's name": (group(pocket_choices=["../../x"]), UNLIKE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_said_in_one_line(name: str, copied: Path) -> None:
    spoil, answer = REFUSED[name]
    spoil(copied)
    assert_refused(copied / "base", answer)


def test_a_choice_of_metric_or_target_that_was_not_asked_is_refused(logs: Path) -> None:
    metrics = {"pocket_math": "exact_match.flexible-extract"}
    read = read_logs(logs / "base", metrics).benchmarks["pocket_math"]
    assert read.benchmark.metric == metrics["pocket_math"]
    with pytest.raises(ConfigError, match="pocket_math=f1: no such"):
        read_logs(logs / "base", {"pocket_math": "f1"})
    with pytest.raises(DataError, match="no folder None"):
        read_logs(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"pocket_maths .*pocket_math\b"):
        read_logs(logs / "base", targets=["pocket_maths"])
    wrong: Any = 5
    for setting in ("metrics", "targets", "clusters"):
        with pytest.raises(ConfigError, match=f"{setting}=5 must be a"):
            read_logs(logs / "base", **{setting: wrong})


def test_what_opens_a_server_is_no_condition_and_not_kept(copied: Path) -> None:
    arguments = {"header": {"Authorization": "Bearer abcd1234"}, "basic_auth_password": "swordfish"}
    arguments |= {"server": "http://me:swordfish@host", "add_bos_token": "True"}
    edit_results(lambda r: r["config"].update(model_args=arguments))(copied)
    conditions = read_logs(copied / "base").conditions
    assert conditions["add_bos_token"] == "true"  # it moves answers
    assert not {"abcd1234", "swordfish"} & set(re.findall(r"\w+", str(conditions)))
