"""Options for TRL and PEFT are read right, and none is without an effect."""

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import peft
import pytest
from conftest import SMALL
from training_run import TrainingRun
from trl.trainer.sft_config import SFTConfig

from slimdown.config.schema import LoraConfig, RunConfig, TrainConfig
from slimdown.config.upstream import list_options, read_class, read_rules
from slimdown.training.options import check_options
from slimdown.utils.errors import ModelError

Composed = Callable[..., RunConfig]

# What somebody has looked at, by name: it has an effect here, on a GPU or with several processes.
CHECKED = {
    *("accelerator_config", "activation_checkpointing_kwargs", "activation_offloading"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "dataloader_in_order", "dataloader_num_workers"),
    *("dataloader_multiprocessing_context", "dataloader_persistent_workers"),
    *("dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_backend", "ddp_bucket_cap_mb"),
    *("ddp_broadcast_buffers", "ddp_find_unused_parameters", "ddp_static_graph", "ddp_timeout"),
    *("gradient_checkpointing_kwargs", "lr_scheduler_kwargs", "neftune_noise_alpha", "optim_args"),
    *("optim_target_modules", "packing", "pad_to_multiple_of", "torch_compile"),
    *("torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps"),
    *("alpha_pattern", "ensure_weight_tying", "exclude_modules", "init_lora_weights"),
    *("layers_pattern", "layers_to_transform", "lora_bias", "modules_to_save", "rank_pattern"),
    *("target_parameters", "trainable_token_indices", "use_rslora", "velora_config"),
}


@pytest.mark.parametrize(
    ("section", "upstream", "ours"),
    [("train", SFTConfig, TrainConfig), ("lora", peft.LoraConfig, LoraConfig)],
)
def test_options_are_those_of_the_installed_class(section: str, upstream: type, ours: type) -> None:
    names = {field.name for field in fields(upstream)}
    read = {name for place in read_rules(section)["classes"] for name in read_class(*place)}
    assert names - {"auto_mapping", "peft_version"} <= read  # of a class that PEFT's is made of
    accepted = list_options(section, [field.name for field in fields(ours)])
    assert accepted.keys() <= names & CHECKED


def test_packed_rows_are_the_same_rows_in_fewer_places(composed: Composed, tmp_path: Path) -> None:
    settings = [*SMALL, "train.max_steps=1", "train.per_device_train_batch_size=64"]
    runs = {}
    for option in ("packing=false", "packing=true", "neftune_noise_alpha=5"):
        runs[option] = run = TrainingRun(composed(*settings, f"train.args.{option}"))
        _, result = run.train(tmp_path / option)
        runs[option] = (len(run.rows.train), run.losses, result)
    n_rows, losses, plain = runs["packing=false"]
    n_packs, packed_losses, packed = runs["packing=true"]
    assert n_packs < n_rows / 3
    assert packed.tokens == plain.tokens
    assert packed_losses == pytest.approx(losses, rel=1e-5)
    _, noisy_losses, noisy = runs["neftune_noise_alpha=5"]
    assert noisy.tokens == plain.tokens
    assert abs(noisy_losses[0] / losses[0] - 1) > 1e-3
    assert noisy.validation_loss_before == pytest.approx(plain.validation_loss_before, rel=1e-5)


def test_lora_options_reach_the_adapter(composed: Composed, tmp_path: Path) -> None:
    chosen = ["lora.args.layers_to_transform=[1]", "lora.args.use_rslora=true"]
    run = TrainingRun(composed(*SMALL, *chosen, "train.max_steps=1"))
    tuned, _ = run.train(tmp_path)
    adapted = [name for name, p in tuned.model.named_parameters() if p.requires_grad]
    assert adapted
    assert all(".layers.1." in name for name in adapted)
    assert tuned.model.active_peft_config.use_rslora


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ("train.args.packing=true train.args.neftune_noise_alpha=5", "wants rows without padding"),
        ("train.args.adam_beta1=5", "Invalid beta parameter.*; change train.args and lora.args"),
    ],
)
def test_options_that_cannot_be_honoured_are_named(
    settings: str, answer: str, composed: Composed, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=answer):
        TrainingRun(composed(*SMALL, *settings.split())).train(tmp_path)


@pytest.mark.parametrize(
    ("settings", "answers"),
    [
        (
            "train.args.adam_beta1=5 train.args.adam_epsilon=-1 train.args.adam_beta2=0.9 "
            "lora=all_linear lora.args.layers_to_transform=1",
            ["layers_to_transform=1: .*cannot", "adam_epsilon=-1: .*eps", "adam_beta1=5: .*beta"],
        ),
        (
            "train.gradient_checkpointing=true train.args.gradient_checkpointing_kwargs.foo=1",
            [r"gradient_checkpointing_kwargs=.*: .*keyword argument"],
        ),
        ("train.args.lr_scheduler_kwargs.foo=1", [r"lr_scheduler_kwargs=.*keyword argument 'foo'"]),
        ("train.args.dataloader_persistent_workers=true", ["persistent_workers=True: .*num_work"]),
        ("train.args.dataloader_persistent_workers=true train.args.dataloader_num_workers=1", []),
    ],
)
def test_bad_values_are_told_together_before_a_model_is_loaded(
    settings: str, answers: list[str], composed: Composed
) -> None:
    problems = list(check_options(composed(*settings.split())))
    assert len(problems) == len(answers)
    for problem, answer in zip(problems, answers, strict=True):
        assert re.search(answer, problem)
