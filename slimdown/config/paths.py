"""What can be named in a setting, read from files: config groups, and transformers' own lists."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
CONF_DIR = next(d for d in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if d.is_dir())
"""The folder of config groups: inside the package in a wheel, beside it in a checkout."""


@cache
def list_transformers_names(file: str, enum: str) -> list[str]:
    """List the values of an enum of transformers, from its source: to import it takes seconds."""
    package = find_spec("transformers")
    assert package is not None  # a dependency
    source = Path(str(package.origin)).with_name(file).read_text(encoding="utf-8")
    body = re.search(rf"^class {enum}\(.*?(?=^\S)", source, re.MULTILINE | re.DOTALL)
    return re.findall(r'^    \w+ = "(\w+)"', body[0], re.MULTILINE) if body else []


def list_group_choices(group: str, folders: tuple[Path, ...] = (CONF_DIR,)) -> list[str]:
    """List the names that can be chosen in a config group, sorted."""
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})
