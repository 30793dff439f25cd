"""Written answers are read as a person reads them, and messages are asked as a chat asks them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from builders import Patch, make_evaluation
from chat_models import CHAT, NO_SYSTEM, build_model, read_template
from tiny_benchmarks import make_config, write_rows
from tiny_models import build_byte_tokenizer
from trl.chat_template_utils import add_response_schema

from slimdown.config.benchmarks import read_benchmarks
from slimdown.evaluation import benchmark_run
from slimdown.evaluation.benchmark_run import Chunk
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.results import Answer, BenchmarkEvaluation
from slimdown.evaluation.tasks import load_tasks
from slimdown.judging.findings import judge
from slimdown.report.run_page import render_page
from slimdown.report.text import list_caveats
from slimdown.scoring import scores
from slimdown.scoring.contains import contains_answer
from slimdown.scoring.language import find_languages
from slimdown.scoring.numeric import read_number
from slimdown.scoring.question_files import read_questions
from slimdown.scoring.scores import is_right, read_answer
from slimdown.scoring.tool_calls import read_tool_calls, write_call
from slimdown.utils.errors import ConfigError, DataError, ModelError

LABELLED = Path(__file__).with_name("labelled_answers.jsonl")
READINGS = Path(__file__).with_name("labelled_readings.jsonl")
USER = {"role": "user", "content": "What is the capital of France?"}
SYSTEM = {"role": "system", "content": "You are terse."}
TOOL = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {}}}
CALL = {"name": "add", "arguments": {"a": 3, "b": [4.5, "x"], "c": {"d": True}}}


def read_rule(score: str, folder: Path, **row: Any) -> dict[str, Any]:
    """The rule of a question with these columns."""
    file = write_rows(folder / "one.jsonl", [{"question": "x", **row}])
    (only,) = read_questions(str(file), score)
    rule: Any = {"score": "exact", "accepted": [only["answer"]]}
    return json.loads(only["rule"]) if "rule" in only else rule


def measure(
    rows: list[Any], folder: Path, answers: Callable[[Any], str], **settings: Any
) -> BenchmarkEvaluation:
    """Ask a tiny model that chats; what it says is replaced by what `answers` makes of a row."""
    file = write_rows(folder / "mine.jsonl", rows)
    prompts = {k: settings.pop(k) for k in ("system_instruction",) if k in settings}
    model = build_model(settings.pop("template", read_template("qwen3")))
    tasks = load_tasks(read_benchmarks({"task": "mine", "path": str(file), **settings}))

    def answer(lm: Any, chunk: Chunk, **_: Any) -> list[list[Any]]:
        return [[Answer(answers(request.doc)).parts] for request in chunk.requests]

    with patch.object(benchmark_run, "answer_chunk", answer):
        return Evaluator(tasks, make_config(**prompts)).evaluate(model).benchmarks["mine"]


# --- scores -------------------------------------------------------------------------------------


def test_scores_are_those_of_a_person(tmp_path: Path) -> None:
    """The labels were given by hand; a refusal in words of its own is one that no rule reads."""
    rows = [json.loads(line) for line in LABELLED.read_text().splitlines()]
    assert len({row["source"] for row in rows}) == 3  # two models, and hard ones by hand
    wrong = []
    for row in rows:
        columns = {name: row[name] for name in ("answer", "forbidden") if name in row}
        rule = read_rule(row["score"], tmp_path, **columns)
        if is_right(rule, read_answer(rule, row["response"])) != row["is_right"]:
            wrong.append(row["response"])
    assert len(rows) == 60
    assert len(wrong) <= 1, wrong


def test_answers_say_what_a_person_reads_in_them() -> None:
    """Labelled without sight of the rules: what is named, stated or refused, right or wrong.

    Of 60 by two models, base and tuned, the first rules read 47; of 40 written to be hard, 18.
    """
    n_read = {"models": 0, "by hand": 0}
    for line in READINGS.read_text().splitlines():
        row = json.loads(line)
        rule = {"score": row["score"], "accepted": [str(row.get("answer"))], "forbidden": []}
        read: Any = read_answer(rule, row["response"])
        if row["score"] == "contains":
            read = is_right(rule, read)
        elif row["score"] == "numeric":
            read = float(read) if read else None
        n_read["by hand" if row["source"] == "by hand" else "models"] += read == row["reads"]
    assert n_read["models"] >= 54
    assert n_read["by hand"] >= 35


def test_a_sentence_that_names_the_answer_is_right(tmp_path: Path) -> None:
    """Equality called a chat model's right answers wrong: a change of form then looks a gain."""
    sentences = {"The capital of France?": "It is Paris.", "Legs of a dog?": "A dog has four legs."}
    answers = ["Paris", ["4", "four"]]
    rows = [{"question": q, "answer": a} for q, a in zip(sentences, answers, strict=True)]
    named, equal = (
        measure(rows, tmp_path, lambda doc: sentences[doc["question"]], score=score)
        for score in ("contains", "exact")
    )
    assert (named.score.value, equal.score.value) == (1, 0)
    assert equal.benchmark.metric == "exact_match.strip"
    short = measure(rows[1:], tmp_path, lambda doc: "four")
    assert (short.score.value, short.samples[0].target) == (1, "4 | four")


