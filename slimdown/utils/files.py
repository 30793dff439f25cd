"""Files that are written whole or not at all, and one line where the disk is full."""

import errno
import os
import secrets
from pathlib import Path
from traceback import format_exception

from slimdown.utils.errors import DataError, SlimdownError

MOST_BYTES = 2**26  # limit of a text that is read from a record


def cache_dir() -> Path:
    """Return the folder of files that can be made again: slimdown/ in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "slimdown"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a draft beside a file, then rename it: the file is never half written.

    Args:
        path: The file; its folder is made if it is missing. If it is a link, the link stays, and
            the file that it leads to is written. A pipe or a device is written directly.
        content: Text is encoded as UTF-8.
    """
    data = content.encode() if isinstance(content, str) else content
    is_pipe_or_device = os.path.exists(path) and not os.path.isfile(path)
    if is_pipe_or_device:
        Path(path).write_bytes(data)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # The draft's name is short, as the file's own may be as long as names can be. It is random, as
    # processes in two containers may have the same pid.
    draft = path.with_name(f".{secrets.token_hex(6)}.draft")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)  # there is one only if writing failed


def read_limited(file: Path) -> str:
    """Return the text of a file that somebody else may have written or replaced.

    Raises:
        DataError: It is no regular file, such as a pipe that would never end, or it is larger than
            any file that a run writes.
        OSError: It does not exist or cannot be read.
    """
    if file.exists() and not (file.is_file() and file.stat().st_size <= MOST_BYTES):
        raise DataError(f"{file.name} is no file, or larger than {MOST_BYTES >> 20} MiB")
    return file.read_text("utf-8")


FORMAT = 1
"""The format of recorded settings, findings and samples."""


def check_format(number: object) -> None:
    """Check that this version of slimdown reads the format of a file.

    Args:
        number: The format that the file names; None or anything else if it names none.

    Raises:
        DataError: It is not `FORMAT`.
    """
    if number != FORMAT:
        problem = f"it has format {number!s:.20}, and this slimdown reads format {FORMAT}"
        raise DataError(f"{problem}; install the version that wrote it")


def raise_if_disk_full(error: BaseException) -> None:
    """Raise one line that says how to go on, if `error` or one of its causes says "full".

    An error that slimdown has explained already is left to the caller.

    Raises:
        SlimdownError: The disk is full.
    """
    # The words are looked for, because SQLite and safetensors have classes of their own for this.
    text = "".join(format_exception(error))  # with all causes
    signs = ["disk is full", *map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))]
    if any(sign in text for sign in signs) and not isinstance(error, SlimdownError):
        reason = " ".join(str(error).split())[:200]
        raise SlimdownError(
            f"the disk is full ({reason}). Make room, or write to another disk, and repeat the "
            "command; a run goes on with what was measured"
        ) from None
