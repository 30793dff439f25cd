"""`keep=kl`: what it adds to the loss, where it can be used, and what it is called."""

import math
from pathlib import Path

import pytest
import torch
from builders import slow
from commands_and_runs import SMALL
from record_builders import compose_config
from torch.nn import functional
from training_run import prepare_run

from slimdown.tracking.run_files import describe_run


@pytest.mark.parametrize("settings", ["", "method=prompt", *slow("method=bottleneck")])
def test_it_keeps_the_model_near_its_base(settings: str, tmp_path: Path) -> None:
    moved = []
    for i, keep in enumerate(["keep=none", "keep=kl keep.weight=30"]):
        steps = ["train.max_steps=8", *keep.split(), *settings.split()]
        run = prepare_run(*SMALL, *steps)
        ids = torch.arange(5, 60)[None]
        with torch.no_grad():
            before = run.base.model(input_ids=ids).logits[0].log_softmax(-1)
        tuned, result = run.train(tmp_path / str(i))
        with torch.no_grad():
            after = tuned.model(input_ids=ids).logits[0, -55:].log_softmax(-1)
        assert result.base_divergence > 0
        moved.append(float(functional.kl_div(after, before, reduction="sum", log_target=True)))
        assert all(math.isfinite(log.values["loss"]) for log in run.logs)
        assert all(p.requires_grad for n, p in tuned.model.named_parameters() if "lora" in n)
    assert moved[1] < 0.7 * moved[0]


def test_its_only_setting_is_its_weight() -> None:
    assert vars(compose_config("keep=kl", "keep.weight=3").keep) == {"name": "kl", "weight": 3.0}
    described = describe_run(compose_config("keep=kl"))["keep"]
    assert (described[:4], described[-11:]) == ("kl: ", " weight 1.0")
