"""Check, create and open the MLflow store, and find the place of a run's own files.

MLflow is imported inside functions: it takes 1.5 seconds.
"""

import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from filelock import FileLock, Timeout

from slimdown.config.fields import find_problems
from slimdown.config.tracking_config import TrackingConfig
from slimdown.tracking.metrics_and_tags import USER, Tag
from slimdown.tracking.provenance import name_machine, read_user
from slimdown.utils.deadlines import call_within
from slimdown.utils.errors import SlimdownError, TrackingError
from slimdown.utils.extras import name_install
from slimdown.utils.files import cache_dir, raise_if_disk_full
from slimdown.utils.hashing import hash_json
from slimdown.utils.secrets import redact, redact_leaf, redact_leaves, redact_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_PARAM = 6000  # characters; MLflow cuts longer values
_PARAMS_OF_CALL = 100  # the most that MLflow takes in one call
MAX_TAG = 5000
_PAGE = 1_000  # experiments or runs per request; a server takes seconds for them
# MLflow 3.17 shows an experiment with the pages for LLM traces unless this tag says otherwise.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def check_store(config: TrackingConfig) -> None:
    """Ask a server once whether it is there, or look into a SQLite file, without importing MLflow.

    A `databricks` address is not checked: MLflow itself reads where it leads to.

    Raises:
        TrackingError: A tracking server does not answer within 8 seconds, a database refuses the
            connection, the file is no store or cannot be made, or the address is wrong.
    """
    # Without this check, MLflow's own client would retry for minutes.
    with explain_store_errors(config):
        if file := sqlite_file(config.uri):
            _check_file(file)
        elif config.uri.startswith("http"):
            _check_server(config.uri)
        elif not config.uri.startswith("databricks"):
            from sqlalchemy import NullPool, create_engine

            # It connects once and hangs up; the time limit is the database driver's.
            create_engine(config.uri, poolclass=NullPool).connect().close()


def _check_file(file: Path) -> None:
    """Raise an error if a SQLite file is no store of MLflow, or cannot be read or created.

    Raises:
        TrackingError: The address cannot name this file, it is a folder, or it is another file.
        OSError: The file cannot be read, or no file can be created in its folder.
    """
    # MLflow takes a ? and a % in an address for something else, and would open another file.
    if "?" in str(file) or unquote(str(file)) != str(file):
        raise TrackingError(f"{file}: no address can hold its ? or %; use another folder")
    if file.exists() and not file.is_file():
        raise TrackingError(f"{file} is no file; name one that you can write by tracking.uri")
    if not _is_there(file):  # it may also be empty; then it has no pages that could be read below
        # MLflow will create the file and its folders. This trial raises if nothing can be written
        # into the nearest folder that exists.
        nearest_folder = next(filter(Path.is_dir, file.parents))
        TemporaryFile(dir=nearest_folder).close()
        return
    with file.open("rb") as content, mmap(content.fileno(), 0, access=ACCESS_READ) as pages:
        is_sqlite = pages[:16] == b"SQLite format 3\0"
        has_tables = pages.find(b"alembic_version") > 0
    if not is_sqlite or not has_tables:  # MLflow would create its tables in any database
        advice = "name another one by tracking.uri or --tracking-uri"
        raise TrackingError(f"{file} is no MLflow store, or damaged; {advice}")


def _check_server(uri: str) -> None:
    """Check that a server answers. A request for a password or a certificate is an answer, too.

    Raises:
        OSError: The server cannot be reached, does not answer within 8 seconds, or answers with a
            status from 429 on: it is overloaded or broken, and MLflow would retry for minutes.
    """
    # The request carries no user and no password. A server that wants them answers 401, and is up.
    server = redact_uri(uri).replace("***@", "").rstrip("/")
    # A server may say that it is healthy, and answer nothing that needs its database.
    request = f"{server}/api/2.0/mlflow/experiments/search?max_results=1"
    try:
        call_within(8, lambda: urllib.request.urlopen(request, timeout=8).read())
    except ssl.SSLError:  # raised while the answer is read
        # The server is up, but one side does not accept the other's certificate. MLflow's requests
        # may succeed, because MLflow has settings for certificates. This request does not use them.
        return
    except urllib.error.HTTPError as error:
        if error.code >= 429:  # a lower status, such as 401, shows that the server is up
            raise
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # the same, raised while connecting
            raise


