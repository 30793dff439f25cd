"""What other packages add by entry points: methods, mitigations, scores, readers of logs."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from slimdown.utils.errors import ConfigError, describe_error

GROUPS = {
    "slimdown.methods": "method",
    "slimdown.mitigations": "mitigation",
    "slimdown.scores": "score",
    "slimdown.logs": "reader of logs",
}
"""The groups of entry points, and what an entry point of each adds."""
_CHOICES = {  # by group of settings: the group of entry points that adds choices to it
    "method": "slimdown.methods",
    "keep": "slimdown.mitigations",
    "score": "slimdown.scores",
}
Kind = TypeVar("Kind")


@cache
def list_extensions(group: str) -> list[EntryPoint]:
    """List what other packages add to a group, by name; nothing of it is imported."""
    return sorted(entry_points(group=group), key=lambda p: (p.name, name_package(p)))


def list_added_choices(group: str) -> list[str]:
    """List what other packages add to a group of settings, such as `keep`."""
    points = list_extensions(_CHOICES[group]) if group in _CHOICES else []
    return [point.name for point in points]


def name_package(point: EntryPoint) -> str:
    """Name the package that an entry point comes from, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def find_packages(group: str, choices: Collection[str]) -> list[str]:
    """Return the packages that add some choices of a group of settings.

    Args:
        group: `method`, `keep` or `score`.
        choices: Names from this group, such as `replay`. Those that slimdown has are ignored.

    Returns:
        The name and version of each package.
    """
    points = list_extensions(_CHOICES[group])
    return [name_package(point) for point in points if point.name in choices]


def add_extensions(
    group: str, own: Mapping[str, Kind], is_right: Callable[[Any], bool], demand: str
) -> dict[str, Kind]:
    """Return what slimdown has in a group, and what other packages add to it, by name.

    Args:
        group: One of `GROUPS`.
        own: What slimdown itself has in the group, by name.
        is_right: Says whether what an extension adds is of the kind that the group needs.
        demand: That kind in words, for the message "... must be DEMAND".

    Raises:
        ConfigError: An extension cannot be imported, has a name that is taken, or is not of the
            kind that its group needs.
    """
    table = dict(own)
    for point in list_extensions(group):
        # The beginning of each message, such as "my-package 1.0: its mitigation mine".
        source = f"{name_package(point)}: its {GROUPS[group]} {point.name}"
        advice = "update this package, or uninstall it"
        try:
            added = point.load()
        except Exception as error:  # other people's code
            problem = f"{source} cannot be loaded ({describe_error(error)})"
            raise ConfigError(f"{problem}; {advice}") from error
        if point.name in table:
            raise ConfigError(f"{source} has a name that is taken; {advice}")
        if not is_right(added):
            raise ConfigError(f"{source} ({point.value}) must be {demand}; {advice}")
        table[point.name] = added
    return table


def describe_extensions() -> Iterator[tuple[str, str]]:
    """Yield the package and what it adds, for each entry point of other packages."""
    for group, kind in GROUPS.items():
        for point in list_extensions(group):
            yield name_package(point), f"{kind} {point.name}"
