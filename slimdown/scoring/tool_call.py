"""`tool_call`: the answer makes the right call, or the right calls, and no other."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slimdown.scoring.score import Rule, Score
from slimdown.scoring.strict_json import STRICT_DECODER
from slimdown.scoring.tool_calls import (
    attempts_call,
    check_calls,
    drop_thinking,
    read_tool_calls,
    write_call,
)
from slimdown.utils.errors import DataError

NO_CALL = "none"
"""The answer of a row that no tool fits: text is right, and every call is wrong."""

_BETWEEN = "; "  # calls, where one answer has several
_MOST_CALLS = 100


class ToolCall(Score):
    """Right if the answer makes an accepted call, or all of several, and no other."""

    name = "tool_call"
    description = (
        'it makes one call such as `{"name": "add", "arguments": {"a": 1}}` and no other. '
        "slimdown reads calls as Hermes, Qwen, Llama, Mistral and LFM2 write them, in a JSON "
        "fence, and as the tokenizer's own response template says. If several calls are right "
        'together, write `"answer": {"calls": [...]}`; their order does not matter. If no call is '
        'right, write `"answer": "none"`; then any text without a call is right.'
    )
    names_answers = False

    def check_answer(self, answer: Any, record: Mapping[str, Any]) -> str:
        """Check that it is a call, or several, of tools that the row has."""
        if answer == NO_CALL:
            return NO_CALL
        calls = [answer]
        if isinstance(answer, dict) and answer.keys() == {"calls"}:
            calls = answer["calls"]
            if not isinstance(calls, list) or not 1 < len(calls) <= _MOST_CALLS:
                wanted = f"calls must be a list of 2 to {_MOST_CALLS} calls"
                raise DataError(f"{wanted}, got {calls!r}"[:200])
        written = sorted(map(write_call, calls))
        check_calls([json.loads(call) for call in written], record.get("tools"))
        return _BETWEEN.join(written)

    def list_extras(self, accepted: Sequence[str], record: Mapping[str, Any]) -> Rule:
        """Keep the tools, whose schemas tell a text from a number."""
        return super().list_extras(accepted, record) | {"tools": record.get("tools")}

    def read(
        self, text: str, rule: Rule, phrases: Sequence[str] = (), tokenizer: Any = None
    ) -> str:
        """Read all calls; `none` if no call is made, where that may be right."""
        tools = rule.get("tools")
        calls = _BETWEEN.join(read_tool_calls(text, tokenizer, tools))
        if calls or NO_CALL not in rule["accepted"]:
            return calls
        is_text = re.search(r"[^\W_]", drop_thinking(text)) and not attempts_call(text, tools)
        return NO_CALL if is_text else ""

    def write_right_answers(self, rule: Rule) -> list[str]:
        """Return the calls: a model writes them, though no row has them as words."""
        return list(rule["accepted"])

    def is_right(self, read: str, rule: Rule) -> bool:
        """Compare the calls, in any order, with the accepted ones."""
        if read in rule["accepted"] or not read or read == NO_CALL:
            return read in rule["accepted"]
        return _BETWEEN.join(sorted(_split_calls(read))) in rule["accepted"]


def _split_calls(read: str) -> Iterator[str]:
    """Split what `ToolCall.read` joined; a text in a call may hold what stands between calls."""
    begin = 0
    while begin < len(read):
        _, end = STRICT_DECODER.raw_decode(read, begin)
        yield read[begin:end]
        begin = end + len(_BETWEEN)
