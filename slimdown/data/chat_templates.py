"""A tokenizer's chat template, tried before anything is built on it: its publisher's program.

transformers runs it in Jinja's sandbox, which protects the machine; it can still fail.
"""

from typing import Any

from slimdown.utils.errors import DataError, ModelError, describe_error

# Llama 3's templates write today's date into every prompt, or the date that they get. A fixed one
# gives a base that was measured yesterday and a model that is tuned today equal prompts. It is the
# date that the templates fall back on.
FIXED_DATE = {"date_string": "26 Jul 2024"}


def render_chat(tokenizer: Any, messages: list[dict[str, Any]], **settings: Any) -> str:
    """Write a conversation in the words of the chat template.

    Args:
        tokenizer: A tokenizer of transformers.
        messages: `role` and `content` of each turn.
        settings: Arguments of `apply_chat_template`, such as `add_generation_prompt` and `tools`.

    Returns:
        The text, with the fixed date where the template writes one.

    Raises:
        DataError: The template fails on these messages.
    """
    try:
        settings = {**FIXED_DATE, **settings}
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **settings))
    except Exception as error:  # the publisher's program may raise anything
        reason = f"the chat template of the tokenizer fails ({describe_error(error)})"
        raise DataError(reason) from None


def check_chat_template(tokenizer: Any, setting: str) -> None:
    """Check that the chat template takes a question.

    Args:
        tokenizer: A tokenizer of transformers.
        setting: The setting that needs the template, as `key=value`, for the message.

    Raises:
        ModelError: There is no template, or it fails.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"{setting}: the tokenizer of this model has no chat template; use an instruct model, "
            "or prompts without a chat template"
        )
    try:
        question = [{"role": "user", "content": "What is 2 + 2?"}]
        render_chat(tokenizer, question, add_generation_prompt=True)
    except DataError as error:
        raise ModelError(f"{setting}: {error}") from None


def check_prompts(tokenizer: Any, applies_template: bool) -> list[str]:
    """Check that benchmarks can be asked as set, and say where an instruct model's are plain.

    Args:
        tokenizer: A tokenizer of transformers.
        applies_template: The setting evaluation.apply_chat_template.

    Returns:
        Lines for the user.

    Raises:
        ModelError: The template is asked for, and it is missing or fails.
    """
    if applies_template:
        check_chat_template(tokenizer, "evaluation.apply_chat_template=true")
    elif tokenizer.chat_template:
        return ["Prompts are plain; evaluation.apply_chat_template=true uses the chat template."]
    return []
