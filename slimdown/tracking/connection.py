"""The way to the store: whether it answers, and how it is made.

MLflow is imported where it is used: it takes 1.5 seconds.
"""

import hashlib
import itertools
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from slimdown.config.schema import TrackingConfig
from slimdown.utils.disk import cache_folder, disk_full
from slimdown.utils.errors import SlimdownError
from slimdown.utils.interruption import Undisturbed
from slimdown.utils.redaction import public_uri, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy import Connection

_T = TypeVar("_T")
_MOST_SECONDS = 10  # that a store may take to answer for the first time
# Which of its pages MLflow opens an experiment with: those for training, with charts and logged models.
_TRAINING_PAGES = {"mlflow.experimentKind": "custom_model_development"}


def check_store(config: TrackingConfig) -> None:
    """Return in silence where the store answers, without importing MLflow.

    Raises:
        SlimdownError: it does not answer within 15 seconds, or refuses.
    """
    with _told(config):
        if file := sqlite_file(config.uri):
            file.absolute().parent.mkdir(parents=True, exist_ok=True)
        within(_MOST_SECONDS, lambda: _reach(config.uri))


def open_store(config: TrackingConfig, reading: bool = False) -> "MlflowClient":
    """A client of the tracking store, which is made where it is a database that has no tables yet.

    Args:
        config: which store.
        reading: nothing is made beside the file of a local store, not even a lock.

    Raises:
        SlimdownError: the store does not answer within 15 seconds, or refuses.
    """
    # "Creating initial MLflow database tables": a fresh store is no news.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(
        logging.CRITICAL
    )  # prints the traceback of what it raises
    os.environ.setdefault(
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"
    )  # with the password, if it holds one
    file = sqlite_file(config.uri)
    if not (file and reading):
        check_store(config)
    with _told(config):
        if config.uri.startswith(("http", "databricks")):
            import_module("mlflow")  # before the seconds begin: from a slow disk it takes many
            return within(_MOST_SECONDS, lambda: _client(config.uri))
        # Processes that open a fresh database together break it for good (mlflow 3.17): one makes it, under a lock.
        with nullcontext() if file and reading else system_lock(config, "creation"):
            return _client(config.uri)


@contextmanager
def _told(config: TrackingConfig) -> Iterator[None]:
    """Whatever fails inside is said as what is wrong with the address."""
    if problem := config.uri_problem():
        raise SlimdownError(f"tracking.{problem}")
    try:
        yield
    except ModuleNotFoundError as error:
        cure = (
            "pip install 'slimdown[postgres]'"
            if config.uri.startswith("postgresql")
            else "install it"
        )
        raise SlimdownError(
            f"tracking.uri={public_uri(config.uri)} needs the driver {error.name}; {cure}"
        ) from None
    except Exception as error:  # OSError, MLflow's, SQLAlchemy's, each driver's
        file = sqlite_file(config.uri)
        silent = isinstance(error, OSError) and not file
        raise (disk_full(error, file.parent) if file else None) or SlimdownError(
            f"tracking.uri={public_uri(config.uri)} {'does not answer' if silent else 'cannot be used'}: "
            f"{redact(first_line(error))}; {_advice(config.uri, error)}"
        ) from None


def within(seconds: float, call: "Callable[[], _T]") -> "_T":
    """What a call returns, waited for so long at most; one that never ends is left to a thread that dies with us.

    Drivers and name servers have time limits of their own, if any, and of a server that takes a connection and then
    says nothing most of them know nothing.

    Raises:
        TimeoutError: it has not returned by then.
    """
    outcome: Future[_T] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=work, daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        if outcome.done():
            raise  # the call's own
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite address, None for any other address."""
    scheme, _, place = uri.partition("://")
    return Path(place.partition("?")[0][1:]) if scheme.partition("+")[0] == "sqlite" else None


@contextmanager
def system_lock(
    config: TrackingConfig, key: str, waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """`locks.lock` where no server is asked: in the database of a PostgreSQL store, else in a file of this machine.

    Both are freed by the system when their owner dies.
    """
    if not config.uri.startswith("postgresql"):
        folder = _lock_folder(config.uri)
        folder.mkdir(parents=True, exist_ok=True)
        file = FileLock(folder / f"{key}.lock")
        try:
            held = file.acquire(timeout=0)
        except Timeout:
            waiting()
            held = file.acquire()
        with held:
            yield
        return
    from sqlalchemy import text

    number = int.from_bytes(hashlib.sha256(f"slimdown {key}".encode()).digest()[:8], signed=True)
    ask = text("SELECT pg_try_advisory_lock(:number)")
    database = within(_MOST_SECONDS, lambda: _connected(config.uri))
    try:
        for n_asked in itertools.count():
            if within(_MOST_SECONDS, lambda: database.scalar(ask, {"number": number})):
                break
            if not n_asked:
                waiting()
            time.sleep(0.2)
        yield
    finally:
        with suppress(Exception):  # it went away meanwhile, and the lock with it
            within(_MOST_SECONDS, database.close)


def experiment_id(client: "MlflowClient", config: TrackingConfig) -> str:
    """The id of the experiment that runs go into, which is made where it is not there."""
    from mlflow.exceptions import MlflowException

    location = None
    if file := sqlite_file(config.uri):  # a server decides for itself
        location = (file.absolute().parent / "artifacts").as_uri()
    for _ in range(2):
        if found := client.get_experiment_by_name(config.experiment):
            if found.lifecycle_stage == "deleted":
                raise SlimdownError(
                    f"tracking.experiment={config.experiment} was deleted in MLflow; restore it with "
                    f"`mlflow experiments restore -x {found.experiment_id}`, or choose another name"
                )
            return str(found.experiment_id)
        try:
            return str(
                client.create_experiment(
                    config.experiment, artifact_location=location, tags=_TRAINING_PAGES
                )
            )
        except MlflowException:
            continue  # another process made it just now
    raise SlimdownError(f"tracking.experiment={config.experiment} can neither be found nor made")


def search(client: Any, condition: str) -> list[Any]:
    """Runs of the store in MLflow's terms, whatever their experiment, the newest first; none out of its bin."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(experiments, condition))


def log_entries(
    client: Any,
    run_id: str,
    params: Sequence[Any] = (),
    metrics: Sequence[Any] = (),
    tags: Sequence[Any] = (),
) -> None:
    """Log a run's entries, in as many calls as MLflow's limits for one ask for."""
    for kind, entries, most in (
        ("params", params, 100),
        ("metrics", metrics, 1000),
        ("tags", tags, 100),
    ):
        for i in range(0, len(entries), most):
            client.log_batch(run_id, **{kind: entries[i : i + most]})


def first_line(error: BaseException) -> str:
    """What an error says first, at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _lock_folder(uri: str) -> Path:
    if file := sqlite_file(uri):
        return file.absolute().parent / "locks"
    return cache_folder() / "locks" / hashlib.sha256(uri.encode()).hexdigest()[:16]


def _client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    file = sqlite_file(uri)
    if file and not (file.exists() and file.stat().st_size):
        # MLflow never gets over a store whose making was cut short (mlflow 3.17: "table already exists"): by a full
        # disk, a kill, a signal. It is made under another name, and so whole or not at all.
        draft = file.absolute().with_name(f"{file.name}.draft")
        draft.unlink(missing_ok=True)
        try:
            MlflowClient(f"sqlite:///{draft}").search_experiments(max_results=1)
            draft.replace(file)
        finally:
            for part in (draft, draft.with_name(f"{draft.name}-journal")):
                part.unlink(missing_ok=True)
    # MLflow keeps one store a URI and process: after a change of folder it would be the wrong one (mlflow 3.17).
    client = MlflowClient(uri.replace(f":///{file}", f":///{file.absolute()}", 1) if file else uri)
    client.search_experiments(
        max_results=1
    )  # the first question opens the store, and makes it where it is not there
    # A signal raised within a query leaves SQLite locked for as long as its traceback is: for marking the run as well.
    return cast("MlflowClient", Undisturbed(client)) if file else client


def _reach(uri: str) -> None:
    """Ask once: MLflow's own client retries for minutes before it says that nobody answers."""
    if uri.startswith("databricks"):
        return  # only its own client knows the way
    if not uri.startswith("http"):
        _connected(uri).close()
        return
    health = f"{public_uri(uri).replace('***@', '').rstrip('/')}/health"
    try:
        urllib.request.urlopen(health, timeout=_MOST_SECONDS)
    except urllib.error.HTTPError:
        pass  # somebody answers; whether we may write is for the client to find out
    except urllib.error.URLError as error:
        if not (isinstance(error.reason, ssl.SSLError) and _is_trusted_by_mlflow(health)):
            raise


def _is_trusted_by_mlflow(address: str) -> bool:
    """Whether MLflow's client would accept a certificate that Python's own rules refuse: of a private CA, say."""
    requests = import_module("requests")  # of MLflow, and untyped

    environment = os.environ.get
    insecure = environment("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    verify = (
        environment("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure
    )  # True: REQUESTS_CA_BUNDLE, or certifi's
    certificate = environment("MLFLOW_TRACKING_CLIENT_CERT_PATH")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of urllib3, that nothing is verified: as was asked
        try:
            requests.get(address, verify=verify, cert=certificate, timeout=_MOST_SECONDS)
        except requests.exceptions.SSLError:
            return False
    return True


def _connected(uri: str) -> "Connection":
    """A connection that answered, in no transaction."""
    from sqlalchemy import NullPool, create_engine, text

    os.environ.setdefault(
        "PGCONNECT_TIMEOUT", "9"
    )  # libpq's own setting; it waits for minutes without
    connection = create_engine(uri, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()
    connection.execute(text("SELECT 1"))
    return connection


def _advice(uri: str, error: Exception) -> str:
    if sqlite_file(uri):
        return "choose a file that you can write, e.g. tracking.uri=sqlite:///mlruns/mlflow.db"
    if isinstance(getattr(error, "reason", None), ssl.SSLError):
        return "name the file of the certificates to trust, MLFLOW_TRACKING_SERVER_CERT_PATH=FILE"
    if "Invalid Host header" in str(
        error
    ):  # MLflow's server, which answers to the names that it is told
        return f"start the server with --allowed-hosts {urlsplit(uri).netloc.rpartition('@')[2]}"
    if uri.startswith("http") and not isinstance(error, OSError):  # somebody answered
        return "check user, password and address"
    if uri.startswith("http"):
        return (
            "start the server, e.g. `mlflow server --backend-store-uri sqlite:///mlruns/mlflow.db`, or leave "
            "tracking.uri out to record in the local folder mlruns/"
        )
    return "check the address, user, password and network"
