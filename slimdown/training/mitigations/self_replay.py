"""`keep=self_replay`: rows that the base writes itself are mixed in (arXiv 2505.13811)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from slimdown.config.fields import FILE, POSITIVE, Range, setting
from slimdown.training.general_rows import GeneralRows, count_added
from slimdown.training.labels import IGNORED, mark_labels
from slimdown.utils.errors import DataError
from slimdown.utils.row_files import iter_records

if TYPE_CHECKING:
    from slimdown.config.schema import RunConfig

_LENGTH = Range("must be from 2 to 8,192", lambda n: 2 <= n <= 8192)  # a text, and its end
_BATCH = 16  # rows that are written at once


@dataclass
class SelfReplay(GeneralRows):
    """The base writes the general rows, from its start token or from given texts."""

    max_tokens: int = setting("tokens of a row that the base writes", _LENGTH)
    temperature: float = setting("at which the base writes rows", POSITIVE)
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

    def explain_plan(self) -> Iterator[str]:
        """Say that nobody knows yet how long the rows are."""
        yield f"The rows that the base writes (keep={self.name}) are not counted."

    def prepare_rows(self, base: Any, rows: Any, config: "RunConfig") -> Any:
        """Mix in rows that the base writes, or wrote before."""
        from datasets import Dataset, concatenate_datasets

        from slimdown.utils.distributed import broadcast_from_main, process_rank

        n_rows, written = count_added(len(rows.train), self.share), list[dict[str, list[int]]]()
        if process_rank() == 0:
            written = self._find_or_write_rows(base, n_rows, config.train.max_length)
        written = broadcast_from_main(written)
        if self.weight:
            written = [{**row, "labels": mark_labels(row["labels"])} for row in written]
        more = Dataset.from_list(written, rows.train.features) if written else rows.train.select([])
        note = f"keep={self.name}: {len(written):,} of {n_rows:,} rows that {base.id} wrote"
        note = f"{note} have a token to train on and are mixed in"
        train = concatenate_datasets([rows.train, more])
        return replace(rows, train=train, notes=[*rows.notes, note])

    def _find_or_write_rows(
        self, base: Any, n_rows: int, longest: int
    ) -> list[dict[str, list[int]]]:
        """Return rows that the base wrote; take them from the cache if it wrote the same before."""
        from slimdown.utils.files import cache_dir, write_atomically
        from slimdown.utils.hashing import hash_json

        prompts = read_prompts(self.prompts) if self.prompts else [""]
        settings = [self.max_tokens, self.temperature, n_rows, prompts, longest, "no end"]
        file = cache_dir() / "replay" / f"{hash_json([base.identity, settings])}.json"
        if base.identity and file.is_file():
            return list(json.loads(file.read_text()))
        rows = list(self._write_rows(base, n_rows, prompts, longest))
        if n_rows and not rows:
            raise DataError(
                f"keep={self.name}: {base.id} writes nothing; name texts that it can continue, "
                f"shorter than train.max_length={longest}: keep.prompts=FILE.jsonl with a prompt "
                "in each row"
            )
        write_atomically(file, json.dumps(rows))
        return rows

    def _write_rows(
        self, base: Any, n_rows: int, prompts: Sequence[str], longest: int
    ) -> Iterator[dict[str, list[int]]]:
        import torch

        from slimdown.models.causal import eval_mode

        tokenizer, model = base.tokenizer, base.model
        marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        start = next(token for token in marks if token is not None)
        ends = model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        cuda = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), eval_mode(model):
            torch.manual_seed(0)  # equal for all seeds of a training: written once for each base
            for begin in range(0, n_rows, _BATCH):
                numbers = range(begin, min(begin + _BATCH, n_rows))
                texts = [prompts[i % len(prompts)] for i in numbers]
                encoded = [tokenizer(text).input_ids[:longest] or [start] for text in texts]
                width = max(map(len, encoded))
                padded = [[start] * (width - len(ids)) + ids for ids in encoded]
                mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in encoded]
                tokens = model.generate(
                    input_ids=torch.tensor(padded, device=model.device),
                    attention_mask=torch.tensor(mask, device=model.device),
                    do_sample=True,
                    temperature=self.temperature,
                    top_k=0,
                    top_p=1.0,
                    repetition_penalty=1.0,  # the base's own, whatever its publisher set
                    max_new_tokens=self.max_tokens,
                    min_new_tokens=1,  # a row of the end alone teaches to say nothing
                    eos_token_id=sorted(ends) or None,
                    pad_token_id=start,
                )
                for ids, answer in zip(encoded, tokens[:, width:].tolist(), strict=True):
                    end = next((i + 1 for i, one in enumerate(answer) if one in ends), len(answer))
                    if end > 1 and len(ids) < longest:  # more than the end alone, and trained on
                        written = answer[:end]
                        labels = [IGNORED] * len(ids) + written
                        yield {"input_ids": (ids + written)[:longest], "labels": labels[:longest]}


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
