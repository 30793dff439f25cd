"""The shared path against the harness's own class, request by request, on random small models."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import (
    BitsAndBytesConfig,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from bench.families import byte_tokenizer
from slimdown.evaluation.engine import Scoring
from slimdown.evaluation.engine.scoring import SharedWorkLM

WINDOW = 320

# peft 0.21 asks transformers 5.24 for an attribute it renamed; delete when peft asks for the new.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": WINDOW,
        "initializer_range": 0.3,  # far from uniform: likelihoods and greedy texts vary
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()


def with_lora(model: Any) -> Any:
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return tuned


@pytest.fixture(scope="module")
def four_bit(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """Makes 4-bit models in the weights' canonical layout, as slimdown loads them."""
    folder = tmp_path_factory.mktemp("model")
    llama().save_pretrained(folder)

    def load(compute_dtype: torch.dtype = torch.float32) -> Any:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype
        )
        model = LlamaForCausalLM.from_pretrained(
            folder, quantization_config=config, dtype=torch.float32
        )
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model

    return load


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=260, n_embd=32, n_layer=2, n_head=2, n_positions=WINDOW, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "grouped heads, untied": llama,
    "tied": lambda: llama(tie_word_embeddings=True, num_key_value_heads=4),
    "eager attention": lambda: llama(attn_implementation="eager"),
    "lora": lambda: with_lora(llama()),
    "gpt2": gpt2,
}


@pytest.fixture(params=[*MODELS, "4-bit", "4-bit lora"])
def model(request: pytest.FixtureRequest, four_bit: Callable[[], Any]) -> Any:
    if request.param == "4-bit":
        return four_bit()
    if request.param == "4-bit lora":
        return with_lora(four_bit())
    return MODELS[request.param]()


def ask(context: str, answers: list[str], doc: int, task: str = "task") -> list[Instance]:
    return [
        Instance("loglikelihood", {}, (context, answer), i, (task, doc, 1))
        for i, answer in enumerate(answers)
    ]


def to_generate(prompts: list[str], task: str = "task", **settings: Any) -> list[Instance]:
    settings = {"until": [], "max_gen_toks": 16, "do_sample": False} | settings
    return [
        Instance("generate_until", {}, (prompt, copy.deepcopy(settings)), 0, (task, i, 1))
        for i, prompt in enumerate(prompts)
    ]


SHOTS = "Which letter comes first?\nA. the\nB. an\nAnswer: B\n\n" * 3
CHOICES = [" A", " B", " C", " D"]


def questions() -> list[Instance]:
    docs: list[tuple[str, list[str]]] = [
        (f"{SHOTS}What is {'more than ' * (i % 3)}{i}?\nAnswer:", CHOICES) for i in range(9)
    ]
    docs += [  # another preamble, answers of many tokens, equal answers
        ("Rivers " * 12 + f"and {i}", [" of the land", " an", " of the land", " öf", " then x"])
        for i in range(7)
    ]
    docs += [
        ("A man walks", [" away from the other man.", " in.", " on water"]),
        ("A man walks", [" away from the other man.", " elsewhere"]),  # the context once more
        ("", ["the EOS token is the context", "x", "yz"]),
        (
            "Grüße aus 東京 🙂 ",
            ["naïve", " 🙂🙂", "é"],
        ),  # unicode, a space that moves to the answer
        ("x" * (WINDOW - 1), ["y", "yz", "y" * 9]),  # on both sides of the window's end
        ("the cat and " * 40, [" sat", " sat down and stayed", " ran"]),  # longer than the window
        ("short", ["w" * WINDOW, "v" * (WINDOW - 1)]),  # as long as can be scored
    ]
    return [
        request for i, (context, answers) in enumerate(docs) for request in ask(context, answers, i)
    ]


def assert_same_scores(expected: list[Any], found: list[Any], tolerance: float = 1e-3) -> None:
    assert len(expected) == len(found)
    for (log_prob, greedy), (own_log_prob, own_greedy) in zip(expected, found, strict=True):
        assert own_log_prob == pytest.approx(log_prob, abs=tolerance, rel=1e-6)
        assert own_greedy == greedy
    assert len({round(log_prob, 3) for log_prob, _ in expected}) > len(expected) / 3


VIRTUAL: dict[str, Any] = {
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7),
}


def with_virtual_tokens(kind: str, make: Callable[[], Any] = llama) -> Any:
    torch.manual_seed(1)
    return get_peft_model(make(), copy.deepcopy(VIRTUAL[kind])).eval()


@pytest.mark.parametrize(("make", "merges"), [(llama, True), (llama, False), (gpt2, True)])
@pytest.mark.parametrize("kind", VIRTUAL)
@pytest.mark.filterwarnings("ignore:.*past_key_values` is deprecated:FutureWarning")
def test_virtual_tokens_stand_before_every_row_as_peft_puts_them(
    kind: str, make: Callable[[], Any], merges: bool, tokenizer: Any
) -> None:
    model, window = with_virtual_tokens(kind, make), WINDOW - 7
    scoring = Scoring(shares=True, merges=merges, decodes=True, window=window)
    lm = SharedWorkLM(model, tokenizer, max_length=window, scoring=scoring)
    requests = [request for request in questions() if len(request.args[1]) < window - 1]
    expected = HFLM(pretrained=model, tokenizer=tokenizer, max_length=window).loglikelihood(
        requests, disable_tqdm=True
    )
    assert_same_scores(expected, lm.loglikelihood(requests, disable_tqdm=True))
    # Texts are compared with plain forwards: PEFT's generate misplaces virtual tokens (peft 0.21, transformers 5.24).
    prompts = [f"{SHOTS}{word}" for word in ("one", "two and three", "x")] + ["short"]
    for prompt, text in zip(prompts, lm.generate_until(to_generate(prompts)), strict=True):
        tokens = torch.tensor([tokenizer.encode(prompt)])
        for _ in range(16):
            with torch.no_grad():
                logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
            if (best := logits[:, -1:].argmax(-1)) == 0:
                break
            tokens = torch.cat([tokens, best], dim=1)
        assert text == tokenizer.decode(tokens[0, len(tokenizer.encode(prompt)) :])


def test_virtual_tokens_that_nobody_left_room_for_are_refused(tokenizer: Any) -> None:
    lm = SharedWorkLM(with_virtual_tokens("prompt"), tokenizer)
    for ask_it in (
        lambda: lm.loglikelihood(ask("x" * WINDOW, ["y"], 0)),
        lambda: lm.generate_until(to_generate(["x" * WINDOW])),
    ):
        with pytest.raises(
            ValueError, match="and 7 virtual ones before it exceed the model's window of 320"
        ):
            ask_it()