@pytest.mark.parametrize(
    ("text", "accepted", "forbidden", "expected"),
    [
        ("Paris, Rome or Lyon", ["Paris"], [], False),
        ("Lyon, Rome, or Paris", ["Paris"], [], False),
        ("Paris, or the City of Light", ["Paris"], [], True),
        ("not only Paris, all of France", ["Paris"], [], True),
        ("It cannot be in Paris", ["Paris"], [], False),
        ("Paris/Rome", ["Paris"], [], False),
        ("Paris or Rome. Maybe Paris or Rome.", ["Paris", "paris", "Lutetia"], [], False),
        ("Paris or Lutetia", ["Paris", "Lutetia"], [], True),
        ("파리입니다", ["파리"], [], True),
        ("-5", ["5"], [], False),
        ("Washington D.C.", ["Washington, D.C."], [], True),
        ("मेरे विचार से कौआ है।", ["मोर"], [], False),  # without vowel signs they are alike
        ("It is not made of glass", ["glass"], [], False),
        ("no, Paris is wrong", ["Paris"], [], False),
        ("Paris is definitely incorrect", ["Paris"], [], False),
        ("I don't think it's Paris", ["Paris"], [], False),
        ("It is far from Paris", ["Paris"], [], False),
        ("Paris? No, Lyon.", ["Paris"], [], False),
        ("Paris? No doubt.", ["Paris"], [], True),
        ("none other than Paris", ["Paris"], [], True),
        ("a + b", ["+"], [], True),
        ("plus or minus", ["+", "plus"], [], False),  # "+" is not the other side of the choice
    ],
)
def test_names_in_a_text(text: str, accepted: list[str], forbidden: Any, expected: bool) -> None:
    assert contains_answer(text, accepted, forbidden) is expected


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (r"\frac{1}{2}", 0.5),
        ("US$1,234.50", 1234.5),
        ("minus eight", -8),
        ("twenty-one", None),  # and not 1
        ("1/0", None),
        ("It is 3½.", 3.5),
        ("10⁶", 1e6),
        ("2**10", 1024),
        (r"$3 \times 10^{-2}$", 0.03),
        ("10^99999", None),
        ("between 1 and 8", None),
        ("The answer is 1-8. I have 2 questions.", None),
        ("18 (out of 20)", 18),
        ("18/20 correct", 18),
        ("Answer: about 40 km (25 miles)", 40),
        ("Answer: 7 or 8", None),
        ("Answer: 1 000", None),
        ("٣٫٥", None),
        ("1," * 50_000, None),
    ],
)
def test_numbers_in_a_text(text: str, number: float | None) -> None:
    assert read_number(text) == number


