"""The language-model class the harness drives: the answers of `HFLM`, with shared work done once.

Log-likelihoods: a preamble common to many contexts runs once, a question's context runs once for
all its answers, and only tokens that are scored pass through the LM head. Generation: finished
rows leave the batch and new ones take their place. What sharing cannot serve takes HFLM's own
path; `scoring` says which was taken and why.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from transformers import PreTrainedTokenizerBase

from slimdown.evaluation.engine.decoding import GreedyDecoder, StopStrings
from slimdown.evaluation.engine.forward import (
    measuring,
    packed_logits,
    preamble_cache,
    token_scores,
    virtual_tokens,
)
from slimdown.evaluation.engine.packing import (
    ROW_TOKENS,
    Question,
    Tokens,
    group_by_preamble,
    longest_first,
    pack,
    take_rows,
    token_budget,
)
from slimdown.evaluation.engine.progress import Progress, ProgressBars
from slimdown.evaluation.engine.shares import batches_shared_out, merged, own_questions
from slimdown.evaluation.engine.sharing import Scoring, asks_greedily, choose_scoring
from slimdown.evaluation.parts import Parts
from slimdown.models.memory import is_out_of_memory, release_memory
from slimdown.models.products import wide_products
from slimdown.utils import distributed as processes
from slimdown.utils.errors import SlimdownError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]


@contextmanager
def _tied_as_it_is(model: torch.nn.Module) -> Iterator[None]:
    """HFLM ties a model's weights once more (lm_eval 0.4.13): in vain, or in the way of an adapter's own head."""
    vars(model)["tie_weights"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(model)["tie_weights"]


class SharedWorkLM(HFLM):  # type: ignore[misc]  # lm_eval is untyped
    """An lm-eval model with HFLM's answers from a loaded causal LM, PEFT-wrapped and 4-bit alike.

    token_budget: tokens of one forward, padding included; None takes a size that suits the device
    and holds the longest question. It is halved when memory runs out.
    scoring: how answers come about; None decides for this model by itself, as if it were asked the
    longest that its window holds.
    progress: called as progress(benchmark, questions done, questions in all); None shows bars.
    softmax_dtype: float32 unless given (HFLM: the dtype of the logits).
    Other arguments are HFLM's; `batch_size` serves only what takes HFLM's own path.

    The model and the tokenizer are handed back as they came: modes, caching, padding, gradients.
    """

    def __init__(
        self,
        pretrained: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        token_budget: int | None = None,
        progress: Progress | None = None,
        scoring: Scoring | None = None,
        **hflm: Any,
    ) -> None:
        if token_budget is not None and token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, not {token_budget}")
        with measuring(pretrained), _tied_as_it_is(pretrained):
            # HFLM may add a padding token: to a copy, so that training keeps its own tokenizer.
            super().__init__(pretrained=pretrained, tokenizer=copy.deepcopy(tokenizer), **hflm)
        self._encoded: dict[str, list[int]] = {}
        self._asked_budget = token_budget
        self.token_budget = token_budget  # what is left of it, once memory has run out
        self.progress = progress
        self._asked_scoring = scoring
        self._bars: ProgressBars | None = None
        self.parts = Parts()  # of the benchmark that is asked
        self.answered: dict[
            str, str
        ] = {}  # by prompt, what another model answered: a guess at what this one will
        self.n_decoded = self.n_guessed = 0  # tokens, and those of them that were guessed

    @cached_property
    def scoring(self) -> Scoring:
        """How answers come about."""
        if self._asked_scoring is not None:
            return self._asked_scoring
        return self.choose_scoring(lambda: self.max_length)

    def choose_scoring(
        self, longest: Callable[[], int], tuned: Any = None, dequantizes: bool = False
    ) -> Scoring:
        """How to score this model; arguments as those of `sharing.choose_scoring`."""
        if self.backend != "causal":
            return Scoring(shares=False, dequantizes=dequantizes, reason="encoder-decoder")
        with self._measuring():
            return choose_scoring(self.model, longest, tuned, dequantizes)

    @cached_property
    def _virtual(self) -> Tokens:
        return virtual_tokens(self.model)

    def _check_room(self, n_tokens: int) -> None:
        """Refuse a row beyond the window, which a window of `scoring` would have cut for base and tuned alike."""
        if (
            self._virtual
            and self.scoring.window is None
            and n_tokens + len(self._virtual) > self.max_length
        ):
            raise ValueError(
                f"a question of {n_tokens} tokens and {len(self._virtual)} virtual ones before it exceed the model's "
                f"window of {self.max_length}: ask for less, or measure the base and this with a shorter max_length"
            )

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        dtype = self.mixed_precision_dtype
        with (
            measuring(self.model),
            wide_products(),
            torch.autocast(self.device.type, dtype, dtype is not None),
        ):
            yield

    # Log-likelihoods

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding gives the answer) of each request."""
        self._encode_ahead(requests)
        try:
            with self._showing(requests, disable_tqdm):
                scores: list[tuple[float, bool]] = super().loglikelihood(requests, True)
                return scores
        finally:
            self._encoded.clear()

    def _encode_ahead(self, requests: Sequence[Instance]) -> None:
        """Tokenize all texts of `requests` at once: each text once, on every processor."""
        texts: dict[str, None] = {}
        for request in requests:
            context, answer = request.args
            texts |= {context.rstrip(): None, context + answer: None} if context else {}
        begins_anew = self.tokenizer.decode(self.prefix_token_id)  # HFLM then adds no second one
        plain = [text for text in texts if text and not text.startswith(begins_anew)]
        if plain:
            special = (
                {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
            )
            encoded = self.tokenizer(plain, return_attention_mask=False, **special)["input_ids"]
            self._encoded = dict(zip(plain, encoded, strict=True))

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """The tokens of `string`, as HFLM encodes it."""
        if add_special_tokens is None and not kwargs and string in self._encoded:
            return list(self._encoded[string])
        tokens: list[int] = super().tok_encode(string, add_special_tokens, **kwargs)
        return tokens

    def _loglikelihood_tokens(
        self,
        requests: Sequence[TokenRequest],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        requests = list(requests)
        if not self.scoring.shares:
            with measuring(self.model), batches_shared_out():
                scores: list[tuple[float, bool]] = super()._loglikelihood_tokens(
                    requests, disable_tqdm=disable_tqdm, override_bs=override_bs
                )
            self._done(range(len(requests)))
            return scores
        questions = self._questions(requests)
        groups = group_by_preamble(questions, len(self._virtual))
        budget = self._budget_for(
            max(
                [len(preamble) for preamble, _ in groups]
                + [questions[c].n_tokens(len(pre)) for pre, group in groups for c in group]
            )
            if groups
            else 0
        )
        asked = [
            (len(preamble), [questions[context] for context in group]) for preamble, group in groups
        ]
        mine: dict[int, tuple[float, bool]] = {}
        with self._measuring():
            own = own_questions(asked, budget, self._least_width)
            for (preamble, _), of_group in zip(groups, own, strict=True):
                scored, budget = self._score_group(of_group, preamble, budget)
                mine |= scored
        answers = merged(processes.gathered(mine))
        self._done(answers.keys() - mine.keys())
        for i, (text, _, _) in enumerate(requests):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answers[i])
        return [answers[i] for i in range(len(requests))]

    def _questions(self, requests: Sequence[TokenRequest]) -> dict[Tokens, Question]:
        """The distinct contexts, each with its answers; what exceeds the window loses its start."""
        questions: dict[Tokens, Question] = {}
        for i, (_, context, answer) in enumerate(requests):
            if not context or not answer:
                raise ValueError(f"request {i} has an empty {'answer' if context else 'context'}")
            if len(answer) > self.max_length:
                raise ValueError(
                    f"an answer of {len(answer)} tokens exceeds the model's window of "
                    f"{self.max_length}: choose a model with a longer one or another benchmark"
                )
            # HFLM keeps the last max_length + 1 tokens, of which the very last is only predicted.
            self._check_room(min(len(context), self.max_length + 1 - len(answer)) + len(answer) - 1)
            kept = (*self._virtual, *context[-(self.max_length + 1 - len(answer)) :])
            question = questions.setdefault(kept, Question(kept))
            question.answers.setdefault(tuple(answer), []).append(i)
        return questions

    def _budget_for(self, longest: int) -> int:
        if self._asked_budget is not None and self._asked_budget < longest:
            raise ValueError(
                f"token_budget={self._asked_budget} cannot hold one question of {longest} tokens: "
                f"raise it to {longest} or more, or leave it unset"
            )
        own = (
            max(token_budget(self.device.type), longest)
            if self.token_budget is None
            else self.token_budget
        )
        return min(processes.gathered(own))  # memory may have run out for one of them

    @property
    def _least_width(self) -> int:
        """Of rows behind a preamble."""
        return 0 if self.scoring.merges else ROW_TOKENS

    def _score_group(
        self, questions: list[Question], preamble: Tokens, budget: int
    ) -> tuple[dict[int, tuple[float, bool]], int]:
        """The scores of questions that share a preamble, and the token budget: halved where memory ran out."""
        waiting = longest_first(questions, len(preamble))
        answers: dict[int, tuple[float, bool]] = {}
        cache = None
        while waiting:
            rows, rest = take_rows(
                waiting, len(preamble), budget, self._least_width if preamble else 0
            )
            asked = [
                i
                for row in rows
                for question in row
                for indices in question.answers.values()
                for i in indices
            ]
            if kept := self.parts.take(asked):
                waiting = rest
                answers |= {
                    i: (value, greedy) for i, (value, greedy) in zip(asked, kept, strict=True)
                }
                self._done(asked)
                continue
            try:
                if preamble and cache is None:
                    cache = preamble_cache(self.model, preamble, self.device, budget)
                scored = self._score(rows, len(preamble), cache)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if (cache is None and preamble) or sum(map(len, rows)) > 1:
                    if budget == 1:
                        raise
                    budget //= 2
                    self.token_budget = budget
                elif len(rows[0][0].answers) > 1:
                    waiting = [*rows[0][0].halves(), *rest]
                else:
                    raise
            else:
                waiting = rest
                answers |= scored
                self.parts.put(asked, [scored[i] for i in asked])
                self._done(scored)
                continue
            release_memory()
        return answers, budget

    def _score(
        self, rows: Sequence[Sequence[Question]], n_preamble: int, cache: Any
    ) -> dict[int, tuple[float, bool]]:
        """The scores of the questions in `rows`, by request index; `cache` holds the preamble."""
        packed = pack(rows, n_preamble)
        merging = cache is not None and self.scoring.merges
        logits = packed_logits(self.model, packed, cache, merging)
        logprobs, greedy = token_scores(logits, packed.slot, packed.target, self.softmax_dtype)
        n = len(packed.requests)
        total = torch.zeros(n, dtype=torch.float64).index_add_(0, packed.answer, logprobs.double())
        missed = torch.zeros(n, dtype=torch.long).index_add_(0, packed.answer, (~greedy).long())
        return {
            i: (value, miss == 0)
            for asked_by, value, miss in zip(
                packed.requests, total.tolist(), missed.tolist(), strict=True
            )
            for i in asked_by
        }

    # Generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text each request decodes to, up to its first stop string."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        texts: dict[int, str] = {}
        with self._showing(requests, disable_tqdm):
            for members in groups.values():
                kwargs = normalize_gen_kwargs(requests[members[0]].args[1], self.max_gen_toks)
                if self.scoring.decodes and self.think_end_token is None and asks_greedily(kwargs):
                    self._generate(requests, members, kwargs, texts)
                    continue
                if (
                    self._virtual and self.scoring.shares
                ):  # all by stock is refused before anything is asked
                    raise SlimdownError(
                        "this task's answers can only be generated by PEFT's own generate, which misplaces the virtual "
                        "tokens of a trained prompt or prefix (peft 0.21 with transformers 5.24); leave the task out"
                    )
                with measuring(self.model), batches_shared_out():
                    stock = super().generate_until([requests[i] for i in members], True)
                texts |= zip(members, stock, strict=True)
                self._done(members)
        return [texts[i] for i in range(len(requests))]

    def max_new_tokens(self, kwargs: dict[str, Any]) -> int:
        """How many tokens a request may decode: `generate` heeds the model's own limit above the harness's."""
        limit = self.model.generation_config.max_new_tokens
        return int(
            normalize_gen_kwargs(kwargs, self.max_gen_toks)["max_gen_toks"]
            if limit is None
            else limit
        )

    def _generate(
        self,
        requests: Sequence[Instance],
        members: Sequence[int],
        kwargs: dict[str, Any],
        texts: dict[int, str],
    ) -> None:
        stops = handle_stop_sequences(
            kwargs["until"], eos=self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        )
        if (max_new_tokens := self.max_new_tokens(kwargs)) < 1:
            raise ValueError(
                f"max_gen_toks={max_new_tokens}: a text to generate has at least one token"
            )
        if (n_context := self.max_length - kwargs["max_gen_toks"]) < 1:
            raise ValueError(
                f"max_gen_toks={kwargs['max_gen_toks']} leaves no room for a prompt in the model's window "
                f"of {self.max_length} tokens: lower it or choose a model with a longer window"
            )
        prompts = []
        for i in members:
            ids, _ = self.tok_batch_encode([requests[i].args[0]], truncation=self.truncation)
            prompts.append((*self._virtual, *ids[0].tolist()[-n_context:]))
            if len(prompts[-1]) == len(self._virtual):
                raise ValueError(
                    f"request {i} has an empty prompt, and the tokenizer begins none with a token of its own: there is "
                    "nothing to go on from; ask with worked examples or a description"
                )
            self._check_room(len(prompts[-1]) - len(self._virtual) + max_new_tokens)
        eos = self.model.generation_config.eos_token_id

        def finished(index: int, tokens: list[int]) -> None:
            i = members[mine[index]]
            texts[i] = postprocess_generated_text(self.tok_decode(tokens), stops, None)
            self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
            self._done([i])

        decoder = GreedyDecoder(
            self.model,
            token_budget=self._budget_for(max(map(len, prompts))),
            max_new_tokens=max_new_tokens,
            eos_token_ids=eos if isinstance(eos, list) else [eos],
            is_finished=StopStrings(self.tokenizer, stops),
            finished=finished,
            merging=self.scoring.merges,
            parts=self.parts,
        )
        before = decoder.token_budget
        in_order = sorted(
            range(len(prompts)), key=prompts.__getitem__
        )  # those that begin alike are neighbours
        mine = [
            in_order[k]
            for k in processes.share([len(prompts[i]) + max_new_tokens for i in in_order])
        ]
        with self._measuring():
            texts_of_another = [self.answered.get(requests[members[i]].args[0], "") for i in mine]
            known = [
                self.tok_encode(text, add_special_tokens=False) if text else []
                for text in texts_of_another
            ]
            if mine and decoder.run([prompts[i] for i in mine], known) < before:
                self.token_budget = decoder.token_budget
        self.n_decoded, self.n_guessed = (
            self.n_decoded + decoder.n_decoded,
            self.n_guessed + decoder.n_guessed,
        )
        texts |= merged(processes.gathered({members[i]: texts[members[i]] for i in mine}))
        self._done(members[i] for i in set(range(len(prompts))) - set(mine))

    # Progress

    @contextmanager
    def _showing(self, requests: Sequence[Instance], disable_tqdm: bool) -> Iterator[None]:
        self._bars = ProgressBars(requests, self.progress, disable_tqdm or self.rank != 0)
        try:
            yield
        finally:
            self._bars.close()
            self._bars = None

    def _done(self, requests: Any) -> None:
        if self._bars is not None:
            self._bars.done(requests)
