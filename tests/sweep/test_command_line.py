"""Whatever is wrong on a command line is answered at once, in words, and leaves nothing behind.

`refused_settings.txt` is a table: arguments, and what the answer holds.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from commands_and_runs import run_command
from record_builders import Capture, Patch

from slimdown.commands import run_command_line as runs
from slimdown.config.benchmark_config import BenchmarkConfig
from slimdown.config.paths import CONF_DIR, list_group_choices
from slimdown.sweep import command_line
from slimdown.sweep.command_line import CommandPlan, compose_runs, read_command_line
from slimdown.utils.errors import ConfigError

TABLE = (Path(__file__).parent / "refused_settings.txt").read_text().splitlines()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)


def compose_line(*arguments: str) -> CommandPlan:
    return compose_runs(read_command_line(list(arguments)))


def refuse(*arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        compose_line(*arguments)
    return str(error.value).splitlines()


@pytest.mark.parametrize("line", TABLE)
def test_a_wrong_setting_is_answered(line: str) -> None:
    arguments, answer = line.encode().decode("unicode_escape").split("  =>  ")
    assert answer in "\n".join(refuse(*shlex.split(arguments)))


def test_a_mistake_of_a_thousand_jobs_is_told_without_reading_them_all(monkeypatch: Patch) -> None:
    check = Mock(side_effect=command_line.load_config)
    monkeypatch.setattr(command_line, "load_config", check)
    [answer] = refuse("-m", "seed=range(1000)", "lora.r=0")
    assert answer.startswith("lora.r ")
    assert check.call_count < 50
    assert len(refuse("-m", "seed=range(5)", "lora.r=0,-1,-2")) == 3


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 1000])
def test_a_value_that_no_parser_takes_is_answered_in_a_short_line(value: str) -> None:
    [answer] = refuse(f"lora.r={value}")
    assert "is not setting=value" in answer
    assert len(answer) < 300


ADDRESSES = [("http://[::1", "slimdown.run"), ("http://[bad", "slimdown sizes")]
ADDRESSES.append(("http://127.0.0.1:99999", "slimdown.run"))


@pytest.mark.parametrize(("address", "command"), ADDRESSES)
def test_what_is_no_address_of_a_hub_is_named(address: str, command: str, tmp_path: Path) -> None:
    done = run_command(tmp_path, *command.split(), "lora.r=4", HF_ENDPOINT=address)
    assert done.returncode == 1
    assert "HF_ENDPOINT" in done.stderr
    assert "Traceback" not in done.stderr


def test_all_mistakes_are_listed_in_one_answer() -> None:
    answers = refuse("model=llama3", "lora.r=0", "train.max_length=1", "foo=1", "seed=x")
    assert [answer.split()[0].partition("=")[0] for answer in answers] == [
        "model", "foo", "seed", "lora.r", "train.max_length",
    ]  # fmt: skip


def test_a_setting_that_is_given_three_times_is_one_mistake() -> None:
    assert refuse("seed=1", "seed=2", "seed=3") == ["seed is given 3 times; keep one of them"]


def test_the_runs_of_a_sweep_are_composed_as_hydra_would() -> None:
    plan = compose_line("lora.r=8,16", "-m", "model=llama32,tinyllama", "++seed=7")
    assert [(run.config.model.id.split("/")[0], run.config.lora.r) for run in plan.runs] == [
        ("meta-llama", 8), ("TinyLlama", 8), ("meta-llama", 16), ("TinyLlama", 16),
    ]  # fmt: skip
    assert plan.runs[0].overrides == ["lora.r=8", "model=llama32", "++seed=7"]
    assert plan.swept == ("lora.r", "model")
    assert {run.config.seed for run in plan.runs} == {7}


def test_what_is_searched_is_not_given_a_value() -> None:
    plan = compose_line("-m", "experiment=search", "lora.r=4")
    assert set(plan.space) == {"train.learning_rate", "dataset.pocket_replay.weight"}
    assert len(plan.runs) == 1


def test_the_space_of_a_preset_is_changed_setting_by_setting() -> None:
    plan = compose_line(
        "-m", "experiment=keep", "search.space.train.learning_rate.high=2e-3",
        "search.space.keep.choices=[auto,self_replay]", "search.space.lora.r={choices:[2,4]}",
        "search.space.train.max_length.low=16", "search.space.train.max_length.high=32",
    )  # fmt: skip
    rate, length = (plan.space[f"train.{name}"] for name in ("learning_rate", "max_length"))
    assert (rate.low, rate.high, rate.log) == (1e-3, 2e-3, True)
    assert (length.low, length.high) == (16, 32)
    assert plan.space["keep"].choices == ["auto", "self_replay"]
    assert plan.space["lora.r"].choices == [2, 4]


@pytest.mark.parametrize("preset", list_group_choices("experiment"))
def test_a_preset_begins_with_its_question_and_its_command(preset: str) -> None:
    lines = (CONF_DIR / "experiment" / f"{preset}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].endswith("?")
    assert lines[2].startswith("# slimdown run ")
    arguments = shlex.split(lines[2])[3:]
    assert f"experiment={preset}" in arguments
    assert compose_line(*arguments).runs


GROUP_FILES = [
    ("dataset/mine.yaml", b"a: [", "ParserError: while parsing a flow node"),
    ("experiment/mine.yaml", b"\xff\xfe\0", "experiment=mine: UnicodeDecodeError"),
    ("dataset/mine.yaml", b"- 1\n", "Cannot merge"),
    ("dataset/mine.yaml", b"path: r.jsonl\n", "begin with `# @package dataset.mine`?"),
    ("experiment/mine.yaml", b"lora: {r: 2}\n", "begin with `# @package _global_`?"),
    ("dataset/mine.yaml", b"# @package dataset.mine\npth: r.jsonl\n", "did you mean path?"),
    ("experiment/mine.yaml", b"# @package _global_\ntrain: {lr: 1}\n",
     "did you mean train.learning_rate?"),
    ("experiment/mine.yaml", b"# @package _global_\ndefaults: [{override /mdl: pocket}]\n",
     "Could not override 'mdl'"),
    ("benchmark/mine.yaml", b"# @package benchmark\n'b(1)': {task: a, metric: acc, num_fewshot: 0,"
     b" chance: 0}\n", "benchmark.b(1): a name may hold only letters, digits, _ and -"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "content", "answer"), GROUP_FILES)
def test_a_wrong_group_file_is_told(file: str, content: bytes, answer: str, tmp_path: Path) -> None:
    write_file(tmp_path / "mine" / file, content)
    kind = file.partition("/")[0]
    choice = f"{kind}=mine" if kind == "experiment" else f"{kind}=[mine]"
    assert answer in "\n".join(refuse("--config-dir", str(tmp_path / "mine"), choice))


def write_file(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(content)


def test_a_folder_of_ones_own_adds_choices(tmp_path: Path) -> None:
    write_file(tmp_path / "mine/experiment/mine.yaml", b"# @package _global_\nlora: {r: 2}\n")
    [run] = compose_line("experiment=mine", "--config-dir", "mine").runs
    assert run.config.lora.r == 2


def test_a_task_of_the_harness_is_a_benchmark_by_its_name() -> None:
    [run] = compose_line("benchmark=[gsm8k,piqa]", "benchmark.piqa.limit=3").runs
    assert list(run.config.benchmark) == ["gsm8k", "piqa"]
    assert run.config.benchmark["piqa"] == BenchmarkConfig(task="piqa", limit=3)
    plan = compose_line("-m", "benchmark=[piqa],[boolq,copa]", "seed=1,2")
    names = [list(run.config.benchmark) for run in plan.runs]
    assert names == [["piqa"], ["piqa"], ["boolq", "copa"], ["boolq", "copa"]]


# A task, a group, a tag; a tag in a file without an ending; a name that is no file's.
@pytest.mark.parametrize("task", ["piqa", "mmlu_stem", "gpqa", "naijarc_tasks", "mmlu_prox_de"])
def test_every_kind_of_name_is_known(task: str) -> None:
    assert list(compose_line(f"benchmark=[{task}]").runs[0].config.benchmark) == [task]


def test_a_name_that_mlflow_does_not_take_is_written_as_it_does() -> None:
    task, name = "longproc_countdown_0.5k", "longproc_countdown_0_5k"
    [run] = compose_line(f"benchmark=[{task}]", f"benchmark.{name}.limit=3").runs
    assert run.config.benchmark == {name: BenchmarkConfig(task=task, limit=3)}


def test_a_file_of_ones_own_comes_before_a_task(tmp_path: Path) -> None:
    own = b"# @package benchmark.piqa\ntask: piqa\nmargin: 0.1\n"
    write_file(tmp_path / "mine/benchmark/piqa.yaml", own)
    [run] = compose_line("--config-dir", "mine", "benchmark=[piqa,boolq]").runs
    assert run.config.benchmark["piqa"].margin == 0.1
    assert run.config.benchmark["boolq"] == BenchmarkConfig(task="boolq")
    [answer] = refuse("--config-dir", "mine", "benchmark=[piqua]")
    assert "did you mean piqa" in answer


def test_a_task_of_ones_own_is_a_benchmark_by_its_name(tmp_path: Path) -> None:
    write_file(tmp_path / "tasks/some.yaml", b"task: my_own_task\n")
    folder = f"evaluation.include_path={tmp_path / 'tasks'}"
    [run] = compose_line("benchmark=[my_own_task]", folder).runs
    assert run.config.benchmark == {"my_own_task": BenchmarkConfig(task="my_own_task")}
    [answer] = refuse("benchmark=[my_own_task]")
    assert "evaluation.include_path" in answer


def test_suites_are_beaten_by_the_command_line_and_beat_presets_and_models() -> None:
    experiment = "experiment=paper_llama32"  # its model brings benchmarks, too
    (run,) = compose_line("suite=chat", experiment, "benchmark.gsm8k.limit=7").runs
    benchmarks, evaluation = run.config.benchmark, run.config.evaluation
    assert list(benchmarks) == ["ifeval", "gsm8k", "truthfulqa_mc2", "arc_challenge", "mmlu"]
    assert (benchmarks["ifeval"].limit, benchmarks["gsm8k"].limit) == (300, 7)
    assert evaluation.apply_chat_template is True  # the experiment says false
    (run,) = compose_line("suite=quick", "model=pocket", "benchmark=[gsm8k]").runs
    assert {name: b.limit for name, b in run.config.benchmark.items()} == {"gsm8k": 160}


def test_files_of_questions_have_names_of_their_own() -> None:
    for name in ("capitals", "legs"):
        Path(f"{name}.jsonl").write_text('{"question": "q", "answer": "4"}\n')
    words = "benchmark=[legs,capitals] benchmark.legs.path=legs.jsonl benchmark.legs.score=numeric"
    [run] = compose_line(*words.split(), "benchmark.capitals.path=capitals.jsonl").runs
    metrics = {name: benchmark.metric for name, benchmark in run.config.benchmark.items()}
    assert metrics == {"legs": "numeric", "capitals": "exact_match.strip"}
    [answer] = refuse(*words.split())
    assert answer.startswith("benchmark=capitals:")


@pytest.mark.parametrize(
    ("arguments", "code", "answer"),
    [
        ("slimdown.run train.max_length=1", 1, "must be at least 8 tokens, got 1"),
        ("slimdown lr=3", 1, "did you mean train.learning_rate?"),
        ("slimdown run benchmark=[hellaswa]", 1, "did you mean hellaswag"),
        ("slimdown.run --cfg job foo=1", 1, "Key 'foo' not in 'RunConfig'"),
        ("slimdown.run --resolve", 1, "can only be used in conjunction with --cfg"),
        ("slimdown compar", 2, "did you mean compare?"),
    ],
)
def test_a_mistake_is_answered_before_a_large_library_is_imported(
    arguments: str, code: int, answer: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # stderr names each imported module
    process = run_command(tmp_path, *arguments.split())
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", process.stderr, re.MULTILINE))
    assert process.returncode == code
    assert answer in process.stderr
    assert "Traceback" not in process.stderr
    assert "slimdown" in imported
    assert not imported & {"torch", "transformers", "datasets", "mlflow", "lm_eval", "trl", "peft"}
    assert not list(tmp_path.iterdir())


def test_the_version_and_the_composed_settings_are_shown(tmp_path: Path) -> None:
    assert run_command(tmp_path, "slimdown", "--version").stdout.startswith("slimdown ")
    words = ["--model", "you/yours", "dataset=rows.jsonl", "benchmark=[piqa]"]
    settings = yaml.safe_load(run_command(tmp_path, "slimdown", "--cfg", "job", *words).stdout)
    assert settings["lora"]["lora_dropout"] == 0.0
    assert settings["model"]["id"] == "you/yours"
    assert settings["dataset"]["rows"]["path"] == "rows.jsonl"
    assert settings["benchmark"]["piqa"]["task"] == "piqa"


def test_help_is_shown_where_python_checks_its_texts(monkeypatch: Patch, capsys: Capture) -> None:
    """As Python 3.14 does; one of Hydra's is an object that becomes text when it is shown."""
    add_argument = argparse.ArgumentParser.add_argument

    def check(parser: Any, action: argparse.Action) -> None:
        if not isinstance(action.help, str | None):
            raise ValueError("badly formed help string")

    def add_and_check(parser: Any, *names: str, **options: Any) -> argparse.Action:
        action = add_argument(parser, *names, **options)
        parser._check_help(action)
        return action

    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check, raising=False)
    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_and_check)
    monkeypatch.setattr(sys, "argv", ["slimdown"])
    assert runs.start(["--cfg", "job", "lora.r=3"]) == 0
    assert "\n  r: 3\n" in capsys.readouterr().out


