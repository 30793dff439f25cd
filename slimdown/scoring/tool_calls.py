"""Tool calls as models write them: every call of an answer is read, and none is made."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from slimdown.scoring.strict_json import STRICT_DECODER, take_pairs
from slimdown.utils.errors import DataError

Read = tuple[list[Any], int]  # the calls that begin at a place of a text, and where they end

_NAME = r"(?<![\w.-])[\w.-]+"
_OPENINGS = re.compile(
    # Qwen3-Coder, Llama 3.1
    r"(?P<xml><function=)|"
    # Mistral, new
    rf"(?:\[TOOL_CALLS\]\s*)?(?P<named>{_NAME})(?:\[CALL_ID\]\w+)?\[ARGS\]|"
    rf"\[TOOL_CALLS\]\s*(?P<plain>{_NAME})(?=\s*\{{)|"
    # Hermes and Qwen; Mistral, old; Llama 3
    r"(?P<json><tool_call>(?!\s*<function=)|\[TOOL_CALLS\]|<\|python_tag\|>(?=\s*[\[{]))|"
    # LFM2; Llama 3.1
    r"(?P<python><\|tool_call_start\|>|<\|python_tag\|>)|"
    # In a fence; or the answer's first word, as Llama 3.2 writes it; or behind another call
    r"(?P<fenced>```(?:[\w-]*\s+)?(?=[\[{]))|(?P<bare>[\[{])"
)
_KEYS = {"arguments", "parameters", "function"}  # of which a call has one
_CALL_BEGINS = r"""[\[{\s]*"(?:name|function|arguments|parameters|tool_calls?)"\s*:"""
_MOST_PASSED = 1000  # brackets that begin no call; a hostile text may hold any number
_THINKING = re.compile(r"\s*(?:<think>.*?(?:</think>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z))?\s*", re.S)


def read_tool_calls(text: str, tokenizer: Any = None, tools: Any = None) -> list[str]:
    """Read all tool calls of an answer, each as `write_call` writes it.

    Args:
        text: The answer, with or without special tokens. Thinking at its start does not count.
        tokenizer: If it has a response template, which describes how the model writes its answers,
            calls are read by this first. Calls that the template passes over count, too, if another
            family of models writes them so.
        tools: The schemas of the tools. Some models write arguments without quotes; then the schema
            says whether 12 is a text or a number.

    Returns:
        The calls; empty if there is none, or if one of them cannot be read.
    """
    parsed = list[str]()  # by the response template
    with suppress(Exception):  # there is no template, or the publisher's fails on what is written
        message = tokenizer.parse_response(text + tokenizer.eos_token, prefix="", tools=tools)
        parsed = [write_call(call) for call in message["tool_calls"]]
    # By the markers of all families. None stands for a call that cannot be read.
    calls = _read_marked(text, tools, is_parsed=bool(parsed))
    # More calls than the template read are taken to include those.
    if len(calls) <= len(parsed):
        # Otherwise the template is right. What the markers cannot read (None), it has read. But the
        # markers may show the call of a tool whose call the template passed over.
        names = [json.loads(call)["name"] for call in parsed]
        if all(call is None or json.loads(call)["name"] in names for call in calls):
            return parsed
        # Then the calls of both count. They are different calls: if the markers could read the
        # template's form, too, they would have found its calls and this one, which is more.
        calls = [*parsed, *calls]
    readable = [call for call in calls if call is not None]
    return readable if len(readable) == len(calls) else []  # one unreadable call spoils all


def attempts_call(text: str, tools: Any = None) -> bool:
    """Return whether an answer begins a call somewhere, whether or not it can be read.

    Args:
        text: The answer. Thinking at its start does not count.
        tools: The schemas of the tools. `add(1, 2)` at the start of the answer or of a fence also
            counts as a call, although it has no marker.

    >>> attempts_call('<tool_call>{"name": "add", "argu'), attempts_call("I could add them.")
    (True, False)
    """
    text = drop_thinking(text)
    # A fence or a bare bracket may also begin ordinary code; those are looked at below.
    if any(opening.lastgroup not in ("fenced", "bare") for opening in _OPENINGS.finditer(text)):
        return True
    names = "|".join(re.escape(name) for name in map(get_tool_name, tools or ()) if name)
    is_named = names and re.search(rf"(?:\A|```[\w-]*)[\s\[`]*(?:{names})\(", text)
    return bool(is_named or re.match(r"[\s\[]*\{", text) or re.search(_CALL_BEGINS, text))


def drop_thinking(text: str) -> str:
    """Return an answer without the thinking at its start."""
    thinking = _THINKING.match(text)
    return text[thinking.end() :] if thinking else text


def write_call(call: Any) -> str:
    """Write a tool call in one form, so that equal calls have equal texts.

    Args:
        call: The call as a model or a row has it. It may stand under `function`; its arguments may
            stand under `arguments` or `parameters`, and be an object or its JSON text.

    Returns:
        JSON with `name` and `arguments`. Keys are sorted, and 2.0 is written as 2.

    Raises:
        DataError: The call has no name, a `name` beside `function`, both `arguments` and
            `parameters`, or arguments that are no object.
        ValueError: It has half of a surrogate pair, which no file can hold.
    """
    fields = call if isinstance(call, dict) else {}
    function = fields.get("function", fields)
    if not isinstance(function, dict):
        function = {}  # has no name, so it is refused below
    name = function.get("name")
    arguments = function.get("arguments", function.get("parameters", {}))
    with suppress(ValueError, RecursionError):  # a text that is no JSON is refused below
        if isinstance(arguments, str):  # JSON in a text, as OpenAI writes arguments
            arguments = STRICT_DECODER.decode(arguments)
    is_double = {"function", "name"} <= fields.keys()
    is_double |= {"arguments", "parameters"} <= function.keys()
    if is_double or not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise DataError('answer must be a call such as {"name": "add", "arguments": {"a": 1}}')
    text = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False, sort_keys=True)
    text.encode()  # raises the ValueError
    # Texts are matched first, and stay; numbers lose their ".0".
    return re.sub(r'("[^"\\]*(?:\\.[^"\\]*)*")|(\d)\.0(?=[,}\]])', r"\1\2", text)


def get_tool_name(tool: Any) -> str:
    """Return the name of a tool's schema, or of a call; empty if it has none.

    >>> get_tool_name({"type": "function", "function": {"name": "add"}}), get_tool_name(3)
    ('add', '')
    """
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def check_calls(calls: Any, tools: Any) -> None:
    """Check that calls are of a row's tools; where one of these has no name, nothing is checked.

    Raises:
        DataError: Names the call that is not.
    """
    names = [get_tool_name(tool) for tool in tools or ()]
    for name in filter(None, map(get_tool_name, calls)):
        if names and all(names) and name not in names:
            known = ", ".join(names)[:100]
            raise DataError(f"it calls {name[:60]!r}, which is not in tools ({known}); correct one")


def _read_marked(text: str, tools: Any, is_parsed: bool) -> list[str | None]:
    """Read the calls of an answer that begin with one of the markers in `_OPENINGS`, in order.

    Args:
        text: The answer.
        tools: The schemas of the tools.
        is_parsed: Whether the response template has found calls, perhaps in another form.

    Returns:
        The calls, each as `write_call` writes it, with None in place of a call that cannot be read.
        Reading ends there, unless the response template has found calls. None also comes last if
        more brackets begin no call than are looked at.
    """
    calls = list[str | None]()
    n_passed = 0  # openings behind which no call could be read
    answer_begin = at = len(text) - len(drop_thinking(text))
    while (opening := _OPENINGS.search(text, at)) and n_passed < _MOST_PASSED:
        kind = str(opening.lastgroup)  # the name of the group in `_OPENINGS` that matches
        at = opening.end()
        # A bracket without a marker counts at the start of the answer, or if there are calls.
        may_be_bare = bool(calls) or is_parsed or opening.start() == answer_begin
        if kind == "bare" and not may_be_bare:
            continue
        try:
            values, end = _READERS[kind](text, opening, tools)
            calls += [write_call(value) for value in values]
            at = end
        except (ValueError, DataError, RecursionError):
            n_passed += 1
            if kind not in ("fenced", "bare"):  # those may be ordinary code or text
                calls.append(None)
                if not is_parsed:  # nothing else could have read this call, and it spoils all
                    break
    # The rest of the text has not been searched, so a call in it cannot be read.
    return calls if n_passed < _MOST_PASSED else [*calls, None]


def _skip_spaces(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


# --- JSON ---------------------------------------------------------------------------------------


def _read_json(text: str, opening: re.Match[str], tools: Any = None) -> Read:
    value, end = STRICT_DECODER.raw_decode(text, _skip_spaces(text, opening.end()))
    return (value if isinstance(value, list) else [value]), end


def _read_named(text: str, opening: re.Match[str], tools: Any) -> Read:
    values, end = STRICT_DECODER.raw_decode(text, _skip_spaces(text, opening.end()))
    return [{"name": opening["named"] or opening["plain"], "arguments": values}], end


def _read_unmarked(text: str, opening: re.Match[str], tools: Any) -> Read:
    """Read calls without a marker; other objects and lists are none."""
    begin = opening.end() - (opening.lastgroup == "bare")
    if _PYTHON_LIST.match(text, begin):
        return _read_expression(text, begin)
    value, end = STRICT_DECODER.raw_decode(text, begin)
    values = value if isinstance(value, list) else [value]
    for call in values:
        if not isinstance(call, dict) or not (call.keys() & _KEYS or call.keys() == {"name"}):
            raise ValueError("it is no call")
    return values, end


# --- the forms of Qwen3-Coder and of Python, which is never run ---------------------------------

_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.S)
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_DEEPEST = 64
_PYTHON_LIST = re.compile(rf"\[\s*{_NAME}\(")
_PYTHON_NEXT = re.compile(rf"[\s;]*(?=(?:\[\s*)?{_NAME}\()")
_PYTHON_TOKEN = re.compile(
    r"(?P<string>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|(?P<torn>['\"])|"
    rf"(?P<call>{_NAME})\(|(?P<key>{_NAME})\s*=|"
    r"(?P<constant>\b(?:True|False|None)\b)|(?P<comma>,\s*(?=[)\]}]))|.",
    re.S,
)


def _read_xml(text: str, opening: re.Match[str], tools: Any) -> Read:
    name, closing, _ = text[opening.end() : opening.end() + 200].partition(">")
    at, pairs = opening.end() + len(name + closing), list[tuple[str, Any]]()
    if text.startswith("{", begin := _skip_spaces(text, at)):
        values, at = STRICT_DECODER.raw_decode(text, begin)
    else:
        while parameter := _PARAMETER.match(text, at):
            types, at = _find_types(tools, name, parameter[1]), parameter.end()
            pairs.append((parameter[1], _read_plain(parameter[2], types)))
        values = take_pairs(pairs)
    end = "</function>"
    if not text.startswith(end, at := _skip_spaces(text, at)):
        raise ValueError("it does not end")
    return [{"name": name, "arguments": values}], at + len(end)


def _find_types(tools: Any, name: str, key: str) -> Any:
    """Find the type, or the types, that a tool's schema names for a parameter."""
    with suppress(AttributeError, TypeError, KeyError):
        for tool in tools:
            function = tool.get("function", tool)
            if function["name"] == name:
                return function["parameters"]["properties"][key]["type"]
    return ()


def _read_plain(text: str, types: Any) -> Any:
    """Read a value that is written without quotes: JSON, or a text."""
    if "string" in types:
        return text
    try:
        return STRICT_DECODER.decode(_CONSTANTS.get(text, text))
    except ValueError:
        return text


def _read_python(text: str, opening: re.Match[str], tools: Any) -> Read:
    """Read `[add(a=1), halve(b='x')]`, or calls without brackets; or JSON, which LFM2 may write."""
    calls, at = list[Any](), opening.end()
    while begin := _PYTHON_NEXT.match(text, at):
        values, at = _read_expression(text, begin.end())
        calls += values
    return (calls, at) if calls else _read_json(text, opening)


def _read_expression(text: str, begin: int) -> Read:
    """Write a call or a list of calls as JSON, token by token, and read that."""
    written, depth = "", 0
    for token in _PYTHON_TOKEN.finditer(text, begin):
        written += _write_token(token)
        depth += (token[0][-1] in "([{") - (token[0] in (")", "]", "}"))
        if not 0 < depth < _DEEPEST:
            break
    value = STRICT_DECODER.decode(written)
    return (value if isinstance(value, list) else [value]), token.end()


def _write_token(token: re.Match[str]) -> str:
    """Write a token of Python as JSON has it.

    What JSON lacks stays as it is, so that the reader of the JSON refuses it.

    Args:
        token: A match of `_PYTHON_TOKEN`.

    Raises:
        ValueError: A text does not end.
    """
    if token["string"]:
        # The pattern finds each escape (a backslash and a sign) and each bare `"`. Two of them are
        # changed: \' becomes ', because JSON has no such escape; and a bare `"`, which Python takes
        # between single quotes, becomes \". All others stay, such as \n and \\.
        quotes = {"\\'": "'", '"': '\\"'}
        text = re.sub(r'(?s)\\.|"', lambda sign: quotes.get(sign[0], sign[0]), token[0][1:-1])
        return f'"{text}"'
    if token["torn"]:
        raise ValueError("a text does not end")
    if token["call"]:
        name = token["call"].removesuffix(".call")  # Llama 3.1's own tools
        return f'{{"name": "{name}", "arguments": {{'
    if token["key"]:
        return f'"{token["key"]}": '
    if token["comma"]:  # one before a closing bracket, which JSON does not allow
        return ""
    # A closing parenthesis ends the two braces that the name of a call has opened. It may also
    # belong to a `(` without a name. That is written as it is, and the reader of the JSON refuses
    # it.
    return "}}" if token[0] == ")" else _CONSTANTS.get(token[0], token[0])


_READERS: dict[str, Callable[[str, re.Match[str], Any], Read]] = {
    "xml": _read_xml,
    "named": _read_named,
    "plain": _read_named,
    "json": _read_json,
    "python": _read_python,
    "fenced": _read_unmarked,
    "bare": _read_unmarked,
}
