"""Rows of a hub or local dataset -> prompt and completion examples: mixed, split, fingerprinted.

Knows nothing of models except the tokenizer's chat template; hands `SftData` to `train.py`.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from slimdown.guarding.errors import UserError
from slimdown.preparing.chat import chat_prompt, check_chat_template
from slimdown.preparing.hub import asking_hub
from slimdown.settings.rows import Row, RowError, read_rows, to_row
from slimdown.settings.schema import DatasetConfig

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

    def texts(self) -> Iterator[list[tuple[str, int, str]]]:
        """Every text that is trained on, in batches: its dataset, its place among the rows taken of it, and itself."""
        names = ((source.name, i + 1) for source in self.sources for i in range(source.n_train))
        for rows in self.train.iter(1000):
            texts = zip(islice(names, len(rows["prompt"])), rows["prompt"], rows["completion"], strict=True)
            yield [(*name, prompt + completion) for name, prompt, completion in texts]


def load_data(chosen: dict[str, DatasetConfig], seed: int, tokenizer: Any) -> SftData:
    """The examples of every chosen dataset, one after the other; the trainer shuffles them.

    The held-out rows are drawn first and are the same for any `max_examples`, so that runs on more or fewer rows
    are validated on equal text. A held-out text that occurs again among the training rows is taken out there.

    Args:
        chosen: settings by dataset name.
        seed: decides which rows are taken.
        tokenizer: only its chat template and end-of-sequence token are used.

    Raises:
        UserError: a dataset that cannot be had, lacks a named column, has too few rows, or a row that holds no text.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()  # the console has a bar of its own
    train: list[dict[str, str]] = []
    validation: list[dict[str, str]] = []
    sources = []
    for name, config in chosen.items():
        if config.template == "chat":
            check_chat_template(tokenizer, f"dataset.{name}.template=chat")
        shuffled, n_rows, revision = _shuffled_rows(name, config, seed)
        n_held_out = min(config.validation_examples, n_rows // 2)
        if n_held_out < 1:
            raise UserError(f"dataset.{name}: {config.path} has {n_rows} row(s); at least 2 are needed")
        examples = (_example(name, config, row, tokenizer) for row in shuffled)
        held_out = list(islice(examples, n_held_out))
        seen = {(e["prompt"], e["completion"]) for e in held_out}
        fresh = (example for example in examples if (example["prompt"], example["completion"]) not in seen)
        taken = list(islice(fresh, config.max_examples))
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


def _shuffled_rows(name: str, config: DatasetConfig, seed: int) -> tuple[Iterable[Row], int, str]:
    """All rows in the seed's order, how many they are, and the hub's commit or the file's digest."""
    try:
        if config.file:
            rows, digest = read_rows(config)
            order = np.random.default_rng(seed).permutation(len(rows))  # as `datasets` shuffles
            return (rows[i] for i in order), len(rows), f"sha256:{digest}"
    except RowError as error:
        raise UserError(f"dataset.{name}: {error}") from None
    records = _hub_records(name, config)
    return _hub_rows(name, config, records, seed), len(records), _resolved_revision(records, config)


def _hub_rows(name: str, config: DatasetConfig, records: "Dataset", seed: int) -> Iterator[Row]:
    order = np.random.default_rng(seed).permutation(len(records))
    for i, record in zip(order, records.select(order), strict=True):
        try:
            yield to_row(record, config.instruction, config.input, config.output)
        except RowError as error:
            raise UserError(f"dataset.{name}: {config.path} row {i + 1}: {error}") from None


def _hub_records(name: str, config: DatasetConfig) -> "Dataset":
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        with asking_hub(f"dataset.{name}: {config.path}"):
            return load_dataset(config.path, config.name, split=config.split, revision=config.revision)
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


def _resolved_revision(rows: "Dataset", config: DatasetConfig) -> str:
    """The hub's commit, which `datasets` keeps in the address of each file it downloaded."""
    for address in rows.info.download_checksums or {}:
        if "@" in address:
            return str(address.split("@", 1)[1].split("/", 1)[0])
    return config.revision


def _example(name: str, config: DatasetConfig, row: Row, tokenizer: Any) -> dict[str, str]:
    """One prompt and completion, ending in the end-of-sequence token."""
    instruction, further, answer = row
    end = tokenizer.eos_token or ""
    if config.template == "chat":
        question = f"{instruction}\n\n{further}" if further else instruction
        prompt = chat_prompt(tokenizer, question, f"dataset.{name}.template=chat")
        return {"prompt": prompt, "completion": f"{answer}{end}"}
    alpaca = _ALPACA_WITH_INPUT if further else _ALPACA
    template = alpaca if config.template == "alpaca" else config.template
    texts = {"{instruction}": instruction, "{input}": further}
    prompt = re.sub(
        r"\{instruction\}|\{input\}", lambda slot: texts[slot[0]], template
    )  # a text may hold a slot's name
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
