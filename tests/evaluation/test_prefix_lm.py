"""PrefixLM and VirtualTokensLM against HFLM, request by request, on random small models."""

from typing import Any

import pytest
import torch
from builders import Patch
from lm_eval.models.huggingface import HFLM
from tiny_benchmarks import SHOTS, add_adapter, ask, make_prompts, make_questions
from tiny_models import WINDOW, build_byte_tokenizer, build_tiny_model
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from slimdown.evaluation.prefix_lm import PrefixLM, VirtualTokensLM, without_tying
from slimdown.models.causal import eval_mode

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*past_key_values` is deprecated:FutureWarning"),
]
CHOICES = [" A", " B", " C", " D"]
VIRTUAL = ["PrefixTuningConfig", "PromptTuningConfig"]


def assert_same(ours: list[Any], expected: list[Any], tolerance: float = 5e-4) -> None:
    assert [ll for ll, _ in ours] == pytest.approx([ll for ll, _ in expected], abs=tolerance)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in expected]


@pytest.mark.parametrize(
    "settings", [{}, {"attn_implementation": "eager"}, {"tie_word_embeddings": True}]
)
def test_loglikelihoods_are_those_of_the_harness(settings: dict[str, Any]) -> None:
    attention = settings.pop("attn_implementation", "sdpa")
    model, tokenizer = build_tiny_model("llama", **settings), build_byte_tokenizer()
    model.set_attn_implementation(attention)
    requests = make_questions() + ask("x" * (WINDOW - 1), ["y", "yz", "y" * 9], 20)
    requests += ask("short", ["w" * WINDOW, "v" * (WINDOW - 1)], 21)  # as long as can be scored
    stock = HFLM(pretrained=model, tokenizer=tokenizer)
    ours = PrefixLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
    assert_same(ours.loglikelihood(requests), stock.loglikelihood(requests))


def test_no_device_is_asked_for_64_bits(monkeypatch: Patch) -> None:
    """Apple's MPS has none; what was moved to the CPU first is marked here."""
    to_cpu, to_double = torch.Tensor.cpu, torch.Tensor.double

    def move(tensor: torch.Tensor) -> Any:
        moved: Any = to_cpu(tensor).clone()
        moved.is_moved = True
        return moved

    def widen(tensor: torch.Tensor) -> Any:
        if not hasattr(tensor, "is_moved"):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return to_double(tensor)

    model, tokenizer = build_tiny_model("llama"), build_byte_tokenizer()
    lm = PrefixLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
    monkeypatch.setattr(torch.Tensor, "cpu", move)
    monkeypatch.setattr(torch.Tensor, "double", widen)
    assert len(lm.loglikelihood(make_questions())) == len(make_questions())


def test_4_bit_weights_with_an_adapter_are_scored_as_the_harness_does(tmp_path: Any) -> None:
    build_tiny_model("llama", hidden_size=64).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=config, dtype=torch.float32
    )
    tuned = add_adapter(model, "LoraConfig", target_modules=["q_proj"], r=4)
    requests, tokenizer = make_questions(), build_byte_tokenizer()
    with eval_mode(tuned):
        stock = HFLM(pretrained=tuned, tokenizer=tokenizer).loglikelihood(requests)
        ours = PrefixLM(pretrained=tuned, tokenizer=tokenizer, batch_size=4)
        assert_same(ours.loglikelihood(requests), stock)


def test_greedy_answers_are_those_of_the_harness() -> None:
    model, tokenizer = build_tiny_model("llama"), build_byte_tokenizer()
    contexts = [tokenizer.encode(f"{SHOTS}{word}") for word in ("one", "two", "three")]
    requests: list[Any] = [(None, c, [token]) for c in contexts for token in range(260)]
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16)
    first = stock._loglikelihood_tokens(requests, disable_tqdm=True)
    best = next(
        token for (_, _, [token]), (_, greedy) in zip(requests, first, strict=True) if greedy
    )
    requests += [(None, c, [best, token]) for c in contexts for token in range(260)]
    expected = stock._loglikelihood_tokens(requests, disable_tqdm=True)
    ours = PrefixLM(pretrained=model, tokenizer=tokenizer, batch_size=2)._loglikelihood_tokens(
        requests
    )
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in expected]
    assert sum(greedy for _, greedy in expected) >= 4  # of one token, and of two


def test_shared_work_is_done_once() -> None:
    model, tokenizer = build_tiny_model("llama"), build_byte_tokenizer()
    requests = [r for i in range(8) for r in ask(f"{SHOTS}Is it {i}?\nAnswer:", CHOICES, i)]
    n_shared = len(tokenizer.encode(f"{SHOTS}Is it "))
    n_own = len(tokenizer.encode("0?\nAnswer:")) + 4  # and the spaces before A, B, C and D
    embedded, headed = list[int](), list[int]()  # tokens of each forward, and rows of the head
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: embedded.append(args[0].numel())
    )
    model.get_output_embeddings().register_forward_hook(
        lambda _, args, output: headed.append(output.shape[:-1].numel())
    )
    lm = PrefixLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    lm.loglikelihood(requests, disable_tqdm=True)
    assert len(embedded) == 3  # the prefix, and two batches of four questions
    assert sum(embedded) == n_shared + 8 * n_own
    assert sum(headed) == 1 + 8 * 5  # of a question its last token and the four spaces


@pytest.mark.parametrize("kind", VIRTUAL)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_virtual_tokens_stand_before_every_row(kind: str, family: str) -> None:
    """Log-likelihoods equal HFLM's; texts equal those of plain forwards, one token at a time."""
    model, tokenizer = build_tiny_model(family), build_byte_tokenizer()
    plain = HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood(make_questions()[:20])
    model = add_adapter(model, kind, num_virtual_tokens=7)
    common: dict[str, Any] = {"tokenizer": tokenizer, "max_length": WINDOW - 8}
    lm = VirtualTokensLM(pretrained=model, batch_size=3, **common)
    scores = lm.loglikelihood(make_questions()[:20])
    assert_same(scores, HFLM(pretrained=model, **common).loglikelihood(make_questions()[:20]))
    assert max(abs(a - b) for (a, _), (b, _) in zip(scores, plain, strict=True)) > 0.1
    assert_texts_of_plain_forwards(lm, tokenizer)


LOOKING_BACK: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neo": {"window_size": 16},
    "llama4_text": {"attention_chunk_size": 16},
}


@pytest.mark.parametrize("kind", VIRTUAL)
@pytest.mark.parametrize("family", LOOKING_BACK)
def test_padding_does_not_push_virtual_tokens_out_of_a_window(kind: str, family: str) -> None:
    model = build_tiny_model(family, **LOOKING_BACK[family])
    model = add_adapter(model, kind, num_virtual_tokens=7)
    tokenizer = build_byte_tokenizer()
    lm = VirtualTokensLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=WINDOW - 8)
    assert_texts_of_plain_forwards(lm, tokenizer)


def assert_texts_of_plain_forwards(lm: VirtualTokensLM, tokenizer: Any) -> None:
    prompts = ["How much is 7 and 1?\nAnswer:", " the cat", "x y z and the other", "a"]
    texts, model = lm.generate_until(make_prompts(prompts)), lm.model
    with torch.no_grad():
        for prompt, text in zip(prompts, texts, strict=True):
            tokens = torch.tensor([tokenizer.encode(prompt)])
            n_prompt = tokens.shape[1]
            for _ in range(12):
                mask = torch.ones_like(tokens)
                best = model(input_ids=tokens, attention_mask=mask).logits[:, -1:].argmax(-1)
                if best == 0:
                    break
                tokens = torch.cat([tokens, best], dim=1)
            assert text == tokenizer.decode(tokens[0, n_prompt:])


def test_without_virtual_tokens_it_generates_as_hflm() -> None:
    model, tokenizer = build_tiny_model("llama"), build_byte_tokenizer()
    prompts = make_prompts(["the land " * n for n in (1, 3, 9)], until=["e"])
    ours, stock = (
        kind(pretrained=model, tokenizer=tokenizer, batch_size=2)
        for kind in (VirtualTokensLM, HFLM)
    )
    assert ours.generate_until(prompts) == stock.generate_until(prompts)


def test_an_adapters_own_head_is_not_tied() -> None:
    model = build_tiny_model("llama", tie_word_embeddings=True)
    with without_tying(model):
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        PrefixLM(pretrained=model, tokenizer=build_byte_tokenizer())
    assert not model.lm_head.weight.any()
    assert "tie_weights" not in vars(model)
