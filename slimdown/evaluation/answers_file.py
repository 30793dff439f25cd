"""The file that keeps answers during an evaluation, so that a killed one does not lose them."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any


class AnswersFile:
    """The responses to chunks of requests, one chunk per line, as JSON.

    A line that is damaged or cut short does not count.

    Attributes:
        responses: By name of a chunk: for each of its requests, the list of its responses.
    """

    def __init__(self, file: Path | None) -> None:
        """Read what is in the file; None keeps the responses in memory."""
        self._file = file
        self.responses: dict[str, list[list[Any]]] = {}
        lines = file.read_bytes().splitlines() if file and file.exists() else []
        for line in lines:
            with suppress(ValueError, TypeError):  # it is damaged
                self.responses |= json.loads(line)

    def save(self, name: str, responses: list[list[Any]]) -> None:
        """Keep the responses of a chunk."""
        line = json.dumps({name: responses})
        self.responses |= json.loads(line)
        if self._file:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.write(f"\n{line}\n")  # what stood there before may be cut short

    def remove(self) -> None:
        """Delete the file."""
        if self._file:
            self._file.unlink(missing_ok=True)
