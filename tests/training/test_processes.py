"""Several processes take the steps of one, and find each other or say that they do not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL
from training_run import TrainingRun

from slimdown.config.schema import RunConfig
from slimdown.utils import distributed
from slimdown.utils.errors import ConfigError

SCRIPT = """
import json, sys
from pathlib import Path
from training_run import TrainingRun
from hydra import compose
from slimdown.config.loader import load_config, open_hydra
from slimdown.utils.distributed import broadcast_from_main, process_count, process_rank

folder, settings = Path(sys.argv[1]), sys.argv[2:]
with open_hydra():
    config = load_config(compose("config", overrides=settings))
assert broadcast_from_main("go" if process_rank() == 0 else None) == "go"
run = TrainingRun(config)
tuned, result = run.train(folder if process_rank() == 0 else Path("/nowhere"))
if process_rank() == 0:
    content = {"losses": run.losses, "tokens": result.tokens}
    (folder / "result.json").write_text(json.dumps(content))
"""


def run(folder: Path, n_processes: int, *settings: str) -> dict[str, object]:
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    paths = [str(place) for place in Path(__file__).parents[:3]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(n_processes)]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command = [sys.executable, *launcher, str(folder / "script.py"), str(folder), *settings]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


def test_two_processes_train_what_one_trains_on_batches_twice_as_long(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    settings = [*SMALL, "train.max_steps=4", "train.per_device_train_batch_size=4"]
    two = run(tmp_path / "two", 2, *settings)
    one = TrainingRun(composed(*settings, "train.gradient_accumulation_steps=2"))
    _, result = one.train(tmp_path)
    assert two["losses"] == pytest.approx(one.losses, rel=1e-3)
    assert two["tokens"] == result.tokens


def test_an_address_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for name, value in (settings | {"MASTER_PORT": "abc"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="process 0 of 2 cannot reach the others"):
        distributed.broadcast_from_main(1)
