"""Answers of finished parts of a benchmark, on disk while it goes on: a killed measurement asks for the rest alone."""

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any


class Parts:
    """What each part was answered, in the order in which the parts are asked, which is the same each time.

    The file grows line by line. Each line's digest is of all before it as well, so that what follows a line that was
    cut short or changed is worth nothing, and a part is only taken where it is the one that is asked.
    """

    def __init__(self, file: Path | None = None, seconds: float = inf, stays: bool = False) -> None:
        """Read what is there.

        Args:
            file: whose name says what is asked of which model; None: nothing is kept.
            seconds: after which what has been answered is written; short benchmarks cost nothing.
            stays: what is finished is kept nowhere else.
        """
        self._file, self._seconds, self._stays = file, seconds, stays
        self._chain, self._length = (
            file.stem if file else "",
            0,
        )  # digest and bytes of what is taken or written
        self._kept = deque(self._read())
        self._new: list[tuple[Any, Any]] = []
        self._written = time.monotonic()

    def take(self, asked: Sequence[Any]) -> Any | None:
        """What this part, the next that is asked, was answered; None where that is not kept."""
        if self._kept and self._kept[0][0] == list(asked):
            _, answers, self._chain, self._length = self._kept.popleft()
            return answers
        self._kept.clear()
        return None

    def put(self, asked: Sequence[Any], answers: Sequence[Any]) -> None:
        """Keep what a part was answered, as soon as it is time to write; what cannot be written is asked again."""
        if self._file is None or self._seconds == inf:
            return
        self._new.append((list(asked), list(answers)))
        if time.monotonic() - self._written >= self._seconds:
            with suppress(OSError):
                self._write(self._file)
            self._written = time.monotonic()

    def finish(self) -> None:
        """All is answered: keep it whole where it is kept nowhere else, and else no more."""
        with suppress(OSError):  # others keep theirs in the folder
            if self._stays and self._new and self._file:
                self._write(self._file)
            elif not self._stays and self._file and self._file.exists():
                self._file.unlink(missing_ok=True)
                self._file.parent.rmdir()

    def _read(self) -> list[tuple[list[Any], Any, str, int]]:
        """Each part that is whole, with digest and length of the file up to its end."""
        found: list[tuple[list[Any], Any, str, int]] = []
        chain, length = self._chain, 0
        with suppress(OSError, ValueError, TypeError):
            for line in self._file.read_bytes().splitlines(keepends=True) if self._file else []:
                digest, _, text = line.decode().partition(" ")
                chain, length = _digest(chain, text), length + len(line)
                if digest != chain:
                    break
                asked, answers = json.loads(text)
                found.append((asked, answers, chain, length))
        return found

    def _write(self, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        chain, lines = self._chain, []
        for part in self._new:
            text = json.dumps(part) + "\n"
            chain = _digest(chain, text)
            lines.append(f"{chain} {text}")
        content = "".join(lines).encode()
        with place.open("r+b" if place.exists() else "wb") as file:
            file.truncate(self._length)
            file.seek(self._length)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._chain, self._length = chain, self._length + len(content)
        self._new.clear()


def _digest(before: str, text: str) -> str:
    return hashlib.sha256(f"{before} {text}".encode()).hexdigest()[:32]
