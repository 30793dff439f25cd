"""Keep the base's abilities by rows that it writes itself, masked tokens, or a distance to it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import log
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
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
    """Return the rows to train on, with what `keep` adds to them or masks in them.

    Several processes must call this together.

    Args:
        base: The model as it was loaded; it is left as it is.
        rows: Tokenized and cut; held-out rows stay as they are.
        config: The checked settings.

    Raises:
        DataError: The base writes nothing, or nothing is left to train on.
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
    if keep.name is Keep.mask:
        return _mask_tokens(base, rows, config)
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


def _mask_tokens(base: LoadedModel, rows: TokenizedRows, config: RunConfig) -> TokenizedRows:
    """Mask tokens that surprise the base, or as many drawn by chance, so they carry no loss."""
    keep = config.keep
    labels = [np.array(row) for row in rows.train["labels"]]
    surprising = _find_surprising(base, rows.train["input_ids"], labels, config)
    n_trained = sum(int((row[1:] != IGNORED).sum()) for row in labels)
    n_masked = sum(int(mask.sum()) for mask in surprising)
    if keep.random:
        trained = np.concatenate([row != IGNORED for row in labels])
        starts = np.cumsum([0, *map(len, labels)])
        trained[starts[:-1]] = False  # a row's first token is never predicted
        chosen = np.zeros(len(trained), bool)
        places = np.random.default_rng(config.seed).permutation(np.flatnonzero(trained))
        chosen[places[:n_masked]] = True
        surprising = np.split(chosen, starts[1:-1])
    masked = [np.where(mask, IGNORED, row) for mask, row in zip(surprising, labels, strict=True)]
    has_loss = [i for i, row in enumerate(masked) if (row[1:] != IGNORED).any()]
    if not has_loss:
        raise DataError(
            f"keep.max_perplexity={keep.max_perplexity:g} masks every token of the rows; raise it"
        )
    columns = {"input_ids": rows.train[has_loss]["input_ids"]}
    columns["labels"] = [masked[i].tolist() for i in has_loss]
    train = Dataset.from_dict(columns, rows.train.features)
    kind = "drawn by chance" if keep.random else f"above perplexity {keep.max_perplexity:g}"
    share = f"{100 * n_masked / n_trained:.0f} % of {n_trained:,} tokens"
    note = f"keep=mask: {share}, {kind}, carry no loss"
    n_untrained = rows.n_untrained + len(labels) - len(has_loss)
    return replace(rows, train=train, notes=[*rows.notes, note], n_untrained=n_untrained)


def _find_surprising(
    base: LoadedModel, rows: Sequence[list[int]], labels: Sequence[Any], config: RunConfig
) -> list[Any]:
    """Return for each row its trained tokens whose probability is below 1 / max_perplexity."""
    model, pad = base.model, base.tokenizer.pad_token_id or 0
    max_perplexity = config.keep.max_perplexity or 0
    size = min(16, config.train.per_device_eval_batch_size)
    surprising = [np.zeros(len(row), bool) for row in labels]
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with eval_mode(model):
        for begin in range(0, len(rows), size):
            numbers = by_length[begin : begin + size]
            batch = [torch.tensor(rows[i]) for i in numbers]
            ids = pad_sequence(batch, batch_first=True, padding_value=pad).to(model.device)
            lengths = torch.tensor([len(row) for row in batch], device=model.device)
            mask = (torch.arange(ids.shape[1], device=model.device) < lengths[:, None]).long()
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            nats = functional.cross_entropy(
                logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            ).reshape(len(numbers), -1)
            for i, of_row in zip(numbers, nats.cpu().numpy(), strict=True):
                above = of_row[: len(rows[i]) - 1] > log(max_perplexity)
                surprising[i][1:] = above & (labels[i][1:] != IGNORED)
    return surprising
