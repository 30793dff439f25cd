"""Several processes take the same steps as one; they find each other, or say that they cannot."""

import json
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from socket import socket

import numpy as np
import pandas as pd
import pytest
import torch
from builders import slow
from commands_and_runs import SMALL_IN_FLOAT, find_runs, succeed
from mlflow import MlflowClient
from record_builders import Patch
from safetensors.torch import load_file
from tiny_models import TEMPLATE as ROLES, save_chatty_pocket
from training_run import prepare_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.write_gguf import write_gguf
from slimdown.config.tracking_config import TrackingConfig
from slimdown.pocket import MODEL_DIR
from slimdown.tracking.run_reader import find_runs as find_records, read_evaluations, read_served
from slimdown.training import fine_tuning
from slimdown.utils import distributed

SCRIPT = """
import json, os, sys
from datetime import timedelta
from pathlib import Path
import torch
from torch import distributed
from training_run import TrainingRun, prepare_run
from hydra import compose
from slimdown.config.loader import load_config, open_hydra
import mlflow
import slimdown.runs.experiment
from slimdown.run import main
from slimdown.training.step_splits import Forwards
from slimdown.utils.distributed import (
    assist, broadcast_from_main, end_shared_work, process_rank, share_work,
)

folder, cases, command, asked, served = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
if other := os.fork():
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
else:
    os.environ |= {"RANK": "1", "LOCAL_RANK": "1"}
assert broadcast_from_main("go" if process_rank() == 0 else None) == "go"
group = distributed.group.WORLD._get_backend(torch.device("cpu"))
assert group.options._timeout > timedelta(hours=1)  # a process may write a checkpoint meanwhile

def work(part):
    if part == "odd":
        raise ValueError(process_rank())
    return part, process_rank()

if process_rank():
    assist(work)
else:
    assert share_work(["a", "b"], work) == [("a", 0), ("b", 1)]
    assert share_work(["a"], work) == [("a", 0)]
    assert share_work([], work) == []
    for parts in (["odd", "b"], ["a", "odd"]):
        try:
            share_work(parts, work)
        except ValueError as error:
            assert error.args == (parts.index("odd"),)
        else:
            raise AssertionError("what a process raised is lost")
    assert share_work(["c", "d"], work) == [("c", 0), ("d", 1)]
    end_shared_work()
for name, settings in cases.items():
    with open_hydra():
        config = load_config(compose("config", overrides=settings))
    is_split = name == "split" and process_rank() == 0
    forwards = Forwards(2, 2, recomputes=True) if is_split else None
    for _ in range(2 if name == "plain" else 1):  # the second takes what the first one kept
        run = TrainingRun(config)
        place = folder / name if process_rank() == 0 else Path("/nowhere")
        _, result = run.train(place, forwards=forwards)
    if process_rank() == 0:
        values = [*run.losses, result.validation_loss_after, result.base_divergence]
        (folder / f"{name}.json").write_text(json.dumps(values))

assert main(command) == 0
adapters = folder.glob("mlruns/artifacts/models/*/artifacts/adapter_config.json")
adapter = broadcast_from_main(str(next(adapters).parent) if process_rank() == 0 else None)
assert main([f"tuned={adapter}", *asked]) == 0
assert main(served) == 0
if other:
    assert os.waitpid(other, 0)[1] == 0
"""
STEPS = [*SMALL_IN_FLOAT, "train.max_steps=4", "train.per_device_train_batch_size=4"]
# The 30 rows of an epoch leave two for the last batch of the first process, none for the second's.
UNEVEN = ["dataset.pocket_instructions.max_examples=26", "train.per_device_train_batch_size=4"]
UNEVEN = [*SMALL_IN_FLOAT, *UNEVEN, "train.max_steps=6", "train.num_train_epochs=2"]
REPLAY = ["dataset=[pocket_instructions,pocket_replay]", "keep=replay", "keep.share=0.2"]
REPLAY += ["keep.dataset=pocket_replay"]
CASES: dict[str, list[str]] = {
    "plain": STEPS,
    "split": STEPS,  # of four rows a process, taken as two forwards of two
    "uneven": UNEVEN,
    "uneven_padded": [*UNEVEN, "train.args.neftune_noise_alpha=1e-9"],
    "packed": [*UNEVEN, "train.args.packing=true", "train.max_length=96"],
}
MITIGATIONS = {
    "kl": ["keep=kl"],
    "dialogues": ["model.id=chatty", "keep=dialogues", "keep.share=0.2", "keep.max_tokens=24"],
    "self_replay": ["keep=self_replay", "keep.max_tokens=24"],
    "replay": [*REPLAY, "keep.weight=1"],
}
CASES |= {name: [*STEPS, *settings] for name, settings in MITIGATIONS.items()}
# By `-m slow`; what rows are kept by, and how they are padded, is tested in one process, too.
RARE = {"dialogues", "self_replay", "replay", "uneven_padded"}
# Seventy questions are three chunks: the second process answers one of three.
ASKED = ["benchmark=[pocket_cs,pocket_math]", "evaluation.until=all"]
ASKED += ["benchmark.pocket_cs.limit=70", "benchmark.pocket_math.limit=40"]
ASKED += ["benchmark.pocket_math.max_gen_toks=8", "evaluation.batch_size=4"]
COMMAND = [setting for setting in STEPS if not setting.startswith("benchmark.")] + ASKED
SERVED = ["model=pocket", "model.id=base", "tuned=served.gguf", "benchmark=[pocket_math,pocket_cs]"]
SERVED += ["benchmark.pocket_math.limit=6", "benchmark.pocket_cs.limit=6"]
SERVED += ["quantization=none", "model.dtype=float32"]