def test_hydras_short_flag_is_not_taken_for_a_folder() -> None:
    assert not read_command_line(["-c", "job", "lora.r=4"]).is_run
    assert read_command_line(["-cd", str(CONF_DIR), "lora.r=4"]).is_run


GSM8K_9 = ["model=smollm2", "benchmark.gsm8k.limit=9"]
LIMITS = {"hellaswag": "2000", "mmlu": "10", "gsm8k": "160"}
QUICK = {"suite": "quick"} | {f"benchmark.{name}.limit": n for name, n in LIMITS.items()}


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ([], {}),
        (["lora.r=8", "tracking.experiment=x"], {"lora.r": "8"}),
        (["train.args.packing=true"], {"train.args.packing": "True"}),
        (["lora.target_modules=[q_proj,v_proj]"], {"lora.target_modules": "q_proj,v_proj"}),
        (["dataset=alpaca", "benchmark=[gsm8k]", *GSM8K_9], {"benchmark.gsm8k.limit": "9"}),
        (["model=smollm2", "suite=quick"], QUICK),
        (["tuned=pocket:model", "suite=quick"], QUICK | {"tuned": "pocket:model"}),
    ],
)
def test_what_was_set_or_brought_is_shown(settings: list[str], shown: dict[str, str]) -> None:
    assert compose_line(*settings).runs[0].shown == shown


def test_a_preset_may_hold_a_dataset_of_its_own_and_choose_a_launcher(tmp_path: Path) -> None:
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    preset = (
        b"# @package _global_\n"
        b"defaults:\n  - override /hydra/launcher: joblib\n"
        b"dataset: {mine: {path: rows.jsonl, validation_examples: 1}}\n"
    )
    write_file(tmp_path / "experiment/mine.yaml", preset)
    plan = compose_line("-m", "--config-dir", str(tmp_path), "experiment=mine", "seed=0,1")
    assert "joblib" in plan.hydra.hydra.launcher["_target_"].lower()
    assert {run.shown["experiment"] for run in plan.runs} == {"mine"}
    assert [run.shown["seed"] for run in plan.runs] == ["0", "1"]
    assert set(plan.runs[0].config.dataset) == {"pocket_instructions", "mine"}
