"""`python -m slimdown.send FOLDER`: deliver runs that lie on disk because their store had fallen silent."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from slimdown.config.arguments import add_store
from slimdown.utils.errors import SlimdownError
from slimdown.utils.interruption import EXIT_CODE
from slimdown.utils.redaction import public_uri


def main(given: Sequence[str] | None = None) -> None:
    """Send, and say what became of it; exit code 1 where not everything arrived, or more may follow."""
    parser = argparse.ArgumentParser(
        prog="python -m slimdown.send", description=(__doc__ or "").split(": ", 1)[1]
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder that the run named")
    add_store(parser, otherwise="", otherwise_said="the one that the runs were meant for")
    options = parser.parse_args(given)
    try:
        from slimdown.tracking.outage import send  # mlflow's import takes a second: not for --help

        uri, run_ids, going = send(options.folder, options.tracking_uri)
    except SlimdownError as error:
        sys.exit(f"This cannot be sent:\n  {error}")
    except KeyboardInterrupt:
        sys.stderr.write(
            "Interrupted before everything arrived; nothing is lost, and sent again nothing is doubled.\n"
        )
        sys.exit(EXIT_CODE)
    sys.stdout.write("".join(f"run {run_id}\n" for run_id in run_ids))
    if going:  # not 0, so that `send FOLDER && rm -r FOLDER` takes nothing from under a run
        advice = f"is still going (or was killed); keep {options.folder} and send again when it has ended"
        sys.exit("\n".join(f"run {run_id} {advice}" for run_id in going))
    sys.stdout.write(
        f"All of it is in {public_uri(uri)} now; {options.folder} is no longer needed.\n"
    )


if __name__ == "__main__":
    main()