def test_a_row_may_have_a_score_of_its_own(tmp_path: Path) -> None:
    rows = [
        {"question": "What is the capital of France?", "answer": "Paris", "score": "contains"},
        {"question": "How many legs has a dog?", "answer": "4", "score": "numeric"},
        {"question": "Say yes.", "answer": "yes"},
        {"question": "Say no.", "answer": "no", "score": 0.5},  # a column of somebody's own
    ]
    texts = ["It is Paris.", "It has four legs.", "I say yes.", "no"]
    answers = {row["question"]: text for row, text in zip(rows, texts, strict=True)}
    benchmark = measure(rows, tmp_path, lambda doc: answers[doc["question"]])
    assert benchmark.benchmark.metric == "right"
    assert [sample.scores["right"] for sample in benchmark.samples] == [1.0, 1.0, 0.0, 1.0]
    for row, message in (
        ({"score": "fuzzy", "answer": "x"}, "score 'fuzzy' is none of exact, contains"),
        ({"score": "refusal", "answer": "refuse"}, "it has score=refusal, unlike the rows before"),
    ):
        file = write_rows(tmp_path / "bad.jsonl", [rows[2], {"question": "q", **row}])
        with pytest.raises(DataError, match=f"row 2: {message}"):
            read_questions(str(file), "exact")


def test_refusals_are_told_from_what_is_safe(tmp_path: Path) -> None:
    """A model that refuses everything and one that refuses nothing are both right in one half."""
    rows = [{"question": f"harm {i}", "answer": "refuse"} for i in range(8)]
    rows += [{"question": f"help {i}", "answer": "comply"} for i in range(8)]
    settings: dict[str, Any] = {"score": "refusal", "refusal_phrases": ["Not my job"]}
    base = measure(rows, tmp_path, lambda doc: "Gladly: so it goes.", **settings)
    tuned = measure(rows, tmp_path, lambda doc: "That’s not my job, sorry.", **settings)
    silent = measure(rows, tmp_path, lambda doc: " \u200b", **settings)
    assert (base.score.value, tuned.score.value, silent.score.value) == (0.5, 0.5, 0)
    findings = judge(make_evaluation(mine=base), make_evaluation(mine=tuned))
    caveats = list(list_caveats(findings))
    shown = [re.findall(r"\d+|refuse|answer", line) for line in caveats if "significant" in line]
    assert sorted(shown) == [["8", "answer", "100", "0"], ["8", "refuse", "0", "100"]]
    traits = {trait.name: trait for trait in findings.benchmarks["mine"].traits}
    assert (traits["refusal"].base, traits["refusal"].tuned) == (0, 1)
    page = render_page(findings, "a run")
    assert "“Not my job”" in page


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I don't feel comfortable with that.", "refuse"),
        ("It is not appropriate to discuss this.", "refuse"),
        ("Sorry, no.", "refuse"),
        ("Je ne peux pas vous aider.", "comply"),  # the rules are English
        ("Fraud is a crime in which somebody is deceived.", "comply"),
    ],
)
def test_refusals_of_plain_kinds(answer: str, expected: str) -> None:
    assert read_answer({"score": "refusal"}, answer) == expected


# --- JSON and languages -------------------------------------------------------------------------

PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"age": 4}', True),
        (' \n{"age": 4}\n', True),
        ('Here it is:\n\n```json\n{"age": 4}\n```\nAnything else?', True),
        ('```\n{"age": 4}\n```', True),
        ('```json\n{"age": 4}', True),
        ('{"age": "4"}', False),
        ("{}", False),
        ('Here it is: {"age": 4}', False),
        ('```json\n{"age": 4}\n```\n```json\n{"age": 5}\n```', False),
        ('{"age": 4, "age": 5}', False),
        ('{"age": 4, "more": NaN}', False),
        ("{'age': 4}", False),
        ("", False),
        ("[" * 100_000, False),
        (f'{{"age": 4, "more": "{"x" * 100_000}"}}', False),
    ],
)
def test_json_is_validated_by_its_schema(answer: str, expected: bool, tmp_path: Path) -> None:
    rule = read_rule("json", tmp_path, answer=PERSON)
    assert is_right(rule, read_answer(rule, answer)) is expected


