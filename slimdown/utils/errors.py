"""Errors that you can mend: one message each, shown without a traceback.

Catch `SlimdownError` for all of them, or one of its kinds.
"""


class SlimdownError(Exception):
    """Says what is wrong, which value was found, what would be right, and how to go on."""


class ConfigError(SlimdownError):
    """Settings or arguments are wrong; the message lists every problem, one a line."""


class DataError(SlimdownError):
    """Training rows, or two evaluations that are to be compared, do not fit."""


class ModelError(SlimdownError):
    """A model or an adapter cannot be fetched, read, held in memory or trained."""


class TrackingError(SlimdownError):
    """The record of runs cannot be read or written."""


def list_causes(error: BaseException) -> list[BaseException]:
    """Return an error and its causes, the newest first."""
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    return causes


def describe_error(error: BaseException) -> str:
    """Return the class and the first 300 characters of somebody else's error, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