def open_store(config: TrackingConfig, must_exist: bool = False) -> "MlflowClient":
    """Return a client of the store; a SQLite file that is not there is created.

    Args:
        config: The address of the store. The experiment is not looked for here.
        must_exist: Whether a SQLite file that is not there is an error; set it for reading.

    Raises:
        TrackingError: The store does not answer, refuses, or does not exist.
    """
    check_store(config)
    file = sqlite_file(config.uri)
    with explain_store_errors(config):
        if file and must_exist and not _is_there(file):
            advice = "or name another with --tracking-uri or MLFLOW_TRACKING_URI"
            raise TrackingError(f"there is no record {file} yet; slimdown run makes one, {advice}")
        from mlflow import MlflowClient

        if file is None:  # a server or another database, whose tables MLflow may create now
            with lock(config, "creation"):  # processes that create tables together break them
                return MlflowClient(config.uri)
        # From here on, the store is a SQLite file.
        if not must_exist:
            with lock(config, "creation"):
                _create_file(file)
        # MLflow keeps an open store for each address. If the address were relative, it would still
        # lead to the first folder after the process has changed into another one. What follows a ?
        # in the address stays.
        path = config.uri.partition(":///")[2].partition("?")[0]
        return MlflowClient(config.uri.replace(f":///{path}", f":///{file}", 1))


def _create_file(file: Path) -> None:
    """Create a SQLite store where there is none; the file gets its name when it is whole.

    A kill between two tables would leave a file that MLflow 3.17 refuses ("table already exists").
    """
    from mlflow import MlflowClient

    if _is_there(file):
        return
    target = file.resolve()  # a symbolic link stays one
    draft = target.with_name(f"{file.name}.draft")
    draft.unlink(missing_ok=True)
    MlflowClient(f"sqlite:///{draft}").search_experiments(max_results=1)
    draft.replace(target)


@contextmanager
def explain_store_errors(config: TrackingConfig, filter_string: str = "") -> Iterator[None]:
    """Turn whatever a store or its driver raises into one line that says how to go on.

    `filter_string` is that of a search; a message then shows how to write one.

    Raises:
        TrackingError: Instead of any exception but slimdown's own, or if `config` is not valid.
        SlimdownError: The disk is full.
    """
    # Each problem begins with the name of a setting, such as "uri".
    problem = next(iter(find_problems(config)), None)
    if problem is not None:
        raise TrackingError(f"tracking.{problem}")
    try:
        yield
    except SlimdownError:
        raise
    except Exception as error:
        raise_if_disk_full(error)
        problem = f"tracking.uri={redact_uri(config.uri)} cannot be used: {first_line(error)}"
        advice = _advise(config.uri, error, filter_string)
        raise TrackingError(f"{problem}; {advice}") from None


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute file of a SQLite address, or None for any other address."""
    scheme, _, place = uri.partition("://")
    is_sqlite = scheme.partition("+")[0] == "sqlite"
    return Path(place.partition("?")[0][1:]).absolute() if is_sqlite else None


def local_dir(config: TrackingConfig) -> Path:
    """Return the folder for a run's own files: that of a local store, `mlruns` for a server."""
    file = sqlite_file(config.uri)
    return file.parent if file else Path.cwd() / "mlruns"


def lock(config: TrackingConfig, key: str) -> FileLock:
    """Return a lock for the processes of this machine; the system frees it when they die."""
    file = sqlite_file(config.uri)
    folder = file.parent / "locks" if file else cache_dir() / "locks" / hash_json(config.uri)
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{key}.lock", thread_local=False)


@contextmanager
def lock_run(config: TrackingConfig, run_id: str) -> Iterator[None]:
    """Hold a run against the processes of this machine, and of others that see its folder.

    Raises:
        Timeout: A process works on it.
    """
    folder = local_dir(config) / "runs" / run_id
    with ExitStack() as locks:
        locks.enter_context(lock(config, f"run-{run_id}").acquire(timeout=0))
        if folder.is_dir():  # a sweep's run has none
            shared_lock = FileLock(folder / "run.lock", thread_local=False)
            locks.enter_context(shared_lock.acquire(timeout=0))
        yield


def wait_for_lock(config: TrackingConfig, key: str, on_wait: Callable[[], None]) -> Any:
    """Take a lock; the returned context releases it. `on_wait` is called before a wait."""
    wanted = lock(config, key)
    try:
        return wanted.acquire(timeout=0)
    except Timeout:
        on_wait()
        return wanted.acquire()


def find_experiment(client: "MlflowClient", config: TrackingConfig) -> str:
    """Return the id of the experiment; create it where it does not exist."""
    # A server decides for itself where artifacts go.
    location = (local_dir(config) / "artifacts").as_uri() if sqlite_file(config.uri) else None
    with lock(config, "experiment"):
        if experiment := client.get_experiment_by_name(config.experiment):
            if experiment.lifecycle_stage == "deleted":
                advice = f"mlflow experiments restore -x {experiment.experiment_id} brings it back"
                name = f"tracking.experiment={config.experiment}"
                raise TrackingError(f"{name} was deleted; name another, or {advice}")
            return str(experiment.experiment_id)
        return str(client.create_experiment(config.experiment, location, _EXPERIMENT_TAGS))


def create_run(
    client: Any, experiment_id: str, name: str, kind: str, tags: Mapping[str, str] | None = None
) -> Any:
    """Create a run in an experiment, without secrets.

    Args:
        client: A client of the store.
        experiment_id: The experiment.
        name: The run's name.
        kind: The kind of run, for the tag `Tag.kind`.
        tags: More tags; empty ones are left out, and long ones are cut.

    Returns:
        MLflow's `Run`.

    Raises:
        TrackingError: As for `check_run_id`.
    """
    all_tags: dict[str, str] = {Tag.kind: kind, Tag.host: name_machine(), USER: read_user()}
    all_tags |= tags or {}
    texts = {key: redact_leaf(text)[:MAX_TAG] for key, text in all_tags.items() if text}
    run = client.create_run(experiment_id, tags=texts, run_name=redact_leaf(name))
    check_run_id(run.info.run_id)
    return run


def check_run_id(run_id: str) -> str:
    """Check and return a run's id, which names files and folders here.

    Raises:
        TrackingError: The server gave an id that could lead out of these folders.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]{0,99}", run_id, re.ASCII):
        shown = ascii(run_id)[:80]
        raise TrackingError(f"the store calls a run {shown}, and an id is 32 letters and digits")
    return run_id


def search_all(search: Callable[..., Any], most: int = 0) -> list[Any]:
    """Return all that a search of MLflow finds, page by page.

    Args:
        search: A method of MLflow's client, such as `client.search_runs`. Give its conditions with
            `functools.partial`; the size and the token of each page are added here.
        most: The most results to return; 0: all.
    """
    found: list[Any] = []
    token = None  # MLflow's mark for where the next page begins; empty after the last page
    while True:
        size = min(_PAGE, most - len(found)) if most else _PAGE
        page = search(max_results=size, page_token=token)
        found += page
        token = page.token
        if not token or len(found) == most:
            return found


def list_experiments(config: TrackingConfig) -> dict[str, str]:
    """Return the names of the experiments in a record, by id; those changed last come first.

    Raises:
        TrackingError: There is no record.
    """
    client = open_store(config, must_exist=True)
    with explain_store_errors(config):
        search = partial(client.search_experiments, order_by=["last_update_time DESC"])
        return {e.experiment_id: e.name for e in search_all(search) if e.name != "Default"}


def log_settings(client: Any, run_id: str, settings: Mapping[str, str]) -> None:
    """Show settings as params of a run, for people; commands read them from elsewhere.

    Long ones are cut, see `recorded_settings`.
    """
    from mlflow.entities import Param

    texts = redact_leaves(dict(settings))[0].items()
    params = [Param(key, text[:_MAX_PARAM]) for key, text in texts]
    for i in range(0, len(params), _PARAMS_OF_CALL):
        client.log_batch(run_id, params=params[i : i + _PARAMS_OF_CALL])


def first_line(error: BaseException) -> str:
    """Return the first line of an error, without secrets, at most 200 characters."""
    return redact((str(error).splitlines() or [type(error).__name__])[0])[:200]


def _is_there(file: Path) -> bool:
    """Return whether a file is there and not empty; MLflow fills an empty one like a new one."""
    return file.exists() and file.stat().st_size > 0


def _advise(uri: str, error: Exception, filter_string: str) -> str:
    """Say how to go on after an error of a store or its driver.

    Args:
        uri: The address of the store.
        error: What MLflow or the driver raised.
        filter_string: The filter of the search that failed; empty if it was no search.
    """
    if isinstance(error, ModuleNotFoundError):
        how = name_install("postgres") if uri.startswith("postgres") else "with pip"
        return f"install the driver {error.name}: {how}, or name another, as in mysql+pymysql://"
    if getattr(error, "error_code", "") == "ENDPOINT_NOT_FOUND":
        return "the server is too old: slimdown records models, which MLflow keeps since version 3"
    if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
        form = "a filter is written so: \"params.`lora.r` = '8' and tags.`slimdown.sweep` = 'x'\""
        return form if filter_string else "MLflow takes no such value; give another one"
    if sqlite_file(uri):
        return "end other programs that hold the file, or name one that you can write"
    if "timed out" in str(error):
        return "start the server, or give it longer: MLFLOW_HTTP_REQUEST_TIMEOUT=120 (seconds)"
    return "start the server, or check address, user, password and certificates"
