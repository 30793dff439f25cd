"""Asks a server in the place of a model, by OpenAI's protocol."""

import asyncio
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from slimdown.evaluation.prefix_lm import VirtualTokensLM
from slimdown.evaluation.results import Answer
from slimdown.models.server import Server
from slimdown.utils.errors import ModelError

_TRIES = 8  # of a request; there are 36 seconds between them in all
_PASSING = (408, 425, 429)  # of the statuses below 500, those that may pass
_SEED = 1234  # as lm-eval's clients send it; greedy answers do not depend on it
_MOST_STOPS = 4  # that OpenAI's protocol takes
_PROBE = "The capital of France is Paris."  # to try whether a server scores a prompt
# The body of a request, and what reads the reply to it.
_Question = tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]
_ADVICE = "The answers so far are kept: repeat the command when the server answers"


class _CountedAnswer(Answer):
    """An answer with the number of its tokens, if the server tells it."""

    n_tokens: int | None = None  # None: the server did not tell it


def _read_answer(reply: dict[str, Any], think_end_token: str | None) -> _CountedAnswer:
    """Read the answer and the thinking of a server's reply.

    Raises:
        ModelError: The answer or the thinking is no text.
        Exception: The reply lacks a part.
    """
    [choice] = reply["choices"]
    message = choice["message"]
    ran_out = choice.get("finish_reason") == "length"
    text = _read_text(message, "content")
    # Servers have two names for the thinking that they took out of the answer.
    thinking = _read_text(message, "reasoning_content") or _read_text(message, "reasoning")
    if end := think_end_token:
        begin = end.replace("/", "", 1)  # <think> for </think>
        if end in text:  # the server has left the thinking in the answer
            thinking, _, text = text.rpartition(end)
        elif text.lstrip().startswith(begin):  # it was cut while it thought
            thinking, text = text, ""
    never_ended = ran_out and bool(thinking) and not text.strip()
    text = text.lstrip() if thinking else text  # as `HFLM` does behind thinking
    answer = _CountedAnswer(text, thinking, never_ended, ran_out)
    usage = reply.get("usage")
    n_tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    answer.n_tokens = n_tokens if type(n_tokens) is int else None
    return answer


def _read_text(message: dict[str, Any], name: str) -> str:
    """Return a text of a message; null or a missing one is empty.

    Raises:
        ModelError: It is of another type.
    """
    text = message.get(name)
    if text is not None and not isinstance(text, str):
        problem = f"the `{name}` of an answer is {text!r:.60}"
        raise ModelError(f"{problem}, and it must be a text or null; correct the server")
    # JSON can hold half of a surrogate pair, which no file can.
    return (text or "").encode("utf-8", "replace").decode()


def _read_scores(reply: dict[str, Any], n_tokens: int, n_context: int) -> tuple[float, bool]:
    """Read the log-probability of an answer, and whether each of its tokens is the likeliest.

    Args:
        reply: The server's reply to a prompt that it was to repeat.
        n_tokens: Of the prompt, which is the context and the answer.
        n_context: Of the context.

    Raises:
        ModelError: Log-probabilities are missing, or are none.
        Exception: The reply lacks a part.
    """
    [choice] = reply["choices"]
    if n_context < 1:
        raise ModelError("an answer has more tokens than the server's context; leave it out")
    values = choice["logprobs"]["token_logprobs"]
    likeliest = choice["logprobs"]["top_logprobs"]
    # Behind the tokens of the prompt comes the one that the server had to generate.
    if not len(values) == len(likeliest) == n_tokens + 1:
        problem = f"the server returned {len(values):,} log-probabilities for {n_tokens:,} tokens"
        raise ModelError(f"{problem} and one more; correct the server, or measure its files")
    answer_values = values[n_context:-1]
    # A float32 may round the logarithm of 1 to a little above 0.
    if not all(math.isfinite(value) and value < 0.01 for value in answer_values):
        problem = f"the server returned numbers that are no log-probabilities: {answer_values}"
        raise ModelError(f"{problem:.200}; correct the server, or measure its files")
    pairs = zip(answer_values, likeliest[n_context:-1], strict=True)
    is_greedy = all(value == max(top.values()) for value, top in pairs)
    return math.fsum(answer_values), is_greedy


