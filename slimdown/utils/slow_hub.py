"""A limit of how slow the hub may be, in a process that is slimdown's own.

Timeouts of huggingface_hub are renewed with each byte, and it asks for a file again and again.
Files that hf_xet downloads do not come through this client, and have its own timeouts.
"""

import re
import threading
from collections.abc import Iterator
from contextvars import copy_context
from functools import cache, partial
from importlib import import_module
from time import monotonic
from typing import Any

from slimdown.utils.deadlines import call_within

SLOWEST = 1000  # bytes a second; who sends fewer is silent


class Patience(threading.local):
    """What came while a thread waited, as curl's --speed-limit and --speed-time count it.

    Each thread has its own: what several downloads wait at the same time does not add up.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.waited, self.n_bytes = seconds, 0.0, 0

    def add(self, waited: float, n_bytes: int = 0) -> None:
        """Count what came; raises TimeoutError where it is too little."""
        self.waited, self.n_bytes = self.waited + waited, self.n_bytes + n_bytes
        if self.n_bytes >= SLOWEST * self.seconds:
            self.waited, self.n_bytes = 0.0, 0
        elif self.waited >= self.seconds:
            self.waited = self.seconds - 1  # what is asked next has a second
            # None of httpx's own errors, after which huggingface_hub would try again.
            raise TimeoutError(f"the hub sent {self.n_bytes} bytes in {self.seconds:g} seconds")


@cache
def limit_waits(seconds: float) -> None:
    """Have downloads of this process end that get less than 1 kB a second for so long.

    Args:
        seconds: All tries for a file count together.
    """
    import huggingface_hub

    plain = huggingface_hub.get_session()
    client_class: Any = type(plain)
    library: Any = import_module(client_class.__module__.partition(".")[0])  # httpx, or httpx2
    patience = Patience(seconds)

    class Body(library.SyncByteStream):  # type: ignore[misc]
        def __init__(self, parts: Any) -> None:
            self.parts, self.close = parts, parts.close

        def __iter__(self) -> Iterator[bytes]:
            began = monotonic()
            try:
                for part in self.parts:
                    patience.add(monotonic() - began, len(part))
                    yield part
                    began = monotonic()  # without what the reader does with it
            except library.TransportError:
                patience.add(max(1.0, monotonic() - began))
                raise
            patience.waited = 0.0  # it came in whole

    class Client(client_class):  # type: ignore[misc]
        def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            waits = request.extensions["timeout"]  # those of a read bound the whole header
            waits |= {key: seconds for key, wait in waits.items() if wait is None}
            send = partial(super().send, request, stream=True, **options)
            began, left = monotonic(), max(1.0, seconds - patience.waited)
            try:
                answer = call_within(min(left, waits["read"]), partial(copy_context().run, send))
            except (TimeoutError, library.TimeoutException) as error:
                if request.method == "HEAD":  # then the cache may hold it
                    patience.waited += monotonic() - began
                else:
                    patience.add(monotonic() - began)
                raise library.ReadTimeout(str(error)) from error
            answer.stream = Body(answer.stream)
            if re.search(r"\d{4}", answer.headers.get("Retry-After", "")):  # it may say an hour
                del answer.headers["Retry-After"]
            if not stream:
                answer.read()
            return answer

    make = partial(Client, follow_redirects=True, timeout=None, event_hooks=plain.event_hooks)
    huggingface_hub.set_client_factory(make)
