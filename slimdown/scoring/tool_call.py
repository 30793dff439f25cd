"""`tool_call`: the answer makes the right call, and no other."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from slimdown.scoring.score import Rule, Score
from slimdown.scoring.tool_calls import check_calls, read_tool_calls, write_call


class ToolCall(Score):
    """Right if the one call of the answer is an accepted one."""

    name = "tool_call"
    description = (
        'one call such as `{"name": "add", "arguments": {"a": 1}}` and no other, as Hermes, Qwen, '
        "Llama, Mistral, LFM2, a JSON fence or the response template writes it"
    )
    names_answers = False

    def check_answer(self, answer: Any, record: Mapping[str, Any]) -> str:
        """Check that it is a call of a tool that the row has."""
        call = write_call(answer)
        check_calls([json.loads(call)], record.get("tools"))
        return call

    def list_extras(self, accepted: Sequence[str], record: Mapping[str, Any]) -> Rule:
        """Keep the tools, whose schemas tell a text from a number."""
        return super().list_extras(accepted, record) | {"tools": record.get("tools")}

    def read(
        self, text: str, rule: Rule, phrases: Sequence[str] = (), tokenizer: Any = None
    ) -> str:
        """Read all calls."""
        return "; ".join(read_tool_calls(text, tokenizer, rule.get("tools")))
