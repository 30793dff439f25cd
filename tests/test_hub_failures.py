"""A hub that fails for a moment is asked again; one that falls silent is named. Here it is a server of the test."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import get_session
from huggingface_hub.errors import OfflineModeIsEnabled

from slimdown.models import hub
from slimdown.models.hub import asking_hub
from slimdown.utils.errors import SlimdownError


class Server(ThreadingHTTPServer):
    """Answers with the next of `statuses`, the last one for good."""

    statuses: list[int]
    asked = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/api"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        status = (
            self.server.statuses.pop(0)
            if len(self.server.statuses) > 1
            else self.server.statuses[0]
        )
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A hub of this process alone, with waits that a test can wait for."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_WAITS", (0.01,) * 4)
    monkeypatch.setattr(hub, "_answered", set())
    monkeypatch.setattr(hub, "_silent", {})
    hub._tell.cache_clear()
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_hub_that_fails_for_a_moment_is_asked_again_and_the_console_says_it_once(
    status: int, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.statuses = [status, status, 200, status, 200]
    with asking_hub("dataset.alpaca"):
        assert get_session().get(server.address).text == "ok"
        assert (
            get_session().head(server.address).status_code == 501
        )  # asked, and no failure of the hub's own
        with get_session().stream("GET", server.address) as response:
            assert response.read() == b"ok"
    assert (
        capsys.readouterr().err
        == f"The hub does not answer for now (HTTP {status} from 127.0.0.1); asking again ...\n"
    )


def test_what_the_hub_refuses_on_purpose_is_not_asked_again(server: Server) -> None:
    server.statuses = [404]
    with asking_hub("model.id=nobody/nothing"):
        assert get_session().get(server.address).status_code == 404
    assert server.asked == 1


def test_what_changes_the_hub_is_asked_once(server: Server) -> None:
    server.statuses = [503]
    with asking_hub("model.id=a/b"):
        assert get_session().post(server.address).status_code == 503
    assert server.asked == 1


def test_a_hub_that_falls_silent_is_named_whatever_was_made_of_it(server: Server) -> None:
    def tokenizer() -> None:
        get_session().get(server.address)
        try:
            get_session().get(server.address)
        except OfflineModeIsEnabled:
            raise ValueError("You need to have sentencepiece or tiktoken installed") from None

    server.statuses = [200, 503]
    named = r"^model.id=a/b: the hub stopped answering \(HTTP 503 from 127.0.0.1 for"
    with pytest.raises(SlimdownError, match=named), asking_hub("model.id=a/b"):
        tokenizer()
    assert server.asked == 6


def test_a_silent_hub_is_not_asked_again_where_it_was_given_up(server: Server) -> None:
    server.statuses = [200, 503]
    with pytest.raises(SlimdownError, match="HF_HUB_OFFLINE=1"), asking_hub("dataset.alpaca"):
        get_session().get(server.address)
        for _ in range(2):
            with pytest.raises(OfflineModeIsEnabled):
                get_session().get(server.address)
    assert server.asked == 6


def test_an_outage_that_is_over_fails_no_later_job(server: Server) -> None:
    server.statuses = [200, *[503] * 5, 200]
    with pytest.raises(SlimdownError, match="stopped answering"), asking_hub("model.id=a/b"):
        get_session().get(server.address)
        get_session().get(server.address)
    with asking_hub("model.id=c/d"):
        pass  # all of it is in the cache
    with pytest.raises(ValueError, match="of its own"), asking_hub("model.id=c/d"):
        raise ValueError("a mistake of its own")
    with asking_hub("model.id=c/d"):
        assert get_session().get(server.address).text == "ok"


def test_files_that_may_be_missing_are_not_taken_for_absent(server: Server) -> None:
    server.statuses = [200, 503]
    with pytest.raises(SlimdownError, match="stopped answering"), asking_hub("model.id=a/b"):
        get_session().get(server.address)
        with pytest.raises(OfflineModeIsEnabled):
            get_session().get(server.address)


def test_where_no_hub_ever_answered_the_cache_will_do(server: Server) -> None:
    server.statuses = [503]
    with asking_hub("model.id=a/b"), pytest.raises(OfflineModeIsEnabled):
        get_session().get(server.address)


def test_no_network_is_known_at_once(server: Server) -> None:
    with asking_hub("model.id=a/b"), pytest.raises(Exception, match="refused"):
        get_session().get("http://127.0.0.1:9/api")
    assert not hub._silent


def test_a_hub_that_takes_its_time_is_given_up_after_a_while(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_PATIENCE", 0.2)
    server.statuses = [200]
    with (
        pytest.raises(SlimdownError, match=r"ReadTimeout from 127.0.0.1 for"),
        asking_hub("model.id=a/b"),
    ):
        get_session().get(server.address)
        monkeypatch.setattr(Handler, "do_GET", lambda handler: threading.Event().wait(0.3))
        get_session().get(server.address, timeout=0.15)
