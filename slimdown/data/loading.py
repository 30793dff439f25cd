"""Rows of a hub or local dataset -> examples in TRL's shapes: mixed, split, fingerprinted, on disk.

Knows nothing of models except the tokenizer's chat template and end-of-sequence token; hands `SftData` to `training/`.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from slimdown.config.dataset import COLUMNS, DatasetConfig, RowFormat
from slimdown.data.chat import chat_prompt, check_chat_template, rendered
from slimdown.data.row_files import RowError
from slimdown.data.rows import Row, check_enough, columns_of, file_state, reading, rows_of, to_row
from slimdown.models.hub import asking_hub
from slimdown.models.on_disk import Folder, Shelf, batches, records, written
from slimdown.utils.errors import SlimdownError

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


_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_NO_TEXTS = {
    "messages": _TURNS,
    "n_prompt": pa.int32(),
    "row": pa.int64(),
}  # columns that are none, and their types
_CONTENT = ("prompt", "completion", "text", "messages", "n_prompt")


@dataclass(frozen=True)
class DataSource:
    """What was taken from one dataset."""

    name: str
    path: str
    revision: str  # the hub's commit, or the file's digest
    n_train: int
    n_validation: int
    n_skipped: int = 0  # rows that cannot be trained on, of those that were looked at

    def __str__(self) -> str:
        taken = f"dataset.{self.name}: {self.n_train:,} rows to train on, {self.n_validation:,} held out"
        return f"{taken}; {self.n_skipped:,} cannot be trained on and were skipped"


class TrainedText(NamedTuple):
    """The text of one row, and where it comes from."""

    dataset: str
    row: int  # in the dataset, from 1
    text: str


@dataclass(frozen=True)
class SftData:
    """Training and held-out examples, and a digest of all their text.

    An example has TRL's columns: `prompt` and `completion`, `text`, or `messages`; of a prompt and a completion that
    are lists of messages, `messages` holds both, and `n_prompt` says how many are the prompt's. Each has `dataset` and
    `row` too, where it comes from.
    """

    train: "Dataset"
    validation: "Dataset"
    fingerprint: str
    sources: tuple[DataSource, ...]
    folder: Folder | None = field(
        default=None, repr=False
    )  # of the files that the rows are read from; gone with this

    @property
    def n_skipped(self) -> int:
        return sum(source.n_skipped for source in self.sources)

    def texts(self) -> Iterator[list[TrainedText]]:
        """Every text that is trained on, in batches: of messages what was said, without the template's marks."""
        for batch in batches(self.train):
            names = list(batch)
            rows = (
                dict(zip(names, values, strict=True))
                for values in zip(*batch.values(), strict=True)
            )
            yield [TrainedText(row["dataset"], row["row"], _text(row)) for row in rows]


def load_data(chosen: dict[str, DatasetConfig], seed: int, tokenizer: Any) -> SftData:
    """The examples of every chosen dataset: one after the other, as the trainer shuffles them, or mixed by weight.

    The held-out rows are drawn first and are the same for any `max_examples` and `weight`, so that runs on more or
    fewer rows are validated on equal text. A held-out text that occurs again among the training rows is taken out
    there. Weights are the probabilities of `datasets.interleave_datasets`: each next row is drawn from a dataset with
    the chance that its weight has among all, until one of them is exhausted; no row comes twice.

    Args:
        chosen: settings by dataset name.
        seed: decides which rows are taken, and how they are mixed.
        tokenizer: only its chat template and end-of-sequence token are used.

    Raises:
        SlimdownError: a dataset that cannot be had, lacks a named column, has too few rows, or a row that holds no text.
    """
    from datasets import concatenate_datasets, disable_progress_bars, interleave_datasets

    disable_progress_bars()  # the console has a bar of its own
    folder = Folder()
    taken = [_taken(name, config, seed, tokenizer, folder.path) for name, config in chosen.items()]
    trains, validations, sources = zip(*taken, strict=True)
    weights = [config.weight for config in chosen.values() if config.weight is not None]
    if weights:
        shares = (np.array(weights) / sum(weights)).tolist()
        train = interleave_datasets(list(trains), probabilities=shares, seed=seed)
        drawn = Counter(
            name for batch in batches(train.select_columns("dataset")) for name in batch["dataset"]
        )
        sources = tuple(replace(source, n_train=drawn[source.name]) for source in sources)
    else:
        train = concatenate_datasets(list(trains))
    validation = concatenate_datasets(list(validations))
    return SftData(train, validation, _fingerprint(train, validation), sources, folder)


