"""`PrefixLM`: lm-eval's `HFLM` with prefix sharing, which computes shared tokens only once.

Log-likelihoods agree with HFLM's within 5e-4 nats in float32. It saves three things: the beginning
that many contexts share (worked examples) runs once, the context of a question runs once for all of
its answers, and the LM head sees only positions that are scored. Documents and generation are
HFLM's own.
"""

import copy
import inspect
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache, LogitsProcessorList

from slimdown.data.chat_templates import RENDERING, ChatPrompt
from slimdown.evaluation.families import get_windows
from slimdown.evaluation.results import Answer
from slimdown.models.base_model import AskingRules
from slimdown.models.causal import get_inner_model, learns_prompt
from slimdown.utils.tested_versions import require_names
from slimdown.utils.time_limit import limit_time

# Fewer tokens than these are not worth a forward of their own.
SHORTEST_PREFIX = 32

Tokens = tuple[int, ...]


@dataclass
class _Row:
    """A context and all answers to it, which one row of a batch holds."""

    context: Tokens
    # By the tokens of an answer, the numbers of the requests that ask for it.
    answers: dict[Tokens, list[int]] = field(default_factory=dict)

    @property
    def answer_width(self) -> int:
        """Input tokens of all answers; the last token of an answer is only predicted."""
        return sum(len(answer) - 1 for answer in self.answers)


@dataclass(frozen=True)
class _Batch:
    """Rows as one forward reads them; `_lay_out` draws one."""

    ids: torch.Tensor  # [rows, n_context + n_answers]
    positions: torch.Tensor  # [rows, n_context + n_answers]
    segments: torch.Tensor  # [rows, n_context + n_answers]; 0: padding, 1: context, 2, 3: answers
    n_kept: int  # the last columns, of which logits are needed: 1 + n_answers
    # For each token of each answer: its row, the kept column that predicts it, and the token.
    scored: list[tuple[int, int, int]]
    # For each answer, in the order of `scored`: how many tokens it has, and the numbers of the
    # requests that ask for it.
    answers: list[tuple[int, list[int]]]


def _lay_out(rows: Sequence[_Row], n_prefix: int) -> _Batch:
    """Lay contexts and answers side by side, for one forward behind a cached prefix.

    In this example of a row, each letter is a token. The first `n_prefix` tokens are p q, the
    context is p q r s t, and the answers are a b c and d e. Another row is longer, hence the
    padding::

                   |<--- n_context ---->|<---- n_answers ---->|
        ids         pad  pad  r   s   t   a   b   d   pad  pad
        segments     0    0   1   1   1   2   2   3    0    0
        positions    0    0   2   3   4   5   6   5    0    0
        predicts                      a,d b   c   e
        kept column                   0   1   2   3    4    5

    A token sees the prefix, its context, and the earlier tokens of its own segment. The last token
    of the context predicts the first one of each answer. The last token of an answer is only
    predicted. No token sees padding, so it may lie between the cached prefix and a context. It is
    there because the contexts of all rows must end in one column, at which the kept ones begin.
    """
    n_context = max(len(row.context) for row in rows) - n_prefix
    n_answers = max(row.answer_width for row in rows)
    shape = len(rows), n_context + n_answers
    ids, positions, segments = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    batch = _Batch(ids, positions, segments, n_kept=1 + n_answers, scored=[], answers=[])
    first_kept = n_context - 1  # the column of each context's last token
    for r, row in enumerate(rows):
        context = row.context[n_prefix:]  # the part of it that is not cached
        context_columns = slice(n_context - len(context), n_context)
        ids[r, context_columns] = torch.tensor(context)
        segments[r, context_columns] = 1
        positions[r, context_columns] = torch.arange(n_prefix, len(row.context))
        begin = n_context  # the columns of an answer are begin:end
        for segment, (answer, requests) in enumerate(row.answers.items(), start=2):
            end = begin + len(answer) - 1  # its last token is no input
            ids[r, begin:end] = torch.tensor(answer)[:-1]
            segments[r, begin:end] = segment
            positions[r, begin:end] = len(row.context) + torch.arange(len(answer) - 1)
            # The context's last token predicts the answer's first one. Each token of the answer
            # predicts the next.
            predicting_columns = [first_kept, *range(begin, end)]
            for column, token in zip(predicting_columns, answer, strict=True):
                batch.scored.append((r, column - first_kept, token))
            batch.answers.append((len(answer), requests))
            begin = end
    return batch


