"""Tokenize and cut rows with TRL, one dataset after the other, and mix them."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from datasets import Dataset, concatenate_datasets
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from slimdown.config.schema import TrainConfig
from slimdown.data.mixing import mix_rows
from slimdown.data.training_data import TrainingData
from slimdown.models.quiet import quiet_libraries
from slimdown.utils.errors import DataError, describe_error

SETTINGS = ("max_length", "completion_only_loss", "assistant_only_loss")  # that are read here


@dataclass(frozen=True)
class TokenizedRows:
    """Rows with the columns `input_ids` and `labels`, at most `train.max_length` tokens long."""

    train: Any  # datasets.Dataset
    validation: Any
    n_truncated: int
    n_untrained: int
    notes: Sequence[str]
    n_added: int = 0  # by a mitigation: the last rows of `train`
    is_padding_free: bool = False  # a batch is one row without padding; the trial decides it


def tokenize_rows(
    train_data: TrainingData, tokenizer: Any, config: TrainConfig, use_cpu: bool, seed: int
) -> TokenizedRows:
    """Tokenize all rows as TRL's `SFTTrainer` does.

    Args:
        train_data: Rows in TRL's formats, by dataset.
        tokenizer: The base's.
        config: What is trained on, and how long a row may be.
        use_cpu: Whether the training runs on a CPU; accelerate keeps the first device it hears of.
        seed: The seed of the mixture's order.

    Returns:
        The rows that have a label left.

    Raises:
        DataError: TRL cannot tell what to train on, or nothing is left.
    """
    trains: list[Dataset] = []
    validations: list[Dataset] = []
    for part in train_data.parts:
        # TRL decides by a dataset's first row how it reads all, so each goes through a trainer of
        # its own. The model in it takes no step.
        small: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8}
        small |= {"num_hidden_layers": 1, "num_attention_heads": 1}
        with tempfile.TemporaryDirectory() as folder, quiet_libraries():
            settings: dict[str, Any] = {name: getattr(config, name) for name in SETTINGS}
            settings |= {"report_to": "none", "use_cpu": use_cpu, "bf16": False}
            arguments = SFTConfig(folder, **settings)
            arguments._n_gpu = min(arguments.n_gpu, 1)  # see `build_trainer`
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small))
            held_out = part.validation if len(part.validation) else None  # added rows have none
            # A dataset of weight 0 has no training rows, and TRL takes no empty dataset.
            read = part.train if len(part.train) else part.validation
            rows: dict[str, Any] = {"train_dataset": read, "eval_dataset": held_out}
            try:
                trainer: Any = SFTTrainer(model, arguments, processing_class=tokenizer, **rows)
            except (ValueError, RuntimeError, TypeError, KeyError) as error:
                raise DataError(
                    f"dataset.{part.name}: TRL cannot tokenize its rows: {describe_error(error)}"
                ) from error
        tokenized = trainer.train_dataset.select_columns(["input_ids", "labels"])
        trains.append(tokenized if len(part.train) else tokenized.select([]))
        if held_out:
            validations.append(trainer.eval_dataset.select_columns(["input_ids", "labels"]))
    train = mix_rows(trains, [part.weight for part in train_data.parts], seed)
    validation = concatenate_datasets(validations)
    if not len(train) or not len(validation):
        raise DataError(
            f"train.max_length={config.max_length} leaves no row, or no held-out row, a token to "
            "train on; set a larger one"
        )
    n, n_rows = config.max_length, sum(len(part.train) for part in train_data.parts)
    n_truncated = sum(len(tokens) >= n for tokens in train["input_ids"])
    n_untrained = n_rows - sum(len(rows) for rows in trains)
    note = f"train.max_length={n} cuts {n_truncated:,} of {n_rows:,} rows"
    if n_untrained:
        note += f"; {n_untrained:,} more have no token left to train on and are left out"
    notes = [note] if n_truncated or n_untrained else []
    pairs = zip(trains, train_data.parts, strict=True)
    n_added = sum(len(rows) for rows, part in pairs if part.is_added)
    return TokenizedRows(train, validation, n_truncated, n_untrained, notes, n_added)
