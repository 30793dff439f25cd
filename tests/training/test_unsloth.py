"""Unsloth trains what TRL trains, and the process that measures never imports it."""

import os
import sys
from pathlib import Path

import pytest
import torch
from builders import Patch
from commands_and_runs import SMALL
from record_builders import compose_config
from training_run import TrainingRun, prepare_run

from slimdown.config.engines import Engine
from slimdown.utils.errors import ModelError

QUICK = [*SMALL, "train.max_steps=8"]


def test_an_installation_that_does_not_load_is_one_line(tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "unsloth.py").write_text("raise ImportError('it wants\\nanother torch')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    config = compose_config(*QUICK)
    config.train.engine = Engine.unsloth
    reason = r"Unsloth cannot train this model \(ImportError: it wants another torch\)"
    with pytest.raises(ModelError, match=reason):
        TrainingRun(config).train(tmp_path / "run")


@pytest.mark.unsloth
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_it_trains_what_trl_trains_and_leaves_this_process_alone(
    quantization: str, tmp_path: Path
) -> None:
    settings = [*QUICK, f"quantization={quantization}"]
    before = dict(vars(torch.nn.functional))
    tuned, result = prepare_run(*settings, "train.engine=unsloth").train(tmp_path / "unsloth")
    assert "unsloth" not in sys.modules
    assert dict(vars(torch.nn.functional)) == before
    _, stock = prepare_run(*settings).train(tmp_path / "trl")
    assert result.n_trainable == stock.n_trainable
    assert [log.step for log in result.history] == list(range(1, 9))
    losses = [log.values["loss"] for log in result.history]
    assert losses[0] == pytest.approx(stock.history[0].values["loss"], rel=0.02)
    assert losses[-1] == pytest.approx(stock.history[-1].values["loss"], rel=0.1)
    assert result.validation_loss_after == pytest.approx(stock.validation_loss_after, rel=0.1)
    assert (result.output_dir / "adapter_model.safetensors").is_file()
    assert {p.dtype for n, p in tuned.model.named_parameters() if "lora" in n} == {torch.float32}
