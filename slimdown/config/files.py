"""What can be named in a setting, read from files: config groups, and transformers' own lists."""

import fnmatch
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
CONF_DIR = next(d for d in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if d.is_dir())
"""The config groups: inside the package in a wheel, beside it in a checkout."""


@cache
def transformers_names(file: str, enum: str) -> list[str]:
    """The values of an enum of transformers, read from its source: importing it takes seconds and brings torch."""
    package = find_spec("transformers")
    assert package is not None  # a dependency
    source = Path(str(package.origin)).with_name(file).read_text(encoding="utf-8")
    body = re.search(rf"^class {enum}\(.*?(?=^\S)", source, re.MULTILINE | re.DOTALL)
    return re.findall(r'^    \w+ = "(\w+)"', body[0], re.MULTILINE) if body else []


def group_choices(group: str, folders: tuple[Path, ...] = (CONF_DIR,)) -> list[str]:
    """The names that can be chosen in a config group, sorted."""
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


def tuned_problem(folder: Path) -> str | None:
    """Say why a folder holds no tuned model that can be read safely: adapter or whole, with .safetensors files."""
    names = [file.name for file in folder.iterdir()]
    for config, kind, weights in (
        ("adapter_config.json", "an adapter", "adapter_model.safetensors"),
        ("config.json", "a model", "*.safetensors"),
    ):
        if config not in names:
            continue
        if fnmatch.filter(names, weights):
            return None
        pickled = [
            name
            for name in names
            if name.endswith((".bin", ".pt", ".pth", ".pkl")) and "model" in name
        ]
        has = (
            f"only {pickled[0]}, and pickled weights can run code when they are read"
            if pickled
            else "none"
        )
        return f"the weights of {kind} are expected in {weights}, and there are {has}; save it with save_pretrained()"
    inside = sorted(
        file.parent.name
        for kind in ("adapter_", "")
        for file in folder.glob(f"*/{kind}config.json")
    )
    close = f"; {', '.join(inside[:3])} in it may be meant" if inside else ""
    return (
        f"there is neither an adapter (adapter_config.json) nor a model (config.json) in it{close}"
    )