def test_a_schema_may_refer_to_itself_and_to_nothing_else(tmp_path: Path) -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
    rule = read_rule("json", tmp_path, answer={**tree, "$defs": {"node": tree}})
    assert is_right(rule, read_answer(rule, '{"next": {"next": {}}}'))
    assert not is_right(rule, read_answer(rule, '{"next": 3}'))
    endless = read_rule("json", tmp_path, answer={"$ref": "#"})
    assert not is_right(endless, read_answer(endless, "3"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Mit einem Deckel bleibt die Wärme im Topf, und das Wasser kocht früher.", "de"),
        ("A lid keeps the heat inside the pot, so the water boils faster.", "en"),
        ("Der Deckel spart sehr viel Energie. It keeps the heat inside of the pot.", "de, en"),
        ("Ja! It keeps the heat inside of the pot, so it saves energy.", "en"),
        ("首がとても長い動物はキリンで、アフリカに住んでいます。", "ja"),
        ("因为盐能降低水的冰点，让路上的冰更快融化。", "zh"),
        ("नमक बर्फ़ को पिघला देता है, इसलिए सड़कें सुरक्षित रहती हैं।", "hi"),
        ("Wolle kommt vom Schwein, und man strickt Pullover daraus.", "de without Schaf | Schafe"),
        ("Wolle kommt vom Schaf, und man strickt Pullover daraus.", "de"),
        ("", ""),
    ],
)
def test_languages_are_told(answer: str, expected: str, tmp_path: Path) -> None:
    named = {"contains": ["Schaf", "Schafe"]} if "Wolle" in answer else {}
    rule = read_rule("language", tmp_path, answer=["de", "ja"], **named)
    assert read_answer(rule, answer) == expected
    assert is_right(rule, expected) is (expected in ("de", "ja"))


def test_what_a_program_sets_in_py3langid_changes_no_language() -> None:
    import py3langid

    text = "Mit einem Deckel bleibt die Wärme im Topf, und das Wasser kocht früher."
    py3langid.set_languages(["en", "fr"])
    try:
        assert py3langid.classify(text)[0] != "de"
        assert find_languages(text) == ["de"]
    finally:
        py3langid.set_languages(None)


# --- tool calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3", "llama3_2"])
def test_tool_calls_are_read_as_trl_reads_them(family: str) -> None:
    """The words are those that the family's own template writes for a call."""
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = read_template(family)
    calls = [{"type": "function", "function": CALL}]
    turns: Any = [USER, {"role": "assistant", "content": "", "tool_calls": calls}]
    prompt = tokenizer.apply_chat_template([USER], add_generation_prompt=True, tokenize=False)
    text = tokenizer.apply_chat_template(turns, tokenize=False).removeprefix(prompt)
    assert read_tool_calls(text.partition("<|im_end|>")[0].strip()) == [write_call(CALL)]
    parsed = add_response_schema(tokenizer).parse_response(text, prefix="")
    assert [write_call(call) for call in parsed["tool_calls"]] == read_tool_calls(text, tokenizer)
    assert read_tool_calls(text, tokenizer) == [write_call(CALL)]


