"""What we use of other libraries without their promise stands in one list, and is still there."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "slimdown"
PAGE = (ROOT / "docs" / "private_interfaces.md").read_text()
ROW = re.compile(r"^\| `([\w.]+)`(?: (?:sets|reads) `(\w+)`)? \| ([\d.]+) \| ([\w/., ]+) \|", re.M)
ROWS = [(place, name, files.split(", ")) for place, name, _, files in ROW.findall(PAGE)]


def find(place: str) -> Any:
    """The module, class or function of a dotted place."""
    parts = place.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for name in parts[n:]:
            found = inspect.getattr_static(found, name, None) or getattr(found, name)
        return found
    raise ModuleNotFoundError(place)


@pytest.mark.parametrize(("place", "name", "files"), ROWS, ids=[place for place, *_ in ROWS])
def test_a_listed_interface_is_there_and_used(place: str, name: str, files: list[str]) -> None:
    owner, _, last = place.rpartition(".")
    if name:  # an attribute that its code sets or reads
        assert name in inspect.getsource(find(place))
    elif last.startswith("_") and not hasattr(find(owner), last):  # one that an object gets
        assert f"self.{last}" in inspect.getsource(find(owner))
    else:
        assert find(place) is not None or hasattr(find(owner), last)
    for file in files:
        assert (name or last) in (PACKAGE / file).read_text(), file


def list_private_names() -> set[str]:
    """The attributes with an underscore that the code reads or writes and does not define."""
    own, used = set[str](), set[str]()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own.add(node.target.id)
            elif isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
                is_self = isinstance(node.value, ast.Name) and node.value.id == "self"
                is_own = is_self and isinstance(node.ctx, ast.Store)
                (own if is_own else used).add(node.attr)
                if isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()":
                    used.add(f"super().{node.attr}")
    return {name for name in used if name not in own} - {"_replace", "_asdict", "_exit"}


def test_every_private_name_of_another_library_is_listed() -> None:
    listed = {name or place.rpartition(".")[2] for place, name, _ in ROWS}
    found = list_private_names()
    assert len(found) >= 5
    assert {name.removeprefix("super().") for name in found} <= listed
