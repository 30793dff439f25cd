"""The pocket world's texts: what the base is pretrained on, and the data files beside it."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tools.pocket.computing import make_question, make_statement
from tools.pocket.everyday import make_situation
from tools.pocket.items import Item, Maker, Split, draw, draw_distinct
from tools.pocket.lists import make_instruction, make_list_story
from tools.pocket.word_problems import make_drill, make_word_problem

SEED = 7

# Shares of documents, found by training: what each kind needs to be learned well without reaching
# the ceiling. Word problems are the longest and about half of the tokens; the stories about lists are
# many because fine-tuning can only bring out what is well learned.
MIXTURE: tuple[tuple[Maker, float], ...] = (
    (make_word_problem, 0.29),
    (make_drill, 0.03),
    (make_situation, 0.125),
    (make_question, 0.20),
    (make_statement, 0.05),
    (make_list_story, 0.305),
)
BENCHMARKS: dict[str, Maker] = {
    "pocket_math": make_word_problem,
    "pocket_commonsense": make_situation,
    "pocket_cs": make_question,
    "pocket_instructions": make_instruction,
}
# Retained kinds in the form of pretraining, by number of replay rows.
REPLAY: tuple[tuple[Maker, int], ...] = (
    (make_word_problem, 250),
    (make_situation, 100),
    (make_question, 150),
)
N_TEST = 300
N_DEV = 200
N_INSTRUCTIONS = 1600  # 1,500 to train on, 100 to validate on


def generate_pretraining(seed: int = SEED) -> Iterator[Item]:
    """The pretraining documents, in order and without end; none is held out."""
    rng = random.Random(f"pretraining {seed}")
    makers, weights = zip(*MIXTURE, strict=True)
    while True:
        (maker,) = rng.choices(makers, weights)
        yield draw(maker, rng, Split.TRAIN)


def generate_benchmark(name: str, split: Split, seed: int = SEED) -> list[Item]:
    """The questions of one benchmark's test or dev split."""
    rng = random.Random(f"{name} {split} {seed}")
    return draw_distinct(BENCHMARKS[name], rng, split, N_TEST if split is Split.TEST else N_DEV)


def generate_instructions(seed: int = SEED) -> list[Item]:
    """The rows that a model is fine-tuned on."""
    rng = random.Random(f"instructions {seed}")
    return draw_distinct(make_instruction, rng, Split.TRAIN, N_INSTRUCTIONS)


def generate_replay(seed: int = SEED) -> list[Item]:
    """Rows of the retained kinds, to mix into fine-tuning."""
    rng = random.Random(f"replay {seed}")
    rows = [item for maker, n in REPLAY for item in draw_distinct(maker, rng, Split.TRAIN, n)]
    rng.shuffle(rows)
    return rows


def generate_files(seed: int = SEED) -> dict[str, str]:
    """Every data file's name and content."""
    files = {
        f"{name}_{split}.jsonl": write_rows([item.columns for item in items])
        for name in BENCHMARKS
        for split in (Split.TEST, Split.DEV)
        for items in [generate_benchmark(name, split, seed)]
    }
    for name, items in (
        ("pocket_instructions_train", generate_instructions(seed)),
        ("pocket_replay", generate_replay(seed)),
    ):
        rows = [{"prompt": item.prompt, "completion": item.completion} for item in items]
        files[f"{name}.jsonl"] = write_rows(rows)
    return files


def write_rows(rows: Iterable[Mapping[str, object]]) -> str:
    """The rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def save_files(folder: Path, seed: int = SEED) -> None:
    """Writes the data files into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in generate_files(seed).items():
        (folder / name).write_text(content, encoding="utf-8")
