"""Digests of what a result depends on: objects, files and folders. Imports no torch."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

_READ = (".safetensors", ".json", ".jinja", ".model", ".txt")  # of a model's folder


def digest(value: Any) -> str:
    """32 hex digits of a JSON-able object; equal wherever and whenever the object is equal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()[
        :32
    ]


def file_digest(file: Path) -> str:
    """The SHA-256 of a file's content in hex; read once a process, unless the file changes."""
    state = file.stat()
    return _content(file.absolute(), (state.st_mtime_ns, state.st_ctime_ns, state.st_size))


def folder_digest(folder: Path) -> str:
    """16 hex digits of what a local model is: config, weights, tokenizer, templates."""
    return hashlib.sha256(
        b"".join(map(bytes.fromhex, folder_content(folder).values()))
    ).hexdigest()[:16]


def folder_content(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a local model that is read, by its name."""
    files = sorted(file for file in folder.iterdir() if file.suffix in _READ and file.is_file())
    return {file.name: file_digest(file) for file in files}


@lru_cache(maxsize=256)
def _content(file: Path, state: tuple[int, ...]) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
