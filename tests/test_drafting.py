"""What is guessed of a row makes it come sooner, and no other: whatever the guess, whatever the model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil
import pytest
import torch
from lm_eval.api.instance import Instance
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

from bench.families import WINDOW, byte_tokenizer, in_bfloat16, tiny, windowed
from slimdown.evaluation.engine import attention, decoding
from slimdown.evaluation.engine.decoding import GreedyDecoder, StopStrings
from slimdown.evaluation.engine.drafting import LONGEST, Draft
from slimdown.evaluation.engine.forward import measuring, preamble_cache, virtual_tokens
from slimdown.evaluation.engine.scoring import SharedWorkLM
from slimdown.evaluation.engine.slots import zeros

pytestmark = pytest.mark.usefixtures("one_thread")

MOST = 16
SHARED = tuple(range(33, 110))  # long enough to be computed once for all
PROMPTS = [
    *((*SHARED, 40 + i, 90 - 3 * i) for i in range(9)),
    (50, 51),
    (60,),
    (70, 71, 72, 70, 71),
]


def with_virtual_tokens(config: type[Any]) -> Any:
    torch.manual_seed(1)
    model = get_peft_model(
        tiny("llama"), config(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval()
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.5)
    return model


MODELS: dict[str, tuple[Callable[[], Any], bool]] = {
    "merging": (partial(tiny, "llama"), True),
    "repeating": (partial(tiny, "llama"), False),
    "learned positions": (partial(tiny, "gpt2"), False),
    "a window shorter than the preamble": (partial(windowed, "mistral", 16), True),
    "a window, repeating": (partial(windowed, "gemma2", 16), False),
    "latent attention": (partial(tiny, "deepseek_v3"), False),
    "virtual tokens": (partial(with_virtual_tokens, PromptTuningConfig), True),
    "a prefix": (partial(with_virtual_tokens, PrefixTuningConfig), False),
}


class Decoded:
    """What a decoder makes of `PROMPTS`, and in how many forwards."""

    def __init__(
        self, model: Any, merging: bool, answers: Any = (), stops: Any = None, eos: Any = ()
    ) -> None:
        self.rows: dict[int, list[int]] = {}
        self.n_forwards = 0
        prompts = [(*virtual_tokens(model), *prompt) for prompt in PROMPTS]
        decoder = GreedyDecoder(
            model,
            token_budget=200,  # few rows at a time
            max_new_tokens=MOST,
            eos_token_ids=eos,
            is_finished=stops or (lambda rows: [False] * len(rows)),
            finished=self.rows.__setitem__,
            merging=merging,
        )
        with measuring(model), self._counting(model):
            decoder.run(prompts, answers)
        self.n_decoded, self.n_guessed = decoder.n_decoded, decoder.n_guessed

    @property
    def ordered(self) -> list[list[int]]:
        return [self.rows[i] for i in range(len(PROMPTS))]

    def _counting(self, model: Any) -> Any:
        def count(*_: object) -> None:
            self.n_forwards += 1

        return model.get_output_embeddings().register_forward_pre_hook(count)


@pytest.fixture
def unguessed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Decoded]:
    def decode(*args: Any, **kwargs: Any) -> Decoded:
        with monkeypatch.context() as patch:
            patch.setattr(Draft, "guess", lambda self, n_rows, most: [])
            return Decoded(*args, **kwargs)

    return decode


def wrong(tokens: list[int]) -> list[int]:
    return [(token + 7) % 200 + 30 for token in tokens]


GUESSES: dict[str, Callable[[list[int]], list[int]]] = {
    "right": lambda tokens: tokens,
    "longer than is asked": lambda tokens: [*tokens, *tokens, *tokens],
    "wrong": wrong,
    "right at first": lambda tokens: [*tokens[:9], *wrong(tokens[9:])],
    "one left out": lambda tokens: [*tokens[:5], *tokens[6:]],
    "one too many": lambda tokens: [*tokens[:5], 99, *tokens[5:]],
    "wrong here and there": lambda tokens: [
        99 if i % 5 == 4 else token for i, token in enumerate(tokens)
    ],
}


@pytest.mark.parametrize("name", MODELS)
def test_no_answer_of_another_changes_a_row(name: str, unguessed: Callable[..., Decoded]) -> None:
    make, merging = MODELS[name]
    model = make()
    expected = unguessed(model, merging)
    assert expected.n_guessed == 0
    for change in GUESSES.values():
        found = Decoded(model, merging, [change(row) for row in expected.ordered])
        assert found.rows == expected.rows
    assert Decoded(model, merging, expected.ordered).n_forwards < expected.n_forwards / 2


@pytest.mark.parametrize("name", ["merging", "learned positions", "a window, repeating"])
@pytest.mark.parametrize("length", [1, 2, LONGEST])
def test_no_draft_changes_a_row(
    name: str, length: int, unguessed: Callable[..., Decoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts of any length, right or wrong, more than anybody would believe in."""
    make, merging = MODELS[name]
    model = make()
    model.config.max_position_embeddings = WINDOW
    expected = unguessed(model, merging)
    rows, drawn = (
        {PROMPTS[i]: row for i, row in expected.rows.items()},
        torch.Generator().manual_seed(0),
    )

    def guess(self: Draft, n_rows: int, most: int) -> list[int]:
        text = tuple(self._text)
        prompt = next(
            prompt for prompt in rows if text[: len(prompt)] == prompt and len(text) > len(prompt)
        )
        right = rows[prompt][len(text) - len(prompt) :]
        n_right = int(torch.randint(0, length + 1, (), generator=drawn))
        return [*right[:n_right], *[0] * (length - n_right)][:most]

    monkeypatch.setattr(Draft, "guess", guess)
    assert Decoded(model, merging).rows == expected.rows


