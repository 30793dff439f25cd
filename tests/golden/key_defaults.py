"""The defaults that keys of runs and evaluations leave out, beside the versions in these keys."""

from enum import Enum
from typing import Any

from slimdown.config.naming import read_defaults
from slimdown.evaluation.evaluation_cache import MEASUREMENT_VERSION
from slimdown.training.result import TRAINING_VERSION


def read_key_defaults() -> dict[str, Any]:
    """Return today's versions and the default of each setting that has one, by dotted key."""
    defaults: dict[str, Any] = {}

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict) and node:
            for name, value in node.items():
                walk(value, f"{key}.{name}")
        elif node != "???":
            defaults[key[1:]] = node.value if isinstance(node, Enum) else node

    walk(read_defaults(), "")
    versions = {"training": TRAINING_VERSION, "measurement": MEASUREMENT_VERSION}
    return {"versions": versions, "defaults": defaults}


def check_defaults(stored: dict[str, Any]) -> str:
    """Say which defaults have changed under the same versions; empty where none has.

    Args:
        stored: What `read_key_defaults` returned earlier.
    """
    today = read_key_defaults()
    before, now = stored["defaults"], today["defaults"]
    changed = sorted(key for key in before.keys() & now.keys() if before[key] != now[key])
    if not changed or today["versions"] != stored["versions"]:
        return ""
    return (
        f"the default of {', '.join(changed)} has changed, and keys leave it out: old results "
        "would be taken for new ones; raise TRAINING_VERSION or MEASUREMENT_VERSION"
    )
