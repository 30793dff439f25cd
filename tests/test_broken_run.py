"""Runs that end before they are done: killed ones, and those that a mistake forbids."""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from commands_and_runs import (
    SMALL,
    QuietHandler,
    Result,
    call_verb,
    find_runs,
    kill_at_first_checkpoint,
    run_command,
    serve,
    succeed,
)
from mlflow import MlflowClient
from record_builders import Capture, Compose, Patch
from safetensors.torch import save_file

from slimdown import pocket, run
from slimdown.commands import arguments
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.results import Evaluation
from slimdown.runs import experiment
from slimdown.runs.experiment import run_experiment
from slimdown.tracking.provenance import RunInfo
from slimdown.tracking.resume import run_key
from slimdown.utils.errors import ConfigError, SlimdownError


def test_sizes_of_several_ranks_are_listed(tmp_path: Path) -> None:
    done = succeed(tmp_path, "sizes", "lora.r=4,8")
    assert done.stderr == ""
    assert "28,672" in done.stdout or "28.7" in done.stdout, done.stdout  # trained at rank 8
    done = call_verb(tmp_path, "sizes", "lora.target_modules=[nope]")
    assert done.returncode == 1
    assert " nope" in done.stderr


def test_a_killed_run_goes_on_with_its_command(store: MlflowClient, tmp_path: Path) -> None:
    settings = [*SMALL[:2], "benchmark=[pocket_cs]", "benchmark.pocket_cs.limit=8"]
    settings += ["train.num_train_epochs=4", "train.checkpoint_minutes=0.005", "quantization=none"]
    kill_at_first_checkpoint(tmp_path, "slimdown.run", *settings)
    [run] = find_runs(store)
    assert run.info.status == "RUNNING"
    succeed(tmp_path, "run", *settings)
    [run] = find_runs(store)
    assert run.info.status == "FINISHED"
    assert len(find_runs(store, "baseline")) == 1
    steps = [m.step for m in store.get_metric_history(run.info.run_id, "train/loss")]
    assert len(steps) == len(set(steps)) == 32


def test_a_wrong_option_of_the_last_job_is_found_before_the_first_begins(tmp_path: Path) -> None:
    done = call_verb(tmp_path, "run", "-m", "train.args.adam_beta1=0.9,abc")
    assert done.returncode == 1
    assert "train.args.adam_beta1 " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "mlruns").exists()


