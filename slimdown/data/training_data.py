"""Turn the chosen datasets into `TrainingData`: rows in TRL's shape, with a fingerprint.

A file or a hub dataset is read, its rows are checked and shuffled with the seed, the first ones
are held out, and the next ones are trained on. The only part of the model that is used is the
tokenizer's chat template.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slimdown.config.dataset_config import DatasetConfig, RowFormat
from slimdown.config.mitigation import Mitigation
from slimdown.data.chat_templates import FIXED_DATE, check_chat_template, find_switch, render_chat
from slimdown.data.mixing import mix_rows
from slimdown.data.row_formats import (
    detect_format,
    explain_row,
    format_row,
    get_messages,
    list_columns,
)
from slimdown.utils.errors import DataError
from slimdown.utils.hashing import hash_json
from slimdown.utils.hub import explain_hub_errors
from slimdown.utils.row_files import drop_missing, iter_records

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS_PER_HELD_OUT = 10  # at most one row in so many is held out


class TrainedText(NamedTuple):
    """The text of one row that is trained on, without the marks of a chat template."""

    dataset: str
    row: int  # its number in the dataset, from 1
    text: str


@dataclass(frozen=True)
class DatasetPart:
    """The rows of one dataset.

    `train` and `validation` have TRL's columns: `text`, or `prompt` and `completion`, or
    `messages`; conversations also `tools` and `chat_template_kwargs` where rows have them; and
    `row`, the number in the dataset.
    """

    name: str
    train: "Dataset"  # only what the mixture draws; empty where its weight is 0
    validation: "Dataset"
    weight: float | None
    is_added: bool = False  # by a mitigation


@dataclass(frozen=True)
class TrainingData:
    """All rows of a run; one part for each dataset, so that formats can be mixed."""

    parts: tuple[DatasetPart, ...]
    fingerprint: str  # 16 hex digits of a digest over all rows and how they are mixed
    notes: list[str]  # lines for the user

    @property
    def holds_conversations(self) -> bool:
        """Whether rows of any dataset are messages."""
        return any(bool(get_messages(part.train[0])) for part in self.parts if len(part.train))

    def iter_texts(self) -> Iterator[TrainedText]:
        """Yield the text of every row that is trained on."""
        for part in self.parts:
            for row in part.train:
                texts = [message["content"] for message in get_messages(row)]
                text = "\n\n".join(texts) or row.get("text") or row["prompt"] + row["completion"]
                yield TrainedText(part.name, row["row"], text)


def load_training_data(
    datasets: Mapping[str, DatasetConfig],
    tokenizer: Any,
    seed: int,
    keep: Mitigation | None = None,
    enable_thinking: bool | None = None,
) -> TrainingData:
    """Read the chosen datasets, and hold some rows of each out for the validation loss.

    Held-out rows are drawn first. They are the same for any `max_examples` and `weight`, so runs
    on more or fewer rows are validated on equal text. A row that equals a held-out one is not
    trained on.

    Args:
        datasets: The settings by name; all have a weight, or none has.
        tokenizer: The base's; only its chat template is used, and only where rows are messages.
        seed: Decides which rows are taken, their order, and how datasets are mixed.
        keep: How to forget less. A mitigation that replays general rows cuts their dataset to the
            share that it needs, puts it last, and holds none of it out.
        enable_thinking: False: conversations are rendered without thinking, like the questions.
            True or None: as the chat template does by itself.

    Returns:
        The rows of each dataset, with a fingerprint of all rows and of how they are mixed. If
        datasets have weights, only the rows that are drawn until the first dataset is exhausted.

    Raises:
        DataError: A dataset cannot be read, lacks a column, has too few rows, or has a row that
            cannot be trained on.
        ModelError: Rows are messages, and the tokenizer's chat template is missing or does not
            work.
    """
    parts: list[DatasetPart] = []
    notes: list[str] = []
    for name, config in datasets.items():
        try:
            part, part_notes = _load_part(name, config, tokenizer, seed, enable_thinking)
        except DataError as error:
            raise DataError(f"dataset.{name}: {config.path}: {error}") from None
        parts.append(part)
        notes += part_notes
    weights = [part.weight for part in parts]
    is_mixed = None not in weights  # all datasets have a weight, or none has
    if is_mixed:
        parts = _draw_parts(parts, seed)
    if keep:
        parts, keep_notes = keep.choose_parts(parts)
        notes += keep_notes
    content = [[_hash_rows(part.train), _hash_rows(part.validation)] for part in parts]
    mixture = [weights, seed] if is_mixed else None
    return TrainingData(tuple(parts), hash_json([content, mixture])[:16], notes)


def _draw_parts(parts: list[DatasetPart], seed: int) -> list[DatasetPart]:
    """Cut datasets to the rows that a mixture by weight draws until the first is exhausted."""
    from datasets import Dataset

    # What is mixed here is the number of each row's part alone, to count the draws: rows of
    # different formats cannot be mixed, as their columns differ.
    numbers = [Dataset.from_dict({"part": [i] * len(p.train)}) for i, p in enumerate(parts)]
    mixed = mix_rows(numbers, [part.weight for part in parts], seed, "first_exhausted")
    n_drawn = Counter(mixed["part"])
    return [replace(p, train=p.train.select(range(n_drawn[i]))) for i, p in enumerate(parts)]


def _hash_rows(rows: "Dataset") -> str:
    return hash_json(list(rows.remove_columns("row")))


def _load_part(
    name: str, config: DatasetConfig, tokenizer: Any, seed: int, enable_thinking: bool | None
) -> tuple[DatasetPart, list[str]]:
    """Load the rows of one dataset, all that may be trained on, whatever its weight.

    The rows are shuffled; the first ones without a problem are held out, and the next ones are
    trained on.

    Args:
        name: The name in `dataset.NAME`.
        config: The settings of the dataset.
        tokenizer: See `load_training_data`.
        seed: Decides the order of the rows.
        enable_thinking: See `load_training_data`.

    Returns:
        The rows, and lines for the user: how many rows are skipped, and whether fewer are held out
        than is set.

    Raises:
        DataError: The dataset cannot be read, has too few rows, or has a row that cannot be trained
            on and may not be skipped.
        ModelError: Rows are messages, and the tokenizer has no chat template that works.
    """
    records, format_, n_rows = _open_shuffled(config, seed)
    n_held_out = min(config.validation_examples, max(1, n_rows // _ROWS_PER_HELD_OUT))
    check = _RowCheck(name, config, format_, tokenizer, enable_thinking)
    validation: list[dict[str, Any]] = []
    train: list[dict[str, Any]] = []
    held_out_contents: set[str] = set()  # rows with equal content are not trained on
    skipped: list[str] = []  # why each skipped row cannot be trained on
    for number, record in records:
        try:
            row = check.read_row(record)
        except DataError as error:
            if not config.skip_bad_rows:
                raise DataError(explain_row(name, number, error)) from None
            skipped.append(f"row {number}: {' '.join(str(error).split())}")
            continue
        content = json.dumps(row, sort_keys=True)
        row["row"] = number  # not part of `content`: two rows are equal if all else is
        if len(validation) < n_held_out:
            validation.append(row)
            held_out_contents.add(content)
        elif content not in held_out_contents:
            train.append(row)
        if len(train) == config.max_examples:
            break

    note = f"rows that cannot be trained on are skipped: {len(skipped):,}"
    if skipped:
        note += f", the first is {skipped[0]}"
    if not train:
        raise DataError(
            f"nothing is left to train on: it has {n_rows} row(s), of which {len(validation)} "
            f"are held out; rows that equal a held-out one do not count; {note}"
        )
    notes = [f"dataset.{name}: {note}"] if skipped else []
    if n_held_out < config.validation_examples:
        notes.append(
            f"dataset.{name}: {n_held_out:,} of {n_rows:,} rows are held out for validation, "
            f"not validation_examples={config.validation_examples}, because at most a tenth may be"
        )
    # Held-out rows and the others get all columns that any row has, so that rows can be mixed.
    columns = list(dict.fromkeys(column for row in (*train, *validation) for column in row))
    train_rows = _build_dataset(train, columns)
    held_out_rows = _build_dataset(validation, columns)
    return DatasetPart(name, train_rows, held_out_rows, config.weight), notes


def _open_shuffled(
    config: DatasetConfig, seed: int
) -> tuple[Iterator[tuple[int, Any]], RowFormat, int]:
    """Return a dataset's rows with their numbers, in the seed's order; their format and count."""
    if config.file:
        records = list(iter_records(config.file))
        format_ = detect_format(config, records)
        order = np.random.default_rng(seed).permutation(len(records))  # as `Dataset.shuffle`
        return (records[i] for i in order), format_, len(records)
    rows, format_ = _load_from_hub(config)
    order = np.random.default_rng(seed).permutation(len(rows))
    shuffled = map(drop_missing, rows.select(order))
    numbered = ((int(i) + 1, record) for i, record in zip(order, shuffled, strict=True))
    return numbered, format_, len(rows)


@dataclass
class _RowCheck:
    """Brings the rows of a dataset into TRL's shape, and checks that they can be trained on."""

    dataset: str
    config: DatasetConfig
    format: RowFormat
    tokenizer: Any
    enable_thinking: bool | None
    # These are set by the first conversation, and by the first row.
    template_args: dict[str, Any] | None = None  # variables of the template for every conversation
    first_prompt_type: type | None = None  # text or list

    def read_row(self, record: Any) -> dict[str, Any]:
        """Bring a row into TRL's format, and check that it can be trained on with the rows before.

        Args:
            record: The values of the row by column, or the error of its reader.

        Returns:
            What `format_row` returns. `chat_template_kwargs` of a conversation also hold the
            variables that all conversations get; the row's own win.

        Raises:
            DataError: It cannot be trained on, or its prompt is a text and those before are lists.
            ModelError: It is a conversation, and the tokenizer has no template that works.
        """
        row = format_row(record, self.config, self.format)
        if messages := get_messages(row):
            if self.template_args is None:  # the first conversation
                setting = f"format={self.format.value}"
                if self.format == RowFormat.instruction:
                    setting = "template=chat"
                check_chat_template(self.tokenizer, f"dataset.{self.dataset}.{setting}")
                self.template_args = _fix_template_args(self.tokenizer, self.enable_thinking)
            template_args = self.template_args | row.get("chat_template_kwargs", {})
            if template_args:
                row["chat_template_kwargs"] = template_args
            # The text is not used: this raises if the template does not take the row.
            render_chat(self.tokenizer, messages, tools=row.get("tools"), **template_args)
        prompt_type = type(row.get("prompt"))  # the type of None if rows have no prompt
        self.first_prompt_type = self.first_prompt_type or prompt_type
        if prompt_type is not self.first_prompt_type:
            raise DataError("some rows have a text and some a list as prompt; make them alike")
        return row


