"""A hub on loopback that answers, but sends next to nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Barrier, Event

import pytest
from commands_and_runs import QuietHandler, serve

from slimdown.utils.slow_hub import Patience

SCRIPT = """
from huggingface_hub import hf_hub_download
from slimdown.utils.hub import explain_hub_errors
with explain_hub_errors("model.id=me/it"):
    hf_hub_download("me/it", "config.json")
"""


LISTING = """
from huggingface_hub import list_repo_files
from slimdown.utils.hub import explain_hub_errors
for _ in range(3):
    try:
        with explain_hub_errors("model.id=me/it"):
            list_repo_files("me/it")
    except Exception as error:
        print(error)
"""


OPTIONAL = """
from contextlib import suppress
from huggingface_hub import hf_hub_download
from slimdown.utils.hub import explain_hub_errors
with explain_hub_errors("model.id=me/it"), suppress(Exception):  # as transformers does
    hf_hub_download("me/it", "chat_template.jinja")
print("loaded")
"""
NEEDED = """
from contextlib import suppress
from huggingface_hub import hf_hub_download
from slimdown.utils.hub import explain_hub_errors
with explain_hub_errors("model.id=me/it"):
    with suppress(Exception):
        hf_hub_download("me/it", "model.safetensors")
    raise OSError("me/it does not appear to have a file named model.safetensors")
"""


@contextmanager
def serve_hub(fault: str, questions: list[str]) -> Iterator[str]:
    """Serve one file in one of the ways in which it never arrives whole."""
    is_over = Event()

    class Hub(QuietHandler):
        def do_HEAD(self) -> None:
            questions.append(self.path)
            if fault.isdigit():
                self.send_response(int(fault))
                self.send_header("Retry-After", "120")
                self.end_headers()
                return
            if fault == "refuses once" and len(questions) == 1:
                is_over.wait(4)
                self.send_error(503)
                return
            if fault == "letters of a header":
                self.send_letters(b"HTTP/1.0 200 OK\r\nX-A: " + b"x" * 10**6)
                return
            self.send_response(200)
            self.send_header("ETag", '"x"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("Content-Length", "1000000")
            self.end_headers()

        def do_GET(self) -> None:
            if fault in ("silent", "cut off"):
                questions.append(self.path)
                is_over.wait(0.0 if fault == "cut off" else None)
                return
            self.do_HEAD()
            if fault == "stands still":  # and begins anew when it is asked for the rest
                self.wfile.write(b"x" * 100_000)
                is_over.wait()
            elif fault == "pauses":
                self.wfile.write(b"x" * 500_000)
                is_over.wait(4)
                self.wfile.write(b"x" * 500_000)
            elif fault == "refuses once":
                self.wfile.write(b"x" * 1_000_000)
            elif not fault.isdigit():
                self.send_letters(b"x" if fault == "one letter at each try" else b"x" * 10**6)

        def send_letters(self, text: bytes) -> None:
            with suppress(OSError):  # the reader is gone
                for letter in text:
                    self.wfile.write(bytes([letter]))
                    if is_over.wait(0.05):
                        return

    with serve(Hub) as address:
        try:
            yield address
        finally:
            is_over.set()


def ask_hub(
    folder: Path, fault: str, script: str = SCRIPT, **settings: str
) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run a script against a hub; returns also how often the repository was asked for."""
    questions: list[str] = []
    with serve_hub(fault, questions) as endpoint:
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "0"}
        environment |= {"SLIMDOWN_HUB_PATIENCE": "1", "HF_HUB_DISABLE_XET": "1"} | settings
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    return done, sum("me/it" in path for path in questions)


@pytest.mark.parametrize(
    "fault",
    ["letters", "letters of a header", "silent", "one letter at each try", "stands still", "500"],
)
def test_a_file_that_does_not_come_in_is_given_up(tmp_path: Path, fault: str) -> None:
    waits = {"SLIMDOWN_HUB_PATIENCE": "3", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    done, n_questions = ask_hub(tmp_path, fault, **waits)
    assert done.returncode
    assert "model.id=me/it cannot be reached: the hub does not answer" in done.stderr
    assert n_questions < 7  # which huggingface_hub alone asks


def test_a_model_is_not_loaded_without_a_file_that_was_given_up(tmp_path: Path) -> None:
    """Without its chat template a model would be asked otherwise, and nothing would say so."""
    done, _ = ask_hub(tmp_path, "503", OPTIONAL)
    assert (
        "model.id=me/it cannot be loaded whole: the hub does not answer for its chat" in done.stderr
    )
    assert "loaded" not in done.stdout


def test_weights_that_were_given_up_are_not_called_missing(tmp_path: Path) -> None:
    done, _ = ask_hub(tmp_path, "letters of a header", NEEDED)
    assert "model.id=me/it cannot be reached: the hub does not answer" in done.stderr


def test_a_hub_that_takes_long_to_refuse_is_asked_again(tmp_path: Path) -> None:
    done, _ = ask_hub(tmp_path, "refuses once", SLIMDOWN_HUB_PATIENCE="30")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("500", "the hub does not answer"),
        ("429", "too many questions came to the hub"),
        ("cut off", "the hub does not answer"),
    ],
)
def test_a_listing_that_was_given_up_is_refused_at_once_when_it_is_asked_for_again(
    tmp_path: Path, fault: str, words: str
) -> None:
    """It does not wait the 120 seconds that the hub names, nor make huggingface_hub's six tries."""
    done, n_questions = ask_hub(tmp_path, fault, LISTING)
    assert done.stdout.count(f"model.id=me/it cannot be reached: {words}") == 3, done
    assert n_questions <= 3 + 2


def test_a_network_that_pauses_longer_than_huggingface_hub_waits_brings_the_file(
    tmp_path: Path,
) -> None:
    patient = {"SLIMDOWN_HUB_PATIENCE": "60", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    done, _ = ask_hub(tmp_path, "pauses", **patient)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("fault", ["letters of a header", "500"])
def test_what_the_cache_holds_needs_no_hub_that_answers(tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "hub" / "models--me--it"
    files = {"refs/main": "a" * 40, f"snapshots/{'a' * 40}/config.json": "{}"}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    assert ask_hub(tmp_path, fault)[0].returncode == 0


def test_a_slow_network_is_waited_for() -> None:
    patience = Patience(30)
    for _ in range(100_000):  # 5 kB a second, for hours
        patience.add(0.1, 500)
    patience.add(20)  # it stands still, and goes on
    patience.add(0.1, 30_000)
    for _ in range(1000):  # small files
        patience.add(0.5, 80)
        patience.waited = 0.0


def test_a_byte_a_second_is_not_waited_for() -> None:
    patience = Patience(30)
    with pytest.raises(TimeoutError, match="30 bytes in 30 seconds"):
        for _ in range(31):
            patience.add(1, 1)
    patience.add(0.5, 600)  # it has come back


def test_what_several_downloads_wait_at_once_does_not_add_up() -> None:
    patience = Patience(30)
    with ThreadPoolExecutor(8) as threads:
        together = Barrier(8)

        def stall(_: int) -> float:
            together.wait()
            patience.add(10)
            return float(patience.waited)

        assert list(threads.map(stall, range(8))) == [10.0] * 8
