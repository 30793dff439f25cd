"""A chat template is a stranger's program: its faults are one line."""

import signal
from importlib.resources import files
from typing import Any

import pytest
import transformers
from builders import Patch

from slimdown import pocket
from slimdown.data.chat_templates import (
    FIXED_DATE,
    check_chat_template,
    render_chat,
    split_user_turn,
)
from slimdown.utils.errors import DataError, ModelError
from slimdown.utils.time_limit import limit_time

SETTING = "dataset.mine.template=chat"


@pytest.fixture
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(pocket.MODEL_DIR)


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (None, "has no chat template; use an instruct model, or prompts without a chat template"),
        ("{{ ''.__class__.__mro__ }}", "fails (SecurityError"),
        ("{{ messages.append('x') }}", "fails (SecurityError"),
        ("{{ raise_exception('only for friends') }}", "fails (TemplateError: only for friends)"),
        ("{{ messages[7].content.nothing }}", "fails (UndefinedError"),
        ("{% for", "fails (TemplateSyntaxError"),
        ("{% for i in range(1000000000) %}{% endfor %}", "fails (OverflowError"),
    ],
)
def test_a_broken_template_is_one_line(template: str | None, answer: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    with pytest.raises(ModelError) as caught:
        check_chat_template(tokenizer, SETTING)
    assert str(caught.value).startswith(SETTING)
    assert answer in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sound_template_writes_the_same_date_every_day(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ date_string }} <{{ messages[0].content }}>"
    check_chat_template(tokenizer, SETTING)
    question = [{"role": "user", "content": "What?"}]
    assert render_chat(tokenizer, question) == f"{FIXED_DATE['date_string']} <What?>"
    assert render_chat(tokenizer, question, date_string="today") == "today <What?>"
    with pytest.raises(DataError, match=r"template .*fails \(ValueError"):
        render_chat(tokenizer, [])


PUBLISHED = sorted(file.name for file in files("trl").joinpath("chat_templates").iterdir())
OF_IMAGES = {"idefics3.jinja", "llava_next.jinja", "smolvlm.jinja"}  # they take no plain texts


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in PUBLISHED
        if n.endswith(".jinja") and not {n, n.replace("_training", "")} & OF_IMAGES
    ],
)
def test_what_stands_around_a_users_message_is_the_templates(name: str, tokenizer: Any) -> None:
    tokenizer.chat_template = files("trl").joinpath(f"chat_templates/{name}").read_text()
    before, behind = split_user_turn(tokenizer)
    messages = [{"role": "user", "content": "How many?"}]
    assert f"{before}How many?{behind}" == render_chat(
        tokenizer, messages, add_generation_prompt=True
    )
    assert behind.strip()


@pytest.mark.parametrize(
    ("template", "answer"),
    [(None, "has no chat template"), ("{{ messages[0].role }}", "drops what a user says")],
)
def test_a_turn_that_fails_is_one_line(template: str | None, answer: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=answer):
        split_user_turn(tokenizer)


ENDLESS = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a * b }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "problem"),
    [(ENDLESS, "does not end within 0.3 s"), ("{{ 'a' * 10 ** 15 }}", "more memory")],
)
def test_a_template_without_an_end_is_ended_in_one_line(
    template: str, problem: str, tokenizer: Any, monkeypatch: Patch
) -> None:
    monkeypatch.setattr("slimdown.utils.time_limit._MOST_SECONDS", 0.3)
    handler = signal.getsignal(signal.SIGALRM)
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=problem) as refused:
        check_chat_template(tokenizer, "evaluation.apply_chat_template=true")
    assert "\n" not in str(refused.value)
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_an_alarm_of_the_caller_still_comes_after_a_prompt() -> None:
    signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        with limit_time("a prompt"):
            pass
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 90
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