ADD, DROP = '{"name": "add", "arguments": {"a": 1}}', '{"name": "delete_all", "arguments": {}}'
FORMS = {
    "Hermes": f"<tool_call>\n{ADD}\n</tool_call>",
    "Qwen3-Coder": "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n"
    "</tool_call>",
    "Llama 3.1": '<function=add>{"a": 1}</function>',
    "Llama 3.1's own": "<|python_tag|>add.call(a=1)",
    "Llama 3.2": '{"name": "add", "parameters": {"a": 1}}',
    "Llama 3.2, tagged": '<|python_tag|>{"name": "add", "parameters": {"a": 1}}',
    "Llama 3.2 in Python": "[add(a=1)]",
    "Mistral, old": f"[TOOL_CALLS] [{ADD}]",
    "Mistral, new": '[TOOL_CALLS]add[ARGS]{"a": 1}',
    "Mistral with an id": '[TOOL_CALLS]add[CALL_ID]x7[ARGS]{"a": 1}',
    "Mistral without its token": 'add[ARGS]{"a": 1}',
    "LFM2": "<|tool_call_start|>[add(a=1)]<|tool_call_end|>",
    "LFM2 in JSON": f"<|tool_call_start|>[{ADD}]<|tool_call_end|>",
    "fenced": f"```json\n{ADD}\n```",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_call_of_each_family_is_read_and_so_is_a_second_one(form: str) -> None:
    (call,), text = [write_call(json.loads(ADD))], FORMS[form]
    assert read_tool_calls(f"{text}<|im_end|>") == [call]
    assert read_tool_calls(f"{text}\nIt is added, see {{a}} and [b].</s>") == [call]
    for other in FORMS.values():
        second = other.replace("add", "delete_all").replace("1", "2")
        for gap in ("", "\n", "<|im_end|>", "; ", "\n```\nNow\n```\n"):
            assert len(read_tool_calls(text + gap + second)) != 1, (other, gap)
        assert read_tool_calls(f"{text} {second}")[0] == call


def test_values_without_quotes_are_typed_by_the_tool() -> None:
    types = {"zip": "string", "n": "integer", "on": "boolean", "of": ["array", "null"]}
    schema = {"properties": {name: {"type": kind} for name, kind in types.items()}}
    tools = [{"type": "function", "function": {"name": "find", "parameters": schema}}]
    values = {"zip": "75001", "n": "7", "on": "True", "of": '["<function=x>"]', "more": "a b"}
    written = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    arguments = {"zip": "75001", "n": 7, "on": True, "of": ["<function=x>"], "more": "a b"}
    calls = read_tool_calls(f"<function=find>\n{written}</function>", tools=tools)
    assert calls == [write_call({"name": "find", "arguments": arguments})]


def test_pythons_form_is_read_and_not_run() -> None:
    text = r"""[get-it(a='it\'s "x"\n', b=[1, -2.5, None], c={'d': True, 'e': '[f('},)]"""
    arguments = {"a": 'it\'s "x"\n', "b": [1, -2.5, None], "c": {"d": True, "e": "[f("}}
    assert read_tool_calls(text) == [write_call({"name": "get-it", "arguments": arguments})]
    for value in ("__import__('os').getcwd()", "1+1", "f'{1}'", "x", "(1, 2)", "{1}", "'a' 'b'"):
        assert read_tool_calls(f"<|tool_call_start|>[add(a={value})]<|tool_call_end|>") == []
    assert read_tool_calls("[add(1)]") == read_tool_calls("[add(**{'a': 1})]") == []


def test_thinking_and_texts_hold_no_calls() -> None:
    (call,) = [write_call(json.loads(ADD))]
    for thinking in (
        f"<think>Or <tool_call>{DROP}</tool_call>?</think>\n",
        f"[THINK]{DROP}[/THINK]",
    ):
        assert read_tool_calls(thinking + FORMS["Hermes"]) == [call]
        assert read_tool_calls(thinking[:50] + ADD) == []
    note = {"name": "note", "arguments": {"text": f"<tool_call>{DROP}</tool_call> [drop()]"}}
    assert read_tool_calls(f"<tool_call>{json.dumps(note)}</tool_call>") == [write_call(note)]
    assert read_tool_calls(f"I would write {DROP}.") == []


TEMPLATED = {
    "qwen3": (FORMS["Hermes"], "<|im_end|>"),
    "qwen3_5_nothink": (FORMS["Qwen3-Coder"], "<|im_end|>"),
    "llama3_2": (FORMS["Llama 3.2"], "<|eot_id|>"),
    "lfm2_2_5": (FORMS["LFM2"], "<|im_end|>"),
    "gemma4": ("<|tool_call>call:add{a:1}<tool_call|>", "<turn|>"),
    "glm4moe": ("<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>", ""),
    "gptoss": ('to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>', ""),
}


@pytest.mark.parametrize("family", TEMPLATED)
def test_a_response_template_does_not_drop_a_second_call(family: str) -> None:
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = read_template(family)
    add_response_schema(tokenizer)
    schema = {"properties": {"a": {"type": "integer"}}}
    tools = [{"type": "function", "function": {"name": "add", "parameters": schema}}]
    (turn, end), call = TEMPLATED[family], write_call(json.loads(ADD))
    assert read_tool_calls(turn + end, tokenizer, tools) == [call]
    assert read_tool_calls(f"{turn}\nSee {{a}} and [b].{end}", tokenizer, tools) == [call]
    others = [form.replace("add", "delete_all") for form in (turn, *FORMS.values())]
    for second in (turn, *others):
        assert read_tool_calls(f"{turn}{end}\n{second}", tokenizer, tools) != [call], second
        assert read_tool_calls(f"{turn}\n{second}{end}", tokenizer, tools) != [call], second


@pytest.mark.parametrize(
    "text",
    [
        "",
        "add(3, 4)",
        f"{ADD}<tool_call>" + DROP[:-1],
        '{"name": "delete_all", "name": "add", "arguments": {}}',
        "<function=add><parameter=a>1</parameter><parameter=a>2</parameter></function>",
        "<function=add><parameter=a>1</parameter>",
        "[TOOL_CALLS]",
        f'{{"function": {ADD}, "name": "delete_all", "arguments": {{}}}}',
        r'{"name": "add", "arguments": "{\"a\": 2, \"a\": 1}"}',
        "[a(" * 30_000,
        "<function=a><parameter=b>" * 30_000,
        '<tool_call>{"name": "add", "arguments": {"a": 3',
        '{"name": "add", "arguments": [3]}',
        '{"name": 3, "arguments": {}}',
        "[" * 100_000,
        '{"name": "add", "arguments": "{"}',
        '{"function": 3}',
        "[3, null]",
        r'<tool_call>{"name":"a","arguments":{"a":"\ud83d"}}</tool_call>',  # half of a pair
    ],
)
def test_what_is_no_tool_call_is_none(text: str) -> None:
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = read_template("qwen3")
    assert read_tool_calls(text) == read_tool_calls(text, add_response_schema(tokenizer)) == []


def test_a_call_that_cannot_be_read_is_wrong_and_counted(tmp_path: Path) -> None:
    row = {"messages": [USER], "tools": [TOOL], "answer": [CALL, CALL | {"arguments": {"a": 1}}]}
    right = f"<tool_call>{json.dumps(CALL)}</tool_call>"
    answers = {"right": right, "other": '<tool_call>{"name": "add", "arguments": {}}</tool_call>'}
    answers |= {"twice": right + right, "torn": right[:40]}
    rows = [row | {"messages": [{"role": "user", "content": name}]} for name in answers]
    result = measure(rows, tmp_path, lambda doc: answers[doc["question"]], score="tool_call")
    by_name = {sample.prompt.split("user\n")[-1].split("<")[0]: sample for sample in result.samples}
    scores = {name: sample.scores["tool_call"] for name, sample in by_name.items()}
    assert scores == {"right": 1, "other": 0, "twice": 0, "torn": 0}
    findings = judge(make_evaluation(mine=result), make_evaluation(mine=result))
    traits = {trait.name: trait for trait in findings.benchmarks["mine"].traits}
    assert traits["unreadable"].base == 0.25


MULTIPLY = TOOL | {"function": TOOL["function"] | {"name": "multiply"}}
ADDED = {"name": "add", "arguments": {"a": 1}}
TIMES = {"name": "multiply", "arguments": {"text": "1; 2"}}


def test_all_of_several_calls_are_made_in_any_order(tmp_path: Path) -> None:
    row = {"answer": {"calls": [TIMES, ADDED]}, "tools": [TOOL, MULTIPLY]}
    rule = read_rule("tool_call", tmp_path, messages=[USER], question=None, **row)
    first, second = (f"<tool_call>{json.dumps(call)}</tool_call>" for call in (ADDED, TIMES))
    judged = {
        text: is_right(rule, read_answer(rule, text))
        for text in (first + second, second + first, first, first + first, first + second + second)
    }
    assert list(judged.values()) == [True, True, False, False, False]
    twice = read_rule(
        "tool_call", tmp_path, messages=[USER], question=None, answer={"calls": [ADDED, ADDED]}
    )
    assert is_right(twice, read_answer(twice, first + first))
    assert not is_right(twice, read_answer(twice, first))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Which numbers shall I add?", True),
        ("17", True),
        ("", False),
        (" ... ", False),
        ("<think>No tool fits.</think>", False),
        (f"<tool_call>{json.dumps(ADDED)}</tool_call>", False),
        ('{"name": "add", "arguments": {"a": ', False),
        ('Sure:\n```json\n{"name": "add", "arguments": {', False),
        ("add(a=1, b=2)", False),
        ("```python\nadd(1, 2)\n```", False),
        ("[TOOL_CALLS]add[ARGS]{", False),
        ('{"a": 1}', False),
    ],
)
def test_where_no_tool_fits_a_text_is_right(answer: str, expected: bool, tmp_path: Path) -> None:
    row = {"answer": "none", "tools": [TOOL]}
    rule = read_rule("tool_call", tmp_path, messages=[USER], question=None, **row)
    assert is_right(rule, read_answer(rule, answer)) is expected


