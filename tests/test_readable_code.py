"""What no rule of ruff holds: functions are short, and comprehensions are not nested twice."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_LINES = 60  # from `def` to the last one, without the docstring
COMPREHENSIONS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp


def walk_files(*folders: str) -> Iterator[tuple[str, ast.AST]]:
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                yield file.relative_to(ROOT).as_posix(), node


def count_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    documented = function.body[0] if ast.get_docstring(function) is not None else None
    n_documented = documented.end_lineno - documented.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - n_documented


def count_nested(node: ast.AST) -> int:
    inside = max(map(count_nested, ast.iter_child_nodes(node)), default=0)
    return inside + isinstance(node, COMPREHENSIONS)


def test_no_function_is_long() -> None:
    functions = (
        (f"{file} {node.name}", count_lines(node))
        for file, node in walk_files("slimdown")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert not [name for name, n_lines in functions if n_lines > MOST_LINES]


def test_no_comprehension_is_nested_twice() -> None:
    found = [
        f"{file}:{node.lineno}"
        for file, node in walk_files("slimdown", "tests", "bench")
        if isinstance(node, COMPREHENSIONS) and count_nested(node) > 2
    ]
    assert not found