ROWS = "dataset=[file] dataset.file.path=rows.jsonl"
ODD = b"[\xff"  # no text, no JSON, no tensors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        # model and tasks
        ("lora.target_modules=[q_proj,k_prjo]", "no k_prjo; .*k_proj"),
        ("benchmark.pocket_cs.metric=bleu", "pocket_cs has no such metric; choose one of acc"),
        ("model.id=empty", "model.id=empty cannot be loaded: .*config.json"),
        ("benchmark=[pocket_math] evaluation.apply_chat_template=true", "no chat template"),
        # what rows cannot do
        (f"{ROWS} train.assistant_only_loss=true", "no dataset has conversations"),
        (f"{ROWS} train.stop_on_forgetting=true", "look_steps=50 is more than the 6 steps"),
        # files of an adapter that cannot be read
        ("tuned=adapter_model.safetensors", r"a \.safetensors file that is damaged"),
        ("tuned=chat_template.jinja", "cannot be loaded: UnicodeDecodeError"),
        ("tuned=tokenizer_config.json", r"tokenizer_config\.json is damaged"),
    ],
)
def test_a_mistake_in_models_tasks_or_rows_leaves_no_run(
    settings: str, message: str, composed: Compose, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Each adapter's folder is named after its file that cannot be read."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("rows.jsonl").write_text("".join(f'{{"text": "{i} is {i}"}}\n' for i in range(20)))
    _, _, name = settings.rpartition("tuned=")
    if settings.startswith("tuned="):
        Path(name).mkdir()
        content = '{"peft_type": "LORA", "base_model_name_or_path": "pocket:model"}'
        Path(name, "adapter_config.json").write_text(content)
        Path(name, name).write_bytes(ODD)
    with pytest.raises(SlimdownError, match=message):
        run_experiment(composed(*settings.split()), RunInfo("one"))
    assert not Path("mlruns").exists()


def test_a_share_that_leaves_too_few_questions_ends_a_run_before_it_trains(
    store: MlflowClient, composed: Compose, capsys: Capture
) -> None:
    with pytest.raises(SlimdownError, match=r"holdout=0\.99 .* 8 "):
        run_experiment(composed(*SMALL, "evaluation.holdout=0.99"), RunInfo("one"))
    assert "] training" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "answer"),
    [
        # the model would be split
        ({"ACCELERATE_USE_FSDP": "true"}, "with FSDP, and each process"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "with DEEPSPEED, and each process"),
        # numbers of processes that are none
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "abc"}, "WORLD_SIZE=abc is no whole number"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "9" * 5000}, f"WORLD_SIZE={'9' * 20} is no whole"),
        ({"LOCAL_RANK": "0", "RANK": "5"}, "RANK=5 must be below WORLD_SIZE=1"),
    ],
    ids=["fsdp", "deepspeed", "word", "digits", "rank"],
)
def test_a_launcher_that_cannot_work_is_refused_in_one_line(
    environment: dict[str, str], answer: str, monkeypatch: Patch, capsys: Capture
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run.main(["lora.r=4"]) == 1
    assert answer in capsys.readouterr().err


def test_sigterm_is_left_to_the_process_that_calls_a_command() -> None:
    """A process of tests or a notebook ends at it; a command's own takes it as Ctrl-C."""
    script = "import os, signal; from slimdown.commands import arguments\n"
    script += (
        "arguments.run_command(lambda: os.kill(os.getpid(), signal.SIGTERM), '', error_code=1)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == -signal.SIGTERM, done.stderr


def test_a_folder_is_made_whole_or_not_at_all(store: MlflowClient, composed: Compose) -> None:
    tracking, out = composed().tracking, Path("made/out").absolute()
    with pytest.raises(KeyboardInterrupt), arguments.make_folder(tracking, "--out", out) as draft:
        (draft / "half").touch()
        raise KeyboardInterrupt
    assert not list(out.parent.iterdir())
    (draft / "half").mkdir(parents=True)  # as SIGKILL leaves it
    with arguments.make_folder(tracking, "--out", out) as draft:
        (draft / "whole").touch()
    assert [str(path) for path in Path("made").rglob("*")] == ["made/out", "made/out/whole"]
    for target in ("loop", "nowhere"):
        (link := out.with_name("loop")).symlink_to(target)
        with pytest.raises(ConfigError, match="is not empty"):
            arguments.check_new_folder("--out", link)
        link.unlink()


def test_a_full_disk_leaves_nothing(
    store: MlflowClient, composed: Compose, capsys: Capture
) -> None:
    tracking, out = composed().tracking, Path("made/out").absolute()

    def write_weights() -> int:
        with arguments.make_folder(tracking, "--out", out) as draft:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a full quota
            try:
                save_file({"weight": torch.ones(1000)}, draft / "model.safetensors")
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return 0

    assert arguments.run_command(write_weights, "Not merged:", error_code=1) == 1
    _, line = capsys.readouterr().err.splitlines()
    assert "disk is full" in line
    assert not list(out.parent.iterdir())


COMMIT = b'{"id": "me/it", "sha": "%040d"}' % 7


def ask_by_script(script: str, hub: type[QuietHandler], home: Path) -> Result:
    """Run Python code whose hub is a server on loopback."""
    with serve(hub) as address:
        where = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", script]
        return subprocess.run(
            command, env=os.environ | where, capture_output=True, text=True, timeout=300
        )


def test_what_is_no_hub_is_found_before_torch_is_imported(tmp_path: Path) -> None:
    answers = [b"<html>log in</html>", b'{"sha": "a', b'{"sha": 7}', b'{"sha": "../x"}']
    names = [f"me/{i}" for i in range(len(answers))]

    class Portal(QuietHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            [text] = [text for name, text in zip(names, answers, strict=True) if name in self.path]
            self.answer(content=text)

    script = "import sys\nfrom slimdown.utils.hub import check_repositories\n"
    script += f"for name in {names}:\n"
    script += "    print(*check_repositories([('model.id=' + name, name, 'main', 'model')]))\n"
    script += "assert 'torch' not in sys.modules"
    done = ask_by_script(script, Portal, tmp_path)
    assert done.returncode == 0, done.stderr
    for name in names:
        reason = f"{name} is neither on the hub nor in the local cache; check HF_ENDPOINT"
        assert reason in done.stdout


LOAD = """
from slimdown.commands.process import set_up_process
set_up_process()
from slimdown.config.schema import ModelConfig
from slimdown.models.base_model import load_base_tokenizer
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained("me/empty", use_safetensors=True, revision="main")
except OSError as error:
    print(error)
load_base_tokenizer(ModelConfig(id="me/it", args={}))
"""


def test_what_the_hub_does_not_send_is_neither_ordered_nor_done_without(tmp_path: Path) -> None:
    """A converter would make weights; a model without its template would be asked all the same."""
    names = ("config.json", "tokenizer.json", "chat_template.jinja")
    tree = [{"type": "file", "oid": "x", "size": 1, "path": name} for name in names]
    paths: list[str] = []

    class Hub(QuietHandler):
        def do_HEAD(self) -> None:
            paths.append(self.path)
            headers = {"ETag": '"x"', "X-Repo-Commit": f"{7:040d}"}
            if self.path.startswith("/api/"):
                text = json.dumps(tree).encode() if "/me/it/tree/" in self.path else COMMIT
                self.answer(200, text, headers)
            elif self.path.endswith(".jinja"):
                self.answer(501)
            elif "/me/it/" in self.path or self.path.endswith("/config.json"):
                self.answer(200, (pocket.MODEL_DIR / "config.json").read_bytes(), headers)
            else:
                self.answer(404, headers=headers | {"X-Error-Code": "EntryNotFound"})

        do_GET = do_POST = do_HEAD

    done = ask_by_script(LOAD, Hub, tmp_path)
    assert "model.safetensors" in done.stdout
    assert not [path for path in paths if "/commits/" in path or "/discussions" in path]
    assert re.search("model.id=me/it .* status 501", done.stderr)


def test_what_is_wrong_with_a_very_long_key_can_be_read(tmp_path: Path) -> None:
    done = call_verb(tmp_path, "run", f"{'x' * 250}yz=1", f"tuned=/{'x/' * 1500}yz")
    for end in ("yz is not a setting", "yz: there is no such folder"):
        assert end in done.stderr
    assert max(map(len, done.stderr.split())) < 210


REFUSALS = {
    "meta-llama": (403, "GatedRepo"),
    "nobody": (404, "RepoNotFound"),
    "plain/401": (401, ""),  # a hub without error codes of its own
    "plain/403": (403, ""),
    "plain/404": (404, ""),
    "plain/504": (504, ""),
}


def test_the_hub_is_asked_once_for_all_jobs_before_the_first(tmp_path: Path) -> None:
    """It is busy for two of three questions about a model; a plain refusal is no silence."""
    questions: list[str] = []

    class Hub(QuietHandler):
        def do_HEAD(self) -> None:
            questions.append(self.path)
            found = [REFUSALS[name] for name in REFUSALS if name in self.path]
            status, code = found[0] if found else (404, "EntryNotFound")
            if "busy" in self.path:
                status, code = (503 if questions.count(self.path) < 3 else 200), ""
            self.answer(status, headers={"X-Error-Code": code} if code else None)

        def do_GET(self) -> None:
            self.answer(content=COMMIT)

    names = ("401", "403", "404", "busy", "504")  # after the last one, no other is asked
    models = ["me/it", "meta-llama/chat", *(f"plain/{name}" for name in names)]
    arguments = ["slimdown.run", "-m", f"model.id={','.join(models)}", "seed=0,1,2"]
    arguments += ["dataset=[alpaca]", "dataset.alpaca.path=nobody/none"]
    nowhere = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    with serve(Hub) as here:
        done = run_command(tmp_path, *arguments, **nowhere, HF_ENDPOINT=here)
    assert done.returncode == 1
    assert "meta-llama/chat is gated" in done.stderr
    assert "nobody/none " in done.stderr
    for code in names[:3]:
        assert f"plain/{code} is refused" in done.stderr
    assert re.search("plain/504 .* status 504", done.stderr)
    assert "busy" not in done.stderr
    counts = Counter(path.rpartition("/resolve/")[0].rpartition("/")[2] for path in questions)
    assert counts == dict.fromkeys(["it", "none", "chat", *names[:3]], 1) | {"504": 3, "busy": 3}
    done = run_command(tmp_path, *arguments, **nowhere, HF_ENDPOINT=here)  # it is silent now
    assert done.returncode == 1
    assert "me/it, dataset.alpaca.path=nobody/none, model.id=meta-llama/chat" in done.stderr
    assert done.stderr.count("cannot be reached") == 1
    assert not (tmp_path / "mlruns").exists()


def test_a_job_loads_its_tokenizer_and_outline_and_hashes_its_files_once(
    store: MlflowClient, composed: Compose, monkeypatch: Patch, tmp_path: Path
) -> None:
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(source: Any, *values: Any, **settings: Any) -> Any:
            counts[Path(source.name).name if name == "file_digest" else owner.__name__] += 1
            return original(source, *values, **settings)

        monkeypatch.setattr(owner, name, counted)

    count(hashlib, "file_digest")
    count(transformers.AutoTokenizer, "from_pretrained")
    count(transformers.AutoModelForCausalLM, "from_config")
    folder = shutil.copytree(pocket.MODEL_DIR, tmp_path / "model")
    config = composed(f"model.id={folder}", *SMALL)
    assert run_key(config) == run_key(config)
    run_experiment(config, RunInfo("one"))
    loads = ("model.safetensors", "tokenizer.json", "AutoTokenizer", "AutoModelForCausalLM")
    assert {name: counts[name] for name in loads} == dict.fromkeys(loads, 1)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    key = run_key(config)
    assert counts["config.json"] == 2
    assert key != run_key(composed(*SMALL))


def test_notes_about_either_model_are_shown_once(
    store: MlflowClient, composed: Compose, monkeypatch: Patch, capsys: Capture
) -> None:
    class NotingEvaluator(Evaluator):
        def evaluate(self, *args: Any, **kwargs: Any) -> Evaluation:
            self.notes.append(f"odd answers {len(self.notes)}")
            return super().evaluate(*args, **kwargs)

    monkeypatch.setattr(experiment, "Evaluator", NotingEvaluator)
    adapter = Path(__file__).parent / "golden" / "adapters" / "pocket"
    run_experiment(composed(f"tuned={adapter}", *SMALL[3:]), RunInfo("one"))
    shown = capsys.readouterr().out
    assert (shown.count("odd answers 0"), shown.count("odd answers 1")) == (1, 1)
