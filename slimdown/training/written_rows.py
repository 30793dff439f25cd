"""What the mitigations have in common whose general rows the base writes, once per base."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from slimdown.config.fields import FILE, POSITIVE, Range, setting
from slimdown.training.general_rows import GeneralRows, count_added
from slimdown.training.labels import mark_labels
from slimdown.utils.errors import DataError
from slimdown.utils.row_files import iter_records

if TYPE_CHECKING:
    from slimdown.config.schema import RunConfig

_BATCH = 16  # rows that are written at once
_LENGTH = Range("must be from 2 to 8,192", lambda n: 2 <= n <= 8192)  # a text, and its end


@dataclass
class WrittenRows(GeneralRows):
    """Base class of the mitigations whose general rows the base model writes.

    A written row has `input_ids`, `labels`, and `shown`: the text that MLflow's record shows of it.
    """

    max_tokens: int = setting("most tokens of a text that the base model writes", _LENGTH)
    temperature: float = setting("temperature at which the base model writes", POSITIVE)
    prompts: str | None = setting(
        "a JSONL file of messages (`prompt`) that the base model answers, or of texts it continues",
        FILE,
        None,
    )

    preparation: ClassVar[str] = "the base model writes rows"

    def find_file_problems(self) -> Iterator[str]:
        """Find a row of the texts that cannot be read."""
        try:
            self.read_prompts()
        except DataError as error:
            yield str(error)

    def read_prompts(self) -> list[str]:
        """Read the texts of `keep.prompts`; none where it names no file.

        Raises:
            DataError: Names the first row that has no text.
        """
        return read_prompts(self.prompts) if self.prompts else []

    def write_rows(self, base: Any, n_rows: int, config: "RunConfig") -> Iterator[dict[str, Any]]:
        """Let the base write `n_rows` rows, and yield those that can be trained on."""
        raise NotImplementedError(f"keep={self.name} writes no rows")

    def list_batches(self, n_rows: int) -> Iterator[list[str]]:
        """Yield `n_rows` texts of `read_prompts` in batches; they are repeated if there are fewer.

        If there are none, the texts are empty.
        """
        texts = list(islice(cycle(self.read_prompts() or [""]), n_rows))
        for begin in range(0, n_rows, _BATCH):
            yield texts[begin : begin + _BATCH]

    def continue_texts(
        self, base: Any, texts: Sequence[Sequence[int]], ends: set[int]
    ) -> list[list[int]]:
        """Return what the base writes after each text, drawn from its own distribution.

        The generation settings of the model's publisher (such as `top_p`) have no effect.

        Args:
            base: The `LoadedModel`.
            texts: At least one, each of at least one token.
            ends: The tokens that end a text. The first token that is written is none of them.

        Returns:
            The tokens written after each text, up to the end token and with it.
        """
        import torch

        model = base.model
        start = find_start(base.tokenizer)  # it also pads the shorter texts, on their left
        width = max(map(len, texts))
        padded = [[start] * (width - len(ids)) + list(ids) for ids in texts]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in texts]
        tokens = model.generate(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            do_sample=True,
            temperature=self.temperature,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            max_new_tokens=self.max_tokens,
            min_new_tokens=1,  # a row that only ends would teach the model to say nothing
            eos_token_id=sorted(ends) or None,
            pad_token_id=start,
        )
        return [_cut_behind_end(written, ends) for written in tokens[:, width:].tolist()]

    def list_key(self, base: Any, config: "RunConfig") -> list[Any]:
        """List what the rows of a mitigation depend on beside what all of them depend on.

        Rows are cached by a key. The base, the number of rows and the settings of `WrittenRows` are
        in it already. A mitigation with more settings adds their values here.
        """
        return []

    def describe_written(self, rows: Sequence[dict[str, Any]]) -> str:
        """Return an addition to the user's line about the written rows, or an empty text."""
        return ""

    def explain_plan(self, n_rows: int) -> Iterator[str]:
        """Yield a line for `--plan`, which says how many rows the base will write."""
        n_written = count_added(n_rows, self.share)
        yield (
            f"Time and tokens above do not include that {self.preparation} ({n_written:,} rows of "
            f"at most {self.max_tokens:,} tokens), and that the model is trained on these, too."
        )

    def prepare_rows(self, base: Any, rows: Any, config: "RunConfig") -> Any:
        """Return training rows with the base's rows added, which are cached from run to run.

        The first process writes them or reads them from the cache, and sends them to the others.

        Args:
            base: The `LoadedModel`.
            rows: The `TokenizedRows` to train on.
            config: The checked settings.

        Returns:
            The `TokenizedRows` with the base's rows at the end and a note for the user.

        Raises:
            DataError: The base writes no row that can be trained on.
        """
        from datasets import Dataset, concatenate_datasets

        from slimdown.utils.distributed import broadcast_from_main, process_rank

        n_rows = count_added(len(rows.train), self.share)
        written = self._obtain_rows(base, n_rows, config) if process_rank() == 0 else []
        written = broadcast_from_main(written)
        shown = "".join(json.dumps(row["shown"], ensure_ascii=False) + "\n" for row in written)
        columns = {name: [row[name] for row in written] for name in ("input_ids", "labels")}
        if self.weight:  # marked rows get the KL penalty
            columns["labels"] = [mark_labels(labels) for labels in columns["labels"]]
        train = concatenate_datasets([rows.train, Dataset.from_dict(columns, rows.train.features)])
        note = f"keep={self.name}: {len(written):,} of {n_rows:,} rows that {base.id} wrote"
        note += f" have a token to train on and are mixed in{self.describe_written(written)}"
        return replace(rows, train=train, notes=[*rows.notes, note], written=shown)

    def _obtain_rows(self, base: Any, n_rows: int, config: "RunConfig") -> list[dict[str, Any]]:
        """Return the base's rows: from the cache if it wrote them before with these settings.

        Raises:
            DataError: The base writes no row that can be trained on.
        """
        from slimdown.utils.files import cache_dir, write_atomically
        from slimdown.utils.hashing import hash_json

        longest = config.train.max_length
        key = [type(self).__name__, self.max_tokens, self.temperature, n_rows, longest]
        key.append(self.list_key(base, config))
        if prompts := self.read_prompts():
            key.append(prompts)
        file = cache_dir() / "replay" / f"{hash_json([base.identity, key])}.json"
        # A base without an identity (a model in memory) may have changed since, or change later:
        # its rows are not cached.
        if base.identity and file.is_file():
            with suppress(ValueError):  # a damaged file is written anew
                return list(json.loads(file.read_bytes()))
        rows = list(self.write_rows(base, n_rows, config))
        if not rows:
            raise DataError(
                f"keep={self.name}: {base.id} writes nothing that train.max_length={longest} can "
                "hold; set a larger one, or name shorter texts (keep.prompts), or set keep=none"
            )
        if base.identity:
            write_atomically(file, json.dumps(rows))
        return rows


