"""Limit how slow the hub may be, in a process that is slimdown's own.

Timeouts of huggingface_hub are renewed with each byte, and it asks for a file again and again.
Files that hf_xet downloads do not come through this client, and have its own timeouts.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from contextvars import copy_context
from functools import cache, partial
from importlib import import_module
from time import monotonic
from typing import Any

from slimdown.utils.deadlines import call_within

SLOWEST = 1000  # bytes a second; a hub that sends fewer is silent
GIVEN_UP: set[str] = set()
"""Addresses that gave no answer; libraries go on without a file that a model need not have."""
BUSY = 3.0  # seconds; huggingface_hub's own retries take 23 for each question


class Patience(threading.local):
    """Counts what came while a thread waited, as curl's --speed-limit and --speed-time do.

    Each thread has its own: the waits of parallel downloads do not add up.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.waited, self.n_bytes = seconds, 0.0, 0

    def add(self, waited: float, n_bytes: int = 0) -> None:
        """Count what came; raises TimeoutError where it is too little."""
        self.waited, self.n_bytes = self.waited + waited, self.n_bytes + n_bytes
        if self.n_bytes >= SLOWEST * self.seconds:
            self.waited, self.n_bytes = 0.0, 0
        elif self.waited >= self.seconds:
            self.waited = self.seconds - 1  # the next request has one second
            raise TimeoutError(f"the hub sent {self.n_bytes} bytes in {self.seconds:g} seconds")


@cache
def limit_waits(seconds: float) -> None:
    """End downloads of this process that get less than 1 kB a second for too long.

    All tries for a file count together, and bytes that are sent again do not count. If the hub
    refuses or breaks off, it is asked again during `BUSY` seconds. After that, huggingface_hub is
    told that it is offline: it takes what the cache holds.

    Args:
        seconds: How long the hub may be so slow.
    """
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled  # it is not tried again after this

    plain = huggingface_hub.get_session()
    client_class: Any = type(plain)
    library: Any = import_module(client_class.__module__.partition(".")[0])  # httpx, or httpx2
    patience = Patience(seconds)
    failing_since: dict[str, float] = {}  # by address
    furthest: dict[str, int] = {}  # how much of a file has come, by address
    silent: set[str] = set()  # addresses that were given up

    def count(address: str, waited: float, n_bytes: int = 0) -> None:
        try:
            patience.add(waited, n_bytes)
        except TimeoutError as error:
            silent.add(address)
            GIVEN_UP.add(address)
            raise OfflineModeIsEnabled(str(error)) from error

    def count_refusal(address: str, problem: str) -> None:
        if monotonic() - failing_since.setdefault(address, monotonic()) >= BUSY:
            GIVEN_UP.add(address)
            raise OfflineModeIsEnabled(problem)

    class Body(library.SyncByteStream):  # type: ignore[misc]
        def __init__(self, answer: Any, address: str) -> None:
            self.parts, self.close, self.address = answer.stream, answer.stream.close, address
            start = re.search(r"bytes (\d+)", answer.headers.get("Content-Range", ""))
            self.position = int(start[1]) if start else 0

        def __iter__(self) -> Iterator[bytes]:
            began = monotonic()
            try:
                for part in self.parts:
                    waited, self.position = monotonic() - began, self.position + len(part)
                    if self.position > furthest.get(self.address, 0):
                        furthest[self.address] = self.position
                        count(self.address, waited, len(part))
                    else:
                        count(self.address, max(0.0, waited - len(part) / SLOWEST))
                    yield part
                    began = monotonic()  # without the reader's own time
            except library.TransportError:
                count(self.address, max(seconds / 4, monotonic() - began))  # or it retries forever
                raise
            patience.waited = 0.0  # it came in whole
            silent.discard(self.address)
            GIVEN_UP.discard(self.address)
            furthest.pop(self.address, None)

    class Client(client_class):  # type: ignore[misc]
        def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            waits = request.extensions["timeout"]  # those of a read bound the whole header
            waits |= {key: seconds for key, wait in waits.items() if wait is None}
            address = str(request.url.copy_with(query=None))
            if address in silent:  # the next request has one second
                patience.waited = max(patience.waited, seconds - 1)
            began, left = monotonic(), min(waits["read"], max(1.0, seconds - patience.waited))
            waits["read"] = seconds / 2  # for a body: a network may pause for ten seconds
            send = partial(super().send, request, stream=True, **options)
            try:
                answer = call_within(left, partial(copy_context().run, send))
            except (TimeoutError, library.TimeoutException) as error:
                failing_since.pop(address, None)
                count(address, monotonic() - began)
                raise library.ReadTimeout(str(error)) from error
            except library.TransportError as error:
                count_refusal(address, str(error))
                raise
            patience.waited += monotonic() - began
            answer.stream = Body(answer, address)
            if answer.is_server_error or answer.status_code in (408, 429):
                with ExitStack() as stack:
                    stack.callback(answer.close)
                    count_refusal(address, f"error '{answer.status_code}' of {address}")
                    stack.pop_all()  # huggingface_hub reads it, and asks again
            else:
                failing_since.pop(address, None)
                GIVEN_UP.discard(address)
            for header in ("Retry-After", "RateLimit"):  # they may say an hour
                if re.search(r"\d{3}|[6-9]\d", answer.headers.get(header, "")):
                    del answer.headers[header]
            if not stream:
                answer.read()
            return answer

    make = partial(Client, follow_redirects=True, timeout=None, event_hooks=plain.event_hooks)
    huggingface_hub.set_client_factory(make)
