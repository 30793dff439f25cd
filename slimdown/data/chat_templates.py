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
"""How messages of `limit_time` call the rendering of a prompt, which it ends if it takes long."""

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
        settings: Arguments of `apply_chat_template`: its own, such as `add_generation_prompt` and
            `tools`, and variables of the template.

    Returns:
        The text, which also carries the messages. Llama 3's templates write a date into it; that
        is `FIXED_DATE` instead of today, unless the settings have a `date_string`.

    Raises:
        DataError: The template fails on these messages, or takes too long.
    """
    try:
        arguments = {**FIXED_DATE, **settings}  # a date in the settings wins
        with limit_time(task=RENDERING):
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, **arguments))
        return ChatPrompt(text, messages)
    except DataError:  # `limit_time` has ended the rendering, and says so
        raise
    except Exception as error:  # the template is its publisher's program, and may raise anything
        raise DataError(f"{RENDERING} fails ({describe_error(error)})") from None


def check_chat_template(
    tokenizer: Any, setting: str, system: str = "", args: dict[str, Any] | None = None
) -> None:
    """Check that the chat template can render a question, by rendering a short one.

    Args:
        tokenizer: A tokenizer of transformers.
        setting: The setting that needs the template, such as `dataset.chats.format=messages`;
            messages of errors begin with it.
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
    if system.strip() not in text:  # never true without a system turn: any text holds ""
        raise ModelError(f"{setting}: the chat template drops the system turn; leave it out")


def read_template_args(tokenizer: Any, evaluation: EvaluationConfig) -> dict[str, Any]:
    """Return the variables that the chat template gets with each question, once it is checked.

    Args:
        tokenizer: A tokenizer of transformers.
        evaluation: How benchmarks are asked.

    Returns:
        Arguments of `apply_chat_template`: the variables of `chat_template_args`, the variable that
        switches thinking on or off if `enable_thinking` is set, and `FIXED_DATE`, unless the
        settings have a date. If the template calls `strftime_now`, which gives today's date, then
        also `chat_template`: this template, with a `strftime_now` that gives the fixed date.

    Raises:
        ModelError: There is no template, it fails, or it ignores something that is set.
    """
    args = dict(evaluation.chat_template_args)
    system = evaluation.system_instruction or ""
    needed_by = "evaluation.system_instruction"
    if not system:
        needed_by = f"evaluation.apply_chat_template={str(evaluation.apply_chat_template).lower()}"
    check_chat_template(tokenizer, needed_by, system, args)
    for name in args:  # a template ignores variables that it does not have
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
    return FIXED_DATE | args  # a date in the settings wins


def find_switch(tokenizer: Any, system: str, args: dict[str, Any]) -> str:
    """Return the template's variable that switches thinking on and off; empty: there is none.

    Args:
        tokenizer: A tokenizer of transformers, with a chat template.
        system: The text of a system turn, or empty.
        args: The other variables of the template.

    Raises:
        DataError: The template fails, or takes too long.
    """
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
    message = "MESSAGE-OF-THE-USER"  # marks the place of a message; no template writes it itself
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
    evaluation: EvaluationConfig, tokenizer: Any, *, auto_uses_template: bool
) -> tuple[EvaluationConfig, list[str]]:
    """Decide whether questions go through the chat template, and check that they can.

    Args:
        evaluation: How benchmarks are asked; `apply_chat_template=auto` is decided here.
        tokenizer: A tokenizer of transformers.
        auto_uses_template: What `auto` stands for. True: questions with generated answers go
            through the template, and questions with choices do not. False: no question does. Say
            True if the tuned model knows the template, from its rows or because it brings one, and
            if some benchmark has generated answers.

    Returns:
        The settings, and lines for the user. In these settings `apply_chat_template` is False
        instead of `auto` if no question goes through the template.

    Raises:
        ModelError: The template is needed, and it is missing, fails or drops what is set.
    """
    if evaluation.apply_chat_template == "auto" and not auto_uses_template:
        if evaluation.chat_template_args or evaluation.enable_thinking:
            raise ModelError(
                "evaluation.apply_chat_template=auto: here all prompts are plain, so "
                "chat_template_args and enable_thinking have no effect; set it to true"
            )
        evaluation = replace(evaluation, apply_chat_template=False)
    if evaluation.apply_chat_template is False:
        note = "Prompts do not use the chat template; evaluation.apply_chat_template=true does."
        return evaluation, [note] if tokenizer.chat_template else []
    read_template_args(tokenizer, evaluation)  # raises if the template does not take the settings
    notes = []
    if evaluation.apply_chat_template == "auto":
        notes = ["Prompts for generated answers use the chat template; prompts for choices do not."]
    if "</think>" in str(tokenizer.chat_template) and not evaluation.think_end_token:
        notes.append(
            "This model may think before it answers; evaluation.think_end_token='</think>' cuts "
            "its thinking off before answers are scored."
        )
    return evaluation, notes