def _may_pass(error: BaseException) -> bool:
    """Return whether a repeated request may succeed."""
    import aiohttp

    if isinstance(error, aiohttp.ClientResponseError):
        return error.status >= 500 or error.status in _PASSING
    return isinstance(error, OSError | aiohttp.ClientError)  # such as a broken connection


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
        # How many answers there were, how many were empty, and how many were cut because the
        # server's context was full.
        self._n_answered = self._n_empty = self._n_cut = 0

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Answer]:
        """Have the server answer the messages that the prompts were made of."""
        bodies = [self._write(request) for request in requests]
        read = partial(_read_answer, think_end_token=self.think_end_token)
        answers = self._ask("/chat/completions", [(body, read) for body in bodies])
        pairs = zip(answers, requests, strict=True)
        return [self._read(answer, request) for answer, request in pairs]

    def _write(self, request: Any) -> dict[str, Any]:
        """Write the body of a request: messages, stops and the most tokens.

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
        stops = [] if self.think_end_token else settings["until"]  # thinking may hold such a text
        body = {
            "messages": request.args[0].messages,
            "model": self.server.model,
            "max_tokens": settings["max_gen_toks"],
            "temperature": 0,
            "stop": stops[:_MOST_STOPS],
            "seed": _SEED,
        }
        return body | ({"chat_template_kwargs": variables} if variables else {})

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
        most_tokens = min(self.max_length, self.server.n_context or self.max_length)
        settings = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": _SEED, "echo": True}
        questions = list[_Question]()
        for _, context, answer in requests:
            prompt = (context + answer)[-most_tokens:]  # a long one is cut on the left
            n_context = len(prompt) - len(answer)
            read = partial(_read_scores, n_tokens=len(prompt), n_context=n_context)
            body = {"model": self.server.model, "prompt": [prompt], **settings}
            questions.append((body, read))
        return self._ask("/completions", questions)

    def _ask(self, path: str, questions: list[_Question]) -> list[Any]:
        """Send requests, as many at once as `served.concurrency` says; return what was read.

        Args:
            path: What follows the server's address.
            questions: The body of each request, and what reads the reply. Replies are large, so
                none is kept.

        Raises:
            ModelError: A request failed, or its reply cannot be read.
        """
        with self.server.explain_errors(_ADVICE):
            return asyncio.run(self.ask_all(self.server.address + path, questions))

    async def ask_all(self, url: str, questions: list[_Question]) -> list[Any]:
        """Send requests, see `_ask`; a failure that may pass is tried again."""
        import tenacity

        server, seconds = self.server, self.server.settings.timeout
        free = asyncio.Semaphore(server.settings.concurrency)
        try_again: Any = tenacity.retry(
            retry=tenacity.retry_if_exception(_may_pass),
            stop=tenacity.stop_after_attempt(_TRIES) | tenacity.stop_before_delay(seconds),
            wait=tenacity.wait_exponential(multiplier=0.5, min=1, max=10),
            reraise=True,
        )

        async def ask(body: Any, read: Callable[[dict[str, Any]], Any]) -> Any:
            async with free, asyncio.timeout(seconds):
                reply: dict[str, Any] = await try_again(server.ask)(session, url, body)
            if (model := reply.get("model")) != server.answers_as:
                before = f"another model than at the start ({server.answers_as!r})"
                problem = f"the server answered with {before}: {model!r:.200}"
                raise ModelError(f"{problem}; have it serve one model")
            return read(reply)

        async with server.open_session() as session:
            return await asyncio.gather(*(ask(*question) for question in questions))

    def describe_answers(self) -> Iterator[str]:
        """Say how many answers were empty, or were cut because the server's context was full."""
        cut = f"cut at the server's context of {self.server.n_context or '?'} tokens"
        for n, problem in ((self._n_empty, "empty"), (self._n_cut, cut)):
            if n:
                yield f"{n:,} of {self._n_answered:,} answers of the server were {problem}."


def check_scores(server: Server, tokenizer: Any) -> bool:
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
