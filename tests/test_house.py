"""The measures of the house: a page of sixty lines, no longer function, no long file, imports that go down."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

import slimdown

HOUSE = Path(slimdown.__file__).parent
FILES = {str(file.relative_to(HOUSE)): file for file in sorted(HOUSE.rglob("*.py"))}
SOURCE = {name: file.read_text() for name, file in FILES.items() if not name.startswith("pocket")}
PAGE, LONGEST_FILE = 60, 400  # lines


def functions(text: str) -> Iterator[tuple[str, int]]:
    """The name and the number of lines of each function, decorators and docstring included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield node.name, (node.end_lineno or first) - first + 1


def test_the_measure_counts_a_function_whole() -> None:
    text = "@cache\ndef one():\n    '''Says.'''\n    return 1\n\n\ndef two():\n    def three():\n        pass\n"
    assert dict(functions(text)) == {"one": 4, "two": 3, "three": 2}


def test_no_function_is_longer_than_a_page() -> None:
    long = {(name, f): n for name, text in SOURCE.items() for f, n in functions(text) if n > PAGE}
    assert long == {}


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    lines = {name: text.count("\n") for name, text in SOURCE.items()}
    assert {name: n for name, n in lines.items() if n > LONGEST_FILE} == {}


def test_a_run_is_one_page() -> None:
    assert SOURCE["experiment.py"].count("\n") <= PAGE


def test_every_room_says_what_it_is_for() -> None:
    rooms = {name: text for name, text in SOURCE.items() if name.endswith("__init__.py")}
    assert len(rooms) > 8
    assert [name for name, text in rooms.items() if not ast.get_docstring(ast.parse(text))] == []


def test_imports_go_down_only() -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    done = subprocess.run(command, cwd=HOUSE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert ", 0 broken" in done.stdout


def test_no_modules_import_each_other_in_a_circle_not_even_for_their_types() -> None:
    graph = grimp.build_graph("slimdown", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert "slimdown.stats.changes" in imports["slimdown.stats.selection"]
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle
