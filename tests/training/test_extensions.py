"""Methods, mitigations and readers of logs of other packages, as pip installs them."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands_and_runs import (
    SMALL,
    call_verb,
    find_runs,
    find_trained,
    kill_at_first_checkpoint,
    run_command,
    succeed,
)
from mlflow import MlflowClient
from record_builders import Patch, compose_config
from torch.nn import functional
from training_run import TrainingRun, prepare_run

from slimdown.commands.arguments import VERBS
from slimdown.config.fields import explain_unknown_key, list_settings
from slimdown.config.help import describe_settings, write_help
from slimdown.config.methods import list_all_methods
from slimdown.config.mitigation import list_mitigations
from slimdown.evaluation.logs.read_logs import list_readers
from slimdown.runs.inputs import read_rows
from slimdown.scoring.scores import list_scores
from slimdown.sweep.command_line import compose_runs, read_command_line
from slimdown.tracking.resume import run_key
from slimdown.training.labels import IGNORED
from slimdown.training.tokenizing import tokenize_rows
from slimdown.utils.errors import ConfigError
from slimdown.utils.extensions import list_extensions

GUIDE = Path(__file__).parents[2] / "docs" / "extend.md"
RUN = [*SMALL[:3], "train.max_steps=4", "benchmark=[pocket_cs]", "benchmark.pocket_cs.limit=8"]
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "slimdown-three"
version = "2.1"
[project.entry-points."slimdown.methods"]
gate = "slimdown_three:GATE"
[project.entry-points."slimdown.mitigations"]
near = "slimdown_three:Near"
[project.entry-points."slimdown.logs"]
tally = "slimdown_three.tally"
"""
FACTS = """
from dataclasses import dataclass
from typing import ClassVar

from slimdown.config.fields import POSITIVE, setting
from slimdown.config.methods import MethodConfig
from slimdown.config.methods import MethodFacts
from slimdown.config.mitigation import Mitigation


@dataclass
class GateSettings(MethodConfig):
    start: float = setting("the first value of each factor", POSITIVE, 1.0)


GATE = MethodFacts(
    module="slimdown_three.gate", peft_type="GATE", merges=False, settings=GateSettings
)


@dataclass
class Near(Mitigation):
    strength: float = setting("of the squared distance of logits", POSITIVE, 0.5)
    description: ClassVar[str] = "logits stay near the base's"

    @property
    def compares_with_base(self):
        return True

    def choose_compared(self, inputs):
        return dict(inputs)

    def measure_loss(self, predicted, base_predicted):
        distance = predicted.logits - base_predicted.logits
        return self.strength * distance.float().square().mean(-1).sum()
"""
GATE = """
import json

import torch
from safetensors.torch import load_file, save_file


class Gate(torch.nn.Module):
    def __init__(self, width, start):
        super().__init__()
        self.is_enabled = True
        self.factors = torch.nn.Parameter(torch.full((width,), start))

    def forward(self, output):
        return (output * self.factors).to(output.dtype) if self.is_enabled else output

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "GATE"}))


def attach(model, method, lora):
    model.requires_grad_(False)
    model.own_adapter = gate = Gate(model.config.hidden_size, method.start).to(model.device)
    model.model.norm.register_forward_hook(lambda layer, inputs, output: gate(output))
    return model


def load(model, folder):
    class Settings:
        start = 1.0

    attach(model, Settings, None)
    model.own_adapter.load_state_dict(load_file(folder / "adapter_model.safetensors"))
    return model
"""
TALLY = """
from slimdown.evaluation.logs.logged_task import LoggedTask


FILES = "notes of a trainer, .txt"


def find_files(path):
    return sorted(path.glob("*.tally")) if path.is_dir() else [path][: path.suffix == ".tally"]


def open_logs(file):
    answers = []
    for line in file.read_text().splitlines():
        name, score = line.split()
        texts = dict.fromkeys(("prompt", "target", "response"), name)
        answers.append((name, 0.0, texts | {"scores": {"score": float(score)}, "document": {}}))
    made_by = {"model": file.stem, "tool": "tally", "backend": "tally"}
    yield LoggedTask(file, "sums", made_by, {"kind": "tally"}, answers)
"""


