"""`keep=dialogues`: the base's answers to a user's messages are mixed in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from slimdown.training.labels import IGNORED
from slimdown.training.written_rows import (
    BATCH,
    WrittenRows,
    continue_texts,
    draw_alike,
    find_ends,
    read_prompts,
)
from slimdown.utils.errors import DataError, ModelError

if TYPE_CHECKING:
    from slimdown.config.mitigation import Mitigation
    from slimdown.config.schema import RunConfig
    from slimdown.data.training_data import TrainingData

MESSAGES = Path(__file__).parents[1] / "messages.jsonl"
"""Requests to refuse, harmless ones that look like them, sums, and what else a chat model is asked.

Of five in a row two are to be refused. None is of a benchmark.
"""


@dataclass
class Dialogues(WrittenRows):
    """The base answers messages, slimdown's or yours; the loss is of its answers alone."""

    about: ClassVar[str] = "the base model's answers to messages are mixed into the training"
    preparation: ClassVar[str] = "the base model answers messages"

    def adapt_to(self, tokenizer: Any, rows: "TrainingData", config: "RunConfig") -> "Mitigation":
        """Check that the chat template shows what a user says."""
        from slimdown.data.chat_templates import split_user_turn

        try:
            split_user_turn(tokenizer)
        except DataError as error:
            problem = f"keep={self.name}: {error}; keep=self_replay needs none"
            raise ModelError(problem) from None
        return self

    def list_files(self) -> dict[str, Path]:
        """Return the file of the messages, also where it is slimdown's."""
        return super().list_files() or {"keep.prompts": MESSAGES}

    def read_prompts(self) -> list[str]:
        """Read the messages."""
        return super().read_prompts() or read_prompts(str(MESSAGES))

    def list_key(self, base: Any, config: "RunConfig") -> list[Any]:
        """List what the chat template writes around a message."""
        return list(_open_turn(base.tokenizer, config)[1:])

    def advise_empty(self) -> str:
        """Advise longer rows, or others."""
        return "set a larger one, or keep=self_replay"

    def describe_written(self, rows: Sequence[dict[str, Any]]) -> str:
        """Say how many are cut."""
        n_cut = sum(row["shown"]["is_cut"] for row in rows)
        share = f"{n_cut / max(1, len(rows)):.0%}"
        if not n_cut:
            return ""
        cut = f"{n_cut:,} ({share}) are cut at keep.max_tokens={self.max_tokens}"
        return f"; {cut}, which is enough to keep the beginning of an answer, and so a refusal"

    def write_rows(self, base: Any, n_rows: int, config: "RunConfig") -> Iterator[dict[str, Any]]:
        """Let the base answer the messages in turn."""
        from slimdown.data.chat_templates import render_chat

        tokenizer, longest, messages = base.tokenizer, config.train.max_length, self.read_prompts()
        args, _, behind = _open_turn(tokenizer, config)
        ends = find_ends(base)
        # A mark such as <|im_end|> ends a turn, where it is a token of its own.
        ends |= {*_encode(tokenizer, behind)[:1]} & {*tokenizer.get_added_vocab().values()}
        with draw_alike(base.model):
            for begin in range(0, n_rows, BATCH):
                begun: list[tuple[str, list[int]]] = []
                for number in range(begin, min(begin + BATCH, n_rows)):
                    message = messages[number % len(messages)]
                    asked = [{"role": "user", "content": message}]
                    prompt = render_chat(tokenizer, asked, add_generation_prompt=True, **args)
                    begun.append((message, _encode(tokenizer, prompt)))
                begun = [one for one in begun if len(one[1]) < longest]
                if not begun:
                    continue
                prompts = [ids for _, ids in begun]
                answers = continue_texts(base, prompts, ends, self.max_tokens, self.temperature)
                for (message, ids), answer in zip(begun, answers, strict=True):
                    text = tokenizer.decode(answer, skip_special_tokens=True).strip()
                    if not text:
                        continue
                    turns = {"user": message, "assistant": text}
                    said = [{"role": role, "content": content} for role, content in turns.items()]
                    is_cut = answer[-1] not in ends or len(ids + answer) > longest
                    yield {
                        "input_ids": (ids + answer)[:longest],
                        "labels": ([IGNORED] * len(ids) + answer)[:longest],
                        "shown": {"messages": said, "is_cut": is_cut},
                    }


def _open_turn(tokenizer: Any, config: "RunConfig") -> tuple[dict[str, Any], str, str]:
    """Return the template's variables, and what it writes before and behind a user's message."""
    from slimdown.data.chat_templates import read_template_args, split_user_turn

    # As generated answers are asked for, but by the template's own system turn, as rows have it.
    asked = replace(config.evaluation, apply_chat_template=True, system_instruction=None)
    args = read_template_args(tokenizer, asked)
    return args, *split_user_turn(tokenizer, **args)


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a rendered text, which has its start token already."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids
