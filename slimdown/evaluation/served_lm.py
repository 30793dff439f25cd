"""Asks a server in the place of a model, through lm-eval's clients of OpenAI's protocol."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from types import SimpleNamespace
from typing import Any

from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.models.utils import normalize_gen_kwargs

from slimdown.evaluation.prefix_lm import VirtualTokensLM
from slimdown.evaluation.results import Answer
from slimdown.models.server import Server
from slimdown.utils.errors import ModelError

_TRIES = 8  # of a request; lm-eval waits 36 seconds between them in all
_PASSING = (408, 425, 429)  # of the statuses below 500, those that may pass
_PROBE = "The capital of France is Paris."  # to try whether a server scores a prompt
_ADVICE = "The answers so far are kept: repeat the command when the server answers"


class _FinalError(BaseException):
    """Carries an error through lm-eval's retries, which repeat a request after any `Exception`.

    `ServedLM._use_clients` takes the error out again.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Client:
    """A mixin for lm-eval's clients: a request that will fail again is not repeated.

    lm-eval 0.4.13 repeats every request that fails, even if the server refuses it or sends nothing
    until the timeout. lm-eval calls `model_call` for one request at a time, and `amodel_call` for
    concurrent ones.
    """

    def model_call(self, *args: Any, **settings: Any) -> Any:
        try:
            return super().model_call(*args, **settings)  # type: ignore[misc]
        except Exception as error:
            _end_final(error)
            raise

    async def amodel_call(self, *args: Any, **settings: Any) -> Any:
        try:
            return await super().amodel_call(*args, **settings)  # type: ignore[misc]
        except Exception as error:
            _end_final(error)
            raise


def _end_final(error: Exception) -> None:
    """Raise `_FinalError` if a repeated request would fail with the same error."""
    import requests

    # aiohttp's errors have a `status`, those of `requests` a response. An error without either,
    # such as a broken connection, may pass like a status of 500.
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None) or 500
    is_silent = isinstance(error, requests.ReadTimeout | TimeoutError)
    if is_silent or (status < 500 and status not in _PASSING):
        raise _FinalError(error)


class _CountedAnswer(Answer):
    """An answer with the number of its tokens, if the server tells it."""

    n_tokens: int | None = None  # None: the server did not tell it


class _ChatClient(_Client, LocalChatCompletion):  # type: ignore[misc]  # lm_eval is untyped
    """lm-eval's client of `/v1/chat/completions`, whose answers are `Answer`."""

    def __init__(self, think_end_token: str | None, **settings: Any) -> None:
        super().__init__(tokenizer_backend=None, tokenized_requests=False, **settings)
        self.think_end_token = think_end_token

    def _create_payload(self, messages: Any, **settings: Any) -> Any:
        """Write the body of a request; `messages` is what `ServedLM._write` put together."""
        payload: dict[str, Any] = super()._create_payload(messages["messages"], **settings)
        return payload | messages["more"]

    def parse_generations(self, outputs: Any, **settings: Any) -> list[_CountedAnswer]:
        """Read the answer and the thinking of a server's response, as a list of one answer."""
        choice = outputs["choices"][0]
        message = choice["message"]
        ran_out = choice.get("finish_reason") == "length"
        text = str(message.get("content") or "")
        # Servers have two names for the thinking that they took out of the answer.
        thinking = str(message.get("reasoning_content") or message.get("reasoning") or "")
        if end := self.think_end_token:
            begin = end.replace("/", "", 1)  # <think> for </think>
            if end in text:  # the server has left the thinking in the answer
                thinking, _, text = text.rpartition(end)
            elif text.lstrip().startswith(begin):  # it was cut while it thought
                thinking, text = text, ""
        never_ended = ran_out and bool(thinking) and not text.strip()
        text = text.lstrip() if thinking else text  # as `HFLM` does behind thinking
        answer = _CountedAnswer(text, thinking, never_ended, ran_out)
        answer.n_tokens = (outputs.get("usage") or {}).get("completion_tokens")
        return [answer]


class _PromptClient(_Client, LocalCompletionsAPI):  # type: ignore[misc]  # lm_eval is untyped
    """lm-eval's client of `/v1/completions`, for the log-probabilities of a prompt's tokens."""

    def __init__(self, tokenizer: Any, **settings: Any) -> None:
        super().__init__(tokenizer_backend=None, **settings)
        self.tokenizer, self.tokenized_requests = tokenizer, True


