"""Files that are written whole or not at all, and what to say when the disk is full."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from slimdown.utils.errors import SlimdownError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# SQLite, safetensors and Arrow raise errors of their own around the system's words.
_WORDS = ("database or disk is full", *(os.strerror(number) for number in _FULL))


def cache_dir() -> Path:
    """Return the folder of files that can be made again: slimdown/ in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "slimdown"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file beside its place, then rename it: what was there before stays until then.

    Args:
        path: Its folder is made where it is missing. A device such as /dev/stdout is written to.
        content: Text is encoded as UTF-8.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.resolve()  # a link keeps pointing at the file
    draft = target.with_name(f".{os.getpid()}.draft")  # short: the name may be as long as can be
    try:
        draft.write_bytes(data)
        if target.exists():
            shutil.copymode(target, draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def write_folder_atomically(path: Path) -> Iterator[Path]:
    """Yield a folder to write into; it takes the name `path` when the block ends without an error.

    Args:
        path: A folder that does not exist, or is empty.

    Raises:
        SlimdownError: Another process writes it at this moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.unfinished")
    lock = FileLock(f"{draft}.lock", timeout=0)  # the system frees it when its owner dies
    try:
        lock.acquire()
    except Timeout:
        raise SlimdownError(
            f"another process is writing {path}; wait for it, or choose another folder"
        ) from None
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        yield draft
        if path.is_dir():
            path.rmdir()
        draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def raise_if_disk_full(error: BaseException, *folders: Path, advice: str = "") -> None:
    """Raise one line that says where the disk is full, if that is what `error` or its causes say.

    Args:
        error: What a library raised.
        folders: Where was written, besides the working folder and that of temporary files.
        advice: How to go on; empty for the advice about a run.

    Raises:
        SlimdownError: The disk is full; says how much room is left and where.
    """
    link: BaseException | None = error
    full: BaseException | None = None
    while link is not None and not isinstance(link, SlimdownError):
        if getattr(link, "errno", None) in _FULL or any(word in str(link) for word in _WORDS):
            full = link  # the innermost says it in the fewest words
        link = link.__cause__ or link.__context__
    if full is None:
        return
    places = [*folders, Path.cwd(), Path(os.environ.get("TMPDIR", "/tmp"))]
    if isinstance(full, OSError) and isinstance(full.filename, str):
        places.append(Path(full.filename).parent)
    free: dict[Path, int] = {}
    for folder in places:
        with suppress(OSError):
            free[folder] = shutil.disk_usage(folder).free
    fullest = min(free, key=lambda folder: free[folder])
    advice = advice or (
        "Make room and repeat the command, which goes on with what was measured, or write to "
        "another disk: tracking.uri=sqlite:////FOLDER/mlflow.db hydra.run.dir=FOLDER"
    )
    raise SlimdownError(
        f"the disk is full ({' '.join(str(full).split())[:200]}); {free[fullest] / 1e6:.1f} MB are "
        f"free in {fullest}. {advice}"
    ) from None
