"""Versions of installed packages."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache  # each call reads the package's metadata from the disk
def find_version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


OWN_VERSION = find_version("slimdown") or "unknown (a checkout that is not installed)"
"""The version of slimdown itself."""
