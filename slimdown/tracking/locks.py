"""How to be alone: one process at a time measures a base or makes a run, on all machines that share a store.

MLflow's server has no locks, but it numbers the versions of a registered model: each number is given once, rising, also
after versions were deleted (`SqlAlchemyStore.create_model_version`, mlflow 3.17: a primary key, and deleted rows stay).
So a version is a ticket in a queue. The lowest one that lives has its turn; its owner deletes it when the turn is over,
and renews it until then. One that is renewed no more is deleted by whoever waits behind it.
"""

import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING

from slimdown.config.schema import TrackingConfig
from slimdown.tracking.connection import first_line, system_lock, within
from slimdown.utils.errors import SlimdownError
from slimdown.utils.interruption import stop_if_interrupted
from slimdown.utils.redaction import public_uri, redact

if TYPE_CHECKING:  # they bring mlflow along, which takes 1.5 seconds
    from mlflow import MlflowClient

    from slimdown.tracking.outage import PatientClient

_QUEUE = "slimdown-locks"  # the registered model
_ABOUT = (
    "How processes of slimdown that share this server take turns. A version is a place in the queue for what its "
    "source names; it is deleted when the turn is over. May be deleted while nothing runs."
)
_RENEWED = 10.0  # seconds between two signs of life of a ticket
_DEAD = 60.0  # seconds without one
_LOOK = 1.0  # at most, seconds between two looks at the queue
_CALL = 10.0  # seconds for a call that nothing depends on
_DRAWS = 20  # in a row that may come to a number that another was given
_CONFLICTS = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
_NO_QUEUE = (
    "RESOURCE_DOES_NOT_EXIST",
    "PERMISSION_DENIED",
)  # the second where the server asks for passwords
_said: set[str] = set()  # servers that refuse, of which one line was said


