"""`slimdown ui`: open the record in MLflow's web pages, with the columns that matter for slimdown.

Other options, such as --workers, are passed on to `mlflow ui`.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress

from slimdown.commands.arguments import CommandParser, run_command
from slimdown.config.tracking_config import TrackingConfig
from slimdown.tracking import store
from slimdown.utils.errors import TrackingError
from slimdown.utils.secrets import redact_uri


def main(argv: list[str]) -> int:
    """Start MLflow's server, and print a link to each experiment's page.

    The link opens a view with the columns that matter for slimdown.

    Args:
        argv: The arguments after `ui`.

    Returns:
        The exit code of the server; 0 after Ctrl-C, and if the store is a server already.
    """
    parser = CommandParser("ui", __doc__)
    parser.add_argument("-p", "--port", type=int, default=5000, help="default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    options, server_options = parser.parse_known_args(argv)
    if not options.host or not 0 < options.port < 65536:
        shown = f"--host {options.host!r} --port {options.port}"
        parser.error(f"{shown}: give the name of a host, and a port from 1 to 65535")
    refusal = "The pages cannot be opened:"
    return run_command(lambda: _open_pages(options, server_options), refusal, error_code=1)


def _open_pages(options: argparse.Namespace, server_options: list[str]) -> int:
    """Print a link to each experiment, and start MLflow's server unless the store is one.

    Args:
        options: With `tracking`, `host` and `port`.
        server_options: Further options for `mlflow ui`.

    Returns:
        The exit code of the server; 0 if the store is a server already.

    Raises:
        TrackingError: The port is taken, or the store cannot be read.
    """
    from slimdown.report.console import show_line
    from slimdown.tracking.metrics_and_tags import Tag
    from slimdown.tracking.runs_page import VIEW, share_view

    lines: list[str] = []
    uri = options.tracking.uri
    experiments = store.list_experiments(options.tracking)
    is_server = uri.startswith("http")
    place = f"http://{options.host}:{options.port}"
    if is_server:
        place = redact_uri(uri).replace("***@", "")  # without user and password
    client = store.open_store(options.tracking)
    for experiment_id, name in reversed(experiments.items()):  # what changed last comes last
        with store.explain_store_errors(options.tracking):
            # Every run of slimdown has this tag; without any, another tool made the experiment.
            has_kind = f"tags.`{Tag.kind}` LIKE '%'"
            if not client.search_runs([experiment_id], has_kind, max_results=1):
                continue
        with suppress(Exception):  # if the store is read-only, the view shared before stays
            share_view(client, experiment_id)
        # A fresh browser gets pages for LLM traces, whatever the kind of the experiment.
        view = f"runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
        page = f"{place.rstrip('/')}/#/experiments/{experiment_id}/{view}"
        lines.append(f"ready: open {page}  {name}")
    if is_server:
        for line in lines:
            show_line(line)
        return 0
    return _serve_pages(options, server_options, place, lines)


def _serve_pages(
    options: argparse.Namespace, server_options: list[str], place: str, lines: list[str]
) -> int:
    """Start MLflow's server, print lines when it answers, and return its exit code at its end.

    Args:
        options: With `tracking`, `host` and `port`.
        server_options: Further options for `mlflow ui`.
        place: The address at which the server will answer.
        lines: The links to print once it answers.

    Returns:
        The exit code of the server; 0 after Ctrl-C or SIGTERM.

    Raises:
        TrackingError: The port is taken.
    """
    from slimdown.report.console import show_line

    try:  # MLflow would show a traceback if the port is taken
        socket.create_server((options.host, options.port)).close()
    except OSError as error:
        reason = " (on a Mac, AirPlay uses 5000)" if sys.platform == "darwin" else ""
        advice = f"give another one{reason}"
        raise TrackingError(f"--port {options.port}: {error.strerror}; {advice}") from None
    # The store's address goes through the environment: all users can read a command line.
    settings = {
        "MLFLOW_BACKEND_STORE_URI": options.tracking.uri,
        "MLFLOW_REGISTRY_STORE_URI": options.tracking.uri,
        # The server's jobs score LLM traces, of which a record of slimdown has none.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "PYTHONWARNINGS": "ignore",
    }
    has_own_options = any("-opts" in option for option in server_options)  # such as --gunicorn-opts
    quiet = [] if has_own_options else ["--uvicorn-opts", "--log-level warning"]
    address = ["--host", options.host, "--port", str(options.port)]
    command = [sys.executable, "-m", "mlflow", "ui", *address, *quiet, *server_options]
    show_line("starting MLflow's server, which takes up to a minute ...")
    with subprocess.Popen(command, env=os.environ | settings) as server:
        try:
            while server.poll() is None:
                try:  # whether the server answers by now
                    store.check_store(TrackingConfig(uri=place, experiment="slimdown"))
                except TrackingError:
                    time.sleep(0.2)
                else:
                    for line in lines:
                        show_line(line)
                    return server.wait()
            return server.returncode or 1  # it was never ready
        except KeyboardInterrupt:  # or SIGTERM, see `slimdown.__main__`
            server.terminate()
            return 0
