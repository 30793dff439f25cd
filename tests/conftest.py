"""Real objects for every test: the embedded model, a migrated MLflow store, the composed config."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before any Hugging Face library is imported: a hidden download must fail, not pass by luck. The tests marked `hub`
# are run with HF_ENDPOINT set, and are the ones that may download.
if "HF_ENDPOINT" not in os.environ:
    os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import pytest
import torch
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient

from slimdown.config.files import CONF_DIR
from slimdown.config.loader import load_config
from slimdown.config.schema import RunConfig
from slimdown.models.model import LoadedModel, load_model


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once: a fresh one takes about six seconds."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments(max_results=1)
    return file


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny products on one thread: two would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(migrated_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A client of a store of the test's own, in the folder that the test runs in."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy(migrated_store, tmp_path / "mlruns" / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return MlflowClient(
        f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    )  # MLflow keeps one store a URI: it must be absolute


@pytest.fixture
def composed() -> Callable[..., RunConfig]:
    """The checked config that a list of overrides gives."""

    def make(*overrides: str) -> RunConfig:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return load_config(compose("config", overrides=list(overrides)))

    return make


@pytest.fixture
def pocket(composed: Callable[..., RunConfig]) -> LoadedModel:
    """The embedded model in 4 bits, loaded afresh: PEFT changes a model in place."""
    config = composed()
    return load_model(config.model, config.quantization)


SMALL: list[str] = [
    "dataset.pocket_instructions.max_examples=64",
    "dataset.pocket_instructions.validation_examples=16",
    "train.num_train_epochs=1",
    "benchmark.pocket_instructions.limit=8",
    "benchmark.pocket_math.limit=8",
    "benchmark.pocket_commonsense.limit=8",
    "benchmark.pocket_cs.limit=8",
]
"""The default run, cut to a few seconds."""


def metrics_of(client: MlflowClient, run_id: str) -> dict[str, Any]:
    return dict(client.get_run(run_id).data.metrics)
