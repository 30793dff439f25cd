"""Examples -> the tokens of each and which of them are trained on, as TRL's `SFTTrainer` prepares them.

TRL takes five passes over a dataset, row by row, and can mix no formats; here it is one, in batches, for training,
validation and the count of what is cut alike. tests/test_tokens.py holds that ids and labels are TRL's.
"""

import re
from typing import Any, NamedTuple

from slimdown.config.schema import TrainConfig
from slimdown.data.chat import ONE_DAY, rendered
from slimdown.utils.errors import SlimdownError

IGNORED = -100  # the label of a token that is not trained on


def marks_assistant(chat_template: str | dict[str, str] | None) -> bool:
    """Whether a template says which part of what it writes is the assistant's."""
    text = chat_template.get("default") if isinstance(chat_template, dict) else chat_template
    return bool(re.search(r"\{%-?\s*generation\b", text or ""))


class Tokens(NamedTuple):
    """One example; `labels` holds the tokens that are trained on, and -100 for the others."""

    input_ids: list[int]
    labels: list[int]
    n_prompt: int  # the tokens before the completion; 0 where an example has none


class Encoder:
    """Tokenizes examples as TRL does.

    Args:
        tokenizer: transformers'.
        config: what is trained on of an example; nothing is cut here.
        chat_template: written in place of the tokenizer's own, as TRL's variants that mark what the assistant says.
    """

    def __init__(
        self, tokenizer: Any, config: TrainConfig, chat_template: str | None = None
    ) -> None:
        self._tokenizer, self._config = tokenizer, config
        self._template = {} if chat_template is None else {"chat_template": chat_template}
        self._is_marked = marks_assistant(chat_template or tokenizer.chat_template)

    def encode(self, batch: dict[str, list[Any]]) -> list[Tokens]:
        """The tokens of examples, given by column.

        Raises:
            SlimdownError: where only what the assistant says is trained on, and that cannot be told.
        """
        examples = [
            dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)
        ]
        found: dict[int, Tokens] = {}
        chats = [i for i, example in enumerate(examples) if example.get("messages")]
        texts = [i for i, example in enumerate(examples) if not example.get("messages")]
        if texts and self._config.assistant_only_loss:
            raise SlimdownError(
                f"train.assistant_only_loss=true: dataset.{examples[texts[0]]['dataset']} holds no messages; use "
                "train.completion_only_loss=true"
            )
        for indices, encode in ((texts, self._texts), (chats, self._chats)):
            if indices:
                found |= zip(indices, encode([examples[i] for i in indices]), strict=True)
        return [found[i] for i in range(len(examples))]

    def _texts(self, examples: list[dict[str, Any]]) -> list[Tokens]:
        whole = [
            e["text"] if e.get("text") is not None else e["prompt"] + e["completion"]
            for e in examples
        ]
        ids = self._tokenizer(whole, return_attention_mask=False)["input_ids"]
        asked = self._with_prompt_needed(ids, [e.get("prompt") is not None for e in examples])
        prompts = [examples[i]["prompt"] for i in asked]
        prompt_ids = (
            self._tokenizer(prompts, return_attention_mask=False)["input_ids"] if asked else []
        )
        return self._labelled(ids, [None] * len(ids), dict(zip(asked, prompt_ids, strict=True)))

    def _chats(self, examples: list[dict[str, Any]]) -> list[Tokens]:
        conversations = [example["messages"] for example in examples]
        masks: list[list[int] | None] = [None] * len(examples)
        if not self._config.assistant_only_loss:
            ids = self._written(conversations)["input_ids"]
        elif self._is_marked:
            marked = self._written(conversations, return_assistant_tokens_mask=True)
            ids, masks = marked["input_ids"], marked["assistant_masks"]
        else:
            spans = [self._spans(example) for example in examples]
            mapped = self._written(conversations, tokenizer_kwargs={"return_offsets_mapping": True})
            ids = mapped["input_ids"]
            masks = [
                _overlapping(*both) for both in zip(mapped["offset_mapping"], spans, strict=True)
            ]
        asked = self._with_prompt_needed(ids, [e.get("n_prompt") is not None for e in examples])
        prompts = [conversations[i][: examples[i]["n_prompt"]] for i in asked]
        prompt_ids = (
            self._written(prompts, add_generation_prompt=True)["input_ids"] if asked else []
        )
        return self._labelled(ids, masks, dict(zip(asked, prompt_ids, strict=True)))

    def _written(self, conversations: list[Any], **settings: Any) -> Any:
        """The tokens of conversations in the chat template's words.

        Raises:
            SlimdownError: the template fails, or the tokenizer cannot say where a token comes from.
        """
        settings = {"return_dict": True, **self._template, **ONE_DAY, **settings}
        try:
            return self._tokenizer.apply_chat_template(conversations, **settings)
        except Exception as error:  # the publisher's program: whatever it raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise SlimdownError(
                f"the tokenizer's chat template does not take the rows' messages ({reason})"
            ) from None

    def _with_prompt_needed(self, ids: list[list[int]], has_prompt: list[bool]) -> list[int]:
        """Of which examples the prompt's length counts: it is not trained on, or may be all that is left."""
        longest = self._config.max_length
        needed = self._config.completion_only_loss
        return [i for i, has in enumerate(has_prompt) if has and (needed or len(ids[i]) > longest)]

    def _labelled(
        self, ids: list[list[int]], masks: list[list[int] | None], prompts: dict[int, list[int]]
    ) -> list[Tokens]:
        found = []
        for i, (tokens, mask) in enumerate(zip(ids, masks, strict=True)):
            n_prompt = _n_common(tokens, prompts[i]) if i in prompts else 0
            labels = (
                tokens
                if mask is None
                else [t if m else IGNORED for t, m in zip(tokens, mask, strict=True)]
            )
            if self._config.completion_only_loss:
                labels = [IGNORED] * n_prompt + labels[n_prompt:]
            found.append(Tokens(tokens, labels, n_prompt))
        return found

    def _spans(self, example: dict[str, Any]) -> list[tuple[int, int]]:
        """Where in the written conversation the assistant speaks, by what each of its turns adds to the ones before.

        Exact where the template writes every turn as it does when no other follows, which is looked at here.
        """
        turns, place = example["messages"], f"dataset.{example['dataset']} row {example['row']}"
        try:
            return self._added(turns)
        except ValueError as error:
            raise SlimdownError(f"train.assistant_only_loss=true: {place}: {error}") from None

    def _added(self, turns: list[dict[str, str]]) -> list[tuple[int, int]]:
        """From where to where each of the assistant's turns goes in the whole.

        Raises:
            ValueError: the template fails, or goes back on what it wrote.
        """
        whole = rendered(self._tokenizer, turns)
        spans = []
        for i, turn in enumerate(turns):
            if turn["role"] == "assistant":
                before = (
                    rendered(self._tokenizer, turns[:i], add_generation_prompt=True) if i else None
                )
                after = rendered(self._tokenizer, turns[: i + 1])
                if before is None or not after.startswith(before) or not whole.startswith(after):
                    raise ValueError(
                        "the chat template has no {% generation %}, and writes a turn otherwise once another follows, "
                        "so what the assistant says cannot be told apart; leave the setting out, or use a copy of the "
                        "model whose template marks it"
                    )
                spans.append((len(before), len(after)))
        return spans


def _overlapping(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """1 for each token of which a character lies in a span, as transformers counts them.

    >>> _overlapping([(0, 2), (2, 5), (5, 6)], [(4, 5)])
    [0, 1, 0]
    """
    return [
        int(any(start < last and end > first for first, last in spans)) for start, end in offsets
    ]


def _n_common(one: list[int], other: list[int]) -> int:
    """How many tokens two lists begin with alike."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