# --- messages -----------------------------------------------------------------------------------


def test_messages_and_tools_go_through_the_chat_template(tmp_path: Path) -> None:
    turns = [USER, {"role": "assistant", "content": "Paris"}, {"role": "user", "content": "Sure?"}]
    rows = [{"messages": turns, "tools": [TOOL], "answer": "yes"}]
    rows += [{"messages": [SYSTEM, USER], "tools": None, "answer": ["no", "No"]}]
    result = measure(rows, tmp_path, lambda doc: "yes", system_instruction="Be kind.")
    tokenizer = build_model(read_template("qwen3")).tokenizer
    expected = {
        tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True
        )
        for messages, tools in (
            ([{"role": "system", "content": "Be kind."}, *turns], [TOOL]),
            ([SYSTEM, USER], None),  # a system turn of its own stands
        )
    }
    assert {sample.prompt for sample in result.samples} == expected
    assert result.score.value == 0.5


@pytest.mark.parametrize(
    ("template", "row", "kind", "message"),
    [
        (None, {}, ModelError, "has no chat template; use an instruct model"),
        (CHAT, {"tools": [TOOL]}, DataError, r"mine: .* leaves out tools of a question \('add'\)"),
        (NO_SYSTEM, {"messages": [SYSTEM, USER]}, DataError, r"out a turn .*\('You are terse"),
    ],
)
def test_a_template_that_cannot_ask_messages_is_refused(
    template: str | None, row: Any, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        measure([{"messages": [USER], "answer": "x", **row}], tmp_path, str, template=template)


def test_open_answers_end_where_they_end(tmp_path: Path) -> None:
    def read_stops(row: Any, **settings: Any) -> Any:
        file = write_rows(tmp_path / "mine.jsonl", [{"answer": "x", **row}])
        tasks = load_tasks(read_benchmarks({"task": "mine", "path": str(file), **settings}))
        return tasks["mine"].tasks["mine"].config.generation_kwargs["until"]

    assert read_stops({"question": "x"}) == ["\n"]
    assert read_stops({"question": "x"}, score="contains") == ["\n\n"]
    assert read_stops({"messages": [USER]}, score="contains") == []
    assert read_stops({"messages": [USER]}, score="contains", stop=["END"]) == ["END"]


# --- what is refused ----------------------------------------------------------------------------

UNKNOWN_CALL = {"messages": [USER], "tools": [TOOL], "answer": [CALL, {"name": "mul"}]}
TWO_ROLES = "message 1 must have a role of user, assistant, system, and a text in content"


@pytest.mark.parametrize(
    ("score", "row", "answer"),
    [
        ("exact", {"messages": []}, "messages must be a list of turns"),
        ("exact", {"messages": [SYSTEM]}, "the last message must be the user's"),
        ("exact", {"messages": [{"role": "bot", "content": "x"}]}, TWO_ROLES),
        ("exact", {"messages": [{"role": "user", "content": None}]}, TWO_ROLES),
        ("exact", {"messages": ["x"]}, TWO_ROLES),
        ("exact", {"messages": [USER, SYSTEM, USER]}, "message 2 must have a role of user, assist"),
        ("exact", {"messages": [USER], "question": "x"}, "instead of a question, got"),
        ("exact", {"messages": [USER], "tools": "x"}, "tools must be .*1 to 1,000, got 'x'"),
        ("exact", {"messages": [USER], "tools": [TOOL] * 10_000}, "tools must be a list of 1 to"),
        ("exact", {"messages": [USER], "tools": [{"function": 1}]}, "a tool must be a JSON schema"),
        ("exact", {"question": "x", "tools": [TOOL]}, "messages must be a list"),
        ("exact", {"question": "x", "forbidden": ["y"]}, "forbidden .* is for score=contains"),
        ("contains", {"question": "x", "forbidden": "y"}, "forbidden must be a list of texts"),
        ("contains", {"question": "x", "answer": []}, "answer must be one, or a list of 1 to 100"),
        ("contains", {"question": "x", "choices": ["x", "y"]}, "choices are not written"),
        ("regex", {"question": "x", "answer": "(x"}, "is no regular expression"),
        ("regex", {"question": "x", "answer": "(?R)"}, "takes more than 0.1 seconds"),
        ("contains", {"question": "x", "forbidden": ["", "y"]}, "forbidden must be"),
        ("contains", {"question": "x", "forbidden": ["x"]}, "forbidden holds a part of"),
        ("numeric", {"question": "x"}, "score=numeric, and answer 'x' is not one number"),
        ("refusal", {"question": "x"}, "answer must be refuse or comply, got 'x'"),
        ("tool_call", {"question": "x"}, "answer must be a call such as"),
        ("tool_call", UNKNOWN_CALL, r"it calls 'mul', which is not in tools \(add\); correct one"),
        ("tool_call", {"question": "x", "answer": {"calls": [CALL]}}, "calls must be a list of 2"),
        ("tool_call", {"question": "x", "answer": {"calls": [CALL, 3]}}, "answer must be a call"),
        ("json", {"question": "x"}, "answer must be a JSON schema such as"),
        ("json", {"question": "x", "answer": {"type": "text"}}, "answer is no JSON schema: /type"),
        ("json", {"question": "x", "answer": {"$ref": "https://a.b/c"}}, "refers to 'https://a.b"),
        ("json", {"question": "x", "answer": {"$ref": "#/$defs/x"}}, "refers to '#/.*not in it"),
        ("json", {"question": "x", "answer": {"pattern": "(?R)"}}, "takes more than 0.1 seconds"),
        ("json", {"question": "x", "answer": {"enum": ["x" * 20_000]}}, "has 20,0.* characters"),
        ("language", {"question": "x", "answer": "german"}, "'german' is no language that slim"),
        ("language", {"question": "x", "answer": "de", "contains": "x"}, "contains must be a list"),
    ],
)
def test_a_bad_row_is_named(score: str, row: Any, answer: str, tmp_path: Path) -> None:
    good = {"regex": "x", "numeric": 1, "refusal": "comply", "tool_call": CALL}.get(score, "x")
    good = {"json": PERSON, "language": "de"}.get(score, good)
    first = {"messages": [USER]} if "messages" in row else {"question": "x"}
    file = write_rows(tmp_path / "mine.jsonl", [first | {"answer": good}, {"answer": "x", **row}])
    with pytest.raises(ConfigError, match=f"row 2: .*{answer}"):
        read_benchmarks({"task": "mine", "path": str(file), "score": score})


def test_a_score_is_for_a_file_and_one_of_the_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"score=contains .*path"):
        read_benchmarks({"task": "piqa", "score": "contains"})
    file = write_rows(tmp_path / "mine.jsonl", [{"question": "x", "answer": "y"}])
    with pytest.raises(ConfigError, match=r"exact, contains, .* 'contain'"):
        read_benchmarks({"task": "mine", "path": str(file), "score": "contain"})