def _fix_template_args(tokenizer: Any, enable_thinking: bool | None) -> dict[str, Any]:
    """Return the variables that a chat template gets with every row: date, and thinking if off."""
    fixed: dict[str, Any] = {}
    if "date_string" in str(tokenizer.chat_template):
        fixed |= FIXED_DATE
    if enable_thinking is False and (switch := find_switch(tokenizer, "", {})):
        fixed[switch] = False
    return fixed


def _build_dataset(rows: list[dict[str, Any]], columns: list[str]) -> "Dataset":
    """Build a dataset; lists and objects are stored as JSON, so that no key is added to them."""
    from datasets import Dataset, Features, Json, Value

    types = {int: Value("int64"), str: Value("string")}
    features = {column: types.get(type(rows[0].get(column)), Json()) for column in columns}
    defaults: dict[str, Any] = {"chat_template_kwargs": {}}  # TRL unpacks it
    values = {column: [row.get(column, defaults.get(column)) for row in rows] for column in columns}
    return Dataset.from_dict(values, Features(features))


def _load_from_hub(config: DatasetConfig) -> tuple["Dataset", RowFormat]:
    """Load the rows of a hub dataset with the columns that count, and their format."""
    from datasets import load_dataset

    with explain_hub_errors("the dataset", DataError):
        rows = load_dataset(config.path, config.name, split=config.split, revision=config.revision)
    format_ = detect_format(config, [(1, dict.fromkeys(rows.column_names))])
    columns = [column for column in list_columns(config, format_) if column in rows.column_names]
    return (rows.select_columns(columns) if columns else rows), format_
