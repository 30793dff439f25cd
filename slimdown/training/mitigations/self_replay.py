"""`keep=self_replay`: rows that the base writes itself are mixed in (arXiv 2505.13811)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from slimdown.config.fields import FILE, setting
from slimdown.training.labels import IGNORED
from slimdown.training.written_rows import (
    BATCH,
    WrittenRows,
    continue_texts,
    draw_alike,
    find_ends,
    find_start,
)
from slimdown.utils.errors import DataError
from slimdown.utils.row_files import iter_records

if TYPE_CHECKING:
    from slimdown.config.schema import RunConfig


@dataclass
class SelfReplay(WrittenRows):
    """The base begins with its start token, or with given texts."""

    prompts: str | None = setting(
        "a JSONL file of texts (`prompt`) that the base continues", FILE, None
    )

    about: ClassVar[str] = "rows that the base writes are mixed in"

    def find_file_problems(self) -> Iterator[str]:
        """Find a row of the texts that cannot be read."""
        try:
            if self.prompts:
                read_prompts(self.prompts)
        except DataError as error:
            yield str(error)

    def list_key(self, base: Any, config: "RunConfig") -> list[Any]:
        """List the texts that are continued."""
        return [read_prompts(self.prompts) if self.prompts else []]

    def advise_empty(self) -> str:
        """Advise other texts."""
        return (
            "name shorter texts that it can continue: keep.prompts=FILE.jsonl with a prompt in "
            "each row"
        )

    def write_rows(self, base: Any, n_rows: int, config: "RunConfig") -> Iterator[dict[str, Any]]:
        """Continue the start token or the texts, in turn."""
        tokenizer, longest, ends = base.tokenizer, config.train.max_length, find_ends(base)
        prompts = read_prompts(self.prompts) if self.prompts else [""]
        start = find_start(tokenizer)
        with draw_alike(base.model):
            for begin in range(0, n_rows, BATCH):
                numbers = range(begin, min(begin + BATCH, n_rows))
                texts = [prompts[i % len(prompts)] for i in numbers]
                encoded = [tokenizer(text).input_ids[:longest] or [start] for text in texts]
                answers = continue_texts(base, encoded, ends, self.max_tokens, self.temperature)
                for ids, written in zip(encoded, answers, strict=True):
                    if len(written) > 1 and len(ids) < longest:  # more than the end, and trained on
                        row = (ids + written)[:longest]
                        labels = ([IGNORED] * len(ids) + written)[:longest]
                        shown = {"text": tokenizer.decode(row, skip_special_tokens=True)}
                        yield {"input_ids": row, "labels": labels, "shown": shown}


def read_prompts(path: str) -> list[str]:
    """Read the texts that the base is to continue, for `keep.prompts`.

    Args:
        path: A file whose rows have a `prompt`.

    Raises:
        DataError: Names the first row that has none.
    """
    prompts = []
    try:
        for number, record in iter_records(Path(path).expanduser()):
            prompt = record.get("prompt") if isinstance(record, dict) else None
            if not isinstance(prompt, str) or not prompt:
                is_read = not isinstance(record, DataError)
                raise DataError(
                    f"row {number}: {'it has no text in prompt' if is_read else record}"
                )
            prompts.append(prompt)
        if not prompts:
            raise DataError("it is empty")
    except DataError as error:
        raise DataError(f"keep.prompts={path}: {error}") from None
    return prompts
