"""Each family on the list is scored as HFLM scores it; what is not on it takes HFLM's path."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from builders import slow
from lm_eval.models.huggingface import HFLM
from tiny_benchmarks import add_adapter, build_windowed_model, make_questions
from tiny_models import WINDOW, build_byte_tokenizer, build_tiny_model
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from slimdown.evaluation.families import EXACT_FAMILIES, explain_no_sharing
from slimdown.evaluation.prefix_lm import PrefixLM

# peft 0.21 asks transformers 5.24 for names that it changed; delete when it follows.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
COMMON: dict[str, Any] = {"max_length": WINDOW, "softmax_dtype": torch.float32}
WINDOWED = [f for f in sorted(EXACT_FAMILIES) if hasattr(CONFIG_MAPPING[f], "sliding_window")]
# Shorter than the shared prefix, between it and the longest row, beyond one of two worked examples.
WINDOWS = (16, 75, 140)
# Each family with a window takes one of them by default, in turn, and the rest by `-m slow`.
# Of the others, every third.
PLAIN = [(family, None) for family in sorted(EXACT_FAMILIES - {*WINDOWED})]
SHAPES: list[Any] = [*PLAIN[::3], *((f, WINDOWS[i % 3]) for i, f in enumerate(WINDOWED))]
REST = [*PLAIN, *((family, window) for family in WINDOWED for window in (None, *WINDOWS))]
SHAPES += slow(*(shape for shape in REST if shape not in SHAPES))


def assert_as_hflm(model: Any, tolerance: float = 5e-4, batch_size: int = 4) -> None:
    tokenizer, requests = build_byte_tokenizer(), make_questions()
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, **COMMON)
    ours = PrefixLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, **COMMON)
    expected = stock.loglikelihood(requests, disable_tqdm=True)
    answers = ours.loglikelihood(requests, disable_tqdm=True)
    assert [ll for ll, _ in answers] == pytest.approx([ll for ll, _ in expected], abs=tolerance)
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in expected]
    assert len({round(ll, 2) for ll, _ in expected}) > len(expected) / 3


@pytest.mark.parametrize(("family", "window"), SHAPES)
def test_a_listed_family_is_scored_as_hflm_scores_it(family: str, window: int | None) -> None:
    """Rows beyond every window and of unequal length, behind two worked examples."""
    model = build_windowed_model(family, window) if window else build_tiny_model(family)
    assert not explain_no_sharing(model)
    assert_as_hflm(model)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "mistral"])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_batch_size_does_not_matter_behind_a_window(family: str, batch_size: int) -> None:
    assert_as_hflm(build_windowed_model(family, 16), batch_size=batch_size)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "llama"])
def test_in_bfloat16_it_rounds_no_more_than_hflm(family: str) -> None:
    model, tokenizer = build_windowed_model(family, 16), build_byte_tokenizer()
    if family == "llama":
        model = build_tiny_model("llama")
    requests = make_questions()
    exact = HFLM(pretrained=model, tokenizer=tokenizer, **COMMON).loglikelihood(requests)
    model = model.to(torch.bfloat16)
    stock, ours = (
        kind(pretrained=model, tokenizer=tokenizer, **COMMON).loglikelihood(requests)
        for kind in (HFLM, PrefixLM)
    )
    far, near = (
        sum(abs(a[0] - b[0]) for a, b in zip(exact, x, strict=True)) for x in (stock, ours)
    )
    assert near < 1.3 * far


TOKENWISE: dict[str, dict[str, Any]] = {
    "LoraConfig": {"target_modules": "all-linear", "use_rslora": True, "use_dora": True},
    "AdaLoraConfig": {"target_modules": ["q_proj"], "total_step": 9},
    "BOFTConfig": {"target_modules": ["q_proj"], "boft_block_size": 4},
    "HRAConfig": {"target_modules": ["q_proj"]},
    "IA3Config": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LNTuningConfig": {},
    "LoHaConfig": {"target_modules": ["q_proj"]},
    "LoKrConfig": {"target_modules": ["q_proj"]},
    "OFTConfig": {"target_modules": ["q_proj"], "oft_block_size": 4},
    "ShiraConfig": {"target_modules": ["q_proj"], "r": 4},
    "VeraConfig": {"target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("kind", TOKENWISE)
def test_an_adapter_that_acts_on_each_token_shares_prefixes(kind: str) -> None:
    model = add_adapter(build_tiny_model("llama"), kind, **TOKENWISE[kind])
    assert not explain_no_sharing(model)
    assert_as_hflm(model)


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
    "original_max_position_embeddings": 96,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def adapt(kind: str, **settings: Any) -> Callable[[], Any]:
    return lambda: add_adapter(build_tiny_model("llama"), kind, **settings)


AHEAD = {"use_bidirectional_attention": True}
ALORA = {"target_modules": ["q_proj"], "alora_invocation_tokens": [32]}
UNSHARED: dict[str, tuple[Callable[[], Any], str]] = {
    "no listed family": (partial(build_tiny_model, "mamba"), "not among the families"),
    "alibi": (partial(build_tiny_model, "falcon", alibi=True), "alibi"),
    "longrope": (partial(build_tiny_model, "phi3", rope_parameters=LONGROPE), "longrope"),
    "dynamic rope": (partial(build_tiny_model, "llama", rope_parameters=DYNAMIC), "dynamic"),
    "looks ahead": (partial(build_tiny_model, "gemma3_text", **AHEAD), "bidirectional"),
    "unknown window": (partial(build_tiny_model, "arcee", sliding_window=16), "sliding_window"),
    "activated LoRA": (adapt("LoraConfig", **ALORA), "alora_invocation_tokens"),
    "prompt tuning": (adapt("PromptTuningConfig", num_virtual_tokens=4), "PROMPT_TUNING"),
    "prefix tuning": (adapt("PrefixTuningConfig", num_virtual_tokens=4), "PREFIX_TUNING"),
}


@pytest.mark.parametrize("name", UNSHARED)
def test_what_may_not_share_says_why(name: str) -> None:
    make, reason = UNSHARED[name]
    assert reason in explain_no_sharing(make())
