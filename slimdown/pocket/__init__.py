"""The pocket world: a small language model, its benchmarks and its instruction data, all embedded.

The base model was pretrained by `python -m slimdown.pocket` on texts that this package generates;
it solves word problems, knows how everyday things are used and some computer science. The
instruction data teach it to follow instructions about lists of words. docs/pocket.md says what can
and what cannot be shown with it.
"""

from pathlib import Path

PACKAGE_DIR = Path(__file__).resolve().parent
MODEL_DIR = PACKAGE_DIR / "model"
DATA_DIR = PACKAGE_DIR / "data"
TASKS_DIR = PACKAGE_DIR / "tasks"


def locate(name: str) -> Path:
    """The file or folder behind a name such as `pocket:model` or `pocket:pocket_replay`."""
    part = name.removeprefix("pocket:")
    return MODEL_DIR if part == "model" else DATA_DIR / f"{part}.jsonl"
