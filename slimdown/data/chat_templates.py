"""Render a tokenizer's chat template, and try it before anything depends on it.

It is a program of its publisher. transformers runs it in Jinja's sandbox; it can still fail.
"""

import re
from dataclasses import replace
from typing import Any

from slimdown.config.schema import EvaluationConfig
from slimdown.utils.errors import DataError, ModelError, describe_error
from slimdown.utils.time_limit import limit_time

RENDERING = "the chat template of the tokenizer"
"""What is limited in time, for `limit_time`."""

# Llama 3's templates write a date into every prompt: today's, or the one that they are given. With
# a fixed date, a base that was measured yesterday got the same prompts as a model that is tuned
# today. This is the date that the templates fall back on.
FIXED_DATE = {"date_string": "26 Jul 2024"}
# SmolLM3's template takes no date and asks the clock. This fixes the date of the questions. TRL
# renders the rows, so they have the day of training.
_FIXED_CLOCK = "{%- macro strftime_now(format) %}26 Jul 2024{% endmacro +%}"


class ChatPrompt(str):
    """A prompt that a chat template has written, with the messages that it was made of.

    A model that is loaded here reads the text, and a server gets the messages.

    Attributes:
        messages: `role` and `content` of each turn.
    """

    messages: list[dict[str, Any]]

    def __new__(cls, text: str, messages: Any = ()) -> "ChatPrompt":
        """Take the text and what it was made of."""
        prompt = super().__new__(cls, text)
        prompt.messages = list(messages)
        return prompt


def render_chat(tokenizer: Any, messages: list[dict[str, Any]], **settings: Any) -> ChatPrompt:
    """Render a conversation with the chat template.

    Args:
        tokenizer: A tokenizer of transformers.
        messages: `role` and `content` of each turn.
        settings: Arguments of `apply_chat_template`, such as `add_generation_prompt` and `tools`.

    Returns:
        The text, with the fixed date where the template writes one.

    Raises:
        DataError: The template fails on these messages, or takes too long.
    """
    try:
        settings = {**FIXED_DATE, **settings}  # a date in the settings wins
        with limit_time(RENDERING):
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, **settings))
        return ChatPrompt(text, messages)
    except DataError:
        raise  # that of `limit_time`
    except Exception as error:  # the publisher's program may raise anything
        reason = f"the chat template of the tokenizer fails ({describe_error(error)})"
        raise DataError(reason) from None


def check_chat_template(
    tokenizer: Any, setting: str, system: str = "", args: dict[str, Any] | None = None
) -> None:
    """Check that the chat template can render a question.

    Args:
        tokenizer: A tokenizer of transformers.
        setting: The setting that needs the template, as `key=value`, for the message.
        system: The text of a system turn, which must be in the prompt; empty: there is none.
        args: Variables of the template.

    Raises:
        ModelError: There is no template, it fails, or it drops the system turn.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"{setting}: the tokenizer of this model has no chat template; use an instruct model, "
            "or prompts without a chat template, and no messages in a file of questions"
        )
    try:
        text = _render_question(tokenizer, system, args or {})
    except DataError as error:
        raise ModelError(f"{setting}: {error}") from None
    if system.strip() not in text:
        raise ModelError(f"{setting}: the chat template drops the system turn; leave it out")


def read_template_args(tokenizer: Any, evaluation: EvaluationConfig) -> dict[str, Any]:
    """Return the variables that the chat template gets with each question.

    Args:
        tokenizer: A tokenizer of transformers.
        evaluation: How benchmarks are asked.

    Returns:
        The variables that are set, the switch for thinking, and the fixed date. For a template that
        asks the clock, they also hold the template itself, with a clock that stands still.

    Raises:
        ModelError: There is no template, it fails, or it ignores something that is set.
    """
    args = dict(evaluation.chat_template_args)
    system = evaluation.system_instruction or ""
    setting = "evaluation.system_instruction"  # for a message
    if not system:
        setting = f"evaluation.apply_chat_template={str(evaluation.apply_chat_template).lower()}"
    check_chat_template(tokenizer, setting, system, args)
    for name in args:
        if not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
            problem = "the chat template has no such variable; leave it out"
            raise ModelError(f"evaluation.chat_template_args.{name}: {problem}")
    if evaluation.enable_thinking is not None:
        switch = find_switch(tokenizer, system, args)
        if not switch:
            problem = "the chat template has no such switch; leave it out"
            raise ModelError(f"evaluation.enable_thinking: {problem}")
        args[switch] = evaluation.enable_thinking
    template = tokenizer.chat_template
    if isinstance(template, str) and "strftime_now" in template:
        args["chat_template"] = _FIXED_CLOCK + template
    return FIXED_DATE | args


def find_switch(tokenizer: Any, system: str, args: dict[str, Any]) -> str:
    """Return the template's variable that switches thinking on and off; empty: there is none."""
    for name in ("enable_thinking", "thinking"):  # most have the first, Granite the second
        thinking = _render_question(tokenizer, system, {**args, name: True})
        plain = _render_question(tokenizer, system, {**args, name: False})
        if thinking != plain:
            return name
    return ""


