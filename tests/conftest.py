"""Real objects for every test: the embedded model, an MLflow store, the composed config."""

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

# Before any Hugging Face library is imported: a hidden download must fail. The tests marked `hub`
# run with HF_ENDPOINT set, and only they may download.
if "HF_ENDPOINT" not in os.environ:
    os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ.pop("MLFLOW_TRACKING_URI", None)  # tests have stores of their own
# MLflow 3.17 sets and deletes a variable in a thread, which another one may read meanwhile.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# While libraries are imported, nearly all that is made stays.
gc.disable()

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from record_builders import compose_config, compose_files, copy_store, set_metric

from slimdown.config.schema import RunConfig


def pytest_collection_finish() -> None:
    """Collect garbage again, less often: a composed config makes thousands of objects."""
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def frozen_objects() -> None:
    """Let no garbage collection look through a million objects of libraries again.

    A training and a measurement each collect the whole of what is not frozen.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def composed_files() -> Iterator[None]:
    """A command line composes the same files of `conf/` once in a run of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slimdown.sweep.command_line.compose", compose_files)
        yield


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once for all of xdist's processes: it takes six seconds."""
    folder = tmp_path_factory.getbasetemp()
    file = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "mlflow.db"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            new = folder / "new.db"
            MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
            shutil.copy(new, file)
    return file


@pytest.fixture(scope="module")
def recorded(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, for commands whose runs the tests of a module share."""
    return copy_store(migrated_store, tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def store(migrated_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A client of a store of the test's own, in the folder that the test runs in."""
    monkeypatch.chdir(copy_store(migrated_store, tmp_path))
    return MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")  # MLflow caches a store by URI


@pytest.fixture
def composed() -> Callable[..., RunConfig]:
    """Make the checked config that a list of overrides gives."""
    return compose_config


@pytest.fixture
def config(store: MlflowClient, composed: Callable[..., RunConfig]) -> RunConfig:
    """The settings of a run in a store of the test's own."""
    return set_metric(composed())


@pytest.fixture
def pocket(composed: Callable[..., RunConfig]) -> "object":
    """The embedded model in 4 bits, loaded afresh: PEFT changes a model in place."""
    from slimdown.models.base_model import load_base_model

    config = composed()
    return load_base_model(config.model, config.quantization)
