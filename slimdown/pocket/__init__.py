"""The pocket world: a small language model, its benchmarks and its instruction data, all embedded.

The base model was pretrained by `python -m tools.pocket` on texts that it generates. It solves word
problems, knows how everyday things are used and some computer science. The instruction data teach
it to follow instructions about lists of words. docs/pocket.md says what can and what cannot be
shown with it.
"""

from pathlib import Path

PACKAGE_DIR = Path(__file__).resolve().parent
MODEL_DIR = PACKAGE_DIR / "model"
DATA_DIR = PACKAGE_DIR / "data"
TASKS_DIR = PACKAGE_DIR / "tasks"


def data_names() -> list[str]:
    """The names of the embedded data, as in `pocket:pocket_replay`."""
    return sorted(file.stem for file in DATA_DIR.glob("*.jsonl"))
