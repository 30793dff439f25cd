"""A server that fails: what a run says, what it keeps, and what it asks again.

The server here injects faults and answers each question alike. Real engines answer in
`tests/test_real_servers.py`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from builders import slow
from commands_and_runs import (
    QuietHandler,
    Result,
    call_verb,
    find_page,
    find_run_id,
    read_findings,
    serve,
    succeed,
)
from record_builders import copy_store
from test_served_runs import TEMPLATE

from slimdown.config.schema import RunConfig, ServedConfig
from slimdown.models.server import Server
from slimdown.pocket import MODEL_DIR

KEY = "a-key-of-this-test-1234"
ASKED = ["model=pocket", "model.id=base", "quantization=none", "model.dtype=float32"]
ASKED += ["benchmark=[pocket_math]"]
TWENTY = "benchmark.pocket_math.limit=20"
Answer = Callable[["FaultyServer", int], "dict[str, Any] | int | None"]


def answer_alike(server: "FaultyServer", number: int) -> dict[str, Any]:
    return write_answer("The answer is 7.")


def write_answer(text: Any, reason: str = "stop", n_tokens: Any = 6) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": reason, "message": {"content": text}}
    return {"choices": [choice], "usage": {"completion_tokens": n_tokens}}


@dataclass
class FaultyServer:
    """A server on loopback; `answer` gets the number of a question, and returns its answer.

    A number is an HTTP status; None closes the connection. The probe before a run is answered, and
    is no question.
    """

    answer: Answer = answer_alike
    models: tuple[str, ...] = ("tuned-model",)
    host: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    @property
    def address(self) -> str:
        return f"http://{self.host}/v1"

    @property
    def questions(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies]

    @contextmanager
    def listen(self) -> Iterator["FaultyServer"]:
        outer = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                outer.keys.add(self.headers.get("Authorization", ""))
                entries = [{"id": name, "owned_by": "vllm"} for name in outer.models]
                is_listed = self.path == "/v1/models"
                self.reply({"data": entries} if is_listed else 404)

            def do_POST(self) -> None:
                outer.keys.add(self.headers.get("Authorization", ""))
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if body["max_tokens"] == 1:
                    self.reply(write_answer("4"))
                    return
                outer.bodies.append(body)
                self.reply(outer.answer(outer, len(outer.bodies)))

            def reply(self, content: "dict[str, Any] | int | None") -> None:
                if content is None:
                    self.close_connection = True
                    return
                status = content if isinstance(content, int) else 200
                text = json.dumps({"error": "out of order"} if status > 200 else content).encode()
                with suppress(BrokenPipeError):
                    self.answer(status, text, {"Content-Type": "application/json"})

        with serve(Handler) as address:
            self.host = address.removeprefix("http://")
            yield self


@pytest.fixture
def folder(migrated_store: Path, tmp_path: Path) -> Path:
    folder = copy_store(migrated_store, tmp_path)
    shutil.copytree(MODEL_DIR, folder / "base")
    (folder / "base" / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def try_to_ask(folder: Path, server: FaultyServer, *settings: str, limit: str = TWENTY) -> Result:
    return call_verb(folder, "run", *ASKED, limit, f"tuned={server.address}", *settings)


def ask(folder: Path, server: FaultyServer, *settings: str, limit: str = TWENTY) -> Result:
    return succeed(folder, "run", *ASKED, limit, f"tuned={server.address}", *settings)


def show(done: Result) -> str:
    return " ".join((done.stdout + done.stderr).split())


def test_a_served_model_is_planned_asked_and_judged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultyServer().listen() as server:
        planned = ask(folder, server, "--plan")
        assert f"{server.host} will receive 20 requests" in show(planned)
        assert not server.bodies
        done = ask(folder, server)
        assert len(server.bodies) == len(set(server.questions)) == 20
        assert {body["model"] for body in server.bodies} == {"tuned-model"}
        assert {body["temperature"] for body in server.bodies} == {0}
        assert server.keys == {f"Bearer {KEY}"}
        findings = read_findings(folder, done)
        named = f"vLLM at {server.address} (model tuned-model)"
        assert findings["served_by"] == named
        assert findings["serving"] == ["chat template: the server does not show it"]
        assert f"was asked through {named}" in find_page(folder, done).read_text()

        ask(folder, server)  # a server cannot prove that it has the same weights
        assert len(server.bodies) == 40
        for _ in range(2):
            ask(folder, server, "served.version=1")
            assert len(server.bodies) == 60

    run_id = find_run_id(folder, done)
    other = succeed(folder, "run", *ASKED, TWENTY, "tuned=base")
    chain = succeed(folder, "compare", find_run_id(folder, other), run_id, "--chain")
    assert f"served by {server.host}" in chain.stdout
    assert named in show(chain)
    checked = call_verb(folder, "check", run_id, "--max-loss", "0.1")
    assert checked.returncode == 1, checked.stdout + checked.stderr
    scaled = call_verb(folder, "scale", run_id)
    assert scaled.returncode == 3
    assert "asked a server" in scaled.stderr
    for file in folder.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


def test_a_key_leaves_this_machine_over_https_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def list_headers(tuned: str) -> dict[str, str]:
        config = RunConfig(tuned=tuned)
        return Server(config.address, "m", "a server", ServedConfig()).headers

    for sent in ("https://models.example/v1", "http://localhost:8080", "http://127.0.0.1:1/v1"):
        assert list_headers(sent) == {"Authorization": f"Bearer {KEY}"}
    for unsent in ("http://models.example/v1", "http://127.0.0.1.example/v1", "http://10.0.0.1/v1"):
        assert KEY not in str(list_headers(unsent))


def test_paths_of_the_servers_machine_are_not_shown() -> None:
    shown = {"/srv/q4.gguf": "q4.gguf", "C:\\models\\q4.gguf": "q4.gguf", "a/b.gguf": "b.gguf"}
    shown |= {"/srv/models/mine": "mine", "OWNER/NAME": "OWNER/NAME", "llama3:8b": "llama3:8b"}
    for model, name in shown.items():
        server = Server("http://localhost:1/v1", model, "a server", ServedConfig())
        assert server.shown_model == name
        assert "me" not in str(server) or name == "OWNER/NAME" or "mine" in str(server)


def test_a_server_that_cannot_be_asked_is_named_at_once(folder: Path) -> None:
    with FaultyServer(models=("first", "second")).listen() as server:
        done = try_to_ask(folder, server)
        assert done.returncode == 1
        assert "2 models (first, second); choose one: served.model=NAME" in done.stderr
        ask(folder, server, "served.model=second", "--plan")
        choices = [*ASKED[:-1], "benchmark=[pocket_cs]", "served.model=second"]
        refused = call_verb(folder, "run", *choices, f"tuned={server.address}")
        assert refused.returncode == 1
        assert "benchmark.pocket_cs needs the log-probabilities of a prompt" in show(refused)
        assert not server.bodies
    done = try_to_ask(folder, server)
    assert done.returncode == 1
    assert "no server answers there" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2


def test_a_server_that_is_out_of_order_for_a_while_is_asked_again(folder: Path) -> None:
    def fail_twice(server: FaultyServer, number: int) -> Any:
        return {3: 500, 4: 429}.get(number) or write_answer("The answer is 7.")

    with FaultyServer(fail_twice).listen() as server:
        ask(folder, server)
        assert len(server.bodies) == 22


ONE_AT_A_TIME: list[tuple[Answer, str]] = [
    (lambda *_: 400, 'answers with HTTP 400: {"error": "out of order"}'),
    (lambda *_: 401, "needs a key"),
    (lambda *_: {"choices": []}, "no answer of OpenAI's protocol"),
    (lambda *_: None, "repeat the command when the server answers"),  # as if killed
]
ODD_ANSWERS: list[tuple[Answer, str]] = [
    (lambda *_: write_answer({"a": 1}), "`content` of an answer is {'a': 1}"),
    (lambda *_: write_answer(7), "`content` of an answer is 7"),
    (lambda *_: write_answer("7") | {"model": "other"}, "than at the start (None): 'other'"),
    (lambda *_: 307, "slimdown follows no redirect"),
]


@pytest.mark.parametrize(
    ("concurrency", "faults", "settings"),
    [
        (1, ONE_AT_A_TIME, []),
        (1, ODD_ANSWERS, []),
        (4, [(lambda *_: 404, "answers with HTTP 404")], []),
        (4, [(lambda *_: time.sleep(9), "no whole answer within 3 seconds")], ["served.timeout=3"]),
    ],
    ids=["one at a time", "odd answers", "404", "silence"],
)
def test_each_fault_is_named_and_what_was_answered_is_kept(
    concurrency: int,
    faults: list[tuple[Answer, str]],
    settings: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One run is interrupted by each fault in turn, each time after a chunk and three answers."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("slimdown.evaluation.served_lm._TRIES", 2)
    n_chunk = 8 * concurrency
    settings = [*settings, f"served.concurrency={concurrency}"]
    limit = "benchmark.pocket_math.limit=40"
    kept = set[str]()
    with FaultyServer().listen() as server:
        for fault, message in faults:
            n_before = len(server.bodies)

            def fail_late(
                server: FaultyServer,
                number: int,
                fault: Answer = fault,
                last: int = n_before + n_chunk + 3,
            ) -> Any:
                return fault(server, number) if number > last else answer_alike(server, number)

            server.answer = fail_late
            done = try_to_ask(folder, server, *settings, limit=limit)
            assert done.returncode == 1, done.stdout
            assert message in show(done)
            assert "Traceback" not in done.stderr
            new_questions = server.questions[n_before:]
            assert not kept & set(new_questions)
            kept |= set(new_questions[:n_chunk])
        server.answer = answer_alike
        n_before = len(server.bodies)
        ask(folder, server, *settings, limit=limit)
        assert not kept & set(server.questions[n_before:])
        assert len(set(server.questions)) == 40


def test_empty_and_cut_answers_are_counted(folder: Path) -> None:
    def answer_oddly(server: FaultyServer, number: int) -> dict[str, Any]:
        if number % 2:
            return write_answer(None, n_tokens="6")
        return write_answer("1 + 1 = 2 and", reason="length")

    with FaultyServer(answer_oddly).listen() as server:
        done = ask(folder, server)
    assert "10 of 20 answers of the server were empty" in show(done)
    assert "10 of 20 answers of the server were cut at the server's context" in show(done)


@pytest.mark.parametrize("n_asked", slow(4, 12, 18))
def test_a_killed_run_goes_on(n_asked: int, folder: Path) -> None:
    """The questions of the chunk of eight amid which it ends are asked again, no others."""

    def answer_slowly(server: FaultyServer, number: int) -> dict[str, Any]:
        time.sleep(0.2)
        return answer_alike(server, number)

    with FaultyServer(answer_slowly).listen() as server:
        command = [sys.executable, "-m", "slimdown", "run", *ASKED, TWENTY]
        command += [f"tuned={server.address}"]
        run = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while len(server.bodies) < n_asked:
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        n_before = len(server.bodies)
        ask(folder, server)
    asked_again = set(server.questions[:n_before]) & set(server.questions[n_before:])
    assert asked_again <= set(server.questions[n_asked // 8 * 8 : n_before])
    assert len(set(server.questions)) == 20
