"""How large the code is and how it is cut: `python -m bench.lines` prints the table."""

import ast
import re
from collections import Counter
from pathlib import Path

DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def count_lines(source: str) -> int:
    """Count lines that are not blank, comment or docstring."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCSTRINGS) and ast.get_docstring(node) is not None:
            documented.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(source.splitlines(), start=1)
    return sum(
        bool(line.strip()) and not line.lstrip().startswith("#") and number not in documented
        for number, line in lines
    )


def main() -> None:
    """Print code lines by folder, words, small functions with one caller, and names used twice."""
    sources = {path: path.read_text() for path in sorted(Path("slimdown").rglob("*.py"))}
    sources = {path: text for path, text in sources.items() if "pocket" not in path.parts}
    sizes: Counter[str] = Counter()
    for path, text in sources.items():
        sizes[str(path.parent) if len(path.parts) > 2 else str(path)] += count_lines(text)
    for folder in ("tests", "bench"):
        sizes[folder] = sum(count_lines(p.read_text()) for p in Path(folder).rglob("*.py"))
    pages = [Path("README.md"), *Path("docs").rglob("*.md")]
    nodes = [node for text in sources.values() for node in ast.walk(ast.parse(text))]
    classes = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    uses = Counter(re.findall(r"\w+", "\n".join(sources.values())))
    small = [
        node.name
        for node in nodes
        if isinstance(node, FUNCTIONS)
        and not node.decorator_list
        and not node.name.startswith("__")
        and uses[node.name] == 2
        and count_lines(ast.unparse(node)) < 8
    ]
    files = Counter(path.name for path in sources if path.parent.name != "commands")
    print("| code lines | |\n|---|---:|")
    for name, size in sizes.items():
        print(f"| {name} | {size:,} |")
    total = sum(size for name, size in sizes.items() if name.startswith("slimdown"))
    print(f"| slimdown without pocket | {total:,} |")
    print(
        f"| words of docs and README | {sum(len(page.read_text().split()) for page in pages):,} |"
    )
    print(f"| functions below 8 lines with one caller | {len(small)} |")
    print(f"| class names used twice | {[name for name, n in classes.items() if n > 1]} |")
    twice = [name for name, n in files.items() if n > 1 and not name.startswith("__")]
    print(f"| file names used twice | {twice} |")
    print("\nsmall: " + " ".join(sorted(small)))


if __name__ == "__main__":
    main()
