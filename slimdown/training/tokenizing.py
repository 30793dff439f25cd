"""Tokenize rows with TRL, each dataset of a mixture apart and uncut, then count and cut them."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import transformers
from trl import SFTConfig, SFTTrainer

from slimdown.config.schema import TrainConfig
from slimdown.data.mixing import mix_rows
from slimdown.data.training_data import TrainingData
from slimdown.models.quiet import quiet_libraries
from slimdown.utils.errors import DataError

IGNORED = -100  # the label of a token that is not trained on


@dataclass(frozen=True)
class TokenizedRows:
    """Rows with the columns `input_ids` and `labels`, at most `train.max_length` tokens long."""

    train: datasets.Dataset
    validation: datasets.Dataset
    n_truncated: int
    n_untrained: int
    notes: Sequence[str]


def tokenize_rows(
    train_data: TrainingData, tokenizer: Any, config: TrainConfig, use_cpu: bool, seed: int
) -> TokenizedRows:
    """Tokenize all rows as TRL's `SFTTrainer` does.

    Args:
        train_data: Rows in TRL's formats, by dataset.
        tokenizer: The base's.
        config: What is trained on, and how long a row may be.
        use_cpu: Whether the training runs on a CPU; the processes' backend follows it.
        seed: Of the mixture's order.

    Returns:
        The rows that have a label left.

    Raises:
        DataError: TRL cannot tell what to train on, or nothing is left.
    """
    parts = [_tokenize_part(part, tokenizer, config, use_cpu) for part in train_data.parts]
    weights = [part.weight for part in train_data.parts]
    mixed = mix_rows([train for train, _ in parts], weights, seed)
    train, n_truncated, n_untrained, longest = _cut_rows(mixed, config, "training")
    held_out = datasets.concatenate_datasets([validation for _, validation in parts])
    validation, *_ = _cut_rows(held_out, config, "held-out")
    notes = []
    if n_truncated:
        notes.append(
            f"train.max_length={config.max_length} cuts {n_truncated:,} of {len(mixed):,} rows; the "
            f"longest has {longest:,} tokens"
        )
    if n_untrained:
        notes.append(f"{n_untrained:,} of {len(mixed):,} rows have no token to train on: left out")
    return TokenizedRows(train, validation, n_truncated, n_untrained, notes)


def _tokenize_part(part: Any, tokenizer: Any, config: TrainConfig, use_cpu: bool) -> Any:
    """Return training and held-out rows as TRL prepares them, uncut.

    TRL decides by a dataset's first row how all are read, so each goes through a trainer of its
    own; the model in it takes no step.
    """
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
    model_config = transformers.LlamaConfig(num_attention_heads=1, **shape)
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        arguments = SFTConfig(
            folder,
            max_length=None,
            completion_only_loss=config.completion_only_loss,
            assistant_only_loss=config.assistant_only_loss,
            report_to="none",
            use_cpu=use_cpu,
            bf16=False,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # see `build_trainer`
        try:
            trainer = SFTTrainer(
                transformers.LlamaForCausalLM(model_config),
                arguments,
                train_dataset=part.train,
                eval_dataset=part.validation,
                processing_class=tokenizer,
            )
        except (ValueError, RuntimeError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())[:400]
            raise DataError(
                f"dataset.{part.name}: TRL cannot tokenize its rows: {reason}"
            ) from error
    columns = ["input_ids", "labels"]
    return [d.select_columns(columns) for d in (trainer.train_dataset, trainer.eval_dataset)]


def _cut_rows(
    rows: datasets.Dataset, config: TrainConfig, kind: str
) -> tuple[datasets.Dataset, int, int, int]:
    """Return the cut rows that have a label left, how many were cut and left out, and the longest."""
    n = config.max_length
    with quiet_libraries():
        cut = rows.map(_cut_batch, batched=True, fn_kwargs={"n": n}, load_from_cache_file=False)
        lengths, trained = list(cut["n_tokens"]), list(cut["n_trained"])
        left = cut.select([i for i, count in enumerate(trained) if count])
    longest = max(lengths)
    if not len(left):
        raise DataError(
            f"train.max_length={n} leaves none of the {len(rows):,} {kind} rows a token to train on; "
            f"the longest has {longest:,} tokens: train.max_length={longest} keeps every row whole, or "
            "train.completion_only_loss=false trains on prompts, too"
        )
    n_cut = sum(length > n for length in lengths)
    return left.select_columns(["input_ids", "labels"]), n_cut, len(rows) - len(left), longest


def _cut_batch(batch: dict[str, list[list[int]]], n: int) -> dict[str, list[Any]]:
    # Nothing predicts a row's first token; behind virtual tokens PEFT would count it.
    labels = [[IGNORED, *row[1:n]] for row in batch["labels"]]
    return {
        "input_ids": [row[:n] for row in batch["input_ids"]],
        "labels": labels,
        "n_tokens": [len(row) for row in batch["input_ids"]],
        "n_trained": [sum(label != IGNORED for label in row) for row in labels],
    }