class GeneratingLM(HFLM):  # type: ignore[misc]  # lm_eval is untyped
    """An `HFLM` that cuts off thinking and reports progress; arguments are those of `HFLM`.

    It differs from `HFLM` in two ways. `think_end_token` may be a special token; `HFLM` removes
    special tokens from a text before it looks for the end of thinking. And if the thinking never
    ended, the answer is empty; `HFLM` takes the thinking for the answer.
    """

    cache_hook: Any

    def __init__(self, *args: Any, rules: AskingRules | None = None, **settings: Any) -> None:
        """Wrap a model.

        Args:
            *args: Those of `HFLM`.
            rules: How the model is asked; None: as its tokenizer says.
            **settings: Those of `HFLM`.
        """
        # `HFLM` would answer by itself if it called this method by another name.
        require_names(HFLM, "lm-eval", "_model_generate")
        # Set first, because the constructor of `HFLM` calls `tok_encode`, which reads it.
        self._rules = rules or AskingRules()
        super().__init__(*args, **settings)
        self._keeps_special_tokens = False
        # Called with how many tokens each answer of a batch has, and how many it can have.
        self._on_token: Callable[[int, int], object] = lambda n_tokens, n_most: None
        # What was decoded last: its text, with the thinking, and its tokens.
        self._written: tuple[str, list[int]] = "", []
        self._n_most = 0  # how many tokens an answer of the current batch may have

    def set_template_args(self, variables: Mapping[str, Any]) -> None:
        """Set the variables of the chat template, for what is asked from now on."""
        self.chat_template_args = dict(variables)

    def set_batches(self, size: int, keeps_special_tokens: bool) -> None:
        """Set the size of batches from now on.

        Args:
            size: In requests.
            keeps_special_tokens: Whether answers keep special tokens, which begin a tool call.
        """
        self.batch_size_per_gpu = size  # where HFLM looks for it
        self._keeps_special_tokens = keeps_special_tokens

    def report_tokens(self, on_token: Callable[[int, int], object]) -> None:
        """Report each token that is generated from now on.

        Args:
            on_token: Called with how many tokens each answer of a batch has, and how many it can
                have.
        """
        self._on_token = on_token

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Answer]:
        """Generate an answer to each request.

        `HFLM` returns texts, but an `Answer` also has the thinking and how it ended. So this method
        reads the answers in the cache hook, which `HFLM` calls right after it has decoded a text.
        """
        # By request as text. Equal requests get as many answers as there are such requests.
        answers: dict[str, deque[Answer]] = defaultdict(deque)
        hook: Any = self.cache_hook

        def add_answer(kind: str, request: tuple[str, Any], text: str) -> None:
            prompt = request[0]  # the other part is the settings of generation
            answers[str(request)].append(self._read_answer(prompt, text))
            hook.add_partial(kind, request, text)

        self.cache_hook = SimpleNamespace(add_partial=add_answer)
        try:
            super().generate_until(requests, disable_tqdm)
        finally:
            self.cache_hook = hook
        return [answers[str(request.args)].popleft() for request in requests]

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> Any:
        """Score answers or windows of documents, without a progress bar.

        `HFLM` sets `override_bs`, the size of batches, only for windows of documents. These are
        read one at a time, because all of their logits are in memory, in 32 bits. For them, `HFLM`
        would draw a bar whatever `disable_tqdm` says.
        """
        score = super()._loglikelihood_tokens
        if not override_bs:
            return score(requests, disable_tqdm=True)
        # `HFLM` heeds `override_bs` only if it chooses the batch size itself.
        return [score([window], disable_tqdm=True)[0] for window in requests]

    def apply_chat_template(self, chat_history: Any, *args: Any, **settings: Any) -> ChatPrompt:
        """Render a prompt; a template that runs too long is an error."""
        with limit_time(task=RENDERING):
            text = super().apply_chat_template(chat_history, *args, **settings)
        return ChatPrompt(text, chat_history)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, *args: Any, **settings: Any
    ) -> list[int]:
        """Encode a text.

        `HFLM` puts no BOS before a text that begins with BOS. If the rules say that the model gets
        both, this method has it put there.
        """
        if self._rules.doubles_bos and add_special_tokens is None:
            add_special_tokens = True
        return list(super().tok_encode(string, add_special_tokens, *args, **settings))

    def tok_batch_encode(self, strings: list[str], *args: Any, **settings: Any) -> Any:
        """Encode the prompts of a batch, with BOS twice if the rules say so, see `tok_encode`."""
        if self._rules.doubles_bos:  # `HFLM` adds none if the first prompt begins with BOS
            strings = [f"{self.tokenizer.bos_token}{text}" for text in strings]
        return super().tok_batch_encode(strings, *args, **settings)

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """Decode tokens; the end of thinking stays in the text, special token or not."""
        skip_special_tokens = skip_special_tokens and not self._keeps_special_tokens
        text, end = str(super().tok_decode(tokens, skip_special_tokens)), self.think_end_token
        if skip_special_tokens and end and end not in text:
            # If the end of thinking is a special token, it was dropped from the text: put it back.
            end_tokens = self.tok_encode(end, add_special_tokens=False)
            if len(end_tokens) == 1 and end_tokens[0] in tokens:
                n_behind = tokens[::-1].index(end_tokens[0])  # tokens behind the last such token
                answer_start = len(tokens) - n_behind
                thinking = super().tok_decode(tokens[: answer_start - 1])
                text = f"{thinking}{end}{super().tok_decode(tokens[answer_start:])}"
        self._written = text, tokens
        return text

    def _read_answer(self, prompt: str, text: str) -> Answer:
        """Split what the model wrote last into its thinking and its answer.

        Args:
            prompt: The prompt, because some templates begin the thinking in it.
            text: The answer as `HFLM` cut it: without thinking, and up to the first stop text.

        Returns:
            The answer, which is empty if the thinking never ended. It ran out of tokens if the
            limit of tokens ended the text, unless a stop text ended the answer before.
        """
        written, tokens = self._written
        # Whether the text ended because it has as many tokens as it may have.
        is_full = len(tokens) == self._n_most and tokens[-1] not in self._list_ends()
        end = self.think_end_token
        begin = end.replace("/", "", 1) if end and "/" in end else ""  # <think> for </think>
        never_ended = False
        if end and end not in written:  # the model did not think, or it never stopped thinking
            # Thinking may begin in the prompt, behind that of earlier turns, or in what was
            # written. If it is not known how thinking begins, a full text is taken for thinking.
            latest = prompt.rpartition(end)[2] + written
            never_ended = begin in latest if begin else is_full
        thinking, _, uncut_answer = written.rpartition(end) if end else ("", "", written)
        is_uncut = text.lstrip() == uncut_answer.lstrip()  # `HFLM` found no stop text in it
        if never_ended:  # all of it is thinking, which no stop text ends
            text, thinking, is_uncut = "", written, True
        thinking = thinking.strip().removeprefix(begin).strip()
        return Answer(text, thinking, never_ended, ran_out=is_full and is_uncut)

    def _list_ends(self) -> set[int | None]:
        """List the tokens that end a generated text.

        Padding is among them: it follows an answer that ended earlier than others of its batch.
        """
        ends = {self.tokenizer.pad_token_id, *self._rules.stops}
        if not self._rules.stops_alone:
            own = self.model.generation_config.eos_token_id
            ends |= {self.eot_token_id, *(own if isinstance(own, list) else [own])}
        return ends

    def _model_generate(self, context: Any, max_length: int, stop: Any, **settings: Any) -> Any:
        """Generate tokens, which end as the model's rules say, and report each of them.

        Args:
            context: The tokens of the prompts, [rows, width].
            max_length: The most tokens of a prompt and its answer.
            stop: The texts that end an answer; the text of EOS is among them.
            **settings: Those of `generate` in transformers.

        Returns:
            The tokens of prompts and answers, [rows, at most `max_length`].
        """
        self._n_most = max_length - context.shape[1]

        def report_progress(ids: Any, scores: Any) -> Any:  # called before each token
            self._on_token(ids.shape[1] - context.shape[1], self._n_most)
            return scores

        settings["logits_processor"] = LogitsProcessorList([report_progress])
        if self.think_end_token:
            # Thinking may contain a stop text, so that only EOS may end what is written. `HFLM`
            # cuts the answer at its first stop text afterwards.
            stop = [self.tok_decode(self.eot_token_id, skip_special_tokens=False)]
        if self._rules.stops_alone:
            # Only the tokens in the rules' `stops` end an answer. The texts of special tokens may
            # not end it, not even that of EOS.
            added = self.tokenizer.added_tokens_decoder.values()
            special = {str(token) for token in added if token.special}
            stop = [text for text in stop if text not in special]
        if self._rules.stops:
            settings["eos_token_id"] = list(self._rules.stops)
        elif self._rules.stops_alone:  # no token ends an answer: this is an id that no token has
            settings["eos_token_id"] = [self.model.get_input_embeddings().num_embeddings]
        settings |= self._rules.generation
        return super()._model_generate(context, max_length, stop, **settings)


