"""Which tasks the harness has, from the text of its task files: to import it, or to parse them, takes seconds."""

import hashlib
import os
import re
from collections.abc import Collection
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from slimdown.config.files import CONF_DIR
from slimdown.pocket import TASKS_DIR
from slimdown.utils.disk import cache_folder, whole_file

_NAMED = re.compile(rb"^[\s-]*[\"']?(?:task|group|tag)[\"']?:\s*[\"']?([\w.-]+)", re.MULTILINE)
_DEFINED = re.compile(rb"^[\"']?task[\"']?:\s*[\"']?([\w.-]+)[\"']?\s*$", re.MULTILINE)
_DATASET = re.compile(r"^[\"']?dataset_(path|name)[\"']?:\s*[\"']?([\w./-]+)", re.MULTILINE)
_INCLUDED = re.compile(r"^[\"']?include[\"']?:\s*[\"']?([\w./-]+)", re.MULTILINE)
_END = b"\0\0"  # between the files in one: no text holds it


def task_folders(tasks: Collection[str]) -> dict[str, list[Path]]:
    """For each task of the harness that has a file of its own, the folders with such a file."""
    folders: dict[str, list[Path]] = {}
    for file, text in _task_files().items():
        for name in {match.decode() for match in _DEFINED.findall(text)} & set(tasks):
            folders.setdefault(name, []).append(Path(file).parent)
    return folders


def task_dataset(task: str) -> tuple[str, str | None] | None:
    """The hub's dataset that a task of the harness asks from, and the config of it; None where that is not known."""
    word, found = task.encode(), dict[str, str]()
    file = next(
        (
            Path(f)
            for f, text in _task_files().items()
            if word in text and word in _DEFINED.findall(text)
        ),
        None,
    )
    while file and file.is_file():
        text = file.read_text(encoding="utf-8")
        found = dict(_DATASET.findall(text)) | found  # a file beats what it includes
        included = _INCLUDED.search(text)
        file = file.parent / included[1] if included else None
    name = found.get("name")
    return (
        (found["path"], None if name == "null" else name) if "/" in found.get("path", "") else None
    )


def task_problem(task: str) -> str | None:
    """Say that there is no such task, group or tag, with the nearest ones; None where there is, or may be."""
    word = task.encode()
    mention = re.compile(rb"(?<![\w.-])" + re.escape(word) + rb"(?![\w.-])")
    # A search for the word alone is ten times as fast, and most files do not have it.
    if task in _shipped() or any(
        word in text and mention.search(text) for text in _task_files().values()
    ):
        return None
    known = sorted(
        _shipped()
        | {match.decode() for text in _task_files().values() for match in _NAMED.findall(text)}
    )
    # Of 14,000: a look at each is slow.
    alike = [name for name in known if abs(len(name) - len(task)) <= len(task) // 3 + 1]
    close = get_close_matches(task, alike, n=3)
    return "the harness has no such task" + (
        f"; did you mean {' or '.join(close)}?" if close else ""
    )


@cache
def _shipped() -> set[str]:
    """The tasks of the benchmarks that come along, so that a run of those searches nothing."""
    texts = [file.read_bytes() for file in (CONF_DIR / "benchmark").glob("*.yaml")]
    embedded = {file.stem for file in TASKS_DIR.glob("*.yaml")}
    return embedded | {match.decode() for text in texts for match in _NAMED.findall(text)}


@cache
def _task_files() -> dict[str, bytes]:
    """The text of each of the harness's task files, 14,000 of them: read one by one once, then from one file.

    From a cold disk 14,000 files take longer than a mistake may cost. The one file stands for an installation of
    the harness by its place, version and time; a checkout of it, whose files change, is read anew each time.
    """
    package = find_spec("lm_eval")
    assert package is not None  # a dependency
    tasks = Path(str(package.origin)).with_name("tasks")
    installed = [
        (str(file), file.stat().st_mtime_ns)
        for file in tasks.parent.parent.glob("lm_eval-*.dist-info")
    ]
    if not installed:
        return _read_one_by_one(tasks)
    name = hashlib.sha256(repr(sorted(installed)).encode()).hexdigest()[:16]
    together = cache_folder() / f"task-files-{name}"
    with suppress(OSError, ValueError):  # none yet, or a damaged one
        files, separator, texts = together.read_bytes().partition(_END)
        if separator:
            return dict(zip(files.decode().split("\n"), texts.split(_END), strict=True))
    texts_of = _read_one_by_one(tasks)
    with (
        suppress(OSError),
        whole_file(together) as file,
    ):  # a home that is full, or read-only, is no reason to stop
        file.write(
            "\n".join(texts_of).encode() + b"".join(_END + text for text in texts_of.values())
        )
    return texts_of


def _read_one_by_one(tasks: Path) -> dict[str, bytes]:
    texts: dict[str, bytes] = {}
    for folder, _, names in os.walk(tasks):  # without a `Path` or a buffer for each
        for file in (os.path.join(folder, name) for name in names if name.endswith(".yaml")):
            with open(file, "rb", buffering=0) as content:
                texts[file] = content.read()
    return texts