def install(source: Path, files: dict[str, str]) -> Path:
    """Install a package by pip from its source, without network; return where it lies."""
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    target = source.with_name(f"{source.name}-installed")
    done = run_command(source, "pip", "install", *options, "--target", str(target), str(source))
    assert done.returncode == 0, done.stderr
    return target


def read_guide() -> list[str]:
    """The modules and entry points of the guide, from its very text."""
    return re.findall(r"```(?:python|toml)\n(.*?)```", GUIDE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def mask_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mitigation of the guide."""
    module, project, *_ = read_guide()
    assert module.count("\n") <= 45
    files = {"slimdown_mask.py": module, "pyproject.toml": project}
    return install(tmp_path_factory.mktemp("mask"), files)


@pytest.fixture(scope="module")
def yes_no_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The score of the guide."""
    module, entry_point = read_guide()[-2:]
    project = PROJECT.partition("[project.entry")[0].replace("three", "yes-no")
    files = {"slimdown_yes_no.py": module, "pyproject.toml": project + entry_point}
    return install(tmp_path_factory.mktemp("yes_no"), files)


@pytest.fixture(scope="module")
def three_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a method, a mitigation and a reader of logs."""
    files = {"__init__.py": FACTS, "gate.py": GATE, "tally.py": TALLY}
    files = {f"slimdown_three/{name}": text for name, text in files.items()}
    return install(tmp_path_factory.mktemp("three"), files | {"pyproject.toml": PROJECT})


def forget_extensions() -> None:
    """Let the tables be made anew, as in a new process."""
    tables: Any = (list_all_methods, list_mitigations, list_readers, list_scores)
    tables += (list_extensions, list_settings, explain_unknown_key, describe_settings)
    for table in tables:
        table.cache_clear()


@pytest.fixture(autouse=True)
def clean_tables() -> Iterator[None]:
    yield
    forget_extensions()
    prefixes = ("slimdown_mask", "slimdown_th", "odd_code")
    for name in [name for name in sys.modules if name.startswith(prefixes)]:
        del sys.modules[name]


def use(package: Path, patch: Patch) -> None:
    patch.syspath_prepend(str(package))
    forget_extensions()


def test_the_mask_of_the_guide_is_trained_recorded_compared_and_checked(
    mask_package: Path, store: MlflowClient, tmp_path: Path
) -> None:
    keep = ["keep=mask", "keep.max_perplexity=10"]
    with pytest.MonkeyPatch.context() as patch:
        use(mask_package, patch)
        done = succeed(tmp_path, "run", *RUN, *keep)
        assert "keep=mask leaves" in done.stdout
        assert re.search("mask: .*, max_perplexity", done.stdout)
        [run] = find_runs(store)
        assert run.data.params["keep.max_perplexity"] == "10.0"
        keys = [run_key(compose_config(*RUN, *keep[:n])) for n in (2, 1, 0)]
        assert run.data.tags["slimdown.run_key"] == keys[0]
        assert len({*keys}) == 3
        again = call_verb(tmp_path, "run", *RUN, *keep)
        assert "finished before" in again.stdout
        assert call_verb(tmp_path, "run", *RUN).returncode == 0
        environment = store.download_artifacts(run.info.run_id, "environment.json")
        assert json.loads(Path(environment).read_text())["extensions"] == "slimdown-mask 0.1"
        commands = [["compare", "--format=json"], ["status", "--format=json"]]
        commands.append(["check", run.info.run_id, "--max-loss=0.5", "--format=json"])
        answers = [call_verb(tmp_path, *command) for command in commands]
        assert [answer.returncode for answer in answers[:2]] == [0, 0]
        rows = json.loads(answers[0].stdout)["rows"]
        assert {row["keep.name"] for row in rows} == {"mask", "none"}
    forget_extensions()  # as where the package is not installed
    assert "mask" not in list_mitigations()
    for command, before in zip(commands, answers, strict=True):
        after = call_verb(tmp_path, *command)
        assert (after.returncode, after.stdout) == (before.returncode, before.stdout), after.stderr
    done = call_verb(tmp_path, "merge", run.info.run_id, "--out", str(tmp_path / "merged"))
    assert done.returncode == 1
    assert "keep=mask is not" in done.stderr


def test_the_mask_takes_the_tokens_out_that_surprise_the_base(
    mask_package: Path, monkeypatch: Patch
) -> None:
    use(mask_package, monkeypatch)
    config = compose_config(*SMALL, "keep=mask", "keep.max_perplexity=4")
    run = TrainingRun(config)
    data = read_rows(config, run.base.tokenizer)
    plain = tokenize_rows(data, run.base.tokenizer, config.train, True, config.seed)
    by_ids = {tuple(row["input_ids"]): row["labels"] for row in run.rows.train}
    n_masked = 0
    for row in plain.train:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            nats = functional.cross_entropy(
                run.base.model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:], reduction="none"
            )
        is_kept = nats.exp() <= 4
        expected = torch.tensor(row["labels"][1:]).where(is_kept, torch.tensor(IGNORED)).tolist()
        labels = by_ids.get(tuple(row["input_ids"]), [IGNORED] * len(row["labels"]))
        assert labels[1:] == expected
        n_masked += expected.count(IGNORED) - row["labels"][1:].count(IGNORED)
    assert n_masked > 50


def test_settings_of_an_extension_are_checked_like_our_own(
    mask_package: Path, monkeypatch: Patch, tmp_path: Path
) -> None:
    use(mask_package, monkeypatch)
    assert compose_config("keep=mask").keep.max_perplexity == 2.5  # type: ignore[attr-defined]
    wrong = {
        "keep.max_perplexity=1": "must be above 1, the perplexity of a token that is certain, got",
        "keep.max_perplexity=abc": "keep.max_perplexity must be a number, got 'abc'",
        "keep.max_perplexity=null": "must be set for keep=mask",
        "keep.weight=1": "only keep=.*replay has it, and not mask",
        "keep.max_perplexty=3": "keep.max_perplexty is not a setting; did you mean keep.max_perpl",
    }
    for setting, message in wrong.items():
        done = call_verb(tmp_path, "run", "keep=mask", setting)
        assert done.returncode == 1
        assert re.search(message, done.stderr), done.stderr
    done = call_verb(tmp_path, "run", "keep=maks")
    assert re.search("keep=maks: .* mask", done.stderr)
    assert "mask" in write_help()
    assert "keep.max_perplexity" in write_help(is_whole=True)
    own = tmp_path / "own" / "keep"
    own.mkdir(parents=True)
    (own / "mask.yaml").write_text("name: mask\nmax_perplexity: 7\n")  # beats the class
    [run] = compose_runs(read_command_line(["-cd", str(own.parent), "keep=mask"])).runs
    assert vars(run.config.keep) == {"name": "mask", "max_perplexity": 7.0}


def add_entry_point(folder: Path, group: str, value: str, code: str = "") -> None:
    """A package whose entry point is this value, as an installer leaves it."""
    metadata = folder / "odd-0.3.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 0.3\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{value}\n")
    (folder / "odd_code.py").write_text(code)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "doctor"])
def test_a_broken_extension_is_refused(verb: str, tmp_path: Path, monkeypatch: Patch) -> None:
    code = "raise RuntimeError('no\\nlicense')"
    add_entry_point(tmp_path / "site", "slimdown.mitigations", "odd = odd_code:Odd", code)
    use(tmp_path / "site", monkeypatch)
    arguments = {"verdict": ["a", "b"], "check": ["1"], "scale": ["1"]}
    arguments["merge"] = ["1", f"--out={tmp_path / 'out'}"]
    arguments |= {"export": ["1", str(tmp_path / "out")], "delete": ["1"]}
    done = call_verb(tmp_path, verb, *arguments.get(verb, []))
    assert done.returncode != 0
    problem = "odd 0.3: its mitigation odd cannot be loaded (RuntimeError: no license); update this"
    _, line = done.stderr.splitlines()
    assert line.strip().startswith(problem)


ODD = """
from slimdown.config.mitigation import Mitigation
NUMBER = 1
def __getattr__(name):
    if name == "Named":
        return type(name, (Mitigation,), {"about": "words"})
    raise AttributeError(name)
"""


@pytest.mark.parametrize(
    ("group", "value", "answer"),
    [
        ("mitigations", "odd = odd_code:Odd", "AttributeError: .*Odd"),
        ("mitigations", "odd = odd_code:NUMBER", "must be a subclass of .*mitigation.Mitigation"),
        ("mitigations", "none = odd_code:NUMBER", "its mitigation none .* taken"),
        # the former name of `description`
        ("mitigations", "odd = odd_code:Named", r"Named\.about must be .*Named\.description"),
        ("scores", "odd = odd_code:NUMBER", "must be a subclass of slimdown.scoring.score.Score"),
        ("scores", "exact = odd_code:NUMBER", "its score exact .* taken"),
        ("methods", "odd = odd_code:NUMBER", "its method odd .* slimdown.config.methods"),
        ("logs", "odd = odd_code", "FILES, find_files and open_logs"),
        ("logs", "odd = no_such_module", "its reader of logs odd .*no_such_module"),
    ],
)
def test_what_an_extension_must_be_is_said(
    group: str, value: str, answer: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    add_entry_point(tmp_path, f"slimdown.{group}", value, ODD)
    use(tmp_path, monkeypatch)
    tables = {"mitigations": list_mitigations, "methods": list_all_methods}
    tables |= {"logs": list_readers, "scores": list_scores}
    with pytest.raises(ConfigError, match=rf"^odd 0\.3: .*{answer}.*; update "):
        tables[group]()


def test_the_doctor_lists_extensions_and_names_a_broken_one(
    three_package: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    use(three_package, monkeypatch)
    done = call_verb(tmp_path, "doctor")
    words = " ".join(done.stdout.split())
    for kind in ("method gate", "mitigation near", "reader of logs tally"):
        assert f"slimdown-three 2.1: {kind}" in words
    assert "broken" not in words
    add_entry_point(tmp_path / "site", "slimdown.logs", "odd = no_such_module")
    use(tmp_path / "site", monkeypatch)
    done = call_verb(tmp_path, "doctor")
    assert done.returncode == 1
    assert "odd 0.3: its reader" in " ".join(done.stdout.split())


def test_a_package_brings_a_method_and_a_mitigation(
    three_package: Path, store: MlflowClient, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use(three_package, patch)
        settings = ["method=gate", "method.start=1", "keep=near", "keep.strength=2"]
        succeed(tmp_path, "run", *RUN, *settings, "train.learning_rate=0.01")
        [run] = find_runs(store)
        chosen = {"method.name": "gate", "keep.name": "near", "keep.strength": "2.0"}
        assert run.data.params.items() >= chosen.items()
        folder = find_trained(store, run.info.run_id)
        card = (folder / "README.md").read_text()
        assert re.search(r"near: .*strength 2\.0", card)
        assert "slimdown_three.gate" in card
        succeed(tmp_path, "run", f"tuned={folder}", *RUN[4:])
        first, second = (run.data.metrics["tuned/pocket_cs"] for run in find_runs(store))
        assert first == second
        refused = {
            "method=gate method.r=3": "method.r=3: .*method=shira .*not gate",
            "method.start=3": "method.start=3: .*method=gate .*not lora",
            "keep=near method=full quantization=none": "keep=near needs the base",
        }
        for wrong, answer in refused.items():
            assert re.search(answer, call_verb(tmp_path, "run", *wrong.split()).stderr)
    forget_extensions()  # as where the package is not installed
    compared = json.loads(call_verb(tmp_path, "compare", "--format=json").stdout)["rows"]
    assert run.info.run_id in {row["run_ids"] for row in compared}
    checked = call_verb(tmp_path, "check", run.info.run_id, "--max-loss=0.5")
    assert "pocket_cs" in checked.stdout
    assert checked.returncode in (0, 2), checked.stderr
    scaled = call_verb(tmp_path, "scale", run.info.run_id)
    assert "method=gate is not" in scaled.stderr


def test_the_score_of_the_guide_scores_own_questions(
    yes_no_package: Path, store: MlflowClient, tmp_path: Path
) -> None:
    lines = [{"question": f"Is {i} even?", "answer": ["yes", "no"][i % 2]} for i in range(12)]
    (tmp_path / "even.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["run", *RUN[:4], "benchmark=even.jsonl", "benchmark.even.score=yes_no"]
    with pytest.MonkeyPatch.context() as patch:
        use(yes_no_package, patch)
        done = succeed(tmp_path, *command)
        [run] = find_runs(store)
        assert 0 <= run.data.metrics["tuned/even"] <= 1
        assert "finished before" in call_verb(tmp_path, *command).stdout
        (tmp_path / "odd.jsonl").write_text('{"question": "Is 1 odd?", "answer": "maybe"}\n')
        wrong = ["run", *RUN[:4], "benchmark=odd.jsonl", "benchmark.odd.score=yes_no"]
        assert "'maybe' is wrong" in call_verb(tmp_path, *wrong).stderr
    forget_extensions()  # as where the package is not installed
    assert re.search("'yes_no' .*exact, contains", call_verb(tmp_path, *wrong).stderr)
    for command in (["compare"], ["status"], ["check", run.info.run_id, "--max-loss=0.5"]):
        done = call_verb(tmp_path, *command)
        assert done.returncode in (0, 2), done.stderr
        assert "even" in done.stdout


def test_what_a_mitigation_adds_to_the_loss_holds_the_model_back(
    three_package: Path, monkeypatch: Patch, tmp_path: Path
) -> None:
    use(three_package, monkeypatch)
    moved = []
    for keep in (["keep=none"], ["keep=near", "keep.strength=100"]):
        run = prepare_run(*SMALL, "train.max_steps=6", *keep)
        _, result = run.train(tmp_path / keep[0])
        moved.append(result.base_divergence)
    assert moved[1] < 0.7 * moved[0]


def test_a_package_reads_logs(three_package: Path, monkeypatch: Patch, tmp_path: Path) -> None:
    for name, n_right in (("base", 90), ("tuned", 30)):
        rows = (f"{i} {int(i < n_right)}\n" for i in range(100))
        (tmp_path / f"{name}.tally").write_text("".join(rows))
    sides = [str(tmp_path / f"{name}.tally") for name in ("base", "tuned")]
    use(three_package, monkeypatch)
    done = call_verb(tmp_path, "verdict", *sides, "--format=json")
    [row] = json.loads(done.stdout)["rows"]
    assert (row["benchmark"], row["verdict"], row["n"]) == ("sums", "forgotten", 100)


def put_on_path(package: Path) -> dict[str, str]:
    """The variables of a process that finds an installed package."""
    return {"PYTHONPATH": os.pathsep.join([str(package), str(Path(__file__).parents[2])])}


@pytest.mark.slow
def test_two_processes_train_with_an_extension_as_one_does(
    three_package: Path, store: MlflowClient, tmp_path: Path
) -> None:
    alone = put_on_path(three_package) | {"OMP_NUM_THREADS": "1"}
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", "localhost:0", "-m"]
    settings = ["train.per_device_train_batch_size=4", "method=gate", "keep=near"]
    command = ["slimdown.run", *RUN, *settings]
    done = run_command(tmp_path, *launcher, *command, **alone)
    assert done.returncode == 0, done.stderr
    done = run_command(tmp_path, *command, "train.gradient_accumulation_steps=2", **alone)
    assert done.returncode == 0, done.stderr
    runs = find_runs(store)
    losses = [run.data.metrics["train/validation_loss_after"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != runs[0].data.metrics["train/validation_loss_before"]


@pytest.mark.slow
def test_a_killed_run_with_an_extension_goes_on(
    three_package: Path, store: MlflowClient, tmp_path: Path
) -> None:
    alone = put_on_path(three_package)
    settings = [*SMALL[:2], *RUN[4:], "train.num_train_epochs=4", "keep=near"]
    command = ["slimdown.run", *settings, "train.checkpoint_minutes=0.005"]
    kill_at_first_checkpoint(tmp_path, *command, **alone)
    done = run_command(tmp_path, *command, **alone)
    assert done.returncode == 0, done.stderr
    assert "continues run" in done.stdout
    [run] = find_runs(store)
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in store.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted({*steps}) == sorted(steps)
    assert len(steps) == 32
