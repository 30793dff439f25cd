"""`slimdown VERB ...`, the same as `python -m slimdown VERB ...`."""

import signal
import sys
from importlib import import_module

from slimdown.commands.arguments import VERBS, run_command
from slimdown.config.fields import nearest
from slimdown.utils.versions import OWN_VERSION


def main() -> None:
    """Start the verb of the command line, and exit with its code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a command as Ctrl-C does
    # Broken extensions are not refused here: `--help` and `doctor` go on with them. The other verbs
    # refuse them.
    sys.exit(
        run_command(_start_verb, "slimdown cannot go on:", error_code=1, with_extensions=False)
    )


def _start_verb() -> int:
    """Run the verb of the command line. Settings or flags without a verb mean `run`.

    Returns:
        The verb's exit code; 2 if there is no such verb.
    """
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help"):
        lines = "\n".join(f"  {name:<12}{text}" for name, text in VERBS.items())
        more = "slimdown VERB --help explains a verb. Settings alone mean run: slimdown lora.r=4"
        sys.stdout.write(f"usage: slimdown VERB ...\n\n{lines}\n\n{more}\n")
        return 0
    if verb == "--version":
        sys.stdout.write(f"slimdown {OWN_VERSION}\n")
        return 0
    if verb == "run" or "=" in verb or verb.startswith("-"):  # such as lora.r=4, or -m
        from slimdown.commands.run import main as run  # it sets up the process itself

        return run(arguments if verb == "run" else sys.argv[1:])
    if verb in VERBS:
        from slimdown.commands.process import set_up_process

        set_up_process()
        return int(import_module(f"slimdown.commands.{verb}").main(arguments))
    sys.stderr.write(f"slimdown: there is no {verb!r}{nearest(verb, list(VERBS))}\n")
    return 2


if __name__ == "__main__":
    main()
