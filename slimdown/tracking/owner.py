"""Who works on a run, since when, and how far it is: tags that whoever shares the store can read.

Imports neither torch nor MLflow.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from slimdown.tracking.connection import within
from slimdown.tracking.tags import Tag
from slimdown.utils.errors import SlimdownError

INTERVAL = 20.0  # seconds between two beats
_SILENT_AFTER = (
    6 * INTERVAL
)  # clocks of two machines differ a little, and a store may be slow for a while
_LOOK = 5.0  # seconds for a look at who works on a run


@dataclass(frozen=True)
class Owner:
    """A process, told apart from any other that has been or will be, on any machine."""

    host: str
    boot: (
        str  # of the system, and which numbers its processes have: containers count for themselves
    )
    pid: int
    started: (
        str  # in the system's own count: a number is given again, to a process that began later
    )

    @property
    def is_here(self) -> bool:
        """Whether what this system says of the process is the truth."""
        return (self.host, self.boot) == _system()

    @property
    def lives(self) -> bool:
        """Whether it exists, as this system says."""
        return bool(self.started) and _started(self.pid) == self.started


def this_process() -> Owner:
    """The owner that this process is."""
    return Owner(*_system(), os.getpid(), _started(os.getpid()))


def owner_of(tags: Mapping[str, str]) -> Owner | None:
    """Who works or worked on the run with these tags; None of a record from before that was kept, or a damaged one."""
    try:
        return Owner(**json.loads(tags.get(Tag.owner, "")))
    except (ValueError, TypeError):
        return None


def heard_of(tags: Mapping[str, str]) -> float:
    """When the run was last heard of, in seconds since 1970; 0 where nothing ever is, in an older record."""
    heard = tags.get(Tag.heartbeat, "")
    return int(heard) if heard.isdecimal() else 0


def is_silent(tags: Mapping[str, str]) -> bool:
    """Whether nothing has been heard of the run for long; not so where nothing ever is, in an older record."""
    heard = heard_of(tags)
    return heard > 0 and time.time() - heard > _SILENT_AFTER


def is_gone(tags: Mapping[str, str]) -> bool:
    """Whether nobody works on a run that is RUNNING: its process has ended, or, elsewhere, has been silent for long."""
    owner = owner_of(tags)
    return owner is not None and (not owner.lives if owner.is_here else is_silent(tags))


def owner_tags() -> dict[str, str]:
    """What a run is tagged with by the process that begins to work on it."""
    return {Tag.owner: json.dumps(asdict(this_process())), Tag.heartbeat: f"{time.time():.0f}"}


class Heartbeat:
    """Tells every `INTERVAL` seconds that a run goes on and how far it is, from a thread that delays nobody's end.

    It looks as often whether the run is still this process's: another goes on in one that was silent for long, as it is
    while a process stands still (SIGSTOP, a machine that sleeps).
    """

    def __init__(self, client: Any, run_id: str) -> None:
        """Begin no thread yet; `client` is of the run's store."""
        # Past what waits for a silent store, and past what puts off signals, of which a thread hears nothing.
        self._client, self._run_id = getattr(client, "inner", client), run_id
        self._ended, self._at, self._looked = threading.Event(), "", time.time()
        self.taken: SlimdownError | None = (
            None  # that another process works on the run by now, once that is known
        )

    def begin(self) -> None:
        """From now on, until `end`."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def is_at(self, what: str) -> None:
        """Remember how far the run is, which the next beat tells."""
        self._at = what

    def look(self) -> None:
        """Find out whose the run is; a store that is silent says nothing."""
        self._looked = (
            time.time()
        )  # by the clock on the wall: a machine that sleeps counts no other
        with suppress(Exception):
            owner = owner_of(within(_LOOK, lambda: self._client.get_run(self._run_id)).data.tags)
            if owner not in (None, this_process()):
                self.taken = self.taken or SlimdownError(
                    f"run {self._run_id} was gone on in by {owner.host} (process {owner.pid}) while this one stood "
                    "still; nothing is lost, it goes on there"
                )

    def stop_if_taken(self) -> None:
        """Raise the SlimdownError that another process works on the run, where one does; cheap unless this stood still."""
        if time.time() - self._looked > _SILENT_AFTER:
            self.look()
        if self.taken:
            raise self.taken

    def end(self) -> None:
        """Beat no more; what is on its way is not waited for."""
        self._ended.set()

    def _beat(self) -> None:
        from mlflow.entities import RunTag

        while not self._ended.wait(INTERVAL):
            self.look()
            if self.taken:
                return
            tags = {Tag.heartbeat: f"{time.time():.0f}", **({Tag.at: self._at} if self._at else {})}
            with suppress(
                Exception
            ):  # a store that is silent, or locked just now: the next one may arrive
                self._client.log_batch(
                    self._run_id, tags=[RunTag(key, value) for key, value in tags.items()]
                )


@cache
def _system() -> tuple[str, str]:
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return socket.gethostname(), f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname(), f"{psutil.boot_time():.0f}"


def _started(pid: int) -> str:
    """When a process began; empty where there is none, or one that has ended and is not yet taken notice of."""
    with suppress(OSError):  # in ticks since the system's start, which no change of its clock moves
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    with suppress(psutil.Error):
        if not Path("/proc/self/stat").exists():
            return repr(psutil.Process(pid).create_time())
    return ""
