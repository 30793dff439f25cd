"""Questions as token rows: what they share, how they are packed, and who may look at whom.

Everything here is lists and tensors; it knows neither the harness nor a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile

import torch

Tokens = tuple[int, ...]

# Contexts that agree on this many leading tokens are taken to share a preamble (few-shot examples).
PREAMBLE_TOKENS = 64
# A preamble costs a forward of its own; below this many tokens saved it is not worth it.
WORTHWHILE_TOKENS = 512
# Least width of rows that each repeat a preamble's keys and values: few wide rows repeat them less
# often than many narrow ones; much wider, and attention between strangers outweighs that.
ROW_TOKENS = 512


def token_budget(device: str) -> int:
    """Tokens per forward. On a CPU more gains nothing and costs memory; a GPU needs more to be busy."""
    return 2048 if device == "cpu" else 16384


@dataclass(frozen=True)
class Question:
    """One context and the answers to score after it.

    `answers` maps an answer's tokens to the indices of the requests that ask for it, so that equal
    answers are computed once.
    """

    context: Tokens
    answers: dict[Tokens, list[int]] = field(default_factory=dict)

    def n_tokens(self, n_preamble: int) -> int:
        """Tokens the question adds to a row when its first `n_preamble` are already computed."""
        # The last token of an answer predicts nothing that is asked for, so it is left out.
        return len(self.context) - n_preamble + sum(len(answer) - 1 for answer in self.answers)

    def halves(self) -> list[Question]:
        """The same context with the first half of the answers, and with the rest: at least one each, or itself.

        >>> [list(half.answers) for half in Question((1,), {(2,): [0], (3,): [1], (4, 5): [2]}).halves()]
        [[(2,)], [(3,), (4, 5)]]
        """
        answers, middle = list(self.answers.items()), len(self.answers) // 2
        return [
            Question(self.context, dict(part))
            for part in (answers[:middle], answers[middle:])
            if part
        ]


def group_by_preamble(
    contexts: Iterable[Tokens], n_virtual: int = 0
) -> list[tuple[Tokens, list[Tokens]]]:
    """Contexts in groups, each with the leading tokens that are worth computing once for it.

    Every context keeps at least one token of its own. The group without a preamble comes last: of contexts that all
    begin with `n_virtual` virtual tokens, which no forward of theirs can compute, the one with no other.
    """
    groups: list[tuple[Tokens, list[Tokens]]] = []
    alone: list[Tokens] = []
    longest_start = n_virtual + PREAMBLE_TOKENS
    for start, members in groupby(sorted(contexts), key=lambda tokens: tokens[:longest_start]):
        group = list(members)
        n_shared = n_common(group[0], group[-1])  # of all, because the group is sorted
        n_shared = min(n_shared, min(len(tokens) for tokens in group) - 1)
        saved = (len(group) - 1) * (n_shared - n_virtual)
        if len(start) == longest_start and saved >= WORTHWHILE_TOKENS:
            groups.append((group[0][:n_shared], group))
        else:
            alone += group
    return [*groups, (alone[0][:n_virtual], alone)] if alone else groups


def n_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens two rows agree on."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def longest_first(questions: Iterable[Question], n_preamble: int) -> list[Question]:
    """The questions as `take_rows` takes them."""
    return sorted(questions, key=lambda question: question.n_tokens(n_preamble), reverse=True)


def take_rows(
    questions: Sequence[Question], n_preamble: int, token_budget: int, least_width: int = 0
) -> tuple[list[list[Question]], list[Question]]:
    """The rows of the next batch, and the questions left for later.

    `questions` come longest first, so the first one fixes the width of the rows, but for
    `least_width`. The batch, padding
    included, stays within `token_budget` unless the first question alone exceeds it.
    """
    width = max(questions[0].n_tokens(n_preamble), min(least_width, token_budget))
    n_rows = max(1, token_budget // width)
    smallest = questions[-1].n_tokens(n_preamble)
    rows: list[list[Question]] = []
    room: list[int] = []
    left: list[Question] = []
    for seen, question in enumerate(questions):
        size = question.n_tokens(n_preamble)
        place = next((i for i, free in enumerate(room) if free >= size), None)
        if place is None and len(rows) < n_rows:
            place = len(rows)
            rows.append([])
            room.append(width)
        if place is not None:
            rows[place].append(question)
            room[place] -= size
        else:  # a smaller one may yet fill what is left of a row
            left.append(question)
        if len(rows) == n_rows and max(room) < smallest:
            return rows, [*left, *questions[seen + 1 :]]
    return rows, left


@dataclass(frozen=True)
class PackedRows:
    """Rows of questions as the tensors a forward needs.

    input_ids, position_ids: [rows, width]. mask: bool [rows, 1, width, width], true where a token may
    look besides the preamble. kept: positions in the flattened [rows * width] whose logits are needed.
    slot, target, answer: one entry per scored token: which kept position predicts it, the token,
    and the answer it belongs to. requests: the request indices of each answer.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    kept: torch.Tensor
    slot: torch.Tensor
    target: torch.Tensor
    answer: torch.Tensor
    requests: list[list[int]]


def pack(rows: Sequence[Sequence[Question]], n_preamble: int) -> PackedRows:
    """The tensors of `rows`, on the CPU.

    In a row the questions follow one another: context, then each answer without its last token.
    A token looks at the preamble, at its own context and at its own answer, never ahead; each
    answer's positions go on where the context ends.
    """
    width = max(sum(question.n_tokens(n_preamble) for question in row) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    position_ids = torch.zeros_like(input_ids)
    question_of = torch.full_like(input_ids, -1)
    answer_of = torch.zeros_like(input_ids)  # 0 is the context
    kept: list[int] = []
    slot: list[int] = []
    target: list[int] = []
    owner: list[int] = []
    requests: list[list[int]] = []
    for r, row in enumerate(rows):
        at = 0
        tokens: list[int] = []
        positions: list[int] = []
        for q, question in enumerate(row):
            own = question.context[n_preamble:]
            n_context = len(question.context)
            tokens += own
            positions += range(n_preamble, n_context)
            at += len(own)
            context_slot = len(kept)
            kept.append(r * width + at - 1)
            for a, (answer, asked_by) in enumerate(question.answers.items(), start=1):
                n = len(answer) - 1
                tokens += answer[:-1]
                positions += range(n_context, n_context + n)
                answer_of[r, at : at + n] = a
                slot += [context_slot, *range(len(kept), len(kept) + n)]
                kept += range(r * width + at, r * width + at + n)
                target += answer
                owner += [len(requests)] * len(answer)
                requests.append(asked_by)
                at += n
            question_of[r, at - question.n_tokens(n_preamble) : at] = q
        input_ids[r, :at] = torch.tensor(tokens)
        position_ids[r, :at] = torch.tensor(positions)
    same_question = question_of[:, :, None] == question_of[:, None, :]
    visible = (answer_of[:, None, :] == 0) | (answer_of[:, :, None] == answer_of[:, None, :])
    return PackedRows(
        input_ids,
        position_ids,
        (same_question & visible).tril_()[:, None],
        torch.tensor(kept),
        torch.tensor(slot),
        torch.tensor(target),
        torch.tensor(owner),
        requests,
    )