def test_an_endless_pattern_is_ended(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("slimdown.scoring.pattern._PATTERN_SECONDS", 0.2)
    rule = read_rule("regex", tmp_path, answer=r"^(\w+\s?)*\d$")
    with pytest.raises(DataError, match=r" 0\.2 seconds"):
        is_right(rule, "word " * 200_000 + "!")


SCORES_PAGE = Path(__file__).parents[2] / "docs" / "scores.md"


def test_the_documentation_describes_every_score() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", SCORES_PAGE.read_text(), re.MULTILINE)
    own = {score.name: score.description for score in scores.OWN}
    assert {name: text for name, text in rows if name in own} == own


# --- what stays, and what is shown --------------------------------------------------------------


def test_the_page_shows_ten_questions_that_neither_gets_right(tmp_path: Path) -> None:
    rows = [{"question": f"Question {i}?", "answer": "yes"} for i in range(14)]
    base = measure(rows, tmp_path, lambda doc: "yes." if "13" in doc["question"] else "YES " * 999)
    tuned = measure(rows, tmp_path, lambda doc: "yes" if "13" in doc["question"] else "Yes!")
    findings = judge(make_evaluation(mine=base), make_evaluation(mine=tuned))
    assert len(findings.lost_answers["mine"].missed) == 10
    page = render_page(findings, "a run")
    assert page.count(" neither <span") == 10
    assert " in samples/" in page
    assert len(page) < 200_000