TEMPLATE = "{{ bos_token }}" + ROLES


def read_adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def save_served_model(folder: Path) -> None:
    """Save a base with a chat template, and a file of its weights with another one."""
    shutil.copytree(MODEL_DIR, folder / "base")
    (folder / "base" / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.chat_template = TEMPLATE.replace("assistant:", "bot:")
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    write_gguf(model, tokenizer, folder / "served.gguf")


@pytest.fixture(scope="module")
def two_processes(request: pytest.FixtureRequest, recorded: Path) -> Path:
    """The folder of what two processes did: chosen cases in folders of their own, three commands.

    They are one until all is imported, which takes longer than most of what they do.
    """
    names = {test.name for test in request.session.items if test.path == request.path}
    chosen = {c: CASES[c] for c in CASES if any(name.endswith(f"[{c}]") for name in names)}
    save_served_model(recorded)
    (recorded / "script.py").write_text(SCRIPT)
    save_chatty_pocket(recorded / "chatty")
    paths = [str(place) for place in Path(__file__).parents[:3]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment |= {"XDG_CACHE_HOME": str(recorded)}
    with socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}  # as torchrun sets them
    environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    given = list(map(json.dumps, (chosen, COMMAND, ASKED, SERVED)))
    command = [sys.executable, str(recorded / "script.py"), str(recorded), *given]
    done = subprocess.run(command, cwd=recorded, env=environment, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr.decode()
    return recorded


@pytest.mark.parametrize("case", [*sorted(CASES.keys() - RARE), *slow(*sorted(RARE))])
def test_two_processes_train_the_adapter_of_one_on_batches_twice_as_long(
    case: str, two_processes: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(two_processes)  # where the chatty model lies
    monkeypatch.setattr(fine_tuning, "process_count", lambda: 2)  # packed rows are made even
    run = prepare_run(*CASES[case], "train.gradient_accumulation_steps=2")
    _, result = run.train(tmp_path)
    alone, together = read_adapter(tmp_path), read_adapter(two_processes / case)
    for name, expected in alone.items():
        torch.testing.assert_close(together[name], expected, atol=1e-5, rtol=0)
    assert max(float(tensor.abs().max()) for n, tensor in alone.items() if "lora_B" in n) > 1e-3
    expected = [*run.losses, result.validation_loss_after, result.base_divergence]
    values = json.loads((two_processes / f"{case}.json").read_text())
    assert values == pytest.approx(expected, rel=1e-4)


def test_two_processes_make_the_run_of_one(two_processes: Path) -> None:
    again = ["train.gradient_accumulation_steps=2", "baseline.reuse=false"]
    succeed(two_processes, "run", *COMMAND, *again)
    store = MlflowClient(f"sqlite:///{two_processes}/mlruns/mlflow.db")
    by_two, third, _, by_one = (run.info.run_id for run in find_runs(store))
    runs = [by_two, by_one]
    measured = {name for name in store.get_run(by_two).data.metrics if "system/" in name}
    assert {name.split("/")[1] for name in measured} == {"rank-0", "rank-1"}
    losses = [store.get_run(i).data.metrics["train/validation_loss_after"] for i in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name in ("base-pocket_cs", "tuned-pocket_cs", "base-pocket_math", "tuned-pocket_math"):
        files = [store.download_artifacts(run_id, f"samples/{name}.parquet") for run_id in runs]
        together, alone = map(pd.read_parquet, files)
        assert list(together.response) == list(alone.response)
        scores = together.log_likelihoods.explode().dropna().to_numpy(float)
        expected = alone.log_likelihoods.explode().dropna().to_numpy(float)
        np.testing.assert_allclose(scores, expected, atol=0 if "base" in name else 1e-3)
    path = "samples/tuned-pocket_cs.parquet"
    files = [store.download_artifacts(run_id, path) for run_id in (third, by_two)]
    scores = [np.stack(pd.read_parquet(file).log_likelihoods.tolist()) for file in files]
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_two_processes_ask_as_served_what_one_does(
    two_processes: Path, store: MlflowClient, tmp_path: Path
) -> None:
    save_served_model(tmp_path)
    succeed(tmp_path, "run", *SERVED)
    responses = []
    for place in (two_processes, tmp_path):
        tracking = TrackingConfig(f"sqlite:///{place}/mlruns/mlflow.db", "slimdown")
        origin = "tags.`slimdown.origin` LIKE 'served.gguf%'"
        [found] = find_records(tracking, filter_string=origin, with_findings=True)
        served = read_served(tracking, found, read_evaluations(tracking, found)[1])
        samples = served.benchmarks["pocket_math"].samples
        responses.append([(sample.prompt, sample.response) for sample in samples])
    assert responses[0] == responses[1]


@pytest.mark.parametrize(
    ("port", "answer"),
    [("", "start all 2 within"), ("abc", "process 0 of 2 cannot")],
    ids=["no partner", "no address"],
)
def test_a_process_that_finds_no_other_says_so(port: str, answer: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(distributed, "MEETING", timedelta(seconds=2))
    with socket() as free:
        free.bind(("localhost", 0))
        port = port or str(free.getsockname()[1])
    settings = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for name, value in (settings | {"MASTER_PORT": port}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConnectionError, match=answer):
        distributed.broadcast_from_main(1)
