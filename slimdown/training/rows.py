"""SftData -> `TrainRows`: the tokens that are trained and validated on, cut to length, and what that leaves out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from slimdown.config.schema import TrainConfig
from slimdown.data.loading import SftData
from slimdown.data.tokens import IGNORED, Encoder, marks_assistant
from slimdown.models.model import LoadedModel, context_window
from slimdown.models.on_disk import Folder, batches, written
from slimdown.utils.errors import SlimdownError

_SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})


@dataclass(frozen=True)
class CutRows:
    """What `train.max_length` leaves out of the training rows, and which of them teach nothing."""

    max_length: int  # tokens
    n_rows: int
    n_cut: int  # longer than that
    n_lost: int  # of which nothing of the completion is left
    longest: int  # tokens
    n_untrained: int = 0  # without a token that is trained on
    n_whole: int = 0  # trained on from the first token, although train.completion_only_loss: they have no prompt

    def __str__(self) -> str:
        lost = f" ({self.n_lost} of them lose their whole answer)" if self.n_lost else ""
        untrained = (
            f"; {self.n_untrained:,} rows have no token to train on" if self.n_untrained else ""
        )
        whole = f"; {self.n_whole:,} rows have no prompt that train.completion_only_loss=true could leave out"
        return (
            f"train.max_length={self.max_length} cuts {self.n_cut:,} of {self.n_rows:,} rows{lost}; "
            f"the longest has {self.longest:,} tokens{untrained}{whole if self.n_whole else ''}"
        )

    @property
    def is_worth_telling(self) -> bool:
        return bool(self.n_cut or self.n_untrained or self.n_whole)


@dataclass(frozen=True)
class TrainRows:
    """Columns `input_ids` and `labels`, as TRL takes them without preparing anything itself."""

    train: Any
    validation: Any
    cut: CutRows  # of the training rows
    folder: Folder | None = field(
        default=None, repr=False
    )  # of the files that the rows are read from; gone with this


def prepare_rows(base: LoadedModel, data: SftData, config: TrainConfig) -> TrainRows:
    """The tokens of all rows, made before hours go into measuring the base.

    Raises:
        SlimdownError: nothing is left to learn of the training or of the held-out rows, or what of a conversation is to be
            trained on cannot be told.
    """
    template = _training_template(base.tokenizer) if config.assistant_only_loss else None
    encoder = Encoder(base.tokenizer, config, template)
    folder = Folder()
    train, cut = _kept(encoder, data.train, config, folder.path / "train.arrow")
    validation, cut_validation = _kept(
        encoder, data.validation, config, folder.path / "validation.arrow"
    )
    for name, part in (("training", cut), ("held-out", cut_validation)):
        if part.n_lost == part.n_rows:
            window = context_window(base.model)
            keeps = f"train.max_length={part.longest} keeps every row whole"
            if window is not None and part.longest > window:
                keeps = f"{base.id} takes up to {window}, and shorter prompts need fewer"
            raise SlimdownError(
                f"train.max_length={config.max_length} cuts the whole completion off each of the {part.n_rows:,} "
                f"{name} rows, so there is nothing to learn; the longest has {part.longest:,} tokens: {keeps}"
            )
        if part.n_untrained == part.n_rows:
            raise SlimdownError(
                f"none of the {part.n_rows:,} {name} rows has a token that train.assistant_only_loss=true trains on "
                f"within train.max_length={config.max_length}, so there is nothing to learn"
            )
    return TrainRows(train, validation, cut, folder)


def _kept(encoder: Encoder, rows: Any, config: TrainConfig, file: Path) -> tuple[Any, CutRows]:
    """The tokens of the rows that have a label left, as TRL keeps them, and what was cut."""
    n_cut = n_lost = longest = n_untrained = n_whole = 0
    leaves_out = config.completion_only_loss and not config.assistant_only_loss

    def cut() -> Iterator[dict[str, list[int]]]:
        nonlocal n_cut, n_lost, longest, n_untrained, n_whole
        for batch in batches(rows):
            for ids, labels, n_prompt in encoder.encode(batch):
                longest = max(longest, len(ids))
                n_cut += len(ids) > config.max_length
                n_lost += n_prompt >= config.max_length
                n_whole += leaves_out and not n_prompt
                ids, labels = ids[: config.max_length], labels[: config.max_length]
                n_untrained += not any(label != IGNORED for label in labels[1:])
                if any(label != IGNORED for label in labels):
                    yield {"input_ids": ids, "labels": labels}

    kept = written(cut(), _SCHEMA, file)
    return kept, CutRows(config.max_length, len(rows), n_cut, n_lost, longest, n_untrained, n_whole)


def _training_template(tokenizer: Any) -> str | None:
    """TRL's variant of a template that it knows, which marks what the assistant says; None: the tokenizer's own."""
    from trl.chat_template_utils import get_training_chat_template

    if not tokenizer.chat_template or marks_assistant(tokenizer.chat_template):
        return None
    try:
        return get_training_chat_template(tokenizer)  # type: ignore[no-any-return]
    except ValueError:  # one that it does not know
        return None
