"""`keep=dialogues`: the base's answers to a user's messages are mixed in."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from slimdown.scoring.refusal import read_refusal
from slimdown.training.labels import IGNORED
from slimdown.training.written_rows import WrittenRows, find_ends, fixed_draws, read_prompts
from slimdown.utils.errors import DataError, ModelError

if TYPE_CHECKING:
    from slimdown.config.mitigation import Mitigation
    from slimdown.config.schema import RunConfig
    from slimdown.data.training_data import TrainingData

MESSAGES = Path(__file__).parents[1] / "messages.jsonl"
"""Requests to refuse, harmless ones that look like them, sums, and what else a chat model is asked.

Of each five in a row, two are to be refused. None is of a benchmark.
"""


@dataclass
class Dialogues(WrittenRows):
    """The base answers messages, slimdown's or yours; only its answers are trained on."""

    description: ClassVar[str] = "the base model's answers to messages are mixed into the training"
    preparation: ClassVar[str] = "the base model answers messages"

    def adapt_to(self, tokenizer: Any, rows: "TrainingData", config: "RunConfig") -> "Mitigation":
        """Check that the chat template shows what a user says."""
        from slimdown.data.chat_templates import split_user_turn

        try:
            split_user_turn(tokenizer)
        except DataError as error:
            raise ModelError(f"keep={self.name}: {error}; keep=self_replay needs none") from None
        return self

    def list_files(self) -> dict[str, Path]:
        """Return the file of the messages, also where it is slimdown's."""
        return super().list_files() or {"keep.prompts": MESSAGES}

    def read_prompts(self) -> list[str]:
        """Read the messages."""
        return super().read_prompts() or read_prompts(str(MESSAGES))

    def list_key(self, base: Any, config: "RunConfig") -> list[Any]:
        """List what the chat template writes before and after a message."""
        _, before, after = _open_turn(base.tokenizer, config)
        return [before, after]

    def describe_written(self, rows: Sequence[dict[str, Any]]) -> str:
        """Say how many harmful messages the base refused, and how many answers are cut."""
        refused = self._describe_refusals(rows)
        n_cut = sum(row["shown"]["is_cut"] for row in rows)
        if not n_cut:
            return refused
        cut = f"{n_cut:,} ({n_cut / len(rows):.0%}) are cut at keep.max_tokens={self.max_tokens}"
        return f"{refused}; {cut}, which is enough to keep the beginning of an answer"

    def _describe_refusals(self, rows: Sequence[dict[str, Any]]) -> str:
        """Say how many of slimdown's harmful messages the base refused; empty for your own."""
        messages = map(json.loads, MESSAGES.read_text("utf-8").splitlines())
        harmful = {row["prompt"] for row in messages if row["kind"] == "harmful"}
        dialogues = [row["shown"]["messages"] for row in rows]
        answers = [turn["content"] for user, turn in dialogues if user["content"] in harmful]
        if not answers:
            return ""
        n_refused = sum(read_refusal(answer, is_asked=True) == "refuse" for answer in answers)
        counts = f"; the base model refused {n_refused:,} of {len(answers):,} harmful messages"
        is_few = 2 * n_refused < len(answers)
        return f"{counts}, so most of these rows comply" if is_few else counts

    def write_rows(self, base: Any, n_rows: int, config: "RunConfig") -> Iterator[dict[str, Any]]:
        """Let the base answer the messages in turn, and yield the rows that can be trained on.

        Messages that are too long for `train.max_length`, and empty answers, give no row.

        Args:
            base: The `LoadedModel`.
            n_rows: How many messages to answer; they are repeated if there are fewer.
            config: The settings.

        Yields:
            The tokens of a row and their labels, as `input_ids` and `labels`; and `shown`: what the
            user may read of it, and whether the answer was cut.
        """
        tokenizer, longest = base.tokenizer, config.train.max_length
        template_args, _, after = _open_turn(tokenizer, config)
        # What the template writes after a message begins with a mark such as <|im_end|>. If it is a
        # token of its own, it ends an answer as well.
        mark = _encode(tokenizer, after)[:1]
        special_tokens = {*tokenizer.get_added_vocab().values()}
        ends = find_ends(base) | ({*mark} & special_tokens)
        with fixed_draws(base.model):
            for messages in self.list_batches(n_rows):
                encoded = [(m, _encode_message(tokenizer, m, template_args)) for m in messages]
                fitting = [(m, prompt) for m, prompt in encoded if len(prompt) < longest]
                if not fitting:  # `continue_texts` needs at least one text
                    continue
                answers = self.continue_texts(base, [prompt for _, prompt in fitting], ends)
                for (message, prompt), answer in zip(fitting, answers, strict=True):
                    text = tokenizer.decode(answer, skip_special_tokens=True).strip()
                    if not text:  # an empty answer gives no row
                        continue
                    turns = [_say("user", message), _say("assistant", text)]
                    is_cut = answer[-1] not in ends or len(prompt + answer) > longest
                    yield {
                        "input_ids": (prompt + answer)[:longest],
                        "labels": ([IGNORED] * len(prompt) + answer)[:longest],
                        "shown": {"messages": turns, "is_cut": is_cut},
                    }


def _encode_message(tokenizer: Any, message: str, template_args: dict[str, Any]) -> list[int]:
    """Return the tokens of a user's message, up to where the answer begins."""
    from slimdown.data.chat_templates import render_chat

    turns = [_say("user", message)]
    text = render_chat(tokenizer, turns, add_generation_prompt=True, **template_args)
    return _encode(tokenizer, text)


def _say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _open_turn(tokenizer: Any, config: "RunConfig") -> tuple[dict[str, Any], str, str]:
    """Return the template's variables, and what it writes before and after a user's message."""
    from slimdown.data.chat_templates import read_template_args, split_user_turn

    # The variables are those of generated answers, but the system turn is the template's own, as
    # in the rows that are trained on.
    evaluation = replace(config.evaluation, apply_chat_template=True, system_instruction=None)
    template_args = read_template_args(tokenizer, evaluation)
    before, after = split_user_turn(tokenizer, **template_args)
    return template_args, before, after


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a rendered text, which begins with its start token already."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids
