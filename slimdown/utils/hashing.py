"""Hashes of what a result depends on: settings, files and folders. Imports no torch."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")


def hash_json(value: Any) -> str:
    """Return 32 hex digits for an object of JSON; a value that JSON lacks counts as its text."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file's content in hex. A process reads an unchanged file once."""
    status = file.stat()
    return _hash_content(file.absolute(), (status.st_ino, status.st_size, status.st_mtime_ns))


@cache
def _hash_content(file: Path, state: tuple[int, ...]) -> str:
    """Return the SHA-256 of a file. A changed file has another `state`, so it is read again."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def hash_folder(folder: Path) -> str:
    """Return 16 hex digits for a local model: its config, weights, tokenizer and templates."""
    files = sorted(file for file in folder.iterdir() if file.suffix in _MODEL_FILES)
    return hash_json({file.name: hash_file(file) for file in files if file.is_file()})[:16]
