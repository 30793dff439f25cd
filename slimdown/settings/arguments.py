"""What the command lines of `slimdown.compare` and `slimdown.check` have in common."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes no option twice, of which argparse keeps the last in silence."""

    exit_code = 2

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **given)
        self.register("action", None, _Once)

    def error(self, message: str) -> NoReturn:
        self.exit(self.exit_code, f"{self.prog}: {message}; --help says what there is\n")


class _Once(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if option_string in options_given(namespace):
            parser.error(f"{option_string} is given more than once; leave one of them out")
        options_given(namespace).update(self.option_strings)
        setattr(namespace, self.dest, values)


def options_given(namespace: argparse.Namespace) -> set[str]:
    """The options with a value of their own that were given, by each of their spellings."""
    found: set[str] = namespace.__dict__.setdefault("given", set())
    return found
