"""The file in which answers lie while an evaluation goes on, so that a killed one keeps them."""

import json
import sqlite3
from pathlib import Path
from typing import Any


class AnswersFile:
    """Responses by chunk. A chunk is there whole, or not; a damaged file is begun anew."""

    def __init__(self, file: Path | None) -> None:
        """Open the file, and read what is in it; None keeps the responses in memory."""
        self._file = file
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError:  # damaged: its questions are asked again
            self.remove()
            self._open()

    def _open(self) -> None:
        self._database = sqlite3.connect(self._file or ":memory:", isolation_level=None)
        self._database.execute("CREATE TABLE IF NOT EXISTS chunks (name PRIMARY KEY, data)")
        self._chunks = dict(self._database.execute("SELECT name, data FROM chunks"))

    def find(self, name: str, requests: list[Any]) -> list[list[Any]] | None:
        """Return the responses of a chunk to each request; None where it is not there."""
        responses: list[list[Any]] = json.loads(self._chunks.get(name, "[]"))
        is_whole = [len(repeated) for repeated in responses] == [r.repeats for r in requests]
        return responses if is_whole else None

    def save(self, name: str, responses: list[list[Any]]) -> None:
        """Keep the responses of a chunk."""
        self._chunks[name] = json.dumps(responses)
        row = name, self._chunks[name]
        self._database.execute("INSERT OR REPLACE INTO chunks VALUES (?, ?)", row)

    def remove(self) -> None:
        """Close the file and delete it."""
        self.close()
        if self._file:
            self._file.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; what is in it stays."""
        self._database.close()
