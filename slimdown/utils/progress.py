"""What long work tells while it goes on."""

from collections.abc import Callable

OnProgress = Callable[[int, int, str], None]
"""Receives how much is done, how much there is, and a few words to show beside it."""
