"""Files that are written whole or not at all, and what to say when the disk is full."""

import errno
import os
import shutil
from pathlib import Path

from slimdown.utils.errors import SlimdownError


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
    draft = path.with_name(f".{os.getpid()}.draft")  # short: the name may be as long as can be
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def raise_if_disk_full(error: BaseException, folder: Path, advice: str = "") -> None:
    """Raise one line that says how much room is left, if `error` or one of its causes says "full".

    Args:
        error: What a library raised. SQLite and safetensors raise errors of their own around the
            system's words.
        folder: Where was written.
        advice: How to go on; empty for the advice about a run.

    Raises:
        SlimdownError: The disk is full.
    """
    link: BaseException | None = error
    while link is not None and not isinstance(link, SlimdownError):
        text = str(link)
        if "disk is full" in text or os.strerror(errno.ENOSPC) in text:
            advice = advice or (
                "Make room and repeat the command, which goes on with what was measured, or write "
                "to another disk: tracking.uri=sqlite:////FOLDER/mlflow.db hydra.run.dir=FOLDER"
            )
            existing = next(place for place in (folder, *folder.parents) if place.exists())
            free = shutil.disk_usage(existing).free / 1e6
            raise SlimdownError(
                f"the disk is full ({text[:200]}); {free:.1f} MB are free in {folder}. {advice}"
            ) from None
        link = link.__cause__ or link.__context__
