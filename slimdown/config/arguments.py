"""What the command lines of `slimdown.compare`, `check`, `verdict` and `send` have in common."""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from slimdown.config.schema import DEFAULT_STORE, TrackingConfig, default_store
from slimdown.utils.errors import SlimdownError

_ENDINGS = {".md": "markdown", ".csv": "csv", ".json": "json", ".html": "html", ".htm": "html"}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes no option twice, of which argparse keeps the last in silence."""

    def __init__(self, exit_code: int = 2, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **given)
        self._exit_code = exit_code
        self.register("action", None, _Once)

    def error(self, message: str) -> NoReturn:
        self.exit(self._exit_code, f"{self.prog}: {message}; --help says what there is\n")


class _Once(argparse.Action):
    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        if option_string in options_given(namespace):
            parser.error(f"{option_string} is given more than once; leave one of them out")
        options_given(namespace).update(self.option_strings)
        setattr(namespace, self.dest, values)


def options_given(namespace: argparse.Namespace) -> set[str]:
    """The options with a value of their own that were given, by each of their spellings."""
    given: set[str] = namespace.__dict__.setdefault("given", set())
    return given


def add_store(
    parser: Any, otherwise: str = DEFAULT_STORE, otherwise_said: str = DEFAULT_STORE
) -> None:
    """Add --tracking-uri to a parser or a group of its arguments."""
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        default=default_store(otherwise),
        help=f"the store (default: $MLFLOW_TRACKING_URI, else {otherwise_said})",
    )


def store_to_read(tracking_uri: str) -> TrackingConfig:
    """Where a command reads runs of any experiment.

    Raises:
        SlimdownError: an address that can hold no record.
    """
    config = TrackingConfig(uri=tracking_uri, experiment="slimdown")
    if problem := config.uri_problem():
        raise SlimdownError(f"--tracking-{problem}")
    return config


def add_output(parser: Any, formats: Sequence[str]) -> None:
    """Add --format and --output to a parser or a group of its arguments."""
    parser.add_argument(
        "--format", choices=formats, help="default: table, or what the ending of --output says"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write to a file instead of the console"
    )


def format_of(options: argparse.Namespace) -> str:
    """The format that is asked for, or that the ending of --output says."""
    return options.format or (
        _ENDINGS.get(options.output.suffix.lower(), "table") if options.output else "table"
    )


def add_budgets(parser: Any, otherwise: str) -> None:
    """Add --max-loss to a parser; `otherwise` is what holds without it."""
    parser.add_argument(
        "--max-loss",
        metavar="BENCHMARK=SHARE",
        nargs="+",
        action="extend",
        default=[],
        help=f"what a benchmark may lose: gsm8k=0.02 is two points; without it {otherwise}",
    )


def exit_with(answer: Callable[[], int], refused: str, unasked: int) -> NoReturn:
    """Exit with the code that `answer` returns.

    What keeps it from an answer exits with the code `unasked`, a user's mistake behind the words of `refused`.
    """
    try:
        sys.exit(answer())
    except SlimdownError as error:
        sys.stderr.write("\n  ".join([refused, *str(error).splitlines()]) + "\n")
    except (
        Exception
    ):  # whatever it is, it must not look like a verdict: Python's own exit code is 1
        traceback.print_exc()
    sys.exit(unasked)
