"""`python -m slimdown.run`, the same as `slimdown run`."""

import signal
import sys

from slimdown.commands.run import main as main

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a run as Ctrl-C does
    sys.exit(main(sys.argv[1:]))
