"""`keep=dialogues`: dialogues that the base writes itself are mixed in (arXiv 2602.20162)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from slimdown.training.labels import IGNORED
from slimdown.training.written_rows import (
    BATCH,
    WrittenRows,
    continue_texts,
    draw_alike,
    find_ends,
)
from slimdown.utils.errors import DataError, ModelError

if TYPE_CHECKING:
    from slimdown.config.schema import RunConfig


@dataclass
class Dialogues(WrittenRows):
    """The base answers messages, written by itself or by you; the loss is of the answer alone."""

    about: ClassVar[str] = "dialogues that the base writes are mixed in"

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Check that the chat template opens a user's turn."""
        from slimdown.data.chat_templates import split_user_turn

        try:
            split_user_turn(tokenizer)
        except DataError as error:
            problem = f"keep={self.name}: {error}; keep=auto replays other rows of such a base"
            raise ModelError(problem) from None

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
        return f"; {n_cut:,} ({share}) are cut at keep.max_tokens={self.max_tokens}" * bool(n_cut)

    def write_rows(self, base: Any, n_rows: int, config: "RunConfig") -> Iterator[dict[str, Any]]:
        """Let the base write a user's message to its end, or take yours in turn; let it answer."""
        from slimdown.data.chat_templates import render_chat

        tokenizer, longest, prompts = base.tokenizer, config.train.max_length, self.read_prompts()
        args, before, behind = _open_turn(tokenizer, config)
        close, ends = behind.strip(), find_ends(base)
        # A mark such as <|im_end|> ends a turn; where it is no token of its own, the text is cut.
        first = _encode(tokenizer, behind)[:1]
        ends |= {*first} & {*tokenizer.get_added_vocab().values()}

        def write(texts: list[list[int]]) -> list[list[int]]:
            return continue_texts(base, texts, ends, self.max_tokens, self.temperature)

        def write_messages(n: int) -> Iterator[tuple[str, bool]]:
            """Yield messages, and whether each is cut."""
            for written in write([_encode(tokenizer, before)] * n):
                text = tokenizer.decode(written, skip_special_tokens=True)
                message, mark, _ = text.partition(close) if close else (text, "", "")
                yield message.strip(), written[-1] not in ends and not mark

        with draw_alike(base.model):
            for begin in range(0, n_rows, BATCH):
                numbers = range(begin, min(begin + BATCH, n_rows))
                yours = [(prompts[i % len(prompts)], False) for i in numbers] if prompts else []
                begun: list[tuple[str, bool, list[int]]] = []
                for message, is_cut in yours or write_messages(len(numbers)):
                    if message:
                        asked = [{"role": "user", "content": message}]
                        prompt = render_chat(tokenizer, asked, add_generation_prompt=True, **args)
                        begun.append((message, is_cut, _encode(tokenizer, prompt)))
                begun = [one for one in begun if len(one[2]) < longest]
                answers = write([ids for _, _, ids in begun]) if begun else []
                for (message, is_cut, ids), answer in zip(begun, answers, strict=True):
                    text = tokenizer.decode(answer, skip_special_tokens=True).strip()
                    if not text:
                        continue
                    turns = {"user": message, "assistant": text}
                    messages = [{"role": role, "content": said} for role, said in turns.items()]
                    is_cut = is_cut or answer[-1] not in ends or len(ids + answer) > longest
                    yield {
                        "input_ids": (ids + answer)[:longest],
                        "labels": ([IGNORED] * len(ids) + answer)[:longest],
                        "shown": {"messages": messages, "is_cut": is_cut},
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
