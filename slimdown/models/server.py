"""A server that answers in OpenAI's protocol: what it tells about itself. Imports no torch."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from slimdown.config.schema import RunConfig, ServedConfig
from slimdown.utils.errors import ModelError, describe_error
from slimdown.utils.hashing import hash_json
from slimdown.utils.secrets import redact

_CONNECT_SECONDS, _READ_SECONDS = 2, 10  # of a request that needs no model
# What a server writes as the owner of a model into /v1/models, and which engine that means.
_ENGINES = {"llamacpp": "llama.cpp", "vllm": "vLLM", "sglang": "SGLang", "library": "Ollama"}
# Fields of a model in /v1/models that stay as they are while the same model is served. Others, such
# as times and ids, may change with every answer.
_LASTING = ("owned_by", "meta", "max_model_len", "parent")


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
    """

    address: str
    model: str
    engine: str
    settings: ServedConfig
    facts: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    n_context: int | None = None

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
        details = [self.facts, self.chat_template, self.settings.version]
        return {"server": str(self), "details": hash_json(details)}

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request. `OPENAI_API_KEY` leaves this machine over https alone."""
        key, parts = os.environ.get("OPENAI_API_KEY", ""), urlsplit(self.address)
        is_local = re.fullmatch(r"localhost|127(\.\d+){3}|::1", parts.hostname or "")
        is_sent = key and (parts.scheme == "https" or is_local)
        return {"Authorization": f"Bearer {key}"} if is_sent else {"Accept": "application/json"}

    def request(self, path: str, body: Any = None, is_beside: bool = False) -> Any:
        """Ask once, and return the JSON of the answer.

        Args:
            path: What follows the address, such as /models.
            body: What is posted, for a request that the model answers; None: the page is read.
            is_beside: Whether the path stands beside `/v1`, and not below it.

        Raises:
            ModelError: It does not answer, or refuses.
        """
        import requests

        begin = self.address.rpartition("/")[0] if is_beside else self.address
        # Only the model takes long to answer: the server may have to load it first.
        needs_model = body is not None
        read_seconds = self.settings.timeout if needs_model else _READ_SECONDS
        with self.explain_errors(needs_model=needs_model):
            response = requests.request(
                "POST" if needs_model else "GET",
                begin + path,
                json=body,
                headers=self.headers,
                timeout=(_CONNECT_SECONDS, read_seconds),
                allow_redirects=False,
            )
            response.raise_for_status()
            return response.json()

    @contextmanager
    def explain_errors(self, advice: str = "", needs_model: bool = True) -> Iterator[None]:
        """Turn what a client of lm-eval or `requests` raises into one or two sentences.

        Args:
            advice: How to go on, where the server failed.
            needs_model: Whether the model answers the request, for which `served.timeout` is set.

        Raises:
            ModelError: An error of the client was raised inside.
        """
        try:
            yield
        except Exception as error:
            reason = self._explain(error, needs_model)
            # Without advice, the text ends without a full stop, as other messages do.
            text = f"tuned={self.address}: {reason}. {advice}".removesuffix(". ")
            # If the cause is an OSError, the record counts the run as one that can go on. Some of
            # aiohttp's errors are none, so a ConnectionError stands for whatever else was raised.
            cause = error if isinstance(error, OSError) else ConnectionError(describe_error(error))
            raise ModelError(redact(text)) from cause

    def _explain(self, error: Exception, needs_model: bool) -> str:
        """Say what an error of `requests` or aiohttp means; see `explain_errors`."""
        import requests

        # An error of aiohttp has the HTTP status itself; that of requests has it in its response.
        response = getattr(error, "response", None)
        status = getattr(error, "status", None) or getattr(response, "status_code", None)
        if status in (401, 403):
            problem = "refuses the key of OPENAI_API_KEY"
            if "Authorization" not in self.headers:
                problem = "needs a key; slimdown reads OPENAI_API_KEY, and sends it over https or "
                problem += "to this machine only"
            return f"the server {problem} (HTTP {status})"
        if status:
            detail = f": {' '.join(response.text.split())[:200]}" if response is not None else ""
            return f"the server answers with HTTP {status}{detail}"
        if isinstance(error, requests.ConnectTimeout | requests.ConnectionError):
            return "no server answers there; start it, or correct the address"
        if isinstance(error, requests.Timeout | TimeoutError):
            if not needs_model:
                advice = "repeat the command when it answers"
                return f"the server sent nothing for {_READ_SECONDS} seconds; {advice}"
            return f"the server sent nothing for {self.settings.timeout} seconds (served.timeout)"
        # requests' JSONDecodeError is an OSError, too, but then the server did answer.
        if isinstance(error, OSError) and not isinstance(error, requests.JSONDecodeError):
            return "the server does not answer any more"
        return f"this is no answer of OpenAI's protocol ({describe_error(error)})"


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
    models = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(models, list) or not all(isinstance(m, dict) and "id" in m for m in models):
        problem = "lists no models as OpenAI's protocol does"
        raise ModelError(f"tuned={server.address}: /models {problem}; correct the address")
    names = [str(listed_model["id"]) for listed_model in models]
    if not server.model and len(names) != 1:
        shown = ", ".join(names[:10]) or "none"
        problem = f"the server lists {len(names)} models ({shown})"
        raise ModelError(f"tuned={server.address}: {problem}; choose one: served.model=NAME")
    model = server.model or names[0]
    # A server may answer for a model that it does not list; nothing is known of it then.
    listed_model = models[names.index(model)] if model in names else {}
    return _read_facts(server, model, listed_model)


def _read_facts(server: Server, model: str, listed: Mapping[str, Any]) -> Server:
    """Return a server with what it tells about its engine and a model.

    Nothing here has to be there, or of the right type: what cannot be read counts as not told.

    Args:
        server: Where and how it is asked; its engine is not known yet.
        model: The model's name.
        listed: What /v1/models says of it; empty where it does not list this model.
    """
    engine = _ENGINES.get(str(listed.get("owned_by", "")), "a server")
    properties, version = dict[str, Any](), ""
    # Only llama.cpp has this page, so an answer also names the engine.
    with suppress(Exception):
        properties = dict(server.request("/props", is_beside=True))
        engine, version = "llama.cpp", str(properties.get("build_info") or "")
    if engine == "vLLM":
        with suppress(Exception):
            version = str(server.request("/version", is_beside=True)["version"])
    meta = listed.get("meta")  # of llama.cpp's server
    n_context = listed.get("max_model_len")  # vLLM's name
    if not n_context and isinstance(meta, dict):
        n_context = meta.get("n_ctx")
    template = properties.get("chat_template")
    return replace(
        server,
        model=model,
        engine=f"{engine} {version}".strip(),
        facts={name: listed[name] for name in _LASTING if name in listed},
        chat_template=template if isinstance(template, str) and template else None,
        n_context=n_context if isinstance(n_context, int) else None,
    )