@contextmanager
def counted(model: Any) -> Iterator[dict[str, int]]:
    """Counts what passes through the model: forwards, tokens, rows of the LM head."""
    counts = {"forwards": 0, "tokens": 0, "head rows": 0}

    def embed(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        counts["forwards"] += 1
        counts["tokens"] += args[0].numel()

    def head(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        counts["head rows"] += output.shape[:-1].numel()

    hooks = [
        model.get_input_embeddings().register_forward_pre_hook(embed),
        model.get_output_embeddings().register_forward_hook(head),
    ]
    yield counts
    for hook in hooks:
        hook.remove()


def test_loglikelihoods_are_those_of_the_harness(model: Any, tokenizer: Any) -> None:
    requests = questions()
    expected = HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood(
        requests, disable_tqdm=True
    )
    lm = SharedWorkLM(model, tokenizer)
    assert lm.scoring == Scoring(shares=True, merges=lm.scoring.merges, decodes=True)
    assert_same_scores(expected, lm.loglikelihood(requests, disable_tqdm=True))


def test_repeating_the_preamble_gives_the_same_answers(tokenizer: Any) -> None:
    model, requests = llama(), questions()  # as on a GPU, which does not merge
    expected = HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood(
        requests, disable_tqdm=True
    )
    lm = SharedWorkLM(model, tokenizer, scoring=Scoring(shares=True, decodes=True))
    assert_same_scores(expected, lm.loglikelihood(requests, disable_tqdm=True))
    assert model.config._attn_implementation == "sdpa"


def test_greedy_answers_are_those_of_the_harness(tokenizer: Any) -> None:
    model = llama()
    contexts = [tokenizer.encode(f"{SHOTS}{word}") for word in ("one", "two", "three")]
    requests: list[Any] = [(None, context, [token]) for context in contexts for token in range(260)]
    stock = HFLM(pretrained=model, tokenizer=tokenizer)
    first = [
        token
        for (_, _, [token]), (_, greedy) in zip(
            requests, stock._loglikelihood_tokens(requests, disable_tqdm=True), strict=True
        )
        if greedy
    ]
    assert len(first) == 3
    requests += [(None, context, [first[0], token]) for context in contexts for token in range(260)]
    expected = stock._loglikelihood_tokens(requests, disable_tqdm=True)
    found = SharedWorkLM(model, tokenizer)._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert sum(greedy for _, greedy in expected) >= 4  # of one token, and of two


@pytest.mark.parametrize("budget", [2 * WINDOW, 700, 1500, 100_000])
def test_the_token_budget_does_not_change_answers(tokenizer: Any, budget: int) -> None:
    model, requests = llama(), questions()
    expected = HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood(
        requests, disable_tqdm=True
    )
    lm = SharedWorkLM(model, tokenizer, token_budget=budget)
    assert_same_scores(expected, lm.loglikelihood(requests, disable_tqdm=True))


def test_a_question_alone(tokenizer: Any) -> None:
    model = llama()
    for requests in (ask("alone", [" one"], 0), ask("", ["a"], 0)):
        expected = HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood(requests)
        found = SharedWorkLM(model, tokenizer).loglikelihood(requests)
        assert found[0] == (pytest.approx(expected[0][0], abs=1e-3), expected[0][1])
    assert SharedWorkLM(model, tokenizer).loglikelihood([]) == []
    assert SharedWorkLM(model, tokenizer).generate_until([]) == []


def test_rolling_loglikelihoods_are_those_of_the_harness(tokenizer: Any) -> None:
    model = llama()
    requests = [
        Instance("loglikelihood_rolling", {}, (text,), 0, ("task", i, 1))
        for i, text in enumerate(["a", "the land " * 9, "longer than the window " * 30, "é"])
    ]
    expected = HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood_rolling(requests)
    found = SharedWorkLM(model, tokenizer, batch_size=4).loglikelihood_rolling(requests)
    assert found == pytest.approx(expected, abs=1e-2)  # sums over hundreds of tokens


def test_shared_work_is_done_once(tokenizer: Any) -> None:
    model = llama()
    requests = [r for i in range(8) for r in ask(f"{SHOTS}Is it {i}?\nAnswer:", CHOICES, i)]
    n_shots = len(tokenizer.encode(f"{SHOTS}Is it "))
    n_own = len(tokenizer.encode("0?\nAnswer:")) + 4  # and the spaces before A, B, C and D
    lm = SharedWorkLM(model, tokenizer)
    assert lm.scoring.shares
    assert lm.scoring.merges
    with counted(model) as counts:
        lm.loglikelihood(requests, disable_tqdm=True)
    assert counts["forwards"] == 2
    assert counts["tokens"] == n_shots + 8 * n_own
    assert counts["head rows"] == 1 + 8 * 5  # of a question its last token and the four spaces


PROMPTS = [
    *(f"{SHOTS}How much is {i * 7} and {i}?\nAnswer:" for i in range(6)),
    *("the land " * n for n in (1, 3, 9, 40)),  # the last is cut to leave room
    "Grüße aus 東京 🙂",
    "the land ",
]


def stock_texts(model: Any, tokenizer: Any, requests: list[Instance]) -> list[str]:
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    return lm.generate_until(requests, disable_tqdm=True)


def test_generated_texts_are_those_of_the_harness(model: Any, tokenizer: Any) -> None:
    free = stock_texts(model, tokenizer, to_generate(PROMPTS))
    assert len(set(free)) > 6
    # Stop strings that do appear: across tokens, one token, at the very start, never, two at once.
    stops = [free[0][5:8], free[3][9:10], free[7][:2], "nowhere", free[8][4:7]]
    for until, budget in ((stops[0], None), (stops, WINDOW)):  # WINDOW: few slots, reused
        requests = to_generate(PROMPTS, until=until)
        expected = stock_texts(model, tokenizer, requests)
        assert expected != free
        lm = SharedWorkLM(model, tokenizer, token_budget=budget)
        assert lm.generate_until(requests, disable_tqdm=True) == expected


def test_generation_stops_at_eos_and_at_each_requests_own_limit(tokenizer: Any) -> None:
    model = llama()
    free = stock_texts(model, tokenizer, to_generate(PROMPTS, max_gen_toks=40))
    ids = [tokenizer.encode(text)[6] for text in free if len(tokenizer.encode(text)) > 6]
    model.generation_config.eos_token_id = ids[:3]  # tokens that do come up
    requests = to_generate(PROMPTS, max_gen_toks=40) + to_generate(PROMPTS, max_gen_toks=1)
    requests += to_generate(PROMPTS[:3], max_gen_toks=7, temperature=0.0)
    expected = stock_texts(model, tokenizer, requests)
    assert expected[: len(free)] != free
    lm = SharedWorkLM(model, tokenizer)
    assert lm.generate_until(requests, disable_tqdm=True) == expected


def test_finished_rows_leave_and_others_take_their_place(tokenizer: Any) -> None:
    model = llama()
    prompts = [f"{i} and the land" for i in range(24)]
    requests = to_generate(prompts, until=["t", "e", "a"], max_gen_toks=32)
    expected = stock_texts(model, tokenizer, requests)
    lm = SharedWorkLM(model, tokenizer, token_budget=64)
    assert lm.scoring.shares
    rows: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: rows.append(args[0].shape[0]) if args[0].shape[1] == 1 else None
    )
    assert lm.generate_until(requests, disable_tqdm=True) == expected
    hook.remove()
    n_new = sum(len(tokenizer.encode(text)) for text in expected)
    assert sum(rows) <= n_new + len(prompts)  # no row decodes on after it has stopped


@pytest.mark.parametrize(
    ("settings", "generation_config"),
    [
        ({"do_sample": True, "temperature": 0.7}, {}),
        ({"num_beams": 2}, {}),
        ({}, {"repetition_penalty": 1.5}),
        ({}, {"min_new_tokens": 9, "eos_token_id": [68, 69, 70]}),
        ({}, {"no_repeat_ngram_size": 2}),
        ({}, {"suppress_tokens": [*range(60, 90)]}),
    ],
)
def test_what_is_not_plain_greedy_is_left_to_the_harness(
    tokenizer: Any, settings: dict[str, Any], generation_config: dict[str, Any]
) -> None:
    model = llama()
    model.generation_config.update(**generation_config)
    requests = to_generate(PROMPTS[:3], **settings)
    texts = []
    for lm in (HFLM(pretrained=model, tokenizer=tokenizer), SharedWorkLM(model, tokenizer)):
        torch.manual_seed(3)
        texts.append(lm.generate_until(requests, disable_tqdm=True))
    assert texts[0] == texts[1]


def test_the_models_own_limit_of_new_tokens_counts_as_in_the_harness(tokenizer: Any) -> None:
    model = llama()
    free = stock_texts(model, tokenizer, to_generate(PROMPTS))
    model.generation_config.max_new_tokens = 5
    expected = stock_texts(model, tokenizer, to_generate(PROMPTS))
    assert expected != free
    lm = SharedWorkLM(model, tokenizer)
    assert lm.scoring.decodes
    assert lm.generate_until(to_generate(PROMPTS), disable_tqdm=True) == expected


@pytest.mark.parametrize(
    ("prompt", "settings", "answer"),
    [
        ("", {}, "has an empty prompt"),
        ("the", {"max_gen_toks": 0}, "max_gen_toks=0: a text to generate"),
    ],
)
def test_what_the_harness_cannot_generate_is_refused(
    prompt: str, settings: dict[str, Any], answer: str, tokenizer: Any
) -> None:
    requests = to_generate([*PROMPTS[:2], prompt], **settings)
    with pytest.raises((ValueError, RuntimeError)):
        stock_texts(llama(), tokenizer, requests)
    with pytest.raises(ValueError, match=answer):
        SharedWorkLM(llama(), tokenizer).generate_until(requests, disable_tqdm=True)


def small(**changes: Any) -> dict[str, Any]:
    return {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, **changes}


class PositionBlind(LlamaForCausalLM):
    """Ignores the positions it is given, as some models do."""

    def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


UNSHAREABLE: dict[str, tuple[str, Callable[[], Any]]] = {
    "p-tuning": (
        "P_TUNING",
        lambda: get_peft_model(
            llama(), PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        ),
    ),
    "recurrent": ("", lambda: MambaForCausalLM(MambaConfig(**small()))),
    "no positions": ("", lambda: BloomForCausalLM(BloomConfig(**small(n_head=2, n_layer=2)))),
    "blind to positions": ("other logits", lambda: PositionBlind(llama().config)),
    "encoder-decoder": (
        "encoder-decoder",
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=260, d_model=32, d_ff=64, d_kv=8, num_layers=1, num_heads=4,
                     decoder_start_token_id=0)
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNSHAREABLE)
@pytest.mark.filterwarnings("ignore:.*mamba.*")
def test_models_that_cannot_share_take_the_stock_path(kind: str, tokenizer: Any) -> None:
    reason, make = UNSHAREABLE[kind]
    torch.manual_seed(0)
    model = make().eval()
    requests = ask("A man walks", [" in.", " out"], 0) + ask("The end", [" an"], 1)
    expected = HFLM(pretrained=model, tokenizer=tokenizer, max_length=WINDOW).loglikelihood(
        requests
    )
    lm = SharedWorkLM(model, tokenizer, max_length=WINDOW)
    assert lm.scoring.path == "stock"
    assert lm.scoring.reason
    assert reason in lm.scoring.reason
    assert lm.loglikelihood(requests) == expected


class ShortOfMemory(LlamaForCausalLM):
    """Runs out of memory in a forward of more than `limit` tokens or rows."""

    limit_tokens = limit_rows = 10**9
    failures = 0

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if input_ids.numel() > self.limit_tokens or input_ids.shape[0] > self.limit_rows:
            self.failures += 1
            raise torch.OutOfMemoryError("out of memory, says the test")
        return super().forward(input_ids=input_ids, **kwargs)


def test_out_of_memory_halves_the_batch_and_loses_nothing(tokenizer: Any) -> None:
    model = ShortOfMemory(llama().config).eval()
    model.load_state_dict(llama().state_dict())
    requests = questions()
    expected = HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood(
        requests, disable_tqdm=True
    )
    done: list[int] = []
    lm = SharedWorkLM(
        model, tokenizer, token_budget=4000, progress=lambda _, n, total: done.append(n)
    )
    assert lm.scoring.shares
    model.limit_tokens = 1100
    assert_same_scores(expected, lm.loglikelihood(requests, disable_tqdm=True))
    assert model.failures > 0
    assert lm.token_budget == 1000
    assert done == sorted(set(done)), "a question was computed twice"
    assert done[-1] == len({request.doc_id for request in requests})
    model.limit_tokens = 1100
    lm.loglikelihood(ask("a" * 250, ["b" * n for n in range(2, 41)], 0))  # wider than is left
    model.limit_tokens = 100
    with pytest.raises(torch.OutOfMemoryError):  # one question alone does not fit
        lm.loglikelihood(requests, disable_tqdm=True)


def short_of_memory() -> ShortOfMemory:
    model = ShortOfMemory(llama().config).eval()
    model.load_state_dict(llama().state_dict())
    return model


def test_without_memory_for_the_trial_stock_asks_and_says_why(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = short_of_memory()
    model.limit_tokens = 100
    assert SharedWorkLM(model, tokenizer).scoring == Scoring(
        shares=False, reason="no memory to try shared rows"
    )
    model.limit_tokens = 10**9
    assert SharedWorkLM(model, tokenizer).scoring.shares
    monkeypatch.setattr(
        "slimdown.evaluation.engine.sharing.free_bytes", lambda device: 1000
    )  # of which a wider copy would take more
    reason = SharedWorkLM(model.to(torch.bfloat16), tokenizer).scoring.reason
    assert reason.startswith("no memory to try shared rows: ")


@pytest.mark.parametrize("merges", [True, False])
def test_a_preamble_that_memory_does_not_hold_at_once_is_computed_in_parts(
    tokenizer: Any, merges: bool
) -> None:
    requests = [request for i in range(9) for request in ask(f"{SHOTS}Is it {i}?", CHOICES, i)]
    expected = HFLM(pretrained=llama(), tokenizer=tokenizer).loglikelihood(
        requests, disable_tqdm=True
    )
    model = short_of_memory()
    model.limit_tokens = 50
    lm = SharedWorkLM(model, tokenizer, scoring=Scoring(shares=True, merges=merges, decodes=True))
    assert_same_scores(expected, lm.loglikelihood(requests, disable_tqdm=True))
    assert model.failures > 0


def test_the_answers_of_one_question_are_asked_in_parts_where_memory_ends(tokenizer: Any) -> None:
    requests = ask("a" * 90, [f" {'b' * n}{n}" for n in range(2, 30)], 0)
    expected = HFLM(pretrained=llama(), tokenizer=tokenizer).loglikelihood(
        requests, disable_tqdm=True
    )
    model = short_of_memory()
    model.limit_tokens = 130
    done: list[int] = []
    lm = SharedWorkLM(
        model,
        tokenizer,
        scoring=Scoring(shares=True, merges=True),
        progress=lambda _, n, total: done.append(n),
    )
    assert_same_scores(expected, lm.loglikelihood(requests, disable_tqdm=True))
    assert done[-1] == 1


def test_out_of_memory_while_generating_loses_nothing(tokenizer: Any) -> None:
    model = ShortOfMemory(llama().config).eval()
    model.load_state_dict(llama().state_dict())
    requests = to_generate(PROMPTS, until=["t"])
    expected = stock_texts(model, tokenizer, requests)
    done: list[int] = []
    lm = SharedWorkLM(model, tokenizer, progress=lambda _, n, total: done.append(n))
    assert lm.scoring.shares
    model.limit_tokens = 64  # of prompts in pieces, beside what decodes
    assert lm.generate_until(requests, disable_tqdm=True) == expected
    assert model.failures > 0
    assert done == list(range(1, len(PROMPTS) + 1))
    assert lm.token_budget is not None


def test_measuring_changes_nothing(four_bit: Callable[[], Any], tokenizer: Any) -> None:
    def gradients(model: Any) -> dict[str, torch.Tensor]:
        model.zero_grad()
        ids = torch.arange(1, 33)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    model = with_lora(four_bit())
    model.train()
    model.base_model.model.model.layers[0].eval()  # a mode of its own
    model.config.use_cache = False
    for module in model.modules():  # as bitsandbytes leaves them
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True

    def state() -> Any:
        return (
            {name: module.training for name, module in model.named_modules()},
            {name: weight.requires_grad for name, weight in model.named_parameters()},
            [getattr(module, "support_avx512bf16_for_cpu", None) for module in model.modules()],
            model.config.to_dict(),
            copy.deepcopy(tokenizer.special_tokens_map),
            (tokenizer.padding_side, len(tokenizer)),
            torch.is_grad_enabled(),
        )

    before, expected = state(), gradients(model)
    lm = SharedWorkLM(model, tokenizer)
    lm.loglikelihood(questions(), disable_tqdm=True)
    lm.generate_until(to_generate(PROMPTS), disable_tqdm=True)
    assert state() == before
    found = gradients(model)
    assert expected.keys() == found.keys()
    assert sum("lora" in name for name in found) == 8
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_what_cannot_fit_is_said_before_any_forward(tokenizer: Any) -> None:
    model = llama()
    with pytest.raises(ValueError, match="token_budget must be at least 1"):
        SharedWorkLM(model, tokenizer, token_budget=0)
    lm = SharedWorkLM(model, tokenizer, token_budget=50)
    assert lm.scoring.shares
    with counted(model) as counts:
        with pytest.raises(ValueError, match="token_budget=50 cannot hold one question of 105"):
            lm.loglikelihood(ask("c" * 100, [" answer"], 0))
        with pytest.raises(ValueError, match="token_budget=50 cannot hold one question of 100"):
            lm.generate_until(to_generate(["c" * 100]))
        with pytest.raises(ValueError, match=f"exceeds the model's window of {WINDOW}"):
            lm.loglikelihood(ask("c", ["a" * (WINDOW + 1)], 0))
        with pytest.raises(ValueError, match=f"max_gen_toks={WINDOW} leaves no room"):
            lm.generate_until(to_generate(["c"], max_gen_toks=WINDOW))
        with pytest.raises(ValueError, match="empty answer"):
            lm.loglikelihood(ask("c", [""], 0))
    assert counts["forwards"] == 0


def test_progress_counts_questions_of_each_benchmark(tokenizer: Any) -> None:
    seen: list[tuple[str, int, int]] = []
    lm = SharedWorkLM(llama(), tokenizer, token_budget=64, progress=lambda *args: seen.append(args))
    requests = [
        *(request for i in range(5) for request in ask(f"question {i}", CHOICES, i, "first")),
        *(request for i in range(3) for request in ask(f"other {i}", [" a", " b"], i, "second")),
        *ask("one question,", [" two"], 3, "second"),
        *ask("in two contexts", [" two"], 3, "second"),
    ]
    lm.loglikelihood(requests)
    lm.generate_until(to_generate(PROMPTS[6:9], "third"))
    counts = {task: [n for name, n, _ in seen if name == task] for task, _, _ in seen}
    assert {(task, total) for task, _, total in seen} == {("first", 5), ("second", 4), ("third", 3)}
    assert all(n == sorted(set(n)) for n in counts.values())
    assert {task: n[-1] for task, n in counts.items()} == {"first": 5, "second": 4, "third": 3}


HUB_TASKS = {
    "hellaswag": None,
    "mmlu_college_computer_science": 5,
    "gsm8k": 5,
    "arc_easy": None,
    "piqa": None,
}


@pytest.mark.hub
@pytest.mark.parametrize("task", HUB_TASKS)
@pytest.mark.parametrize("model_id", ["local/stories260K", "HuggingFaceTB/SmolLM2-135M-Instruct"])
@pytest.mark.filterwarnings("default")  # of datasets and the hub, not ours to fix
def test_real_benchmarks(model_id: str, task: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bench.evaluation import build_requests, compare

    if not os.environ.get("HF_ENDPOINT"):
        pytest.skip("needs HF_ENDPOINT, the address of a hub that has the models of the test")
    model = AutoModelForCausalLM.from_pretrained(model_id, dtype=torch.float32)
    hub_tokenizer = AutoTokenizer.from_pretrained(model_id)
    small_model, generates = model_id.endswith("260K"), task == "gsm8k"
    limit = (40 if small_model else 16) // (4 if generates else 1)
    shots = 0 if small_model and generates else HUB_TASKS[task]  # a window of 512 tokens
    requests = build_requests(f"{task}:{limit}" + ("" if shots is None else f":{shots}"))
    stock = HFLM(pretrained=model, tokenizer=hub_tokenizer, batch_size=1 if generates else 4)
    shared = SharedWorkLM(model, hub_tokenizer)
    assert shared.scoring.shares
    expected, found = (
        getattr(lm, requests[0].request_type)(requests, disable_tqdm=True) for lm in (stock, shared)
    )
    differing, change = compare(requests, expected, found)
    assert differing == 0
    assert change < 1e-3
    if not generates:
        assert [greedy for _, greedy in expected] == [greedy for _, greedy in found]