class PrefixLM(GeneratingLM):
    """An `HFLM` for the models of `families.py`; arguments are those of `HFLM`.

    `batch_size` is the number of questions in a forward, each with all of its answers.
    """

    # The last shared prefix, and the keys and values that were computed for it.
    _prefix: tuple[Tokens, Any] = ((), None)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Return each answer's log-probability, and whether greedy decoding gives it.

        Args:
            requests: Of each request: the texts, which are not used, the tokens of the context, and
                those of the answer.
            disable_tqdm: Not used: no bar is drawn.
            override_bs: What `HFLM` sets for windows of documents, which share nothing.
        """
        if override_bs:
            return list(super()._loglikelihood_tokens(requests, override_bs=override_bs))
        rows: dict[Tokens, _Row] = {}  # by context
        for i, (_texts, full_context, answer) in enumerate(requests):
            assert 0 < len(answer) <= self.max_length  # as HFLM has it
            # HFLM keeps the last max_length + 1 tokens, of which the very last is only predicted.
            context = tuple(full_context[-(self.max_length + 1 - len(answer)) :])
            row = rows.setdefault(context, _Row(context))
            row.answers.setdefault(tuple(answer), []).append(i)
        scores: dict[int, tuple[float, bool]] = {}
        with torch.no_grad():
            for start, group in _group_by_start(rows.values()).items():
                contexts = [row.context for row in group]
                # All tokens that the contexts share, not just the first ones that grouped them. The
                # group of () holds the contexts that share nothing.
                prefix = tuple(os.path.commonprefix(contexts)) if start else ()  # noqa: RUF071
                # At least one token of each context stays, which predicts the answers.
                prefix = prefix[: min(map(len, contexts)) - 1]
                # Rows of one batch get a like width, so that little of it is padding.
                group.sort(key=lambda row: (-row.answer_width, -len(row.context), row.context))
                size = int(self.batch_size)
                for begin in range(0, len(group), size):
                    scores |= self._score(group[begin : begin + size], prefix)
        return [scores[i] for i in range(len(requests))]

    def _score(self, rows: Sequence[_Row], prefix: Tokens) -> dict[int, tuple[float, bool]]:
        """Score one batch.

        Args:
            rows: The contexts of the batch and the answers to them.
            prefix: The tokens with which all of these contexts begin; empty: none are shared.

        Returns:
            By the number of a request: the answer's log-probability, and whether greedy decoding
            gives it.
        """
        batch = _lay_out(rows, len(prefix))
        options: dict[str, Any] = {"use_cache": False}
        if prefix:
            cache = copy.deepcopy(self._compute_prefix(prefix))  # the forward adds tokens to it
            cache.batch_repeat_interleave(len(rows))  # a copy of the prefix for each row
            options = {"use_cache": True, name_cache_argument(self.model): cache}
        logits = self.model(  # [rows, n_kept, vocabulary]
            input_ids=batch.ids.to(self.device),
            position_ids=batch.positions.to(self.device),
            attention_mask=self._build_masks(batch.positions, batch.segments, len(prefix)),
            logits_to_keep=batch.n_kept,
            **options,
        ).logits
        # Three vectors, with a value for each token that is scored: those of the first answer of
        # the batch, those of the second, and so on. Columns count from the first kept position.
        row, column, token = torch.tensor(batch.scored, device=logits.device).T
        normalizer = torch.logsumexp(logits.float(), dim=-1)[row, column]
        # Apple's MPS has no 64 bits.
        logprobs = (logits[row, column, token].float() - normalizer).cpu().double()
        greedy = (logits.argmax(dim=-1)[row, column] == token).cpu()
        sizes = [n_tokens for n_tokens, _ in batch.answers]
        by_answer = zip(batch.answers, logprobs.split(sizes), greedy.split(sizes), strict=True)
        scores: dict[int, tuple[float, bool]] = {}
        for (_n_tokens, requests), answer_logprobs, is_greedy in by_answer:
            score = float(answer_logprobs.sum()), bool(is_greedy.all())
            scores |= dict.fromkeys(requests, score)
        return scores

    def _compute_prefix(self, prefix: Tokens) -> Any:
        """Return the keys and values of a shared prefix as a cache with one row.

        They are kept, because the next batch often has the same prefix.
        """
        if self._prefix[0] != prefix:
            # The cache gets no config, or layers would drop tokens that lie outside their window.
            # The masks hide these tokens.
            cache = DynamicCache()
            options = {name_cache_argument(self.model): cache, "use_cache": True}
            ids = torch.tensor([prefix], device=self.device)
            self.model(input_ids=ids, logits_to_keep=1, **options)
            self._prefix = prefix, cache
        return self._prefix[1]

    def _build_masks(
        self, positions: torch.Tensor, segments: torch.Tensor, n_prefix: int
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Build the attention mask: which tokens each token of a batch sees.

        Args:
            positions: As in `_Batch`, [rows, width].
            segments: As in `_Batch`, [rows, width]. Segment 1 is the context, which every answer
                sees.
            n_prefix: The number of tokens in the cached prefix, which all tokens see.

        Returns:
            The mask, [rows, 1, width, n_prefix + width]. If a model has several kinds of attention
            layers, such as those with a sliding window, their masks by kind.
        """
        n_rows, width = positions.shape
        is_own = segments[:, None, :] == segments[:, :, None]
        is_visible = (segments[:, None, :] == 1) | is_own
        allowed = torch.ones(width, width, dtype=torch.bool).tril() & is_visible  # no later token
        allowed = torch.nn.functional.pad(allowed, (n_prefix, 0), value=True)
        seen_positions = torch.cat([torch.arange(n_prefix).expand(n_rows, -1), positions], dim=1)
        distance = positions[:, :, None] - seen_positions[:, None, :]
        masks: dict[str, torch.Tensor] = {}
        for kind, window in get_windows(self.model).items():
            mask = (allowed if window is None else allowed & (distance < window))[:, None]
            if self.model.config._attn_implementation == "eager":  # adds the mask to the scores
                lowest = torch.finfo(self.model.dtype).min
                mask = torch.zeros(mask.shape, dtype=self.model.dtype).masked_fill_(~mask, lowest)
            masks[kind] = mask.to(self.device)
        return masks if len(masks) > 1 else next(iter(masks.values()))


