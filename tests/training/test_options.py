"""Options for TRL and PEFT are handed on, and wrong ones are told."""

from pathlib import Path

import pytest
from commands_and_runs import SMALL
from record_builders import compose_config
from training_run import prepare_run

from slimdown.config.refused_options import needs_libraries
from slimdown.training.options import check_options
from slimdown.utils.errors import ModelError


def test_packed_rows_are_the_same_rows_in_fewer_places(tmp_path: Path) -> None:
    few = ["dataset.pocket_instructions.max_examples=24", *SMALL[1:]]
    settings = [*few, "train.max_steps=1", "train.per_device_train_batch_size=24"]
    runs = {}
    for option in ("packing=false", "packing=true", "neftune_noise_alpha=5"):
        runs[option] = run = prepare_run(*settings, f"train.args.{option}")
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


def test_lora_options_reach_the_adapter(tmp_path: Path) -> None:
    chosen = ["lora.args.layers_to_transform=[1]", "lora.args.use_rslora=true"]
    run = prepare_run(*SMALL, *chosen, "train.max_steps=1")
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
        ("lora.args.init_lora_weights=mica quantization=nf4", "cannot train .*quantization=none"),
        ("train.args.lr_scheduler_kwargs.foo=1", "unexpected keyword argument 'foo'"),
        ("train.args.dataloader_persistent_workers=true", "num_workers"),
        ("train.args.activation_offloading=true", "cannot train"),
        ("lora.target_modules=[lm_head]", "cannot train pocket:model here: .*lm_head"),
        ("train.optim=grokadamw", "cannot train pocket:model here: .*grokadamw"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_base_is_measured(
    settings: str, answer: str
) -> None:
    with pytest.raises(ModelError, match=answer):
        prepare_run(*SMALL, *settings.split())


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ("train.args.neftune_noise_alfa=5", "trl.SFTConfig; did you mean train.args.neftune_noise"),
        ("train.args.lerning_rate=1", "did you mean train.learning_rate?"),
        ("train.args.xyzzy=1", "train.args.xyzzy is no option of trl.SFTConfig; its documentation"),
        ("train.args.adam_beta1=abc", "train.args.adam_beta1 must be a number, got 'abc'"),
        ("train.args={neftune_noise_alpha:[5]}", "_alpha must be a number, null, got [5]"),
        ("train.args.torch_compile=3", "train.args.torch_compile must be true or false, got 3"),
        ("train.args.optim_args=5", "train.args.optim_args must be a text, null, got 5"),
        ("train.optim=adamw_troch", "adamw_troch is no name of transformers; did you mean"),
        ("train.lr_scheduler_type=cosin", "is no name of transformers; did you mean cosine"),
        ("train.lr_scheduler_type=greedy", "is no name of transformers; known: linear, cosine"),
        ("lora.args.use_rslora=1", "lora.args.use_rslora must be true or false, got 1"),
        ("lora.args.modules_to_save=lm_head", "_to_save must be a list, null, got 'lm_head'"),
        ("lora.args.layers_to_transform=[a]", "must be a whole number, a list, null, got ['a']"),
        ("lora.args.rank_patern={q_proj:2}", "did you mean lora.args.rank_pattern?"),
    ],
)
def test_a_wrong_name_or_type_is_told(setting: str, answer: str) -> None:
    config = compose_config(setting)
    assert needs_libraries(config)
    [problem] = check_options(config)
    assert answer in problem


@pytest.mark.parametrize(
    "settings",
    [
        "train.args.neftune_noise_alpha=5 train.args.packing=true train.optim=sgd",
        "train.args.gradient_checkpointing_kwargs.use_reentrant=false train.args.optim_args='a=1'",
        "lora.args.layers_to_transform=[1] lora.args.layers_pattern=null",
        "lora.args.modules_to_save=[lm_head] lora.args.trainable_token_indices=[1]",
        "lora.args.init_lora_weights=gaussian lora.args.rank_pattern.q_proj=2 method=rslora",
        "train.lr_scheduler_type=cosine_with_restarts train.args.lr_scheduler_kwargs.num_cycles=2",
    ],
)
def test_right_options_are_handed_on(settings: str) -> None:
    assert not list(check_options(compose_config(*settings.split())))


def test_a_run_without_options_imports_no_library_to_check_them() -> None:
    assert not needs_libraries(compose_config())
    assert not needs_libraries(compose_config("tuned=pocket:model"))
