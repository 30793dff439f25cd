"""Files that are written whole or not at all, and one line where the disk is full."""

import errno
import os
from pathlib import Path
from traceback import format_exception

from slimdown.utils.errors import SlimdownError


def cache_dir() -> Path:
    """Return the folder of files that can be made again: slimdown/ in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "slimdown"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file beside its place, then rename it: what was there before stays until then.

    Args:
        path: Its folder is made where it is missing.
        content: Text is encoded as UTF-8.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{os.getpid()}.draft")  # short: the name may be as long as can be
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def raise_if_disk_full(error: BaseException) -> None:
    """Raise one line that says how to go on, if `error` or one of its causes says "full".

    Raises:
        SlimdownError: The disk is full.
    """
    text = "".join(format_exception(error))  # SQLite and safetensors have errors of their own
    is_full = "disk is full" in text or os.strerror(errno.ENOSPC) in text
    if is_full and not isinstance(error, SlimdownError):
        raise SlimdownError(
            f"the disk is full ({str(error)[:200]}). Make room, or write to another disk, and "
            "repeat the command; a run goes on with what was measured"
        ) from None