@contextmanager
def saving_work(
    config: TrackingConfig,
    key: str,
    waiting: Callable[[], None] = lambda: None,
    client: "MlflowClient | PatientClient | None" = None,
) -> Iterator[None]:
    """`lock`, or where there is none to be had nothing: it saves work and no more, and some may be done twice."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(config, key, waiting, client))
        except _refusals():
            pass
        yield


@contextmanager
def lock(
    config: TrackingConfig,
    key: str,
    waiting: Callable[[], None] = lambda: None,
    client: "MlflowClient | PatientClient | None" = None,
) -> Iterator[None]:
    """Held by one process at a time: by a ticket at an MLflow server, an advisory lock in PostgreSQL, else by a file.

    A ticket outlives its process by 70 seconds at most, the others end with it. An owner that stood still for longer
    than a minute (a stopped process) and goes on is no longer alone. Where a server refuses tickets, a file serves the
    processes of each machine.

    Args:
        config: the store.
        key: what is locked: letters, digits, - and _.
        waiting: called once where another process holds it.
        client: of the store, where it is open already.

    Raises:
        OSError, SQLAlchemyError, SlimdownError: the store is gone.
    """
    with ExitStack() as stack:
        if config.uri.startswith("http"):
            from mlflow.exceptions import MlflowException

            try:
                stack.enter_context(_ticket(config, key, waiting, client))
            except MlflowException as refusal:
                _say_once(config, refusal)
                stack.enter_context(system_lock(config, key, waiting))
        else:
            stack.enter_context(system_lock(config, key, waiting))
        yield


@contextmanager
def _ticket(
    config: TrackingConfig,
    key: str,
    waiting: Callable[[], None],
    client: "MlflowClient | PatientClient | None",
) -> Iterator[None]:
    from slimdown.tracking.outage import PatientClient

    if not isinstance(client, PatientClient):
        client = PatientClient.open(config)
        client.begin()
    over, ticket = Event(), _Ticket(client, config.uri, key)
    try:
        Thread(target=ticket.renew, args=(over,), daemon=True).start()
        ticket.wait(waiting)
        yield
    finally:
        over.set()
        with suppress(Exception):  # a silent server deletes nothing; whoever waits will
            ticket.delete()


class _Ticket:
    """A place in the queue for a key."""

    def __init__(self, client: "PatientClient", uri: str, key: str) -> None:
        # MlflowClient would first fetch the model, with all versions that there ever were: 3.5 s at 10,000 (3.17).
        from mlflow.tracking._model_registry.client import ModelRegistryClient

        self._client, self._registry = client, ModelRegistryClient(uri, uri)
        self._key = f"slimdown-lock:/{key}"  # the version's source, which must be an address
        self._owner = f"{socket.gethostname()}, process {os.getpid()}"
        self._number = client.ask(self._draw)

    def _draw(self) -> int:
        from mlflow.exceptions import MlflowException

        made_queue = False
        for n_left in reversed(range(_DRAWS)):
            try:
                made = self._registry.create_model_version(
                    _QUEUE, self._key, description=self._owner, await_creation_for=0
                )
                return int(made.version)
            except MlflowException as error:
                if (
                    error.error_code in _CONFLICTS and n_left
                ):  # the server gives up after three of them
                    time.sleep(random.uniform(0, 0.5))
                elif error.error_code in _NO_QUEUE and not made_queue:
                    made_queue = True
                    with suppress(
                        MlflowException
                    ):  # another was faster; a refusal is told by the next draw
                        self._registry.create_registered_model(_QUEUE, description=_ABOUT)
                else:
                    raise
        raise AssertionError("the last draw returns or raises")

    def wait(self, waiting: Callable[[], None]) -> None:
        """Return when nobody is ahead that lives."""
        renewed: dict[
            int, tuple[int, float]
        ] = {}  # of each ahead: its last sign of life, and for how long
        pause = 0.0
        while ahead := self._ahead():
            if not renewed:
                waiting()
            for number, at in ahead.items():
                # Counted in pauses and not by a clock: the server's is another, and time in which we stood still tells
                # nothing of others.
                seen, seconds = renewed.get(number, (at, 0.0))
                seconds = seconds + pause if seen == at else 0.0
                renewed[number] = at, seconds
                if seconds > _DEAD:
                    self._client.ask(self._delete, number)
            pause = min(_LOOK, 2 * pause + 0.05)
            time.sleep(pause)
            stop_if_interrupted()

    def _ahead(self) -> dict[int, int]:
        """By number, when those ahead were renewed; a ticket that was deleted under us is drawn again."""
        while True:
            condition = f"name = '{_QUEUE}' and source_path = '{self._key}'"
            found = self._client.ask(self._registry.search_model_versions, condition)
            living = {int(version.version): version.last_updated_timestamp for version in found}
            if self._number in living:
                return {number: at for number, at in living.items() if number < self._number}
            self._number = self._client.ask(self._draw)

    def renew(self, over: Event) -> None:
        """Give signs of life until it is over."""
        while not over.wait(_RENEWED):
            with suppress(
                Exception
            ):  # a silent server will be asked again, a lost turn cannot be had back
                number = str(self._number)
                within(
                    _CALL, partial(self._registry.update_model_version, _QUEUE, number, self._owner)
                )

    def delete(self) -> None:
        """Let the next one have its turn."""
        within(_CALL, partial(self._delete, self._number))

    def _delete(self, number: int) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._registry.delete_model_version(_QUEUE, str(number))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # somebody else was faster
                raise


def _refusals() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return OSError, SlimdownError, MlflowException, SQLAlchemyError


def _say_once(config: TrackingConfig, refusal: Exception) -> None:
    if config.uri not in _said:
        _said.add(config.uri)
        sys.stderr.write(
            f"tracking.uri={public_uri(config.uri)} lets nobody queue in its registered model {_QUEUE} "
            f"({redact(first_line(refusal))}): equal work is waited for on this machine only, and may be done on "
            "another as well.\n"
        )