class ServedLM(VirtualTokensLM):
    """Encodes prompts as the base model's `HFLM` does, and has a server answer them.

    Attributes:
        server: The server.
    """

    def __init__(self, *args: Any, server: Server, **settings: Any) -> None:
        """Take the base model without its weights, and the server that answers.

        Args:
            *args: Those of `HFLM`.
            server: Who answers.
            **settings: Those of `HFLM`.
        """
        super().__init__(*args, **settings)
        self.server = server
        options = {
            "model": server.model,
            "num_concurrent": server.settings.concurrency,
            "timeout": server.settings.timeout,
            "header": server.headers,
            "max_retries": _TRIES,
            # lm-eval's clients keep one token free.
            "max_length": min(self.max_length, server.n_context or self.max_length) + 1,
        }
        chat_url = f"{server.address}/chat/completions"
        prompts_url = f"{server.address}/completions"
        self._chat = _ChatClient(self.think_end_token, base_url=chat_url, **options)
        self._prompts = _PromptClient(self.tokenizer, base_url=prompts_url, **options)
        # How many answers there were, how many were empty, and how many were cut because the
        # server's context was full.
        self._n_answered = self._n_empty = self._n_cut = 0

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Answer]:
        """Have the server answer the messages that the prompts were made of."""
        written_requests = [self._write(request) for request in requests]
        self._chat.set_cache_hook(self.cache_hook)
        with self._use_clients():
            answers = self._chat.generate_until(written_requests)
        pairs = zip(answers, requests, strict=True)
        return [self._read(answer, request) for answer, request in pairs]

    def _write(self, request: Any) -> Any:
        """Write a request as the client takes it: messages, stops and the most tokens.

        Args:
            request: The harness's request, whose prompt is a `ChatPrompt`.
        """
        settings = normalize_gen_kwargs(request.args[1], self.max_gen_toks)
        # Variables that the template reads, such as enable_thinking; the server has its own.
        variables = {
            name: value
            for name, value in self.chat_template_args.items()
            if name != "chat_template" and name in str(self.tokenizer.chat_template)
        }
        more = {"chat_template_kwargs": variables} if variables else {}  # what the body also has
        content = {"messages": request.args[0].messages, "more": more}
        stops = [] if self.think_end_token else settings["until"]  # thinking may hold such a text
        limits = {"until": stops, "max_gen_toks": settings["max_gen_toks"], "temperature": 0}
        return SimpleNamespace(args=(JsonChatStr(json.dumps(content)), limits))

    def _read(self, answer: _CountedAnswer, request: Any) -> Answer:
        """Cut an answer at its stop texts, and count whether it is empty or cut by the server.

        Args:
            answer: As the client read it.
            request: The harness's request that it answers.
        """
        settings = normalize_gen_kwargs(request.args[1], self.max_gen_toks)
        text = str(answer)
        for stop in filter(None, settings["until"]):  # the server got at most four of them
            text = text.partition(stop)[0]
        ran_out = answer.ran_out and text == answer  # not if a stop text came before the limit
        self._n_answered += 1
        self._n_empty += not text.strip()
        # An answer that ran out of tokens before its own limit has filled the server's context.
        is_short = answer.n_tokens is not None and answer.n_tokens < settings["max_gen_toks"]
        self._n_cut += ran_out and is_short
        return Answer(text, answer.thinking, answer.never_ended, ran_out)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> Any:
        """Have the server score answers: each is sent behind its context as a part of the prompt.

        The server returns the log-probability of every token of a prompt. Arguments are those of
        `HFLM`; only `requests` is used.
        """
        self._prompts.set_cache_hook(self.cache_hook)
        with self._use_clients():
            return self._prompts._loglikelihood_tokens(requests)

    @contextmanager
    def _use_clients(self) -> Iterator[None]:
        """Make a context in which lm-eval's clients are silent, and their errors are explained.

        They log nothing in it. Their bars cannot be turned off, so standard error is hidden.
        slimdown's own bar is drawn by rich, which finds the true file by `rich_proxied_file`.

        Raises:
            ModelError: A client failed inside.
        """
        log = logging.getLogger("lm_eval.models.api_models")
        level = log.level
        hidden: Any = io.StringIO()
        hidden.rich_proxied_file = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        log.setLevel(logging.CRITICAL)
        try:
            with self.server.explain_errors(_ADVICE), redirect_stderr(hidden):
                try:
                    yield
                except _FinalError as final:
                    # It carries a client's error that no repetition of the request would mend.
                    # `explain_errors` knows the errors of clients, but not the one around them.
                    raise final.error from None
        finally:
            log.setLevel(level)

    def describe_answers(self) -> Iterator[str]:
        """Say how many answers were empty, or were cut because the server's context was full."""
        cut = f"cut at the server's context of {self.server.n_context or '?'} tokens"
        for n, problem in ((self._n_empty, "empty"), (self._n_cut, cut)):
            if n:
                yield f"{n:,} of {self._n_answered:,} answers of the server were {problem}."


def check_answers(server: Server, tokenizer: Any, needs_scores: bool) -> bool:
    """Check that a server answers messages, and return whether it scores a prompt.

    Args:
        server: The server.
        tokenizer: The base model's.
        needs_scores: Whether to find out if it scores a prompt; otherwise False is returned.

    Returns:
        Whether the server returns the log-probabilities of a prompt's tokens.

    Raises:
        ModelError: It does not answer messages.
    """
    question = [{"role": "user", "content": "What is 2 + 2?"}]
    body = {"model": server.model, "messages": question, "max_tokens": 1, "temperature": 0}
    answer = server.request("/chat/completions", body)
    with server.explain_errors():
        _ = answer["choices"][0]["message"]  # raises if there is none
    return needs_scores and _scores_prompt(server, tokenizer)


def _scores_prompt(server: Server, tokenizer: Any) -> bool:
    """Return whether a server gives a log-probability for each token of a known prompt."""
    tokens = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    settings = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    body = {"model": server.model, "prompt": [tokens], **settings}
    try:
        logprobs = server.request("/completions", body)["choices"][0]["logprobs"]
        values, texts = logprobs["token_logprobs"], logprobs["tokens"]
        # The first token has no log-probability, because nothing comes before it.
        is_scored = all(value is not None and value < 0 for value in values[1 : len(tokens)])
    except (ModelError, LookupError, TypeError):  # such as a list without `echo`
        return False
    written = "".join(map(str, texts[: len(tokens)]))
    # Behind the tokens of the prompt comes the one that the server had to generate.
    return is_scored and len(values) == len(tokens) + 1 and written.strip() == _PROBE
