"""A server that answers in OpenAI's protocol: what it tells about itself. Imports no torch."""

import asyncio
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from slimdown.config.schema import MOST_ANSWER_MEGABYTES, RunConfig, ServedConfig
from slimdown.utils.errors import ModelError, describe_error
from slimdown.utils.hashing import hash_json
from slimdown.utils.secrets import redact

if TYPE_CHECKING:
    from aiohttp import ClientSession

_CONNECT_SECONDS = 5
_READ_SECONDS = 5  # the most for a request that needs no model
# What a server writes as the owner of a model into /v1/models, and which engine that means.
_ENGINES = {"llamacpp": "llama.cpp", "vllm": "vLLM", "sglang": "SGLang", "library": "Ollama"}
# Fields of a model in /v1/models that stay as they are while the same model is served. Others, such
# as times and ids, may change with every answer.
_LASTING = ("owned_by", "meta", "max_model_len", "parent")
_MOST_NAME = 500  # characters


@dataclass(frozen=True)
class Server:
    """A server and the model that it is asked for.

    Attributes:
        address: Up to `/v1`.
        model: The server's name of the model, which may be a path of its machine.
        engine: Which program answers, with its version; `a server` where it does not say.
        settings: How it is asked.
        facts: What /v1/models says of the model: the fields of `_LASTING` that it has.
        chat_template: The template that it puts messages in; None: it does not show it.
        n_context: How many tokens a prompt and its answer may have; None: it does not say.
        answers_as: The model that its answers name; None: they name none, or it was not asked yet.
    """

    address: str
    model: str
    engine: str
    settings: ServedConfig
    facts: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    n_context: int | None = None
    answers_as: str | None = None

    def __str__(self) -> str:
        """Name engine, address and model; of a path, the file alone."""
        version = f" {self.settings.version}" if self.settings.version else ""
        return f"{self.engine} at {self.address} (model {self.shown_model}{version})"

    @property
    def shown_model(self) -> str:
        """The model's name without the path that a file or a folder has on the server's machine."""
        is_path = re.match(r"[/~.\\]|[A-Za-z]:\\", self.model) or self.model.endswith(".gguf")
        return PurePath(self.model.replace("\\", "/")).name if is_path else self.model

    @property
    def identity(self) -> dict[str, str]:
        """What its answers depend on, as far as it tells; a server cannot prove its weights."""
        details = [self.facts, self.chat_template, self.settings.version, self.answers_as]
        return {"server": str(self), "details": hash_json(details)}

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request. `OPENAI_API_KEY` leaves this machine over https alone."""
        key, parts = os.environ.get("OPENAI_API_KEY", ""), urlsplit(self.address)
        is_local = re.fullmatch(r"localhost|127(\.\d+){3}|::1", parts.hostname or "")
        is_sent = key and (parts.scheme == "https" or is_local)
        return {"Authorization": f"Bearer {key}"} if is_sent else {"Accept": "application/json"}

    def request(self, path: str, body: Any = None, is_beside: bool = False) -> dict[str, Any]:
        """Ask once, and return the JSON object of the answer.

        Args:
            path: What follows the address, such as /models.
            body: What is posted, for a request that the model answers; None: the page is read.
            is_beside: Whether the path stands beside `/v1`, and not below it.

        Raises:
            ModelError: It does not answer in time, or refuses.
        """
        url = (self.address.rpartition("/")[0] if is_beside else self.address) + path
        # Only the model takes long to answer: the server may have to load it first.
        needs_model = body is not None
        most_seconds = self.settings.timeout
        seconds = most_seconds if needs_model else min(_READ_SECONDS, most_seconds)

        async def ask_once() -> dict[str, Any]:
            async with asyncio.timeout(seconds), self.open_session() as session:
                return await self.ask(session, url, body)

        with self.explain_errors(seconds=seconds):
            return asyncio.run(ask_once())

    def open_session(self) -> "ClientSession":
        """Open a session for requests. It has no deadline; `asyncio.timeout` sets one."""
        from aiohttp import ClientSession, ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
        return ClientSession(headers=self.headers, timeout=timeout, trust_env=True)

    async def ask(self, session: "ClientSession", url: str, body: Any = None) -> dict[str, Any]:
        """Send one request, and return the JSON object of the answer.

        Args:
            session: From `open_session`.
            url: The whole address.
            body: What is posted; None: the page is read.

        Raises:
            ModelError: The answer is too long.
            Exception: Another one, which `explain_errors` explains.
        """
        from aiohttp import ClientResponseError

        method = "GET" if body is None else "POST"
        content = bytearray()
        async with session.request(method, url, json=body, allow_redirects=False) as response:
            async for chunk in response.content.iter_any():  # aiohttp has unpacked it
                content += chunk
                if len(content) > MOST_ANSWER_MEGABYTES * 1_000_000:
                    problem = f"an answer of the server has more than {MOST_ANSWER_MEGABYTES} MB"
                    raise ModelError(f"{problem}; correct the address, or ask another server")
        if response.status != 200:
            message = response.headers.get("Location") or content.decode(errors="replace")
            request = response.request_info
            raise ClientResponseError(request, (), status=response.status, message=message)
        reply = json.loads(content)
        if not isinstance(reply, dict):
            raise TypeError(f"a JSON object is expected, not {content[:40].decode()!r}")
        return reply

    @contextmanager
    def explain_errors(self, advice: str = "", seconds: float = 0) -> Iterator[None]:
        """Turn what asking and reading an answer raises into one or two sentences.

        Args:
            advice: How to go on, where the server failed.
            seconds: How long an answer may take; 0: `served.timeout`.

        Raises:
            ModelError: An error was raised inside.
        """
        try:
            yield
        except Exception as error:
            reason = self._explain(error, seconds or self.settings.timeout)
            # Without advice, the text ends without a full stop, as other messages do.
            text = f"tuned={self.address}: {reason}. {advice}".removesuffix(". ")
            # If the cause is an OSError, the record counts the run as one that can go on. Some of
            # aiohttp's errors are none, so a ConnectionError stands for whatever else was raised.
            cause = error if isinstance(error, OSError) else ConnectionError(describe_error(error))
            raise ModelError(redact(text)) from cause

    def _explain(self, error: Exception, seconds: float) -> str:
        """Say what an error means, see `explain_errors`."""
        import aiohttp

        if isinstance(error, ModelError):
            return str(error)
        if isinstance(error, aiohttp.ClientResponseError):
            return self._explain_status(error.status, error.message)
        if isinstance(error, aiohttp.ClientSSLError):
            return f"its certificate is not accepted ({describe_error(error)})"
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError):
            return "no server answers there; start it, or correct the address"
        if isinstance(error, TimeoutError):
            problem = f"the server gave no whole answer within {seconds} seconds"
            is_set = seconds == self.settings.timeout
            return f"{problem} (served.timeout)" if is_set else f"{problem}; repeat the command"
        if isinstance(error, OSError | aiohttp.ClientConnectionError | aiohttp.ClientPayloadError):
            return "the server closed the connection before its answer was complete"
        return f"this is no answer of OpenAI's protocol ({describe_error(error)})"

    def _explain_status(self, status: int, message: str) -> str:
        """Say what an HTTP status other than 200 means.

        Args:
            status: The status.
            message: What the server writes with it: for a redirect, the other address.
        """
        if status in (401, 403):
            problem = "refuses the key of OPENAI_API_KEY"
            if "Authorization" not in self.headers:
                problem = "needs a key; slimdown reads OPENAI_API_KEY, and sends it over https or "
                problem += "to this machine only"
            return f"the server {problem} (HTTP {status})"
        printable = "".join(letter if letter.isprintable() else " " for letter in message[:2000])
        shown = " ".join(printable.split())[:200]
        if 300 <= status < 400:
            place = re.split("[?#]", shown)[0]
            problem = f"the server redirects to {place!r} (HTTP {status})"
            return f"{problem}, and slimdown follows no redirect; name the address that answers"
        return f"the server answers with HTTP {status}" + (f": {shown}" if shown else "")


def find_server(config: RunConfig) -> Server:
    """Ask a server which models it serves, and return the one that is measured.

    Args:
        config: The checked settings; `tuned` is an address.

    Raises:
        ModelError: No server is there, it speaks another protocol, or it serves several models
            and none is chosen.
    """
    # It stands for the server until /models has told the names of model and engine.
    server = Server(config.address, config.served.model or "", "a server", config.served)
    listed = server.request("/models")
    models = listed.get("data")
    if not isinstance(models, list) or not all(_is_listed(model) for model in models):
        problem = "lists no models as OpenAI's protocol does"
        raise ModelError(f"tuned={server.address}: /models {problem}; correct the address")
    names = [listed_model["id"] for listed_model in models]
    if not server.model and len(names) != 1:
        shown = ", ".join(names[:10]) or "none"
        problem = f"the server lists {len(names)} models ({shown})"
        raise ModelError(f"tuned={server.address}: {problem}; choose one: served.model=NAME")
    model = server.model or names[0]
    # A server may answer for a model that it does not list; nothing is known of it then.
    listed_model = models[names.index(model)] if model in names else {}
    return _read_facts(server, model, listed_model)


def find_answering_server(config: RunConfig) -> Server:
    """Find a server as `find_server` does, and check that its model answers a message.

    Raises:
        ModelError: See `find_server`; or it does not answer messages.
    """
    server = find_server(config)
    question = [{"role": "user", "content": "What is 2 + 2?"}]
    body = {"model": server.model, "messages": question, "max_tokens": 1, "temperature": 0}
    reply = server.request("/chat/completions", body)
    with server.explain_errors():
        _ = reply["choices"][0]["message"]  # raises if there is none
    answers_as = reply.get("model")
    if answers_as is not None and not _is_name(answers_as):
        problem = f"names its model {answers_as!r:.60}, which is no printable text"
        raise ModelError(f"tuned={server.address}: the server {problem}; correct the server")
    return replace(server, answers_as=answers_as)


def _is_listed(model: Any) -> bool:
    """Return whether an entry of /v1/models is one of OpenAI's protocol, with a name to show."""
    return isinstance(model, dict) and _is_name(model.get("id"))


