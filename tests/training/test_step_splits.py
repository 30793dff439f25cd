"""The forwards of a step: as few as a card has room for, and the same step however it is split."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from record_builders import compose_config
from training_run import prepare_run

from slimdown.config.schema import RunConfig
from slimdown.models.base_model import load_outline
from slimdown.models.training_estimate import estimate_training
from slimdown.training.step_splits import Forwards, apply_forwards, choose_forwards

SMALL = ["dataset.pocket_instructions.max_examples=48", "train.max_steps=3", "quantization=none"]
ROWS: Any = SimpleNamespace(train={"input_ids": [[0] * n for n in range(20, 180)]})


def estimate(config: RunConfig, forwards: Forwards, length: int) -> int:
    shaped = replace(config, train=replace(forwards.apply(config.train), max_length=length))
    found = estimate_training(shaped, load_outline(config.model), torch.float32)
    return found.n_bytes


def choose(config: RunConfig, card_bytes: float | None) -> Forwards:
    outline, most = load_outline(config.model), None if card_bytes is None else int(card_bytes)
    return choose_forwards(config, outline, torch.float32, ROWS, most)


def test_less_memory_makes_smaller_forwards_and_the_same_step() -> None:
    config = compose_config("train.gradient_accumulation_steps=2")
    assert choose(config, None) == Forwards(8, 2, recomputes=False)
    most = estimate(config, Forwards(8, 2, recomputes=False), 179)
    assert estimate(config, Forwards(1, 16, recomputes=True), 179) < most
    chosen = {share: choose(config, share * most / 0.85) for share in (1, 0.8, 0.5, 0.3, 0)}
    smallest = Forwards(1, 16, recomputes=True)
    assert (chosen[1], chosen[0]) == (choose(config, None), smallest)
    rows = [forwards.rows for forwards in chosen.values() if not forwards.recomputes]
    assert rows == sorted(rows, reverse=True)
    assert len(set(chosen.values())) > 3
    assert {forwards.rows * forwards.number for forwards in chosen.values()} == {16}
    for share, forwards in chosen.items():
        assert forwards == smallest or estimate(config, forwards, 179) <= share * most


def test_a_step_as_it_was_set_leaves_all_settings() -> None:
    config = compose_config("train.per_device_eval_batch_size=64")
    set_ = choose(config, None)
    assert not set_.differ_from(config.train)
    assert apply_forwards(config, set_) == (config, "")
    small = replace(set_, rows=2, number=4)
    assert small.differ_from(config.train)
    taken, words = apply_forwards(config, small)
    assert (taken.train.per_device_eval_batch_size, words[:10]) == (2, "4 forwards")
    again = replace(config, train=replace(config.train, gradient_checkpointing=True))
    assert set_.differ_from(again.train)
    assert not replace(set_, recomputes=True).differ_from(again.train)


@pytest.mark.parametrize("is_set", [True, False])
def test_what_was_set_about_checkpointing_stays(is_set: bool) -> None:
    config = compose_config(f"train.gradient_checkpointing={str(is_set).lower()}")
    assert {choose(config, card).recomputes for card in (None, 10**12, 1)} == {is_set}


def test_a_method_without_checkpointing_gets_none() -> None:
    assert choose(compose_config("method=prefix"), 1) == Forwards(1, 8, recomputes=False)


def test_split_steps_are_the_same_steps_also_for_a_run_that_goes_on(tmp_path: Path) -> None:
    keep = ["keep=self_replay", "keep.share=0.1", "keep.max_tokens=24"]
    whole = prepare_run(*SMALL, *keep, "train.checkpoint_minutes=1e-9")
    begun, resumed = whole.repeat(), whole.repeat()
    _, plain = whole.train(tmp_path / "whole")
    begun.train_until(tmp_path / "split", 2, forwards=Forwards(2, 4, recomputes=True))
    _, result = resumed.train(tmp_path / "split", forwards=Forwards(4, 2, recomputes=False))
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-4)
    assert result.steps == plain.steps == 3
    assert result.validation_loss_after == pytest.approx(plain.validation_loss_after, rel=1e-4)
    assert plain.forwards == ""
    assert result.forwards.startswith("2 forwards of 4 ")
