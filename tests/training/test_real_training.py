"""Real weights and rows: `make test-hub`, against the hub or a mirror."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slimdown.config.schema import RunConfig
from slimdown.data.training_data import load_training_data
from slimdown.models.adapters import load_adapter
from slimdown.models.base_model import load_base_model
from slimdown.models.causal import disabled_adapters, eval_mode
from slimdown.training.fine_tuning import fine_tune, prepare_training

pytestmark = pytest.mark.hub


def test_smollm2_learns_alpaca_in_4_bits_after_it_was_measured(
    composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    rows = ["dataset.alpaca.max_examples=80", "dataset.alpaca.validation_examples=8"]
    steps = ["train.max_steps=20", "train.per_device_train_batch_size=4"]
    config = composed("model=smollm2", "dataset=[alpaca]", *rows, *steps)
    base = load_base_model(config.model, config.quantization)
    ids = torch.arange(100, 160)[None]
    with eval_mode(base.model):
        before = base.model(input_ids=ids).logits
    data = load_training_data(config.dataset, base.tokenizer, config.seed)
    prepared = prepare_training(base, data, config)
    assert prepared.path.is_padding_free
    tuned, result = fine_tune(
        base, prepared, config, tmp_path, lambda log: None, lambda *progress: None
    )
    assert result.validation_loss_after < result.validation_loss_before - 0.02
    moved = [p for name, p in tuned.model.named_parameters() if "lora_B" in name]
    assert all(p.abs().max() > 0 for p in moved)
    with eval_mode(tuned.model):
        after = tuned.model(input_ids=ids).logits
        with disabled_adapters(tuned.model):
            assert torch.equal(tuned.model(input_ids=ids).logits, before)
    again = load_adapter(load_base_model(config.model, config.quantization), result.output_dir)
    with eval_mode(again):
        assert torch.equal(again(input_ids=ids).logits, after)