def _is_name(value: Any) -> bool:
    """Return whether a value can be shown as a name: a printable text that is not too long."""
    return isinstance(value, str) and value.isprintable() and len(value) <= _MOST_NAME


def _read_facts(server: Server, model: str, listed: Mapping[str, Any]) -> Server:
    """Return a server with what it tells about its engine and a model.

    Nothing here has to be there, or of the right type: what cannot be read counts as not told.

    Args:
        server: Where and how it is asked; its engine is not known yet.
        model: The model's name.
        listed: What /v1/models says of it; empty where it does not list this model.
    """
    engine = _ENGINES.get(str(listed.get("owned_by", "")), "a server")
    properties, version = dict[str, Any](), None
    if engine == "llama.cpp":  # no other engine has this page
        with suppress(ModelError):
            properties = server.request("/props", is_beside=True)
            version = properties.get("build_info")
    if engine == "vLLM":
        with suppress(ModelError):
            version = server.request("/version", is_beside=True).get("version")
    if _is_name(version):
        engine = f"{engine} {version}"
    meta = listed.get("meta")  # of llama.cpp's server
    n_context = listed.get("max_model_len")  # vLLM's name
    if not n_context and isinstance(meta, dict):
        n_context = meta.get("n_ctx")
    template = properties.get("chat_template")
    return replace(
        server,
        model=model,
        engine=engine,
        facts={name: listed[name] for name in _LASTING if name in listed},
        chat_template=template if isinstance(template, str) and template else None,
        n_context=n_context if type(n_context) is int and n_context > 0 else None,
    )
