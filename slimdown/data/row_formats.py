"""Turn rows as people have them into rows as TRL takes them: texts, prompts, or messages."""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from math import isfinite
from typing import Any

from slimdown.config.dataset_config import DatasetConfig, RowFormat
from slimdown.scoring.tool_calls import check_calls
from slimdown.utils.errors import DataError
from slimdown.utils.row_files import is_visible

# The prompt of the Stanford Alpaca project, with and without further input. Models tuned on Alpaca
# rows get their questions in these words, so they are data, not style.
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


class MissingColumn(DataError):
    """A row lacks a column, which no other row of the file will have either."""


_COLUMNS = {
    RowFormat.prompt_completion: ("prompt", "completion"),
    RowFormat.messages: ("messages",),
    RowFormat.text: ("text",),
}  # the first format whose columns are all there counts, as in TRL
_TEMPLATE_COLUMNS = {"tools": list, "chat_template_kwargs": dict}  # TRL hands them to the template
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


def explain_row(dataset: str, number: int, error: DataError) -> str:
    """Say what is wrong with a row, and what to do.

    Args:
        dataset: The name in `dataset.NAME`.
        number: The row's.
        error: Why it cannot be trained on.
    """
    problem = f"row {number}: {' '.join(str(error).split())}"
    if not isinstance(error, MissingColumn):  # it would be missing in all rows
        problem += "; correct it, or set dataset.NAME.skip_bad_rows=true"
    return problem.replace("dataset.NAME", f"dataset.{dataset}")


def detect_format(config: DatasetConfig, records: Iterable[tuple[int, Any]]) -> RowFormat:
    """Find the format of rows by the columns of the first readable row, unless the config sets it.

    Rows are instructions if the config sets a template or a column, or if there are the columns
    `instruction` and `output`, whatever other columns there are. They are also instructions if
    their columns fit no format: then reading a row tells the user which column it lacks.

    Args:
        config: The settings of the dataset.
        records: The number and the values of each row by column; or, instead of the values, the
            error of its reader.

    >>> detect_format(DatasetConfig("a.jsonl"), [(1, {"conversations": [], "id": 7})])
    <RowFormat.messages: 'messages'>
    >>> detect_format(DatasetConfig("a.jsonl", template="chat"), [(1, {"messages": []})])
    <RowFormat.instruction: 'instruction'>
    """
    if config.format != RowFormat.auto:
        return config.format
    first_row = next((record for _, record in records if isinstance(record, dict)), {})
    # ShareGPT calls its messages conversations.
    columns = {"messages" if column == "conversations" else column for column in first_row}
    if not config.has_own_columns and not columns.issuperset({"instruction", "output"}):
        for format_, needed in _COLUMNS.items():
            if columns.issuperset(needed):
                return format_
    return RowFormat.instruction


def list_columns(config: DatasetConfig, format_: RowFormat, required: bool = False) -> list[str]:
    """List the columns that rows of this format may have, or must have; others do not count."""
    if format_ == RowFormat.instruction:
        columns = (config.instruction, config.input, config.output)
        return [column for column in columns if column is not None]
    optional = [] if required else ["conversations", *_TEMPLATE_COLUMNS]
    return [*_COLUMNS[format_], *optional]


def format_row(record: Any, config: DatasetConfig, format_: RowFormat) -> dict[str, Any]:
    """Bring one row into the columns that TRL, the training library, takes; and check it.

    Args:
        record: The values of the row by column, or the error of its reader, which is raised.
        config: The settings of the dataset.
        format_: The format of all its rows.

    Returns:
        The values of `text`; or of `prompt` and `completion`, which are both texts or both lists of
        messages; or of `messages`. Conversations also have `tools` and `chat_template_kwargs` where
        the row has them. Texts lack the end-of-sequence token, which TRL adds.

    Raises:
        DataError: The row could not be read, lacks a column, or has a value that is not what the
            format needs, that is no valid text, or that is empty. Texts of the hub may be empty.
    """
    if isinstance(record, DataError):
        raise record
    if not isinstance(record, dict):
        raise DataError(f"it is a {type(record).__name__}, not an object with named values")
    if format_ == RowFormat.messages and "messages" not in record and "conversations" in record:
        record = {**record, "messages": record["conversations"]}
    values = _read_values(record, config, format_)
    row = _fill_template(values, config) if format_ == RowFormat.instruction else values
    if len({type(value) for value in row.values()}) > 1:  # a text beside a list of messages
        raise DataError("one of prompt and completion is a text, and one a list; make them alike")
    if messages := get_messages(row):
        row |= _read_template_columns(record)
        _check_answers(messages, row.get("tools"))
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        text.encode()  # raises on half of a surrogate pair, which is no text
    except (ValueError, TypeError) as error:
        raise DataError(f"it holds something that is no text: {error}") from None
    # JSON writes a NUL character as \u0000. It writes a backslash as two of them, which are removed
    # here: source code, for example, may itself hold a backslash and u0000.
    if "\\u0000" in text.replace("\\\\", ""):
        raise DataError("it holds a NUL character; remove it")
    return row


