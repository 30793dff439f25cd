"""What a server tells about itself: odd answers are read as far as they go, or named."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any

import pytest
from builders import Patch
from commands_and_runs import QuietHandler, serve

from slimdown.config.schema import RunConfig
from slimdown.models.server import find_server
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