class _Source(NamedTuple):
    """All rows of one dataset, in its order."""

    rows: "Shelf | Dataset"
    format: RowFormat
    is_chat: bool  # its rows are messages
    revision: str
    n_skipped: int = 0


class _Skipped:
    """How many rows cannot be trained on; without `allowed`, the first ends it."""

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed
        self.n = 0
        self.first: RowError | None = None

    def add(self, error: RowError) -> None:
        if not self._allowed:
            raise error
        self.n += 1
        self.first = self.first or error


def _taken(
    name: str, config: DatasetConfig, seed: int, tokenizer: Any, folder: Path
) -> tuple["Dataset", "Dataset", DataSource]:
    """The training and the held-out examples of one dataset, in the seed's order."""
    skipped = _Skipped(config.skip_bad_rows)
    try:
        source = _local(file_state(config), *reading(config)) if config.file else _hub(name, config)
        if setting := _asks_for_template(config, source):
            check_chat_template(tokenizer, f"dataset.{name}.{setting}")
        n_held_out = min(config.validation_examples, len(source.rows) // 2)
        if n_held_out < 1:
            raise SlimdownError(
                f"dataset.{name}: {config.path} has {len(source.rows)} row(s); at least 2 are needed"
            )
        examples = _examples(name, config, source, seed, tokenizer, skipped)
        held_out = list(islice(examples, n_held_out))
        seen = {_content(example) for example in held_out}
        fresh = islice(
            (example for example in examples if _content(example) not in seen), config.max_examples
        )
        if (first := next(fresh, None)) is None:
            raise SlimdownError(
                f"dataset.{name}: every row of {config.path} is the same text; nothing to train on"
            )
        schema = pa.schema([(column, _NO_TEXTS.get(column, pa.string())) for column in first])
        train = written(chain([first], fresh), schema, folder / f"{name}-train.arrow")
    except RowError as error:
        raise SlimdownError(f"dataset.{name}: {error}") from None
    validation = written(held_out, schema, folder / f"{name}-validation.arrow")
    n_skipped = source.n_skipped + skipped.n
    return (
        train,
        validation,
        DataSource(name, config.path, source.revision, len(train), len(validation), n_skipped),
    )


def _asks_for_template(config: DatasetConfig, source: _Source) -> str | None:
    """The setting, if any, by which rows are written in the tokenizer's chat template."""
    if source.format == RowFormat.instruction and config.template == "chat":
        return "template=chat"
    return f"format={source.format.value}" if source.is_chat else None


@lru_cache(maxsize=8)
def _local(state: tuple[int, int], *settings: Any) -> _Source:
    """The rows of a local file, read once a process while its time and size stay.

    Raises:
        RowError: what is wrong with it.
    """
    config = DatasetConfig(*settings)
    assert config.file is not None
    skipped = _Skipped(config.skip_bad_rows)

    def sound() -> Iterator[Row]:
        for number, row in rows_of(config):
            if isinstance(row, RowError):
                skipped.add(row)
            else:
                yield {**row, "row": number}

    rows = Shelf(sound())
    check_enough(config, len(rows), skipped.first)
    first = next(rows.take([0]))
    with config.file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()[:16]
    format_ = next(
        (f for f, columns in COLUMNS.items() if columns[0] in first), RowFormat.instruction
    )
    is_chat = any(isinstance(value, list) for value in first.values())
    return _Source(rows, format_, is_chat, f"sha256:{digest}", skipped.n)


def _hub(name: str, config: DatasetConfig) -> _Source:
    from datasets import Value

    rows = _hub_records(name, config)
    revision, format_ = _resolved_revision(rows, config), config.format_of(rows.column_names)
    wanted = columns_of(config, format_)
    there = [column for column in wanted if column in rows.column_names]
    if there == list(wanted) or (
        there and format_ == RowFormat.messages
    ):  # else the first row says what there is
        rows = rows.select_columns(there)
    prompt = rows.features.get("prompt")
    are_lists = (
        format_ == RowFormat.prompt_completion
        and prompt is not None
        and not isinstance(prompt, Value)
    )
    return _Source(rows, format_, are_lists or format_ == RowFormat.messages, revision)


def _hub_records(name: str, config: DatasetConfig) -> "Dataset":
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        with asking_hub(f"dataset.{name}: {config.path}"):
            return load_dataset(
                config.path, config.name, split=config.split, revision=config.revision
            )
    except DatasetNotFoundError as error:
        if "gated" in str(error).lower():
            raise SlimdownError(
                f"dataset.{name}: {config.path} is gated; ask for access at "
                f"https://huggingface.co/datasets/{config.path}, then `hf auth login`"
            ) from None
        raise SlimdownError(
            f"dataset.{name}: there is no dataset {config.path} on the hub that you can read; check "
            "dataset.<name>.path, or give a local JSON, JSONL, CSV or Parquet file"
        ) from None
    except ValueError as error:  # an unknown config or split names the known ones itself
        raise SlimdownError(f"dataset.{name}: {config.path}: {error}") from None
    except OSError as error:
        raise SlimdownError(
            f"dataset.{name}: {config.path} cannot be reached ({type(error).__name__}); check the network, or run "
            "the embedded world, which needs none: python -m slimdown.run"
        ) from None


def _resolved_revision(rows: "Dataset", config: DatasetConfig) -> str:
    """The hub's commit, which `datasets` keeps in the address of each file it downloaded."""
    for address in rows.info.download_checksums or {}:
        if "@" in address:
            return str(address.split("@", 1)[1].split("/", 1)[0])
    return config.revision


def _examples(
    name: str, config: DatasetConfig, source: _Source, seed: int, tokenizer: Any, skipped: _Skipped
) -> Iterator[dict[str, Any]]:
    """Every row that can be trained on, in the seed's order, as it is trained on.

    Raises:
        RowError: one that cannot.
    """
    order = np.random.default_rng(seed).permutation(len(source.rows))  # as `datasets` shuffles
    in_order = (
        source.rows.take(order)
        if isinstance(source.rows, Shelf)
        else records(source.rows.select(order))
    )
    for i, record in zip(order, in_order, strict=True):
        number = record["row"] if config.file else int(i) + 1
        try:
            row = (
                record if config.file else to_row(record, config, source.format, may_be_empty=True)
            )
            yield {**_example(name, config, row, tokenizer), "dataset": name, "row": number}
        except RowError as error:
            skipped.add(RowError(f"{config.path} row {number}: {error}"))


def _example(name: str, config: DatasetConfig, row: Row, tokenizer: Any) -> dict[str, Any]:
    """One row in TRL's shape; texts end in the end-of-sequence token.

    Raises:
        RowError: a conversation that the chat template does not take.
    """
    end = tokenizer.eos_token or ""
    if "instruction" in row:
        return _filled_in(name, config, row, tokenizer)
    if "text" in row:
        return {"text": _ended(row["text"], end)}
    if "prompt" in row and isinstance(row["prompt"], str):
        return {"prompt": row["prompt"], "completion": _ended(row["completion"], end)}
    messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    try:
        rendered(tokenizer, messages)
    except ValueError as error:
        raise RowError(f"the chat template does not take its messages ({error})") from None
    return {"messages": messages} | ({} if "messages" in row else {"n_prompt": len(row["prompt"])})


def _ended(text: str, end: str) -> str:
    return text if text.endswith(end) else f"{text}{end}"


def _filled_in(name: str, config: DatasetConfig, row: Row, tokenizer: Any) -> dict[str, Any]:
    """The row's texts in the template."""
    instruction, further, answer = row["instruction"], row["input"], row["output"]
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


def _content(example: dict[str, Any]) -> str:
    """What two examples that are the same have in common."""
    content = [example[name] for name in _CONTENT if example.get(name) is not None]
    return json.dumps(content, sort_keys=True)


def _text(example: dict[str, Any]) -> str:
    if messages := example.get("messages"):
        return "\n\n".join(turn["content"] for turn in messages)
    return example.get("text") or f"{example['prompt']}{example['completion']}"


def _fingerprint(*parts: "Dataset") -> str:
    digest = hashlib.sha256()
    for part in parts:
        for example in records(part):
            digest.update(_content(example).encode())
        digest.update(b"|")
    return digest.hexdigest()[:16]
