"""Turns at an `mlflow server` when things go wrong. `python -m bench.attack locks` runs these, in eight minutes."""

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.faults import Count, show
from bench.servers import MlflowServer

PROCESSES, TURNS = 8, 50
_forks = multiprocessing.get_context("fork")


def locks(trials: int) -> bool:
    """A real server, and processes that want one key: never two of them at once, whatever is stopped or killed."""
    import slimdown.tracking.outage  # noqa: F401  before the forks

    counts = [_many()]
    for what, fault in FAULTS.items():
        held = sum(_fault(what, fault) for _ in range(trials))
        counts.append(Count(what, trials, held))
    return show(*counts)


class Holder:
    """A process that takes a lock, says when, and lets it go when it is told."""

    def __init__(self, uri: str) -> None:
        self._here, there = _forks.Pipe()
        self.process = _forks.Process(target=self._hold, args=(uri, there))
        self.process.start()

    def _hold(self, uri: str, told: Connection) -> None:
        from slimdown.config.schema import TrackingConfig
        from slimdown.tracking.locks import lock

        with lock(TrackingConfig(uri=uri, experiment="x", wait=120), "key"):
            told.send("held")
            told.recv()

    def holds(self, within: float) -> bool:
        return self._here.poll(within)

    def ends_well(self) -> bool:
        with suppress(BrokenPipeError):  # it was killed
            self._here.send("let go")
        self.process.join(60)
        return self.process.exitcode == 0

    def signal(self, number: int) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)


def _many() -> Count:
    """Eight processes, fifty turns each; one that finds another inside says so by its exit code."""
    with tempfile.TemporaryDirectory() as name, MlflowServer(Path(name)) as server:
        started = time.monotonic()
        done = _forks.Value("i", 0)
        jobs = [
            _forks.Process(target=_take_turns, args=(server.uri, Path(name), done))
            for _ in range(PROCESSES)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        seconds = time.monotonic() - started
        print(
            f"{PROCESSES} processes, {done.value} turns in {seconds:.0f} s, exit {[job.exitcode for job in jobs]}",
            flush=True,
        )
        return Count(
            f"{PROCESSES} processes on one key, {TURNS} turns each, one at a time",
            PROCESSES * TURNS,
            done.value,
        )


def _take_turns(uri: str, folder: Path, done: Any) -> None:
    from slimdown.config.schema import TrackingConfig
    from slimdown.tracking.locks import lock
    from slimdown.tracking.outage import PatientClient

    config = TrackingConfig(uri=uri, experiment="x", wait=120)
    client = PatientClient.open(config)
    client.begin()
    for _ in range(TURNS):
        with lock(config, "key", client=client):
            os.close(
                os.open(folder / "inside", os.O_CREAT | os.O_EXCL)
            )  # FileExistsError: two at once
            done.value += 1
            (folder / "inside").unlink()


def _killed(server: MlflowServer, first: Holder) -> float:
    first.signal(signal.SIGKILL)
    return 90.0


def _stopped(server: MlflowServer, first: Holder) -> float:
    first.signal(signal.SIGSTOP)
    return 90.0


def _server_restarted(server: MlflowServer, first: Holder) -> float:
    server.signal(signal.SIGKILL)
    time.sleep(20)
    server.start()
    return 0.0


def _server_stopped(server: MlflowServer, first: Holder) -> float:
    server.signal(signal.SIGSTOP)
    time.sleep(75)
    server.signal(signal.SIGCONT)
    return 0.0


# What befalls a holder or its server, and in how many seconds the next one may have its turn; 0: not while it lives.
FAULTS: dict[str, Callable[[MlflowServer, Holder], float]] = {
    "holder killed: its turn is taken within 90 s": _killed,
    "holder stopped for two minutes: its turn is taken, and it ends well": _stopped,
    "server killed for 20 s and started again: the turn is kept": _server_restarted,
    "server stopped for 75 s: the turn is kept": _server_stopped,
}


def _fault(what: str, fault: Callable[[MlflowServer, Holder], float]) -> bool:
    with tempfile.TemporaryDirectory() as name, MlflowServer(Path(name)) as server:
        first = Holder(server.uri)
        good = first.holds(60)
        second = Holder(server.uri)
        good &= not second.holds(3)
        began = time.monotonic()
        if within := fault(server, first):
            good &= second.holds(within)
            told = f"taken after {time.monotonic() - began:.0f} s"
            time.sleep(max(0.0, began + 120 - time.monotonic()) if fault is _stopped else 0)
            first.signal(signal.SIGCONT)
            good &= second.ends_well()
            good &= first.ends_well() or fault is _killed
        else:
            good &= not second.holds(90)
            told = f"not taken for {time.monotonic() - began:.0f} s"
            good &= first.ends_well() and second.holds(30) and second.ends_well()
        print(f"{what}: {told}, {'held' if good else 'NOT HELD'}", flush=True)
        return good
