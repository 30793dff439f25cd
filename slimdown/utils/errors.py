"""Errors that a person can mend: shown as one message, without a traceback."""


class UserError(Exception):
    """Something the user can mend; the message says what is wrong, what was found and how to go on."""


class ConfigError(UserError):
    """One or more settings are wrong; the message lists every problem, one a line."""


class Pruned(UserError):
    """A search has ended this trial early; the message says when and why."""
