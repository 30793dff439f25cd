"""Every sentence about numbers has a row in bench.statistics, or a reason why it is no claim."""

import ast
import inspect
from types import ModuleType

from bench import sentences, statistics
from slimdown.report import brief_comparison, text

WRITES = ("advise", "describe", "explain", "list_doubts", "list_caveats", "name_", "summarize")


def list_writers(module: ModuleType) -> set[str]:
    """The public functions of a module that write sentences."""
    tree = ast.parse(inspect.getsource(module))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith(WRITES)}


def test_every_function_that_writes_sentences_is_listed() -> None:
    writers = set[str]().union(*map(list_writers, (text, brief_comparison)))
    writers -= {"describe_briefly"}  # it lays out a table and calls the others
    assert writers - sentences.SENTENCES.keys() == set()


def test_every_row_that_holds_a_sentence_is_counted() -> None:
    source = inspect.getsource(statistics)
    held_by = {row for pairs in sentences.SENTENCES.values() for _, row in pairs}
    rows = {row for row in held_by if not row.startswith(sentences.NOT_A_CLAIM)}
    assert {row for row in rows if f'"{row}' not in source} == set()
    reasons = held_by - rows
    assert all(reason.removeprefix(sentences.NOT_A_CLAIM) for reason in reasons)
