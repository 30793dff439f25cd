"""`slimdown ui`: MLflow's pages of the record, with the columns that matter here.

Other options, such as --host, go to `mlflow ui`.
"""

import os
import sys

from slimdown.commands.arguments import CommandParser, open_tracking, run_command
from slimdown.tracking.store import VIEW, list_experiments


def main(argv: list[str]) -> int:
    """Print where each experiment is shown, then become MLflow's server.

    Args:
        argv: The arguments after `ui`.

    Returns:
        The exit code where it cannot start.
    """
    parser = CommandParser("ui", __doc__)
    parser.add_store()
    parser.add_argument("-p", "--port", type=int, default=5000, help="default: %(default)s")
    options, others = parser.parse_known_args(argv)

    def serve() -> int:
        uri = options.tracking_uri
        is_server = uri.startswith("http")
        place = uri.rstrip("/") if is_server else f"http://127.0.0.1:{options.port}"
        # A fresh browser gets MLflow 3.17's pages for LLM traces, whatever the experiment's kind.
        view = f"runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
        for number, name in list_experiments(open_tracking(options)).items():
            sys.stderr.write(f"open {place}/#/experiments/{number}/{view}  {name}\n")
        if is_server:
            return 0
        server = ["-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(options.port)]
        os.execv(sys.executable, [sys.executable, *server, *others])

    return run_command(serve, "The pages cannot be opened:", 1)
