"""Every method trains, leaves what its ecosystem loads, and answers there as it was measured."""

import json
from pathlib import Path

import peft
import peft.helpers
import pytest
import torch
import transformers
from builders import slow
from commands_and_runs import SMALL_IN_FLOAT
from record_builders import compose_config
from tiny_models import logits_of
from training_run import TrainingRun

from slimdown.models.adapters import check_scalable, load_adapter, save_scaled_adapter
from slimdown.models.base_model import load_base_model
from slimdown.models.causal import disabled_adapters, has_untouched_base
from slimdown.utils.errors import ModelError

LORA = 4 * 8 * (3 * 192 + 192 + 2 * 64)  # four layers of 192, 64 of them keys, rank 8
TRAINED = {
    "lora": LORA,
    "rslora": LORA,
    "dora": LORA + 4 * (192 + 2 * 64),
    "prefix": 20 * 4 * 2 * 64,
    "prompt": 20 * 192,
    "oft": 12 * 6 * 32 * 31 // 2,
    "shira": LORA,
    "ia3": 4 * (64 + 64 + 512),
    "bottleneck": 4 * 2 * (16 * 2 * 192 + 16 + 192),
}

# PEFT 0.21 hands prefixes on under the name that transformers 5.24 renames.
pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")


RARE = {"rslora", "dora", "oft"}  # each kind of adapter is tried once without `-m slow`


@pytest.mark.parametrize("method", [*sorted(TRAINED.keys() - RARE), *slow(*sorted(RARE))])
def test_an_adapter_learns_keeps_the_base_and_reloads_to_the_same_logits(
    method: str, tmp_path: Path
) -> None:
    rate = 0.3 if method == "prefix" else 0.01
    settings = [f"method={method}", "train.max_steps=6", f"train.learning_rate={rate}"]
    if method == "shira":
        settings.append("quantization=none")
    config = compose_config(*SMALL_IN_FLOAT, *settings)
    before = logits_of(load_base_model(config.model, config.quantization).model)
    run = TrainingRun(config)
    tuned, result = run.train(tmp_path)
    assert result.validation_loss_after < result.validation_loss_before
    assert result.n_trainable == TRAINED[method]
    assert (result.steps, len(result.history)) == (6, 6)
    assert has_untouched_base(tuned.model)
    assert tuned.identity != run.base.identity
    after = logits_of(tuned.model)
    with disabled_adapters(tuned.model):
        assert torch.equal(logits_of(tuned.model), before)
    if method in ("lora", "rslora"):
        check_scalable(tuned)
        tuned.model.peft_config["default"].trainable_token_indices = [900]  # of no token below 64
        with pytest.raises(ModelError, match="something beside"):
            check_scalable(tuned)
        tuned.model.peft_config["default"].trainable_token_indices = None
        save_scaled_adapter(result.output_dir, 0.5, tmp_path / "half")
        with peft.helpers.rescale_adapter_scale(tuned.model, 0.5):
            half = logits_of(tuned.model)
        base = load_base_model(config.model, config.quantization)
        loaded = logits_of(load_adapter(base, tmp_path / "half"))
        assert torch.allclose(loaded, half, rtol=0, atol=1e-5)
        assert not torch.allclose(loaded, after, rtol=0, atol=1e-3)
    else:
        with pytest.raises(ModelError, match=r"scale 0 .*its base"):
            check_scalable(tuned)
    assert torch.equal(logits_of(tuned.model), after)
    assert not torch.equal(after, before)
    again = load_base_model(config.model, config.quantization)
    assert torch.equal(logits_of(load_adapter(again, result.output_dir)), after)
    saved = json.loads((result.output_dir / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "pocket:model"  # no folder of this machine
    if method != "bottleneck":  # PEFT alone, without slimdown
        plain = load_base_model(config.model, config.quantization).model
        reloaded = peft.PeftModel.from_pretrained(plain, str(result.output_dir)).eval()
        assert torch.equal(logits_of(reloaded), after)
        assert {p.dtype for n, p in reloaded.named_parameters() if "lora" in n} <= {torch.float32}


@pytest.mark.parametrize("method", ["last_layer", "full"])
def test_transformers_loads_a_whole_model(method: str, tmp_path: Path) -> None:
    settings = [f"method={method}", "quantization=none", "model.dtype=bfloat16"]
    config = compose_config(*SMALL_IN_FLOAT, *settings, "train.max_steps=4")
    fresh = load_base_model(config.model, config.quantization)
    tuned, result = TrainingRun(config).train(tmp_path)
    assert result.validation_loss_after < result.validation_loss_before
    saved = transformers.AutoModelForCausalLM.from_pretrained(result.output_dir)
    assert saved.dtype == torch.bfloat16
    assert torch.equal(logits_of(saved.eval()), logits_of(tuned.model))
    weights = dict(saved.named_parameters())
    named = fresh.model.named_parameters()
    changed = [name for name, weight in named if not torch.equal(weight, weights[name])]
    is_last = ["layers.3." in name or name == "model.norm.weight" for name in changed]
    assert changed
    assert method == "full" or all(is_last)
    assert tuned.identity != fresh.identity
