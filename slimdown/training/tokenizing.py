"""Tokenize and cut rows with TRL, one dataset after the other, and mix them."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from datasets import Dataset, concatenate_datasets
from trl.chat_template_utils import (
    get_training_chat_template,
    has_generation_markers,
    is_chat_template_stop_token_trained,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from slimdown.config.schema import TrainConfig
from slimdown.data.mixing import mix_rows
from slimdown.data.row_formats import get_messages
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
    written: str = ""  # rows that the base wrote, JSON lines for the record
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
    unmarked: list[str] = []
    for part in train_data.parts:
        # A dataset of weight 0 has no training rows, and TRL takes no empty dataset.
        read = part.train if len(part.train) else part.validation
        # TRL decides by a dataset's first row how it reads all, so each goes through a trainer of
        # its own. The model in it takes no step.
        small: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8}
        small |= {"num_hidden_layers": 1, "num_attention_heads": 1}
        with tempfile.TemporaryDirectory() as folder, quiet_libraries():
            settings = _choose_loss(read[0], tokenizer, config)
            is_told = settings["assistant_only_loss"] or "completion" in read[0]
            if get_messages(read[0]) and not is_told:
                unmarked.append(part.name)
            settings |= {"max_length": config.max_length}
            settings |= {"report_to": "none", "use_cpu": use_cpu, "bf16": False}
            arguments = SFTConfig(folder, **settings)
            arguments._n_gpu = min(arguments.n_gpu, 1)  # see `build_trainer`
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small))
            held_out = part.validation if len(part.validation) else None  # added rows have none
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
    if unmarked and config.assistant_only_loss == "auto":
        notes.append(
            f"the loss of {', '.join(unmarked)} is of whole conversations, prompts included: "
            "neither the chat template nor TRL's of its family marks what the assistant says. To "
            "train on the answers alone, write rows with prompt and completion in the place of "
            "messages"
        )
    pairs = zip(trains, train_data.parts, strict=True)
    n_added = sum(len(rows) for rows, part in pairs if part.is_added)
    return TokenizedRows(train, validation, n_truncated, n_untrained, notes, n_added)


def _choose_loss(row: Mapping[str, Any], tokenizer: Any, config: TrainConfig) -> dict[str, Any]:
    """Return TRL's settings of what the loss of a dataset is of.

    With `auto` one of its rows decides. Of conversations it is the completion, where rows have one,
    and of this or of the whole conversation what the assistant says, where that is marked.
    """
    by_mark, by_completion = config.assistant_only_loss, config.completion_only_loss
    if by_mark == "auto":
        is_chat = bool(get_messages(row))
        by_mark = is_chat and _marks_answers(tokenizer)
        by_completion = by_completion or (is_chat and "completion" in row)
    return {"assistant_only_loss": by_mark, "completion_only_loss": by_completion}


def _marks_answers(tokenizer: Any) -> bool:
    """Return whether TRL can tell what the assistant says, the end of its turn included.

    The chat template marks it (`{% generation %}`), or TRL has a marked version of the template.
    """
    try:
        is_marked = has_generation_markers(tokenizer.chat_template)
        marked = None if is_marked else get_training_chat_template(tokenizer)
        return bool(is_chat_template_stop_token_trained(tokenizer, chat_template=marked))
    except Exception:  # TRL has none, or the publisher's program fails
        return False
