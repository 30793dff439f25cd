"""Several processes make one run: the scores of one process, the loss of its batch, one record, one voice."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from slimdown import run
from slimdown.evaluation.engine import packing, shares
from slimdown.utils import distributed as processes

BIN = Path(sys.executable).parent
TORCHRUN = [str(BIN / "torchrun"), "--nproc_per_node", "2", "-m", "slimdown.run"]
ACCELERATE = [
    str(BIN / "accelerate"),
    "launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "-m",
    "slimdown.run",
]
FEW = [
    "dataset.pocket_instructions.max_examples=64",
    "dataset.pocket_instructions.validation_examples=16",
    "train.max_steps=3",
    "benchmark=[pocket_math,pocket_cs]",
    "benchmark.pocket_math.limit=12",
    "benchmark.pocket_cs.limit=60",
    "evaluation.token_budget=512",  # several batches
]


@dataclass(frozen=True)
class Made:
    """A run in a store of its own."""

    folder: Path
    text: str
    run: Run
    runs: list[Run]
    client: MlflowClient

    def samples(self, name: str) -> list[dict[str, object]]:
        kept = self.client.download_artifacts(
            self.holder(name).info.run_id, f"samples/{name}.parquet"
        )
        return list(pq.read_table(kept).to_pylist())

    def holder(self, name: str) -> Run:
        return next(run for run in self.runs if name in run.data.tags.values())

    def keys(self, name: str) -> list[str]:
        return [key for key, value in self.holder(name).data.tags.items() if value == name]

    def steps(self, metric: str) -> list[float]:
        return [
            m.value for m in self.client.get_metric_history(self.run.info.run_id, f"train/{metric}")
        ]


def made_in(folder: Path, text: str) -> Made:
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    runs = list(client.search_runs([e.experiment_id for e in client.search_experiments()]))
    tuned = [run for run in runs if run.data.tags["slimdown.kind"] == "tuned"]
    assert len(tuned) == 1
    return Made(folder, text, tuned[0], runs, client)


def launched(command: list[str], folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment |= {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *more], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def folders(
    migrated_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        (folder / "mlruns").mkdir()
        shutil.copy(migrated_store, folder / "mlruns" / "mlflow.db")
        return folder

    return make


@pytest.fixture(scope="module")
def two(folders: Callable[[str], Path]) -> Made:
    folder = folders("two")
    ended = launched(TORCHRUN, folder, *FEW)
    assert ended.returncode == 0, ended.stderr
    return made_in(folder, ended.stdout + ended.stderr)


@pytest.fixture(scope="module")
def one(folders: Callable[[str], Path]) -> Made:
    folder, n_threads = folders("one"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(sys, "argv", ["slimdown.run", *FEW, "train.gradient_accumulation_steps=2"])
        torch.set_num_threads(1)
        try:
            run.main()
        finally:
            torch.set_num_threads(n_threads)
    return made_in(folder, "")


def test_the_base_answers_as_in_one_process(one: Made, two: Made) -> None:
    for name in ("base-pocket_cs", "base-pocket_math"):
        assert two.samples(name) == one.samples(
            name
        )  # log-likelihoods to the last bit, texts to the last letter
    assert two.keys("base-pocket_cs") == one.keys("base-pocket_cs")
    assert two.keys("base-pocket_math") != one.keys(
        "base-pocket_math"
    )  # other prompts are decoded side by side


def test_training_is_that_of_one_process_with_an_equal_batch(one: Made, two: Made) -> None:
    assert two.steps("loss") == pytest.approx(one.steps("loss"), rel=1e-5)
    assert two.steps("grad_norm") == pytest.approx(one.steps("grad_norm"), rel=1e-4)
    assert two.steps("num_tokens") == one.steps("num_tokens")
    accuracy = (
        one.run.data.metrics["train/validation_loss_after"],
        two.run.data.metrics["train/validation_loss_after"],
    )
    assert accuracy[0] == pytest.approx(accuracy[1], rel=1e-5)
    before = (made.run.data.metrics["train/validation_loss_before"] for made in (one, two))
    assert next(before) == next(before)


def test_the_tuned_model_scores_alike(one: Made, two: Made) -> None:
    for name in ("pocket_cs", "pocket_math"):
        scores = [
            [sample["score"] for sample in made.samples(f"tuned-{name}")] for made in (one, two)
        ]
        assert scores[0] == scores[1]


def test_there_is_one_run_and_one_voice(two: Made) -> None:
    assert two.run.info.status == "FINISHED"
    assert two.run.data.tags["slimdown.processes"] == "2"
    assert two.text.count("2 processes train together: a step takes 16 rows") == 1
    assert two.text.count("Validation loss") == 1
    assert len(list((two.folder / "outputs").iterdir())) == 1
    assert "Warning" not in two.text


def test_accelerate_comes_to_the_same_run_which_is_not_made_twice(two: Made) -> None:
    ended = launched(ACCELERATE, two.folder, *FEW)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(f"finished before: run {two.run.info.run_id}") == 1


TRAINS = """
import sys
from math import inf
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from slimdown.utils.disk import Interim
from slimdown.utils import distributed as processes
from slimdown.data.loading import load_data
from slimdown.models.model import load_model
from slimdown.config.files import CONF_DIR
from slimdown.config.loader import load_config
from slimdown.training.fine_tune import fine_tune
from slimdown.training.rows import prepare_rows

