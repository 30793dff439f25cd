"""A tokenizer's chat template, tried before hours are built on it: it is a program that the model's publisher wrote.

transformers runs it in Jinja's sandbox, which keeps it from the machine; what is left is that it fails or never ends.
"""

import threading
from typing import Any

from slimdown.utils.errors import SlimdownError

# Llama 3's templates write today's date into every prompt, or the one that they are given: always the same, so that a
# base measured yesterday is asked what the tuned model is asked today. It is the day that they themselves fall back on.
ONE_DAY = {"date_string": "26 Jul 2024"}

_SECONDS = 10.0  # for one question; templates take milliseconds


def check_chat_template(tokenizer: Any, setting: str) -> None:
    """Check that a question can be asked through the chat template.

    Args:
        tokenizer: transformers'.
        setting: what asks for the template, as `key=value`, for the message.

    Raises:
        SlimdownError: there is no template, it fails, or it has not ended after ten seconds.
    """
    if not tokenizer.chat_template:
        key = setting.partition("=")[0]
        other = "false" if key.startswith("evaluation") else "alpaca"
        use = "use" if key.endswith("format") else f"use {key}={other}, or"
        raise SlimdownError(
            f"{setting}: this model's tokenizer has no chat template; {use} an instruct model"
        )
    failed: list[SlimdownError] = []

    def try_it() -> None:
        try:
            chat_prompt(tokenizer, "What is 2 + 2?", setting)
        except SlimdownError as error:
            failed.append(error)

    attempt = threading.Thread(
        target=try_it, daemon=True
    )  # a daemon: nothing else ends a template that loops
    attempt.start()
    attempt.join(_SECONDS)
    if attempt.is_alive():
        raise SlimdownError(
            f"{setting}: the tokenizer's chat template has not ended after {_SECONDS:g} s for one question; choose "
            "another model, or a copy with a sound template"
        )
    if failed:
        raise failed[0]


def rendered(tokenizer: Any, turns: list[dict[str, str]], **settings: Any) -> str:
    """A conversation in the words of the chat template.

    Args:
        tokenizer: transformers'.
        turns: `role` and `content`.
        settings: of `apply_chat_template`, such as `add_generation_prompt`.

    Raises:
        ValueError: the template fails; the reason in one line.
    """
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **ONE_DAY, **settings))
    except Exception as error:  # the publisher's program: whatever it raises
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from None


def chat_prompt(tokenizer: Any, question: str, setting: str) -> str:
    """A user's question in the words of the chat template, up to where the answer begins.

    Raises:
        SlimdownError: the template fails.
    """
    try:
        prompt = rendered(
            tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True
        )
    except ValueError as error:
        raise SlimdownError(f"{setting}: the tokenizer's chat template fails ({error})") from None
    if tokenizer.bos_token and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
        prompt = prompt.removeprefix(tokenizer.bos_token)  # tokenizing adds it again
    return prompt
