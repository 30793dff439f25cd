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
from slimdown.data.training_data import DatasetPart, TrainingData
from slimdown.models.quiet import quiet_libraries
from slimdown.utils.errors import DataError, describe_error
from slimdown.utils.tested_versions import require_names

TOKENIZING_SETTINGS = ("max_length", "completion_only_loss", "assistant_only_loss")
"""The settings of `train` that are used up in tokenizing."""

_WHOLE_CONVERSATIONS = (
    "dataset.{datasets}: the model is trained on whole conversations, prompts included, because "
    "neither its chat template nor TRL's template for its family marks the assistant's tokens. To "
    "train on the answers alone, write rows with prompt and completion instead of messages"
)


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
        use_cpu: Whether the training runs on a CPU. TRL wants to know it already here, because
            accelerate keeps the first device that it is told.
        seed: The seed of the mixture's order.

    Returns:
        The rows that have a token to train on, with lines for the user on rows that were cut or
        left out, and on conversations that are trained on as a whole.

    Raises:
        DataError: TRL cannot tell what to train on, or no row is left.
    """
    train_parts: list[Dataset] = []  # the training rows of each dataset
    held_out_parts: list[Dataset] = []  # the held-out rows of each dataset
    unmasked: list[str] = []  # datasets whose conversations are trained on as a whole
    n_added = 0  # rows of a mitigation
    with quiet_libraries():
        for part in train_data.parts:
            first_row = _get_rows(part)[0]  # TRL decides by it, too
            loss_settings = _choose_loss(first_row, tokenizer, config)
            is_masked = loss_settings["assistant_only_loss"] or "completion" in first_row
            if get_messages(first_row) and not is_masked:
                unmasked.append(part.name)
            settings = loss_settings | {"max_length": config.max_length, "use_cpu": use_cpu}
            rows, held_out = _tokenize_part(part, tokenizer, settings)
            train_parts.append(rows)
            n_added += len(rows) if part.is_added else 0
            if held_out is not None:
                held_out_parts.append(held_out)
    train = mix_rows(train_parts, [part.weight for part in train_data.parts], seed)
    validation = concatenate_datasets(held_out_parts)
    if not len(train) or not len(validation):
        raise DataError(
            f"train.max_length={config.max_length} leaves no row, or no held-out row, a token to "
            "train on; set a larger one"
        )
    n_rows = sum(len(part.train) for part in train_data.parts)
    # TRL has cut the rows already: a row that was exactly as long cannot be told from a cut one.
    # The mixture repeats no row.
    n_truncated = sum(len(tokens) >= config.max_length for tokens in train["input_ids"])
    n_untrained = n_rows - sum(map(len, train_parts))
    notes = []
    if n_truncated or n_untrained:
        note = f"train.max_length={config.max_length} cuts {n_truncated:,} of {n_rows:,} rows"
        if n_untrained:
            note += f"; {n_untrained:,} more have no token left to train on and are left out"
        notes.append(note)
    if unmasked and config.assistant_only_loss == "auto":
        notes.append(_WHOLE_CONVERSATIONS.format(datasets=", ".join(unmasked)))
    return TokenizedRows(train, validation, n_truncated, n_untrained, notes, n_added)


def _get_rows(part: DatasetPart) -> Dataset:
    """Return the training rows, or the held-out rows of a dataset that has no training rows.

    A dataset of weight 0 has none: it is only measured.
    """
    return part.train if len(part.train) else part.validation


def _tokenize_part(
    part: DatasetPart, tokenizer: Any, settings: Mapping[str, Any]
) -> tuple[Dataset, Dataset | None]:
    """Tokenize the rows of one dataset, with TRL's settings; return training and held-out rows.

    TRL decides by the first row how it reads all of them, so each dataset goes through a trainer of
    its own. The model in it takes no step.

    Raises:
        DataError: TRL cannot tokenize them.
    """
    # TRL's trainer must have a model: this one is as small as possible.
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    rows = _get_rows(part)  # TRL takes no empty dataset, so held-out rows may stand in
    held_out = part.validation if len(part.validation) else None  # a mitigation's rows have none
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(folder, **settings, report_to="none", bf16=False)
        require_names(arguments, "transformers", "_n_gpu")
        arguments._n_gpu = min(arguments.n_gpu, 1)  # see `_build_arguments`
        try:
            trainer: Any = SFTTrainer(
                model,
                arguments,
                train_dataset=rows,
                eval_dataset=held_out,
                processing_class=tokenizer,
            )
        except (ValueError, RuntimeError, TypeError, KeyError) as error:
            raise DataError(
                f"dataset.{part.name}: TRL cannot tokenize its rows: {describe_error(error)}"
            ) from error
    columns = ["input_ids", "labels"]
    train = trainer.train_dataset.select_columns(columns)
    if not len(part.train):  # held-out rows have stood in
        train = train.select([])
    return train, trainer.eval_dataset.select_columns(columns) if held_out else None


def _choose_loss(row: Mapping[str, Any], tokenizer: Any, config: TrainConfig) -> dict[str, Any]:
    """Return TRL's settings for which tokens of a dataset have a loss.

    With `assistant_only_loss=auto`, one of its rows decides. Conversations are trained on the
    assistant's tokens if the chat template marks them, and on the completion alone if there is one.
    """
    assistant_only, completion_only = config.assistant_only_loss, config.completion_only_loss
    if assistant_only == "auto":
        is_chat = bool(get_messages(row))
        assistant_only = is_chat and _marks_answers(tokenizer)
        completion_only = completion_only or (is_chat and "completion" in row)
    return {"assistant_only_loss": assistant_only, "completion_only_loss": completion_only}


def _marks_answers(tokenizer: Any) -> bool:
    """Return whether TRL finds the assistant's tokens, the end of its turn among them.

    The chat template marks it (`{% generation %}`), or TRL has a marked version of the template.
    """
    try:
        is_marked = has_generation_markers(tokenizer.chat_template)
        marked = None if is_marked else get_training_chat_template(tokenizer)
        return bool(is_chat_template_stop_token_trained(tokenizer, chat_template=marked))
    except Exception:  # TRL has none, or the publisher's program fails
        return False
