"""Keep the base's abilities by rows that it writes itself, or a distance to it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from slimdown.config.keep_config import Keep
from slimdown.config.schema import RunConfig
from slimdown.data.row_checks import read_prompts
from slimdown.data.training_data import count_replayed
from slimdown.models.base_model import LoadedModel
from slimdown.models.causal import eval_mode
from slimdown.training.tokenizing import IGNORED, TokenizedRows
from slimdown.utils.distributed import broadcast_from_main, process_rank
from slimdown.utils.errors import DataError
from slimdown.utils.files import cache_dir, write_atomically
from slimdown.utils.hashing import hash_json

_BATCH = 16  # rows that are written at once
# The logit of a target token that is left out: finite, so that 0 times it is 0.
_IMPOSSIBLE = -1e9
_TOKENS = 64  # with probabilities in memory at once: those of a whole batch take gigabytes
_MARK = IGNORED - 1


def apply_keep(base: LoadedModel, rows: TokenizedRows, config: RunConfig) -> TokenizedRows:
    """Return the rows to train on, with what `keep` adds to them or marks in them.

    Several processes must call this together.

    Args:
        base: The model as it was loaded; it is left as it is.
        rows: Tokenized and cut; held-out rows stay as they are.
        config: The checked settings.

    Raises:
        DataError: The base writes nothing.
    """
    keep = config.keep
    if keep.name is Keep.replay and keep.weight:
        n_others = len(rows.train) - rows.n_replayed  # replayed rows are the last
        labels = list(rows.train["labels"])
        labels = [*labels[:n_others], *map(mark_replayed, labels[n_others:])]
        columns = {"input_ids": rows.train["input_ids"], "labels": labels}
        return replace(rows, train=Dataset.from_dict(columns, rows.train.features))
    if keep.name is Keep.self_replay:
        n_rows = count_replayed(len(rows.train), keep.share or 0.0)
        written = _find_or_write_rows(base, config, n_rows) if process_rank() == 0 else []
        written = broadcast_from_main(written)
        if keep.weight:
            written = [{**row, "labels": mark_replayed(row["labels"])} for row in written]
        more = Dataset.from_list(written, rows.train.features) if written else rows.train.select([])
        note = f"keep=self_replay: {len(written):,} of {n_rows:,} rows that {base.id} wrote"
        note = f"{note} have a token to train on and are mixed in"
        train = concatenate_datasets([rows.train, more])
        return replace(rows, train=train, notes=[*rows.notes, note])
    return rows


def mark_replayed(labels: Any) -> Any:
    """Mark the labels of a replayed row, where the distance to the base counts, or unmark them.

    The Trainer passes only tokens and labels to the loss. It counts all labels but -100 as
    trained, and no token has a number below 0.

    Args:
        labels: A list to mark, or a tensor to unmark; ignored labels stay as they are.
    """
    if isinstance(labels, torch.Tensor):
        return torch.where(labels < IGNORED, _MARK - labels, labels)
    return [label if label == IGNORED else _MARK - label for label in labels]


def measure_divergence(
    base_logits: torch.Tensor, logits: torch.Tensor, target: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute how far a model is from its base, in nats, for each token.

    It is the Kullback-Leibler divergence of the tuned from the base's distribution. `target` leaves
    the right tokens out (after arXiv 2605.29498), so that their own likelihood is free to grow.

    Args:
        base_logits: The logits of the base, [tokens, vocabulary].
        logits: The same of the tuned model.
        target: [tokens], the right token of each; None leaves nothing out.

    Returns:
        [tokens]
    """
    if len(logits) > _TOKENS:
        parts = [part.split(_TOKENS) for part in (base_logits, logits, target) if part is not None]
        # Both softmaxes of each part are computed again for its gradient, not kept.
        compute = partial(
            checkpoint, measure_divergence, use_reentrant=False, preserve_rng_state=False
        )
        return torch.cat([compute(*part) for part in zip(*parts, strict=True)])
    models = [base_logits.float(), logits.float()]
    if target is not None:
        models = [one.scatter(-1, target[:, None], _IMPOSSIBLE) for one in models]
    of_base, of_tuned = (one.log_softmax(-1) for one in models)
    return functional.kl_div(of_tuned, of_base, reduction="none", log_target=True).sum(-1)


def _find_or_write_rows(
    base: LoadedModel, config: RunConfig, n_rows: int
) -> list[dict[str, list[int]]]:
    """Return rows that the base wrote; take them from the cache if it wrote the same before."""
    keep = config.keep
    prompts = read_prompts(keep.prompts) if keep.prompts else [""]
    longest = config.train.max_length
    settings = [keep.max_tokens, keep.temperature, n_rows, prompts, longest, "no end"]
    file = cache_dir() / "replay" / f"{hash_json([base.identity, settings])}.json"
    if base.identity and file.is_file():
        return list(json.loads(file.read_text()))
    rows = list(_write_rows(base, config, n_rows, prompts))
    if n_rows and not rows:
        raise DataError(
            f"keep=self_replay: {base.id} writes nothing; name texts that it can continue, shorter "
            f"than train.max_length={longest}: keep.prompts=FILE.jsonl with a prompt in each row"
        )
    write_atomically(file, json.dumps(rows))
    return rows


def _write_rows(
    base: LoadedModel, config: RunConfig, n_rows: int, prompts: Sequence[str]
) -> Iterator[dict[str, list[int]]]:
    tokenizer, model, keep, most = base.tokenizer, base.model, config.keep, config.train.max_length
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    start = next(token for token in marks if token is not None)
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    cuda = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), eval_mode(model):
        torch.manual_seed(0)  # equal for all seeds of a training: written once for each base
        for begin in range(0, n_rows, _BATCH):
            numbers = range(begin, min(begin + _BATCH, n_rows))
            texts = [prompts[i % len(prompts)] for i in numbers]
            encoded = [tokenizer(text).input_ids[:most] or [start] for text in texts]
            width = max(map(len, encoded))
            padded = [[start] * (width - len(ids)) + ids for ids in encoded]
            mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in encoded]
            tokens = model.generate(
                input_ids=torch.tensor(padded, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                do_sample=True,
                temperature=keep.temperature,
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,  # the base's own distribution, whatever its publisher set
                max_new_tokens=keep.max_tokens,
                min_new_tokens=1,  # a row of the end alone teaches to say nothing
                eos_token_id=sorted(ends) or None,
                pad_token_id=start,
            )
            for ids, answer in zip(encoded, tokens[:, width:].tolist(), strict=True):
                end = next((i + 1 for i, token in enumerate(answer) if token in ends), len(answer))
                if end > 1 and len(ids) < most:  # more than the end alone, and a token to train on
                    written = answer[:end]
                    labels = [IGNORED] * len(ids) + written
                    yield {"input_ids": (ids + written)[:most], "labels": labels[:most]}
