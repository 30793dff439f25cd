"""`keep=self_replay`: rows that the base writes itself are mixed in (arXiv 2505.13811)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from slimdown.training.labels import IGNORED
from slimdown.training.written_rows import WrittenRows, find_ends, find_start, fixed_draws

if TYPE_CHECKING:
    from slimdown.config.schema import RunConfig


@dataclass
class SelfReplay(WrittenRows):
    """The base continues its start token, or given texts."""

    description: ClassVar[str] = "texts that the base model writes are mixed into the training"

    def write_rows(self, base: Any, n_rows: int, config: "RunConfig") -> Iterator[dict[str, Any]]:
        """Let the base continue the texts in turn, or its start token if no texts are given.

        Args:
            base: The `LoadedModel`.
            n_rows: How many texts to continue; they are repeated if there are fewer.
            config: The settings.

        Yields:
            The rows that can be trained on: those in which the base wrote more than one token, and
            whose text leaves room for it in `train.max_length`. A row has its tokens and their
            labels, as `input_ids` and `labels`, and its text in `shown`.
        """
        tokenizer, longest = base.tokenizer, config.train.max_length
        ends, start = find_ends(base), find_start(tokenizer)
        with fixed_draws(base.model):
            for texts in self.list_batches(n_rows):
                # An empty text becomes the start token.
                encoded = [tokenizer(text).input_ids[:longest] or [start] for text in texts]
                continuations = self.continue_texts(base, encoded, ends)
                for ids, written in zip(encoded, continuations, strict=True):
                    has_room = len(ids) < longest
                    if has_room and len(written) > 1:  # a single token would be the end alone
                        row = (ids + written)[:longest]
                        labels = ([IGNORED] * len(ids) + written)[:longest]
                        shown = {"text": tokenizer.decode(row, skip_special_tokens=True)}
                        yield {"input_ids": row, "labels": labels, "shown": shown}
