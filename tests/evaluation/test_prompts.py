"""Chat templates, system prompts, thinking and limits, beside stock HFLM with the same."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from chat_models import CHAT, NO_SYSTEM, SMOLLM3, build_model, read_template
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from stock_harness import ask_harness
from tiny_benchmarks import make_config, make_prompts
from tiny_models import build_byte_tokenizer

from slimdown.config.benchmarks import read_benchmarks
from slimdown.data.chat_templates import FIXED_DATE, choose_prompts
from slimdown.evaluation.evaluator import Evaluator, check_room
from slimdown.evaluation.prefix_lm import PrefixLM
from slimdown.evaluation.results import Answer, Evaluation
from slimdown.evaluation.tasks import load_tasks
from slimdown.models.base_model import LoadedModel
from slimdown.pocket import TASKS_DIR
from slimdown.utils.errors import ConfigError, ModelError

SYSTEM = "Answer with one number."
# One template of each kind; the switch of thinking, where there is one.
FAMILIES = {
    "qwen3": "enable_thinking",
    "gemma3": None,
    "llama3_2": None,
    "cohere2": None,
    "nemotron_3_nano": "enable_thinking",
    "granite": "thinking",
    "smollm3": "enable_thinking",
}


def ask_stock(
    model: LoadedModel, switches: dict[str, Any], until: list[str] | None = None, **settings: Any
) -> dict[int, str]:
    tokenizer = copy.deepcopy(model.tokenizer)
    lm = HFLM(pretrained=model.model, tokenizer=tokenizer, batch_size=4, **switches)
    results: Any = ask_harness(
        lm,
        tasks=["pocket_math"],
        task_manager=TaskManager(include_path=str(TASKS_DIR), include_defaults=False),
        limit=3,
        gen_kwargs={"max_gen_toks": 24, **({"until": until} if until else {})},
        bootstrap_iters=0,
        **settings,
    )
    return {s["doc_id"]: s["resps"][0][0] for s in results["samples"]["pocket_math"]}


def ask(model: LoadedModel, stop: str | None = None, **settings: Any) -> Evaluation:
    benchmarks = read_benchmarks("pocket_math", limit=3, max_gen_toks=24, stop=stop)
    return Evaluator(load_tasks(benchmarks), make_config(**settings)).evaluate(model)


def list_responses(evaluation: Evaluation) -> dict[int, str]:
    samples = evaluation.benchmarks["pocket_math"].samples
    return {sample.doc_id: sample.response for sample in samples}


@pytest.mark.parametrize(("family", "switch"), FAMILIES.items())
def test_texts_are_stock_hflms_through_the_template_of(family: str, switch: str | None) -> None:
    model = build_model(read_template(family))
    ways: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {})]
    if switch:
        ways = [({"enable_thinking": value}, {switch: value}) for value in (True, False)]
    prompts = set()
    for ours, variables in ways:
        mark = {"think_end_token": "</think>"} if ours.get("enable_thinking") else {}
        stock = ask_stock(
            model,
            {"chat_template_args": {**FIXED_DATE, **variables}, **mark},
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            system_instruction=SYSTEM,
        )
        evaluation = ask(model, apply_chat_template=True, system_instruction=SYSTEM, **ours, **mark)
        samples = evaluation.benchmarks["pocket_math"].samples
        for sample in samples:
            assert SYSTEM in sample.prompt
            if not sample.never_ended:
                assert sample.response == stock[sample.doc_id]
        prompts.add(samples[0].prompt)
    assert len(prompts) == len(ways)  # the switch does something


def test_choices_are_asked_without_thinking() -> None:
    """HFLM refuses to score choices behind a prompt that begins to think."""
    tasks = load_tasks(read_benchmarks(["pocket_math", "pocket_cs"], limit=2))
    config = make_config(apply_chat_template=True, enable_thinking=True, think_end_token="</think>")
    evaluation = Evaluator(tasks, config).evaluate(build_model(SMOLLM3))
    prompts = {name: b.samples[0].prompt for name, b in evaluation.benchmarks.items()}
    assert "\n/think" in prompts["pocket_math"]
    assert "\n/no_think" in prompts["pocket_cs"]
    assert evaluation.conditions["pocket_cs.enable_thinking"] == "False"


def test_plain_prompts_take_a_system_prompt_and_stops_as_stock_hflm_does() -> None:
    model = build_model(None)
    stock = ask_stock(model, {}, system_instruction=SYSTEM)
    assert list_responses(ask(model, system_instruction=SYSTEM)) == stock
    letter = next(text for text in stock.values() if len(text) > 4)[3]
    stopped = ask_stock(model, {}, until=[letter], system_instruction=SYSTEM)
    evaluation = ask(model, stop=letter, system_instruction=SYSTEM)
    assert list_responses(evaluation) == stopped
    assert evaluation.conditions == {
        "pocket_math.system_instruction": SYSTEM,
        "pocket_math.max_gen_toks": "24",
        "pocket_math.stop": str([letter]),
    }


# --- thinking -----------------------------------------------------------------------------------

SUMS = [f"{i} plus {i}" for i in range(24)]


@pytest.mark.parametrize("is_special", [False, True])
def test_thinking_ends_where_hflm_ends_it(is_special: bool) -> None:
    """A letter that random texts sometimes hold ends the thinking, also as a special token."""
    model, mark = build_model(None), "q"
    prompts = make_prompts(SUMS, max_gen_toks=40)
    number = model.tokenizer.convert_tokens_to_ids(mark)
    if is_special:
        model.tokenizer.add_special_tokens({"additional_special_tokens": [mark]})
    common = {"pretrained": model.model, "tokenizer": model.tokenizer, "batch_size": 4}
    stock = HFLM(**common, think_end_token=number if is_special else mark)
    whole = HFLM(**common).generate_until(prompts)
    answers = PrefixLM(**common, think_end_token=mark).generate_until(prompts)
    ended = [answer for answer in answers if not answer.never_ended]
    assert 3 < len(ended) < len(answers)  # both cases are there
    for answer, text, uncut in zip(answers, stock.generate_until(prompts), whole, strict=True):
        if answer.never_ended:
            assert (answer, answer.thinking) == ("", uncut.strip())
        else:
            assert answer == text
            assert is_special or answer.thinking == uncut.rpartition(mark)[0].strip()


def test_a_stop_in_the_thinking_does_not_end_it() -> None:
    model = build_model(None)
    lm = PrefixLM(
        pretrained=model.model, tokenizer=model.tokenizer, batch_size=4, think_end_token="q"
    )
    free = lm.generate_until(make_prompts(SUMS, max_gen_toks=40))
    stop = next(answer.thinking[0] for answer in free if answer.thinking)
    stopped = lm.generate_until(make_prompts(SUMS, max_gen_toks=40, until=[stop]))
    assert [answer.thinking for answer in stopped] == [answer.thinking for answer in free]
    assert [str(answer) for answer in stopped] == [answer.partition(stop)[0] for answer in free]


def test_thinking_that_was_cut_ran_out_of_tokens_even_if_a_stop_is_in_it() -> None:
    model = build_model(None)
    lm = PrefixLM(
        pretrained=model.model, tokenizer=model.tokenizer, batch_size=4, think_end_token="q"
    )
    free = lm.generate_until(make_prompts(SUMS, max_gen_toks=40))
    cut = [number for number, answer in enumerate(free) if answer.never_ended and answer.ran_out]
    assert len(cut) > 1
    stop = free[cut[0]].thinking[0]
    stopped = lm.generate_until(make_prompts(SUMS, max_gen_toks=40, until=[stop]))
    assert all(stopped[number].never_ended and stopped[number].ran_out for number in cut)


def test_an_answer_without_thinking_is_an_answer() -> None:
    """Thinking begins with a mark, too; without that mark nothing was thought."""
    model = build_model(None)
    lm = PrefixLM(pretrained=model.model, tokenizer=model.tokenizer, think_end_token="</think>")
    (plain,) = lm.generate_until(make_prompts(["1 plus 1"]))
    (opened,) = lm.generate_until(make_prompts(["1 plus 1<think>"]))
    assert (bool(plain), plain.never_ended) == (True, False)
    assert (bool(opened), opened.never_ended, bool(opened.thinking)) == (False, True, True)


def test_answers_of_a_stopped_evaluation_are_read_with_their_thinking() -> None:
    answer = Answer("4", "2 and 2", ran_out=True)
    again = Answer(*json.loads(json.dumps(answer.parts)))
    assert (again, vars(again)) == ("4", vars(answer))


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "settings", "message"),
    [
        (None, {}, "has no chat template"),
        (NO_SYSTEM, {"system_instruction": SYSTEM}, "drops the system turn"),
        (CHAT, {"enable_thinking": True, "think_end_token": "x"}, "has no such switch"),
        (CHAT, {"chat_template_args": {"documents": []}}, r"documents: .* no such variable"),
    ],
    ids=["none", "no system", "no switch", "no variable"],
)
def test_a_template_that_cannot_do_what_is_set_is_refused(
    template: str | None, settings: dict[str, Any], message: str
) -> None:
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = template
    config = make_config(apply_chat_template=True, **settings)
    with pytest.raises(ModelError, match=message):
        choose_prompts(config, tokenizer, auto_uses_template=True)


def test_auto_goes_through_the_template_where_answers_are_generated() -> None:
    model = build_model(CHAT)
    auto = make_config(apply_chat_template="auto")
    config, notes = choose_prompts(auto, model.tokenizer, auto_uses_template=True)
    assert notes
    tasks = load_tasks(read_benchmarks(["pocket_math", "pocket_cs"], limit=3))
    benchmarks = Evaluator(tasks, config).evaluate(model).benchmarks
    prompts = {name: benchmark.samples[0].prompt for name, benchmark in benchmarks.items()}
    assert prompts["pocket_math"].startswith("user: ")
    assert not prompts["pocket_cs"].startswith("user: ")
    plain, _ = choose_prompts(auto, model.tokenizer, auto_uses_template=False)
    assert plain.apply_chat_template is False


def test_a_prompt_that_does_not_fit_with_its_tokens_is_refused_before_loading() -> None:
    model = build_model(None)
    tasks = load_tasks(read_benchmarks("pocket_math", limit=2, max_gen_toks=4090))
    outline = replace(model, model=copy.deepcopy(model.model).to("meta"))
    with pytest.raises(ConfigError, match=r"4090 new .*max_gen_toks"):
        check_room(tasks, make_config(), outline)