class VirtualTokensLM(GeneratingLM):
    """An `HFLM` for trained prompts and prefixes, which PEFT puts before a text as virtual tokens.

    Arguments are those of `HFLM`. PEFT's own `generate` misplaces virtual tokens (peft 0.21 with
    transformers 5.24). So this class passes them as a filled cache:
    https://github.com/huggingface/transformers/pull/42508
    """

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Answer]:
        """Generate an answer to each request, one at a time if padding would change it.

        In a batch, padding stands between the virtual tokens and a shorter prompt. A layer that
        looks back over a fixed number of columns counts it, and so sees fewer tokens.
        """
        generate = super().generate_until
        if not learns_prompt(self.model) or _sees_everything(get_inner_model(self.model)):
            return list(generate(requests, disable_tqdm))
        return [generate([request], disable_tqdm=True)[0] for request in requests]

    def _model_generate(self, context: Any, max_length: int, stop: Any, **settings: Any) -> Any:
        """Generate behind the virtual tokens, which the inner model gets as a filled cache.

        Arguments and result are those of `GeneratingLM`; no virtual tokens are in the result.
        """
        wrapped = self.model
        if not learns_prompt(wrapped) or wrapped._adapters_disabled:
            return super()._model_generate(context, max_length, stop, **settings)
        inner, name = get_inner_model(wrapped), name_cache_argument(wrapped)
        n_virtual = wrapped.active_peft_config.num_virtual_tokens
        learned = wrapped.get_prompt(batch_size=len(context))
        cache = learned  # a trained prefix is a cache with keys and values
        if isinstance(learned, torch.Tensor):  # a trained prompt has embeddings
            cache = DynamicCache()
            embeddings = learned.to(inner.get_input_embeddings().weight.dtype)
            inner.base_model(inputs_embeds=embeddings, use_cache=True, **{name: cache})  # fills it
        mask = torch.nn.functional.pad(settings["attention_mask"], (n_virtual, 0), value=1)
        settings |= {"attention_mask": mask, name: cache}
        # transformers skips as many tokens as the cache holds, so these zeros are never read.
        padded = torch.nn.functional.pad(context, (n_virtual, 0), value=0)
        try:
            self._model = inner  # `HFLM` generates with this attribute
            tokens = super()._model_generate(padded, max_length + n_virtual, stop, **settings)
        finally:
            self._model = wrapped
        return tokens[:, n_virtual:]


