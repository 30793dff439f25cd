"""Rows of a hub or local dataset -> prompt and completion examples: mixed, split, fingerprinted.

Knows nothing of models except the tokenizer's chat template; hands `SftData` to `train.py`.
"""

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdown.config import DatasetConfig, UserError

if TYPE_CHECKING:
    from datasets import Dataset

# The prompt of the Stanford Alpaca project, with and without further input: models tuned on
# Alpaca rows are asked in these words, so they are data, not style.
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class DataSource:
    """What was taken from one dataset."""

    name: str
    path: str
    revision: str  # the hub's commit, or the file's digest
    n_train: int
    n_validation: int


@dataclass(frozen=True)
class SftData:
    """Training and held-out examples, columns `prompt` and `completion`, and a digest of all their text."""

    train: "Dataset"
    validation: "Dataset"
    fingerprint: str
    sources: tuple[DataSource, ...]


def load_data(chosen: dict[str, DatasetConfig], seed: int, tokenizer: Any) -> SftData:
    """The examples of every chosen dataset, one after the other; the trainer shuffles them.

    The held-out rows are drawn first and are the same for any `max_examples`, so that runs on more or fewer rows
    are validated on equal text. A held-out text that occurs again among the training rows is taken out there.

    Args:
        chosen: settings by dataset name.
        seed: decides which rows are taken.
        tokenizer: only its chat template and end-of-sequence token are used.

    Raises:
        UserError: a dataset that cannot be had, lacks a named column, or has too few rows.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()  # the console has a bar of its own
    train: list[dict[str, str]] = []
    validation: list[dict[str, str]] = []
    sources = []
    for name, config in chosen.items():
        rows, revision = _load_rows(name, config)
        _check_columns(name, config, rows.column_names)
        shuffled = rows.shuffle(seed=seed)
        n_held_out = min(config.validation_examples, len(rows) // 2)
        if n_held_out < 1:
            raise UserError(f"dataset.{name}: {config.path} has {len(rows)} row(s); at least 2 are needed")
        held_out = [_example(name, config, row, tokenizer) for row in shuffled.select(range(n_held_out))]
        seen = {(e["prompt"], e["completion"]) for e in held_out}
        taken: list[dict[str, str]] = []
        for row in shuffled.select(range(n_held_out, len(rows))):
            if config.max_examples is not None and len(taken) == config.max_examples:
                break
            example = _example(name, config, row, tokenizer)
            if (example["prompt"], example["completion"]) not in seen:
                taken.append(example)
        if not taken:
            raise UserError(f"dataset.{name}: every row of {config.path} is the same text; nothing to train on")
        train += taken
        validation += held_out
        sources.append(DataSource(name, config.path, revision, len(taken), len(held_out)))
    return SftData(
        train=Dataset.from_list(train),
        validation=Dataset.from_list(validation),
        fingerprint=_fingerprint(train, validation),
        sources=tuple(sources),
    )


def _load_rows(name: str, config: DatasetConfig) -> tuple["Dataset", str]:
    from datasets import Dataset, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    if file := config.file:
        return Dataset.from_list(list(_read_rows(file))), f"sha256:{_digest(file)}"
    try:
        rows = load_dataset(config.path, config.name, split=config.split, revision=config.revision)
    except DatasetNotFoundError as error:
        if "gated" in str(error).lower():
            raise UserError(
                f"dataset.{name}: {config.path} is gated; ask for access at "
                f"https://huggingface.co/datasets/{config.path}, then `hf auth login`"
            ) from None
        raise UserError(
            f"dataset.{name}: there is no dataset {config.path} on the hub that you can read; check "
            "dataset.<name>.path, or give a local JSON, JSONL, CSV or Parquet file"
        ) from None
    except ValueError as error:  # an unknown config or split names the known ones itself
        raise UserError(f"dataset.{name}: {config.path}: {error}") from None
    except OSError as error:
        raise UserError(
            f"dataset.{name}: {config.path} cannot be reached ({type(error).__name__}); check the network, or run "
            "the embedded world, which needs none: python -m slimdown.run"
        ) from None
    return rows, _resolved_revision(rows, config)


def _resolved_revision(rows: "Dataset", config: DatasetConfig) -> str:
    """The hub's commit, which `datasets` keeps in the address of each file it downloaded."""
    for address in rows.info.download_checksums or {}:
        if "@" in address:
            return str(address.split("@", 1)[1].split("/", 1)[0])
    return config.revision


