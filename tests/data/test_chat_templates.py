"""A chat template is a stranger's program: its faults are one line."""

from typing import Any

import pytest
import transformers

from slimdown import pocket
from slimdown.data.chat_templates import FIXED_DATE, check_chat_template, render_chat
from slimdown.utils.errors import DataError, ModelError

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
def test_a_template_that_does_not_work_is_one_line(
    template: str | None, answer: str, tokenizer: Any
) -> None:
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
    with pytest.raises(DataError, match=r"the chat template of the tokenizer fails \(ValueError"):
        render_chat(tokenizer, [])
