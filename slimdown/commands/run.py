"""`slimdown run`: one run, or with -m a sweep or a search."""

from slimdown.commands.arguments import run_command
from slimdown.commands.process import set_up_process


def main(arguments: list[str]) -> int:
    """Run what the command line asks for.

    Args:
        arguments: Settings and Hydra's flags, without the program.

    Returns:
        The exit code: 0, 1 after an error, which is written to stderr, or 130 after a signal.
    """
    return run_command(lambda: _start(arguments), "This run cannot go on:", error_code=1)


def _start(arguments: list[str]) -> int:
    """Set up the process, then run the command line and return the exit code."""
    set_up_process()  # first, because libraries read the environment when they are imported
    # Imports Hydra. If the light install lacks it, `run_command` names what installs it.
    from slimdown.commands.run_command_line import start

    return start(arguments)
