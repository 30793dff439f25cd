"""A chat template is a stranger's program: what it does wrong is one line, and it never hangs a run."""

import time
from collections.abc import Callable

import pytest

from slimdown.config.schema import RunConfig
from slimdown.data import chat
from slimdown.data.chat import chat_prompt, check_chat_template
from slimdown.evaluation.engine import Scoring
from slimdown.evaluation.harness import Evaluator, _language_model
from slimdown.evaluation.questions import load_tasks
from slimdown.models.model import LoadedModel
from slimdown.utils.errors import SlimdownError

SETTING = "dataset.mine.template=chat"
LONG = "{% for a in range(5000) %}{% for b in range(5000) %}{% endfor %}{% endfor %}"
"""A second or two, and no longer: what loops for ever would loop beside the tests that follow."""


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (None, "has no chat template; use dataset.mine.template=alpaca, or an instruct model"),
        ("{{ ''.__class__.__mro__ }}", "fails (SecurityError"),
        ("{{ messages.append('x') }}", "fails (SecurityError"),
        ("{{ raise_exception('only for friends') }}", "fails (TemplateError: only for friends)"),
        ("{{ messages[7].content.nothing }}", "fails (UndefinedError"),
        ("{% for", "fails (TemplateSyntaxError"),
        ("{% for i in range(1000000000) %}{% endfor %}", "fails (OverflowError"),
        (LONG, "has not ended after 0.1 s for one question"),
    ],
)
def test_a_template_that_does_not_work_is_one_line(
    template: str | None, answer: str, pocket: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "_SECONDS", 0.1)
    pocket.tokenizer.chat_template = template
    begun = time.perf_counter()
    with pytest.raises(SlimdownError) as caught:
        check_chat_template(pocket.tokenizer, SETTING)
    assert time.perf_counter() - begun < 3
    assert str(caught.value).startswith(SETTING)
    assert answer in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sound_template_is_used_as_it_is(pocket: LoadedModel) -> None:
    pocket.tokenizer.chat_template = "{{ bos_token }}<{{ messages[0].content }}>"
    check_chat_template(pocket.tokenizer, SETTING)
    assert chat_prompt(pocket.tokenizer, "What?", SETTING).endswith("<What?>")


def test_without_a_template_nothing_is_measured(
    pocket: LoadedModel, composed: Callable[..., RunConfig]
) -> None:
    config = composed("evaluation.apply_chat_template=true").evaluation
    with (
        pytest.raises(
            SlimdownError, match=r"use evaluation\.apply_chat_template=false, or an instruct model"
        ),
        Evaluator(pocket, config, Scoring(shares=False)),
    ):
        pass


def test_a_template_that_does_not_take_the_questions_is_one_line(
    pocket: LoadedModel, composed: Callable[..., RunConfig]
) -> None:
    pocket.tokenizer.chat_template = (
        "{% if messages[0].content[20:] %}{{ raise_exception('too long') }}{% endif %}"
    )
    config = composed(
        "benchmark=[pocket_math]",
        "benchmark.pocket_math.limit=2",
        "evaluation.apply_chat_template=true",
    )
    tasks = load_tasks(config.benchmark)
    with (
        pytest.raises(
            SlimdownError,
            match=r"fails for the questions of pocket_math with 0 worked examples \(too long\)",
        ),
        Evaluator(pocket, config.evaluation, Scoring(shares=False)) as evaluator,
    ):
        evaluator.questions_hash(tasks["pocket_math"], config.benchmark["pocket_math"])


def test_a_template_that_writes_the_date_asks_the_same_every_day(
    pocket: LoadedModel, composed: Callable[..., RunConfig]
) -> None:
    pocket.tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }} {{ messages[0]['content'] }}"
    )
    assert chat_prompt(pocket.tokenizer, "What?", "template=chat") == "26 Jul 2024 What?"
    lm = _language_model(pocket, composed("evaluation.apply_chat_template=true").evaluation)
    assert lm.apply_chat_template([{"role": "user", "content": "What?"}]) == "26 Jul 2024 What?"