def split_user_turn(tokenizer: Any, **settings: Any) -> tuple[str, str]:
    """Return what the chat template writes before and after the first message of a user.

    Args:
        tokenizer: A tokenizer of transformers.
        settings: Arguments of `apply_chat_template`.

    Returns:
        The text before the message; and the text after it, up to where the answer begins.

    Raises:
        DataError: There is no template, it fails, or it drops what a user says.
    """
    if not tokenizer.chat_template:
        raise DataError("the tokenizer of this model has no chat template")
    message = "MESSAGE-OF-THE-USER"  # stands in no template
    turns = [{"role": "user", "content": message}]
    text = render_chat(tokenizer, turns, add_generation_prompt=True, **settings)
    if message not in text:
        raise DataError("the chat template drops what a user says")
    before, _, after = text.partition(message)
    return before, after


def _render_question(tokenizer: Any, system: str, args: dict[str, Any]) -> str:
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": "What is 2 + 2?"})
    return render_chat(tokenizer, turns, add_generation_prompt=True, **args)


def choose_prompts(
    evaluation: EvaluationConfig, tokenizer: Any, uses_template: bool
) -> tuple[EvaluationConfig, list[str]]:
    """Decide whether questions go through the chat template, and check that they can.

    Args:
        evaluation: How benchmarks are asked; `apply_chat_template=auto` is decided here.
        tokenizer: A tokenizer of transformers.
        uses_template: Whether `auto` means the template for questions with generated answers. Say
            True if the tuned model knows the template: from its rows, or because it brings one.

    Returns:
        The settings, and lines for the user. In these settings, `auto` is left only if questions
        with generated answers use the template.

    Raises:
        ModelError: The template is needed, and it is missing, fails or drops what is set.
    """
    if evaluation.apply_chat_template == "auto" and not uses_template:
        if evaluation.chat_template_args or evaluation.enable_thinking:
            raise ModelError(
                "evaluation.apply_chat_template=auto: here all prompts are plain, so "
                "chat_template_args and enable_thinking have no effect; set it to true"
            )
        evaluation = replace(evaluation, apply_chat_template=False)
    if evaluation.apply_chat_template is False:
        note = "Prompts do not use the chat template; evaluation.apply_chat_template=true does."
        return evaluation, [note] if tokenizer.chat_template else []
    read_template_args(tokenizer, evaluation)  # a check: it raises
    notes = []
    if evaluation.apply_chat_template == "auto":
        notes = ["Prompts for generated answers use the chat template; prompts for choices do not."]
    if "</think>" in str(tokenizer.chat_template) and not evaluation.think_end_token:
        notes.append(
            "This model may think before it answers; evaluation.think_end_token='</think>' cuts "
            "its thinking off before answers are scored."
        )
    return evaluation, notes