def _example(name: str, config: DatasetConfig, row: dict[str, Any], tokenizer: Any) -> dict[str, str]:
    """One prompt and completion, ending in the end-of-sequence token."""
    instruction = str(row[config.instruction])
    further = str(row[config.input] or "") if config.input else ""
    answer = str(row[config.output])
    end = tokenizer.eos_token or ""
    if config.template == "chat":
        if not tokenizer.chat_template:
            raise UserError(
                f"dataset.{name}.template=chat: this model's tokenizer has no chat template; use "
                f"dataset.{name}.template=alpaca, or an instruct model"
            )
        turn = [{"role": "user", "content": f"{instruction}\n\n{further}" if further else instruction}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        if tokenizer.bos_token and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
            prompt = prompt.removeprefix(tokenizer.bos_token)  # the trainer's tokenizing adds it again
        return {"prompt": prompt, "completion": f"{answer}{end}"}
    alpaca = _ALPACA_WITH_INPUT if further else _ALPACA
    template = alpaca if config.template == "alpaca" else config.template
    prompt = template.replace("{instruction}", instruction).replace("{input}", further)
    # A prompt that stops at a word gets its space from the answer: tokens carry their leading space.
    gap = "" if prompt[-1:].isspace() or answer[:1].isspace() else " "
    return {"prompt": prompt, "completion": f"{gap}{answer}{end}"}


def _fingerprint(train: list[dict[str, str]], validation: list[dict[str, str]]) -> str:
    digest = hashlib.sha256()
    for part in (train, validation):
        for example in part:
            digest.update(json.dumps([example["prompt"], example["completion"]]).encode())
        digest.update(b"|")
    return digest.hexdigest()[:16]


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


def _check_columns(name: str, config: DatasetConfig, columns: list[str]) -> None:
    for setting in ("instruction", "input", "output"):
        column = getattr(config, setting)
        if column is not None and column not in columns:
            raise UserError(
                f"dataset.{name}.{setting}={column}: {config.path} has no such column; it has {', '.join(columns)}"
            )


# --- local files, checked before anything heavy is imported ------------------------------------


def local_file_problems(config: DatasetConfig) -> Iterator[str]:
    """What is wrong with the local file behind a dataset, as one line each; nothing where it lies on the hub."""
    if config.path.startswith("pocket:"):
        return
    file = config.file
    if file is None:
        if config.path.startswith((".", "/", "~")):
            yield f"{config.path} is neither a hub id nor a .json, .jsonl, .csv or .parquet file"
        return
    if not file.is_file():
        yield f"there is no file {config.path}; the path counts from the folder you are in, {Path.cwd()}"
        return
    wanted = [c for c in (config.instruction, config.input, config.output) if c is not None]
    try:
        n_rows = 0
        for n_rows, row in enumerate(_read_rows(file), start=1):
            if lacking := [column for column in wanted if column not in row]:
                yield (
                    f"{config.path} row {n_rows} has no column {', '.join(lacking)}; it has "
                    f"{', '.join(row)}; name yours with instruction=, input= and output="
                )
                return
            empty = [c for c in (config.instruction, config.output) if not str(row[c] or "").strip()]
            if empty:
                yield f"{config.path} row {n_rows}: {', '.join(empty)} is empty; fill it or take the row out"
                return
    except (ValueError, OSError, csv.Error) as error:
        yield f"{config.path} cannot be read as {file.suffix[1:]}: {error}"
        return
    if n_rows < 2:
        yield f"{config.path} has {n_rows} row(s); at least 2 are needed, one to train on and one held out"


def _read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON, JSONL, CSV or Parquet file.

    Raises:
        ValueError: the file is not what its name says, with the row or line.
    """
    if file.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            yield from pyarrow.parquet.read_table(file).to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise ValueError(str(error)) from None
    elif file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8-sig") as lines:
            for row in csv.DictReader(lines, strict=True):
                if None in row or None in row.values():
                    raise ValueError("a row has not as many fields as the header")
                yield row
    elif file.suffix == ".json":
        rows = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise ValueError("a list of objects is expected")
        yield from (_object(row, f"row {i}") for i, row in enumerate(rows, start=1))
    else:
        with file.open(encoding="utf-8") as lines:
            for i, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except json.JSONDecodeError as error:
                        raise ValueError(f"line {i}: {error}") from None
                    yield _object(row, f"line {i}")


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is not an object with named values")
    return row
