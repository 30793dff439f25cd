"""Files: where those that can be made again lie, how they are written whole or not at all, what a full disk says."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from slimdown.utils.errors import SlimdownError


@dataclass(frozen=True)
class Interim:
    """Where work that takes long is kept while it is not finished, how often, and who is told of it in a line."""

    folder: Path
    seconds: float  # from one time to the next; infinite: never
    tell: Callable[[str], None]

    def begun(self) -> bool:
        """Whether this was asked before, by a process that has not finished."""
        was = self.folder.is_dir()
        self.folder.mkdir(parents=True, exist_ok=True)
        return was


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# SQLite, safetensors and Arrow raise errors of their own around the system's words.
_WORDS = ("database or disk is full", *(os.strerror(number) for number in _FULL))


def disk_full(error: BaseException, *folders: Path, advice: str = "") -> SlimdownError | None:
    """What to tell a user whose disk took no more, or None where `error` says something else.

    Args:
        error: what a library raised; what it was raised from is looked at too.
        folders: where was written, besides the folder that the command was typed in and that of temporary files.
        advice: what to do; that for a run where it is empty.
    """
    full: BaseException | None = None
    link: BaseException | None = error
    while link is not None and not isinstance(link, SlimdownError):
        if getattr(link, "errno", None) in _FULL or any(word in str(link) for word in _WORDS):
            full = link  # the innermost says it in the fewest words
        link = link.__cause__ or link.__context__
    if full is None:
        return None
    written = (
        Path(full.filename)
        if isinstance(full, OSError) and isinstance(full.filename, str)
        else None
    )
    places = [*folders, Path.cwd(), Path(os.environ.get("TMPDIR", "/tmp"))]
    free = {}
    for folder in [*places, written.parent] if written else places:
        with suppress(OSError):
            free[folder] = shutil.disk_usage(folder).free
    fullest = min(free, key=lambda folder: free[folder])
    return SlimdownError(
        f"the disk takes no more ({' '.join(str(full).split())[:200]}); {free[fullest] / 1e6:.1f} MB are free in "
        f"{fullest}. "
        + (
            advice
            or "Make room and run the same command again, which finds what was measured so far, or write to another "
            "disk: tracking.uri=sqlite:////FOLDER/mlflow.db hydra.run.dir=FOLDER"
        )
    )


def cache_folder() -> Path:
    """Where files lie that can be made again: XDG_CACHE_HOME, or `~/.cache`, and `slimdown` in it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "slimdown"


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into, which takes its name when it is whole: another process, or a kill, finds it so or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which takes its name when it is whole; what a killed process left of it is removed.

    Raises:
        SlimdownError: another process is writing it, or it holds something.
    """
    draft = path.with_name(f".{path.name}.unfinished")
    lock = FileLock(f"{draft}.lock", timeout=0)  # which the system frees when its owner dies
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock:
            shutil.rmtree(draft, ignore_errors=True)
            try:
                draft.mkdir()
                yield draft
                if path.is_dir():
                    path.rmdir()  # an empty one
                draft.rename(path)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        raise SlimdownError(
            f"another process is writing {path}; wait for it, or choose another folder"
        ) from None
