"""What no rule of ruff holds: short functions, names that say what they hold, plain calls."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_LINES = 60  # from `def` to the last one, without the docstring
COMPREHENSIONS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
VAGUE = {"one", "of", "about", "them", "which", "each", "both", "told", "said", "asked"}
VAGUE |= {"item", "element", "entry", "obj", "thing"}
"""Names that do not say what they hold; neither do those that begin with `of_`."""


@cache
def list_nodes(folder: str) -> list[tuple[str, ast.AST]]:
    return [
        (file.relative_to(ROOT).as_posix(), node)
        for file in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
    ]


def walk_files(*folders: str) -> Iterator[tuple[str, ast.AST]]:
    for folder in folders:
        yield from list_nodes(folder)


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


def bind_names(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node gives to values."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg


def is_plain_truth(node: ast.AST) -> bool:
    """Whether an expression is true or false, as far as its form says."""
    if isinstance(node, ast.Compare | ast.BoolOp):
        return True
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in ("bool", "any", "all", "isinstance")
    name = getattr(node, "id", getattr(node, "attr", ""))
    return name.startswith(("is_", "has_"))


def is_text_or_list(node: ast.AST) -> bool:
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return is_text or isinstance(node, ast.JoinedStr | ast.List | ast.Tuple)


def is_multiplied(node: ast.AST) -> bool:
    """Whether a text or a list is multiplied by a truth value, instead of a conditional."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
        return False
    sides = node.left, node.right
    return any(map(is_text_or_list, sides)) and any(map(is_plain_truth, sides))


def is_and_or(node: ast.AST) -> bool:
    """Whether `x and "..." or ""` stands for a conditional."""
    if not (isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or)):
        return False
    has_and = any(isinstance(value, ast.BoolOp) for value in node.values[:-1])
    return has_and and is_text_or_list(node.values[-1])


def find_splats(function: ast.AST) -> Iterator[int]:
    """Yield the lines of calls that take apart a tuple which the function itself has made."""
    tuples = {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(function):
        for argument in node.args if isinstance(node, ast.Call) else ():
            name = argument.value if isinstance(argument, ast.Starred) else None
            if isinstance(name, ast.Name) and name.id in tuples:
                yield node.lineno


def passes_arguments_through(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function takes `*args` and `**kwargs` and only hands them on."""
    arguments = function.args
    return {getattr(arguments.vararg, "arg", ""), getattr(arguments.kwarg, "arg", "")} >= {
        "args",
        "kwargs",
    }


def test_names_say_what_they_hold() -> None:
    found = [
        f"{file}:{node.lineno} {name}"
        for file, node in walk_files("slimdown", "bench", "tests")
        for name in bind_names(node)
        if name.strip("_") in VAGUE or name.strip("_").startswith("of_")
    ]
    assert not found


def test_a_conditional_is_written_as_one() -> None:
    found = [
        f"{file}:{node.lineno}"
        for file, node in walk_files("slimdown", "bench", "tests")
        if is_multiplied(node) or is_and_or(node)
    ]
    assert not found


def test_arguments_are_passed_by_name() -> None:
    functions, methods = [], set[ast.AST]()
    for file, node in walk_files("slimdown", "bench", "tests"):
        if isinstance(node, ast.ClassDef):  # its methods may override those of a library
            methods.update(node.body)
        elif isinstance(node, FUNCTIONS) and node not in methods:
            functions.append((file, node))
    splats = {f"{file}:{line}" for file, node in functions for line in find_splats(node)}
    assert not splats
    assert not [f"{f}:{n.lineno}" for f, n in functions if passes_arguments_through(n)]