def test_an_end_in_the_midst_of_a_draft_ends_the_row_there(
    unguessed: Callable[..., Decoded],
) -> None:
    model, tokenizer = tiny("llama"), byte_tokenizer()
    free = unguessed(model, True)
    ends = {"eos": [free.rows[0][7], free.rows[9][3]]}
    stops = StopStrings(tokenizer, [tokenizer.decode(free.rows[i][5:8]) for i in (1, 3, 10)])
    for more in (ends, {"stops": stops}, ends | {"stops": stops}):
        expected = unguessed(model, True, **more)
        assert expected.rows != free.rows
        found = Decoded(model, True, free.ordered, **more)  # which go on behind the end
        assert found.rows == expected.rows
        assert found.n_forwards < expected.n_forwards


def test_what_is_nearly_as_likely_is_decided_by_the_row_alone(
    unguessed: Callable[..., Decoded],
) -> None:
    """Each token twice in the vocabulary but for what rounding does."""
    model = tiny("llama", tie_word_embeddings=False)
    head = model.get_output_embeddings().weight.data
    head[1::2] = head[::2] * (
        1 + 2e-7 * torch.randn(len(head) // 2, 1, generator=torch.Generator().manual_seed(0))
    )
    expected = unguessed(model, True)
    for name in ("right", "wrong here and there"):
        answers = [GUESSES[name](row) for row in expected.ordered]
        assert Decoded(model, True, answers).rows == expected.rows


def test_in_half_precision_another_models_answers_are_not_looked_at(
    unguessed: Callable[..., Decoded],
) -> None:
    model = in_bfloat16(tiny("llama"))
    expected = Decoded(model, True)
    found = Decoded(model, True, unguessed(model, True).ordered)
    assert (found.rows, found.n_forwards) == (expected.rows, expected.n_forwards)
    assert expected.n_guessed > 0  # of what the rows themselves repeat


def test_an_answer_is_found_again_after_a_difference_and_what_repeats_goes_on() -> None:
    answer = [*range(100, 120), *range(200, 220)]
    draft = Draft((1, 2, 3), answer, free_tokens=100)
    assert draft.guess(1, 5) == answer[:5]
    draft.learn([100, 101, 9, 9, 110, 111])  # some other words in between
    assert draft.guess(1, 4) == [112, 113, 114, 115]
    draft.learn([7, 8, 7, 8, 7])
    assert draft.guess(1, 5) == [8, 7, 8, 7, 8][: len(draft.guess(1, 5))]
    assert Draft((5, 6, 7, 8, 5, 6)).guess(1, 2) == [7, 8]
    assert Draft((5, 6, 7)).guess(1, 9) == []


def test_only_rows_that_are_being_decoded_hold_what_drafts_are_made_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive: weakref.WeakSet[Draft] = weakref.WeakSet()
    n_alive: list[int] = []

    class Counted(Draft):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            alive.add(self)
            n_alive.append(len(alive))

    monkeypatch.setattr(decoding, "Draft", Counted)
    monkeypatch.setattr(decoding, "CACHE_TOKENS_PER_BUDGET", 1)  # few rows at a time
    Decoded(tiny("llama"), True)
    assert len(n_alive) == len(PROMPTS)
    assert max(n_alive) < len(PROMPTS)
    assert not alive


def test_preambles_that_rows_repeat_are_computed_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Any] = []

    def counted(model: Any, preamble: Any, *args: Any) -> Any:
        computed.append(preamble)
        return preamble_cache(model, preamble, *args)

    monkeypatch.setattr(decoding, "preamble_cache", counted)
    both = SHARED, SHARED[::-1]  # decoded side by side
    monkeypatch.setitem(
        globals(), "PROMPTS", [(*preamble, 40 + i) for preamble in both for i in range(9)]
    )
    Decoded(tiny("llama"), False)
    assert sorted(map(len, computed)) == [len(SHARED)] * 2