def _read_values(
    record: dict[str, Any], config: DatasetConfig, format_: RowFormat
) -> dict[str, Any]:
    """Return the values of the columns that the format needs, as texts or checked messages.

    Raises:
        MissingColumn: There is no such column.
        DataError: A value is not what the format needs, or is empty in a local file; or the
            template names a column that it cannot take.
    """
    values: dict[str, Any] = {}
    for column in list_columns(config, format_, required=True):
        if column not in record:
            names = ", ".join(list(record)[:20])
            advice = "name yours with dataset.NAME.instruction=, dataset.NAME.input= and "
            advice += "dataset.NAME.output=, or set dataset.NAME.format="
            raise MissingColumn(f"there is no column {column}; there are {names}; {advice}")
        value = record[column]
        if column == "messages" or (column in ("prompt", "completion") and isinstance(value, list)):
            values[column] = _check_messages(value, column)
        else:
            values[column] = _to_text(value, column)
            # An instruction needs no input. Nobody can fill in what is empty in a dataset of the
            # hub, so that is trained on as it is.
            is_needed = config.file is not None and column != config.input
            if is_needed and not is_visible(values[column]):
                raise DataError(f"{column} is empty; fill it or remove the row")
    # A template has slots for `instruction` and `input` alone. The name of another column in
    # braces would stay in the prompt as it is.
    for column in set(record) - {"instruction", "input"}:
        if format_ == RowFormat.instruction and f"{{{column}}}" in config.template:
            advice = f"set input={column}, and write {{input}} in the template"
            raise DataError(f"the template cannot take {{{column}}}; {advice}")
    return values


def _check_answers(messages: list[dict[str, Any]], tools: Any) -> None:
    """Check that the assistant says or calls something, and calls tools that there are."""
    answers = [message for message in messages if message["role"] == "assistant"]
    if not any(is_visible(answer["content"]) or answer.get("tool_calls") for answer in answers):
        raise DataError("the assistant says nothing in it, so there is nothing to learn")
    for answer in answers:
        calls = answer.get("tool_calls")
        check_calls(calls if isinstance(calls, list) else [], tools)


def get_messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of a formatted row; none where it holds texts."""
    parts = [row[name] for name in ("messages", "prompt", "completion") if name in row]
    return [message for part in parts if isinstance(part, list) for message in part]


def _fill_template(values: Mapping[str, str], config: DatasetConfig) -> dict[str, Any]:
    """Return prompt and completion of an instruction, by the template that is set.

    With `template=chat` they are lists of messages, with any other template texts.
    """
    instruction, answer = values[config.instruction], values[config.output]
    context = values[config.input] if config.input is not None else ""
    if config.template == "chat":
        question = f"{instruction}\n\n{context}" if context else instruction
        return {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
    alpaca = _ALPACA_WITH_INPUT if context else _ALPACA
    template = alpaca if config.template == "alpaca" else config.template
    slots = {"{instruction}": instruction, "{input}": context}
    # In one pass: a text may hold the name of a slot.
    prompt = re.sub(r"\{instruction\}|\{input\}", lambda slot: slots[slot[0]], template)
    # Tokens include the space before their word. So the space between the prompt's last word and
    # the answer belongs to the completion.
    has_space = prompt[-1:].isspace() or answer[:1].isspace()
    return {"prompt": prompt, "completion": answer if has_space else f" {answer}"}


def _to_text(value: Any, name: str) -> str:
    """Return a value as text; empty for None. `name` says in a message whose value it is.

    Raises:
        DataError: It is neither text, date, truth value nor finite number.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()  # as JSON writes it
    # Whole numbers are not asked whether they are finite: `isfinite` fails on very large ones.
    is_finite = isinstance(value, float | Decimal) and isfinite(value)
    if is_finite or isinstance(value, int | str | date):
        return str(value)
    shown = value if isinstance(value, float) else f"a value of type {type(value).__name__}"
    raise DataError(f"{name} holds {shown}; a text or a finite number is expected")


def _check_messages(value: Any, column: str) -> list[dict[str, Any]]:
    """Return the checked messages of a conversation, with ShareGPT's keys and roles renamed.

    Raises:
        DataError: The value is no list of messages, or a message has no role or no content.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f"{column} is no list of messages, each with role and content")
    messages = []
    for number, message in enumerate(value, start=1):
        name = f"message {number} of {column}"
        if isinstance(message, dict) and "role" not in message and "from" in message:  # ShareGPT's
            role = _SHAREGPT_ROLES.get(str(message["from"]), message["from"])
            message = {"role": role, "content": message.get("value")}
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or not role.strip():
            raise DataError(f"{name} has no role and content")
        # A message that only calls tools needs no content; it gets an empty one.
        if message.get("content") is None and not message.get("tool_calls"):
            raise DataError(f"{name} has no content")
        messages.append({**message, "content": _to_text(message.get("content"), name)})
    return messages


def _read_template_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the chat template gets from a row beside its messages.

    Returns:
        `tools`, the tools that the assistant may call, and `chat_template_kwargs`, variables of the
        template. A column without a value is left out.

    Raises:
        DataError: A value is neither of the type that its column needs nor JSON text of it.
    """
    columns: dict[str, Any] = {}
    for name, expected in _TEMPLATE_COLUMNS.items():
        value = record.get(name)
        if isinstance(value, str):  # hub datasets and CSV files hold JSON text
            try:
                value = json.loads(value or "null")
            except (ValueError, RecursionError) as error:
                raise DataError(f"{name} cannot be read as JSON: {error}") from None
        if not value:
            continue
        if not isinstance(value, expected):
            raise DataError(f"{name} is a {type(value).__name__}; {expected.__name__} is expected")
        columns[name] = value
    return columns
