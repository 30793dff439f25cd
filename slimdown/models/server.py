"""A server that answers in OpenAI's protocol: what it tells about itself. Imports no torch."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from slimdown.config.schema import RunConfig, ServedConfig
from slimdown.utils.errors import ModelError, describe_error
from slimdown.utils.hashing import hash_json
from slimdown.utils.secrets import redact

_CONNECT_SECONDS, _READ_SECONDS = 2, 10  # of a request that needs no model
# Who owns a model of /v1/models, by what the servers write there.
_ENGINES = {"llamacpp": "llama.cpp", "vllm": "vLLM", "sglang": "SGLang", "library": "Ollama"}
# What /v1/models says of a model and that does not change by itself, as times and ids do.
_LASTING = ("owned_by", "meta", "max_model_len", "parent")


@dataclass(frozen=True)
class Server:
    """A server and the model that it is asked for.

    Attributes:
        address: Up to `/v1`.
        model: The server's name of the model, which may be a path of its machine.
        engine: Which program answers, as far as it says so.
        settings: How it is asked.
        facts: What /v1/models says of the model.
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
            body: What is posted, for which the server may have to load a model; None: nothing.
            is_beside: Whether the path stands beside `/v1`, and not below it.

        Raises:
            ModelError: It does not answer, or refuses.
        """
        import requests

        begin = self.address.rpartition("/")[0] if is_beside else self.address
        timeout = (_CONNECT_SECONDS, self.settings.timeout if body else _READ_SECONDS)
        with self.explain_errors():
            response = requests.request(
                "POST" if body else "GET",
                begin + path,
                json=body,
                headers=self.headers,
                timeout=timeout,
                allow_redirects=False,
            )
            response.raise_for_status()
            return response.json()

    @contextmanager
    def explain_errors(self, advice: str = "") -> Iterator[None]:
        """Turn what a client of lm-eval or `requests` raises into one or two sentences.

        Args:
            advice: How to go on, where the server failed.

        Raises:
            ModelError: An error of the client was raised inside.
        """
        try:
            yield
        except Exception as error:
            reason = self._explain(error)
            text = f"tuned={self.address}: {reason}. {advice}".removesuffix(". ")  # no advice
            # A run that fails by an OSError may succeed when repeated. aiohttp's errors are none.
            cause = error if isinstance(error, OSError) else ConnectionError(describe_error(error))
            raise ModelError(redact(text)) from cause

    def _explain(self, error: Exception) -> str:
        """Say what an error of `requests` or aiohttp means."""
        import requests

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
            return f"the server sent nothing for {self.settings.timeout} seconds (served.timeout)"
        if isinstance(error, OSError):
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
    listed_model = models[names.index(model)] if model in names else {}
    return _read_facts(server, model, listed_model)


def _read_facts(server: Server, model: str, listed: Mapping[str, Any]) -> Server:
    """Return a server with what it tells about its engine and a model.

    Args:
        server: How it is asked.
        model: The model's name.
        listed: What /v1/models says of it; empty where it does not list this model.
    """
    engine = _ENGINES.get(str(listed.get("owned_by", "")), "a server")
    properties, version = dict[str, Any](), ""
    with suppress(Exception):  # others than llama.cpp have no such page
        properties = dict(server.request("/props", is_beside=True))
        engine, version = "llama.cpp", str(properties.get("build_info") or "")
    if engine == "vLLM":
        with suppress(Exception):
            version = str(server.request("/version", is_beside=True)["version"])
    meta = listed.get("meta")
    n_context = listed.get("max_model_len") or (meta or {}).get("n_ctx")
    template = properties.get("chat_template")
    return Server(
        address=server.address,
        model=model,
        engine=f"{engine} {version}".strip(),
        settings=server.settings,
        facts={name: listed[name] for name in _LASTING if name in listed},
        chat_template=template if isinstance(template, str) and template else None,
        n_context=n_context if isinstance(n_context, int) else None,
    )