def test_prompts_are_computed_in_pieces_beside_what_decodes(
    unguessed: Callable[..., Decoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "PROMPTS", [(40 + i, *SHARED) for i in range(9)])
    model, sizes = tiny("llama"), []
    whole = unguessed(model, True)
    monkeypatch.setattr(decoding, "PIECE", 32)
    monkeypatch.setattr(attention, "MANY", 8)
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: sizes.append(args[0].numel())
    )
    assert unguessed(model, True).rows == whole.rows
    hook.remove()
    assert max(sizes) == 32
    assert 32 * sizes.count(32) > sum(map(len, PROMPTS))  # what decodes fills them up


def test_slots_take_the_memory_that_is_written() -> None:
    before = psutil.Process().memory_info().rss
    columns = zeros(torch.empty(0), (4, 2**26))
    columns[1, :1000] = 1
    assert columns.nbytes == 2**30
    assert float(columns[:, :2000].sum()) == 1000
    assert psutil.Process().memory_info().rss - before < 2**26


def test_what_is_never_right_is_soon_not_believed() -> None:
    draft = Draft((1, 2), [3, 4] * 20)
    lengths = []
    for i in range(30):
        lengths.append(len(draft.guess(4, LONGEST)))
        draft.learn([50 + i, 1, 2])
    assert lengths[0] > 3
    assert lengths[-1] <= 1
    assert len(draft.guess(64, LONGEST)) == 0  # more so where rows fill a forward


def test_the_harness_is_given_the_same_texts_whatever_another_model_said() -> None:
    model, tokenizer = tiny("llama"), byte_tokenizer()
    settings = {"until": ["\n\n"], "max_gen_toks": MOST, "do_sample": False}
    requests = [
        Instance("generate_until", {}, (f"{i} and {i}", dict(settings)), 0, ("t", i, 1))
        for i in range(6)
    ]
    plain, told = (SharedWorkLM(model, tokenizer, max_length=WINDOW) for _ in range(2))
    expected = plain.generate_until(requests, disable_tqdm=True)
    told.answered = {
        request.args[0]: text for request, text in zip(requests, expected, strict=True)
    }
    told.answered[requests[1].args[0]] = "something else<|end|>\n\n"
    assert told.generate_until(requests, disable_tqdm=True) == expected
    assert told.n_guessed > plain.n_guessed
    assert told.n_decoded >= plain.n_decoded > 0