@contextmanager
def fixed_draws(model: Any) -> Iterator[None]:
    """Make a model draw the same tokens each time, whatever seed the training has.

    Inside this context, the model is in evaluation mode. Outside, random states are as before.
    """
    import torch

    from slimdown.models.causal import eval_mode

    cuda = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), eval_mode(model):
        torch.manual_seed(0)
        yield


def find_ends(base: Any) -> set[int]:
    """Return the tokens at which the base stops writing: its tokenizer's and its own settings'."""
    ends = base.model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return {base.tokenizer.eos_token_id, *ends} - {None}


def find_start(tokenizer: Any) -> int:
    """Return the token that a text begins with: BOS, or EOS or padding if there is no BOS."""
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    start: int = next(token for token in marks if token is not None)
    return start


def _cut_behind_end(tokens: list[int], ends: set[int]) -> list[int]:
    """Return tokens up to and with the first that ends a text; all of them if none does."""
    for i, token in enumerate(tokens):
        if token in ends:
            return tokens[: i + 1]
    return tokens


def read_prompts(path: str) -> list[str]:
    """Read the texts of `keep.prompts`, which the base answers or continues.

    Args:
        path: A file whose rows have a `prompt`.

    Raises:
        DataError: The file cannot be read or is empty, or a row has no text in `prompt`.
    """
    prompts = []
    try:
        for number, record in iter_records(Path(path).expanduser()):
            if isinstance(record, DataError):
                raise DataError(f"row {number}: {record}")
            prompt = record.get("prompt") if isinstance(record, dict) else None
            if not isinstance(prompt, str) or not prompt:
                raise DataError(f"row {number}: it has no text in prompt")
            prompts.append(prompt)
        if not prompts:
            raise DataError("it is empty")
    except DataError as error:
        raise DataError(f"keep.prompts={path}: {error}") from None
    return prompts
