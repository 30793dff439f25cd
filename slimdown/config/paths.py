"""Where the files of config groups lie, and which can be chosen."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
CONF_DIR = next(d for d in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if d.is_dir())
"""The folder of config groups: inside the package in a wheel, beside it in a checkout."""


def list_group_choices(group: str, folders: tuple[Path, ...] = (CONF_DIR,)) -> list[str]:
    """List the names that can be chosen in a config group, sorted."""
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})
