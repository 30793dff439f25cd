"""What a server tells about itself: odd answers are read as far as they go, or named."""

import gzip
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any

import pytest
from builders import Patch
from commands_and_runs import QuietHandler, serve

from slimdown.config.schema import RunConfig
from slimdown.models.server import find_answering_server, find_server
from slimdown.utils.errors import ModelError


@contextmanager
def serve_models(answer: Callable[[], str]) -> Iterator[RunConfig]:
    """Inside, a server answers /v1/models with a text, and knows no other page."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            is_listed = self.path == "/v1/models"
            with suppress(BrokenPipeError):
                self.answer(200 if is_listed else 404, answer().encode() if is_listed else b"")

    with serve(Handler) as address:
        yield RunConfig(tuned=address)


def test_a_server_that_stays_silent_is_not_blamed_on_the_wait_for_an_answer(
    monkeypatch: Patch,
) -> None:
    """`served.timeout` is the wait for an answer; facts of the server have another one."""
    monkeypatch.setattr("slimdown.models.server._READ_SECONDS", 0.2)
    has_ended = Event()

    def be_silent() -> str:
        has_ended.wait()
        return ""

    with serve_models(be_silent) as config:
        with pytest.raises(ModelError) as refused:
            find_server(config)
        has_ended.set()
    assert "no whole answer within 0.2 seconds; repeat the command" in str(refused.value)
    assert "served.timeout" not in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: "<html>", "this is no answer of OpenAI's protocol"),
        (lambda: '{"data": "none"}', "/models lists no models as OpenAI's protocol does"),
    ],
)
def test_a_server_that_lists_no_models_is_named(answer: Callable[[], str], message: str) -> None:
    with serve_models(answer) as config, pytest.raises(ModelError) as refused:
        find_server(config)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("facts", "n_context"),
    [
        ({"meta": {"n_ctx": 512}}, 512),
        ({"meta": {"n_ctx": 512}, "max_model_len": 256}, 256),
        ({"meta": "a text"}, None),
        ({"meta": None}, None),
        ({"max_model_len": "256"}, None),
    ],
)
def test_facts_of_another_type_are_left_out(facts: dict[str, Any], n_context: int | None) -> None:
    listed = {"id": "a-model", **facts}
    with serve_models(lambda: json.dumps({"data": [listed]})) as config:
        server = find_server(config)
    assert (server.model, server.n_context) == ("a-model", n_context)
    assert server.facts == facts  # they are part of what the answers depend on


MODELS = {"data": [{"id": "a-model", "owned_by": "somebody"}]}
ANSWER = {"model": "a-model", "choices": [{"message": {"content": "4"}}]}


class Hostile(QuietHandler):
    """Lists a model; a test says how it answers a message."""

    def do_GET(self) -> None:
        self.answer(200, json.dumps(MODELS if self.path == "/v1/models" else {"a": 1}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with suppress(ConnectionError):
            self.answer_message()

    def answer_message(self) -> None:
        self.answer(200, json.dumps(ANSWER).encode())


class Redirecting(Hostile):
    def answer_message(self) -> None:
        self.answer(307, b"", {"Location": "/v1/elsewhere?token=12345678#12345678"})


class Dripping(Hostile):
    def answer_message(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b" ")
            time.sleep(0.05)


class DrippingHeaders(Hostile):
    def answer_message(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            self.wfile.write(b"X: y\r\n")
            time.sleep(0.05)


class Endless(Hostile):
    def answer_message(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b" " * 100_000)


class Packed(Hostile):
    def answer_message(self) -> None:
        content = gzip.compress(b" " * 30_000_000)
        self.answer(200, content, {"Content-Encoding": "gzip"})


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (Redirecting, r"redirects to '/v1/elsewhere' \(HTTP 307\)"),
        (Dripping, r"no whole answer within 1 seconds \(served.timeout\)"),
        (DrippingHeaders, "no whole answer within 1 seconds"),
        (Endless, "more than 10 MB"),
        (Packed, "more than 10 MB"),
    ],
)
def test_an_answer_that_never_ends_or_leads_elsewhere_is_refused(
    handler: type[QuietHandler], message: str
) -> None:
    with serve(handler) as address:
        config = RunConfig(tuned=address)
        # Only a server that sends slowly is to reach the deadline.
        config.served.timeout = 1 if "Dripping" in handler.__name__ else 60
        with pytest.raises(ModelError, match=message) as refused:
            find_answering_server(config)
    assert "12345678" not in str(refused.value)


def test_a_server_is_called_llama_cpp_only_if_it_says_so() -> None:
    with serve(Hostile) as address:
        server = find_answering_server(RunConfig(tuned=address))
    assert (server.engine, server.answers_as) == ("a server", "a-model")
