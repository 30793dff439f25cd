"""Every causal family of the installed transformers: shared where that is exact, by stock otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from packaging.version import Version
from peft import LoraConfig, PromptEncoderConfig
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.llama.modeling_llama import LlamaAttention

from bench.families import (
    CASES,
    WINDOW,
    WINDOWED,
    byte_tokenizer,
    compare,
    in_bfloat16,
    in_int8,
    questions,
    tiny,
    too_slow,
    windowed,
)
from slimdown.evaluation.engine.scoring import SharedWorkLM
from slimdown.evaluation.engine.sharing import EXACT, NOT_MERGING, Scoring, choose_scoring, is_exact

# peft 0.21 asks transformers 5.24 for names that it changed (delete when it follows), and warns of what is not asked.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*`past_key_values`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

STOCK = {
    "deepseek_v32": "DynamicIndexedLayer",
    "falcon_h1": "LinearAttention",
    "falcon_mamba": "LinearAttention",
    "llama4_text": "chunked attention",
    "mamba": "LinearAttention",
    "nemotron_h": "LinearAttention",
    "olmo_hybrid": "LinearAttention",
    "openai-gpt": "refuses shared rows",
}


def chosen_for(model: Any) -> Scoring:
    return SharedWorkLM(model, byte_tokenizer(), max_length=WINDOW).scoring


@pytest.mark.parametrize("family", sorted(EXACT))
def test_a_family_known_to_be_exact_is(family: str) -> None:
    model = tiny(family)
    assert is_exact(model)
    merges = family not in NOT_MERGING and model.config._attn_implementation == "sdpa"
    assert chosen_for(model) == Scoring(shares=True, merges=merges, decodes=True)
    compared = compare(model)
    assert compared.is_exact, compared
    assert compared.furthest < 1e-4


@pytest.mark.parametrize("family", WINDOWED)
def test_a_window_shorter_than_the_preamble_is_kept(family: str) -> None:
    model = windowed(family, 16)
    merges = family not in NOT_MERGING and model.config._attn_implementation == "sdpa"
    assert is_exact(model)
    assert chosen_for(model) == Scoring(shares=True, merges=merges, decodes=True)
    compared = compare(model)
    assert compared.is_exact, compared
    assert compared.furthest < 1e-4


@pytest.mark.parametrize(
    "family", ["cohere2", "gemma2", "gemma3_text", "gpt_oss", "mistral", "qwen2"]
)
@pytest.mark.parametrize(
    ("window", "merges"), [(16, False), (2, True), (140, True), (140, False), (191, True)]
)
def test_a_window_is_kept_where_the_preamble_is_shorter_or_repeated(
    family: str, window: int, merges: bool
) -> None:
    model = windowed(family, window)
    merges &= family not in NOT_MERGING and model.config._attn_implementation == "sdpa"
    assert compare(model, Scoring(shares=True, merges=merges, decodes=True)).is_exact


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "mistral"])
def test_in_bfloat16_a_window_is_kept_as_well_as_by_stock(family: str) -> None:
    """What rounding leaves of float32's log-likelihoods: stock's mean distance and ours."""
    model, common = windowed(family, 16), {"tokenizer": byte_tokenizer(), "max_length": WINDOW}
    exact = HFLM(pretrained=model, **common).loglikelihood(questions(), disable_tqdm=True)
    stock, ours = (
        lm(in_bfloat16(model), softmax_dtype=torch.float32, **common).loglikelihood(
            questions(), disable_tqdm=True
        )
        for lm in (HFLM, SharedWorkLM)
    )
    far, near = (
        sum(abs(a[0] - b[0]) for a, b in zip(exact, found, strict=True)) for found in (stock, ours)
    )
    assert near < 1.3 * far


@pytest.mark.parametrize("cache", ["hybrid", "static"])
def test_a_cache_that_a_models_file_names_changes_no_text(cache: str) -> None:
    model = windowed("gemma3_text", 16)
    model.generation_config.cache_implementation = cache
    assert chosen_for(model).decodes
    assert compare(model).is_exact


@pytest.mark.parametrize("family", ["gemma", "gpt2", "gptj", "llama", "opt", "qwen3_moe"])
def test_it_is_where_a_preamble_is_repeated(family: str) -> None:
    """As on a GPU."""
    assert compare(tiny(family), Scoring(shares=True, decodes=True)).is_exact


@pytest.mark.parametrize("family", STOCK)
def test_a_family_that_cannot_share_says_why(family: str) -> None:
    scoring = chosen_for(tiny(family))
    assert scoring.path == "stock"
    assert STOCK[family] in scoring.reason


@pytest.mark.parametrize("name", CASES)
def test_windows_positions_content_and_adapters(name: str) -> None:
    case = CASES[name]
    model = case.make()
    scoring = chosen_for(model)
    assert scoring.shares == (not case.reason)
    assert case.reason in scoring.reason
    compared = compare(model)
    assert compared.is_exact, compared


def test_a_loss_of_routers_is_left_to_stock() -> None:
    model, common = (
        tiny("mixtral", output_router_logits=True),
        {"tokenizer": byte_tokenizer(), "max_length": WINDOW},
    )
    assert "output_router_logits" in chosen_for(model).reason
    ours, stock = (
        lm(model, **common).loglikelihood(questions(), disable_tqdm=True)
        for lm in (SharedWorkLM, HFLM)
    )
    assert ours == stock


def test_int8_is_left_to_stock(tmp_path: Path) -> None:
    model = in_int8(tmp_path)
    assert "int8" in chosen_for(model).reason
    assert compare(model).is_exact


def renamed(model: Any) -> Any:
    """The same model as one of a family that nobody tried."""
    model.config.__class__ = type(
        "NewConfig", (type(model.config), PretrainedConfig), {"model_type": "new"}
    )
    return model


@pytest.mark.parametrize(
    "make",
    [
        partial(tiny, "llama"),
        partial(tiny, "qwen3_moe"),
        lambda: in_bfloat16(tiny("llama")),
        partial(tiny, "xglm"),
        partial(windowed, "gemma3_text", 16),
        partial(windowed, "gpt_oss", 140),
        lambda: in_bfloat16(windowed("mistral", 16)),
    ],
)
def test_a_family_that_nobody_tried_shares_where_a_trial_agrees(make: Callable[[], Any]) -> None:
    model = renamed(make())
    before = {name: (weight.dtype, weight.clone()) for name, weight in model.state_dict().items()}
    scoring = chosen_for(model)
    assert scoring.shares, scoring
    after = model.state_dict()
    assert all(
        after[n].dtype is dtype and torch.equal(after[n], weight)
        for n, (dtype, weight) in before.items()
    )


@pytest.mark.parametrize("heeds_the_mask", [True, False])
def test_a_known_family_whose_attention_somebody_replaced_is_tried(
    heeds_the_mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Unsloth replaces it on GPUs: by one that does the same, and by one that forgets the mask."""
    model = tiny("llama")
    assert is_exact(model)
    usual = LlamaAttention.forward

    def another(
        self: Any, hidden_states: Any, *args: Any, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        mask = (
            attention_mask
            if heeds_the_mask or attention_mask is None
            else torch.zeros_like(attention_mask)
        )
        return usual(self, hidden_states, *args, attention_mask=mask, **kwargs)

    monkeypatch.setattr(LlamaAttention, "forward", another)
    assert not is_exact(model)
    assert choose_scoring(model, lambda: 64).shares is heeds_the_mask


@pytest.mark.skipif(
    Version(version("transformers")) < Version("5.18"),
    reason="its doge sees what comes after, and goes to stock",
)
def test_a_trial_is_as_long_as_what_will_be_asked() -> None:
    """A window that no row of 64 tokens reaches, and one of 190 does."""
    model = tiny("doge", keep_window_size=100)
    assert choose_scoring(model, lambda: 64).shares
    assert not choose_scoring(model, lambda: 190).shares


def test_a_window_that_nobody_tried_may_be_shorter_or_longer_than_what_will_be_asked() -> None:
    """A family that ignores the window of its file: right as long as no row is longer."""
    model = tiny("arcee", sliding_window=100)
    assert choose_scoring(model, lambda: 100).shares
    assert "other logits" in choose_scoring(model, lambda: 102).reason
    assert is_exact(tiny("arcee", sliding_window=None))


@pytest.mark.parametrize(
    "adapter",
    [
        LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=[32], target_modules=["q_proj"]),
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ],
)
def test_what_will_be_trained_decides_for_the_base_as_well(adapter: Any) -> None:
    model = tiny("llama")
    assert choose_scoring(model, lambda: 64).shares
    assert choose_scoring(model, lambda: 64, adapter).path == "stock"
    assert choose_scoring(model, lambda: 64, LoraConfig(task_type="CAUSAL_LM")).shares


def test_at_least_forty_families_were_asked() -> None:
    asked = {*EXACT, *STOCK} & MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    assert len(asked) >= 40


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_that_can_be_built(dtype: torch.dtype) -> None:
    import signal

    signal.signal(signal.SIGALRM, too_slow)
    built: list[str] = []
    wrong: dict[str, Any] = {}
    for family, make in product(
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, (tiny, partial(windowed, window=16))
    ):
        signal.alarm(30)
        try:
            model = make(family, seed=1).to(dtype)
            with torch.no_grad():
                model(input_ids=torch.arange(1, 25)[None])
            scoring = chosen_for(model)
            if scoring.shares and dtype is torch.float32:
                compared = [compare(model, scoring), compare(model, replace(scoring, merges=False))]
                wrong |= {} if all(c.is_exact for c in compared) else {f"{family} {make}": compared}
            built += [family] if make is tiny else []
        except Exception:  # families build with these sizes or they do not; how many do is asserted
            pass
        finally:
            signal.alarm(0)
    assert not wrong
    assert len(built) > 100