class Killed(Exception):
    pass

def trained(name, interim, kill_at):
    base, forwards = load_model(config.model, config.quantization), []
    base.model.register_forward_pre_hook(lambda *_: forwards.append(1) if torch.is_grad_enabled() else None)

    def on_step(record):
        if record.step == kill_at:
            raise Killed

    what = (config.method, config.lora, config.train, 0, folder / name)
    fine_tune(base, rows, *what, before=1.0, on_step=on_step, interim=interim)
    return len(forwards)

with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
    config = load_config(compose("config", overrides=sys.argv[2:]))
processes._meet()
base = load_model(config.model, config.quantization)
rows = prepare_rows(base, load_data(config.dataset, 0, base.tokenizer), config.train)
folder = Path(sys.argv[1])
told = [trained("calm", Interim(folder / "none", inf, print), 0)]
interim = Interim(folder / "kept", 0.0, print)
try:
    trained("killed", interim, 3)
except Killed:
    told += sorted(str(file.relative_to(interim.folder)) for file in interim.folder.glob("*/rng_state*"))
told.append(trained("again", interim, 0))
if processes.is_first():
    print(*told)
processes._part()
"""


def test_a_training_of_two_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    (script := tmp_path / "trains.py").write_text(TRAINS)
    overrides = [
        *FEW[:2],
        "train.max_steps=4",
        "train.per_device_train_batch_size=8",
        "lora.lora_dropout=0.1",
    ]
    ended = launched([*TORCHRUN[:3], str(script), str(tmp_path)], Path.cwd(), *overrides)
    assert ended.returncode == 0, ended.stderr
    assert "4 checkpoint-2/rng_state_0.pth checkpoint-2/rng_state_1.pth 2" in ended.stdout
    files = [
        tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("calm", "again")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_mistake_that_each_of_them_meets_is_said_once(folders: Callable[[str], Path]) -> None:
    ended = launched(TORCHRUN, folders("mistaken"), *FEW, "lora.target_modules=[nothing]")
    assert ended.returncode == 1
    assert ended.stderr.count("has no nothing") == 1


@pytest.mark.parametrize(
    ("given", "environment", "said"),
    [
        (
            ["-m", "seed=1,2"],
            {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"},
            "2 processes make one run",
        ),
        (
            ["train.engine=unsloth"],
            {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"},
            "train.engine=unsloth",
        ),
        (
            [],
            {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"},
            "--multi_gpu --num_processes 2",
        ),
    ],
)
def test_what_several_processes_cannot_do_is_refused(
    given: list[str],
    environment: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(sys, "argv", ["slimdown.run", *given])
    with pytest.raises(SystemExit, match=said):
        run.main()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "sizes", [[], [3], [1] * 10, [100, 1, 1, 1], [1, 1, 1, 100], [5, 4, 3, 2, 1] * 9]
)
def test_work_is_shared_out_whole_and_about_even(
    count: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes._Met, "count", count)
    owned = []
    for rank in range(count):
        monkeypatch.setattr(processes._Met, "rank", rank)
        owned.append(processes.share(sizes))
    assert [i for own in owned for i in own] == list(range(len(sizes)))
    for own in owned:
        assert sum(sizes[i] for i in own) <= sum(sizes) / count + max(sizes, default=0)


def test_a_share_of_the_questions_makes_the_batches_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(questions: list[packing.Question]) -> list[list[list[packing.Question]]]:
        waiting, taken = packing.longest_first(questions, 0), []
        while waiting:
            rows, waiting = packing.take_rows(waiting, 0, 60)
            taken.append(rows)
        return taken

    lengths = [(7 * i * i + 3 * i) % 31 + 1 for i in range(60)]
    questions = [packing.Question((i,) * n, {(1,): [i]}) for i, n in enumerate(lengths)]
    monkeypatch.setattr(processes._Met, "count", 2)
    by_rank = []
    for rank in range(2):
        monkeypatch.setattr(processes._Met, "rank", rank)
        (own,) = shares.own_questions([(0, questions)], 60, 0)
        by_rank += batches(own)
    assert by_rank == batches(questions)
