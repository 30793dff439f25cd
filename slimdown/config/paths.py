"""Find the files of config groups, list the choices, and read what they set."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

_PACKAGE = Path(__file__).resolve().parents[1]
CONF_DIR = next(d for d in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if d.is_dir())
"""The folder of config groups: inside the package in a wheel, beside it in a checkout."""


def list_group_choices(group: str, folders: tuple[Path, ...] = (CONF_DIR,)) -> list[str]:
    """List the names that can be chosen in a config group, sorted."""
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


@cache
def read_group(group: str) -> dict[str, dict[str, Any]]:
    """Return what the file of each choice in a group of `conf/` sets; nothing is resolved."""
    files = {name: CONF_DIR / group / f"{name}.yaml" for name in list_group_choices(group)}
    return {name: yaml.safe_load(files[name].read_text(encoding="utf-8")) or {} for name in files}