def _group_by_start(rows: Iterable[_Row]) -> dict[Tokens, list[_Row]]:
    """Group rows by the first `SHORTEST_PREFIX` tokens of their contexts.

    Returns:
        By these tokens, the rows. The key () holds the rows that share no prefix: their context is
        too short, or no other context begins with the same tokens.
    """
    groups: dict[Tokens, list[_Row]] = {}
    for row in rows:
        start = row.context[:SHORTEST_PREFIX] if len(row.context) > SHORTEST_PREFIX else ()
        groups.setdefault(start, []).append(row)
    lone_starts = [start for start, group in groups.items() if start and len(group) == 1]
    for start in lone_starts:
        groups.setdefault((), []).extend(groups.pop(start))
    return groups


def _sees_everything(model: Any) -> bool:
    """Whether every layer sees all earlier tokens: no window, no chunk, no recurrent state."""
    is_gpt_neo = hasattr(model.config, "attention_types")  # it has its own name for windows
    return set(get_windows(model)) == {"full_attention"} and not is_gpt_neo


def name_cache_argument(model: Any) -> str:
    """Name the argument of a model's forward that takes a cache.

    transformers 5.24 renamed `past_key_values` to `cache`. Delete at a floor of 5.40.
    """
    forward = inspect.signature(inspect.unwrap(type(get_inner_model(model)).forward))
    return "cache" if "cache" in forward.parameters else "past_key_values"


@contextmanager
def without_tying(model: torch.nn.Module) -> Iterator[None]:
    """Turn `tie_weights` off inside, because HFLM's constructor calls it (lm_eval 0.4.13).

    Loaded weights are tied already, and an adapter's own LM head must stay its own.
    https://github.com/EleutherAI/lm-evaluation-harness/blob/main/lm_eval/models/huggingface.py
    """
    vars(model)["tie_weights"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(model)["tie_weights"]
