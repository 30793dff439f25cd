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
    set_up_process()
    from slimdown.commands.run_command_line import start  # Hydra, which the light install lacks

    return start(arguments)
