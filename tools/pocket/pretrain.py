"""Makes the base: a byte-level tokenizer and a small Llama, trained on the corpus alone."""

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from rich.progress import Progress, TextColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.pocket.corpus import SEED, generate_pretraining
from tools.pocket.items import Item

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
VOCAB_SIZE = 2048
N_TOKENIZER_DOCUMENTS = 40_000
# Numbers are single tokens: a model this small cannot also learn to do sums digit by digit.
LARGEST_NUMBER = 120

ROW_TOKENS = 128
ROWS_PER_STEP = 16
PEAK_LEARNING_RATE = 3e-3
FINAL_SHARE = 0.03
WARMUP_STEPS = 100
STEPS = 1800

# What the model should learn to write counts more than what it only has to read.
PROMPT_WEIGHT = 0.25
COMPLETION_WEIGHTS = {"cs": 2.0}


@dataclass(frozen=True)
class Row:
    """Token ids of whole documents, one after the other, and what each token counts in the loss."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class PretrainResult:
    """How the training went."""

    steps: int
    tokens: int
    loss: float
    parameters: int


def train_tokenizer(seed: int = SEED) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the corpus, in which 0 to 120 are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=4 * ROW_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def _tokenizer_texts(seed: int) -> Iterator[str]:
    for item in islice(generate_pretraining(seed), N_TOKENIZER_DOCUMENTS):
        yield item.text
    for number in range(LARGEST_NUMBER + 1):
        yield f" {number}" * 3000


def pack_rows(items: Iterable[Item], tokenizer: PreTrainedTokenizerFast) -> Iterator[Row]:
    """Rows of at most ROW_TOKENS + 1 tokens, each starting with a document and cutting none."""
    eos = tokenizer.convert_tokens_to_ids(EOS)
    open_rows: list[Row] = []
    for item in items:
        prompt = tokenizer(item.prompt).input_ids
        completion = tokenizer(item.completion).input_ids
        ids = [*prompt, *completion, eos]
        weight = COMPLETION_WEIGHTS.get(item.kind, 1.0)
        weights = [PROMPT_WEIGHT] * len(prompt) + [weight] * len(completion) + [1.0]
        for row in open_rows:
            if len(row.ids) + len(ids) <= ROW_TOKENS + 1:
                row.ids.extend(ids)
                row.weights.extend(weights)
                break
        else:
            open_rows.append(Row(ids, weights))
        if len(open_rows) > 24:
            fullest = max(open_rows, key=lambda row: len(row.ids))
            open_rows.remove(fullest)
            yield fullest


def stack_rows(rows: list[Row], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows as one tensor of ids and one of weights; padding weighs nothing."""
    ids = torch.full((len(rows), ROW_TOKENS + 1), pad_id)
    weights = torch.zeros(len(rows), ROW_TOKENS + 1)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        weights[i, : len(row.ids)] = torch.tensor(row.weights)
    return ids, weights


def create_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of about two million parameters."""
    pad, bos, eos = (int(tokenizer.vocab[token]) for token in (PAD, BOS, EOS))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4 * ROW_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    return LlamaForCausalLM(config)


def learning_rate(step: int, steps: int) -> float:
    """The rate of a step: a linear warm-up, then half a cosine down to a few percent."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return PEAK_LEARNING_RATE * warmup * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)


def create_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves the norms alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": norms, "weight_decay": 0.0}],
        lr=PEAK_LEARNING_RATE,
        betas=(0.9, 0.95),
        fused=True,
    )


def pretrain(folder: Path, seed: int = SEED, steps: int = STEPS) -> PretrainResult:
    """Trains tokenizer and model and saves both, the weights in bfloat16, into the folder."""
    tokenizer = train_tokenizer(seed)
    torch.manual_seed(seed)
    model = create_model(tokenizer)
    rows = list(islice(pack_rows(generate_pretraining(seed), tokenizer), steps * ROWS_PER_STEP))
    # First-fit packing lets long documents wait; shuffled, every step sees the mixture.
    random.Random(seed).shuffle(rows)
    ids, weights = stack_rows(rows, int(tokenizer.vocab[PAD]))
    loss = _train(model, ids, weights, steps)
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return PretrainResult(
        steps=steps,
        tokens=sum(len(row.ids) for row in rows),
        loss=loss,
        parameters=sum(p.numel() for p in model.parameters()),
    )


def _train(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor, steps: int) -> float:
    optimizer = create_optimizer(model)
    smooth = 0.0
    columns = (*Progress.get_default_columns(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns) as progress:
        task = progress.add_task("pretraining", total=steps, loss=0.0)
        for step, (batch, weight) in enumerate(
            zip(torch.split(ids, ROWS_PER_STEP), torch.split(weights, ROWS_PER_STEP), strict=True)
        ):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=batch[:, :-1]).logits
            losses = cross_entropy(
                logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
            )
            target_weight = weight[:, 1:].flatten()
            loss = (losses * target_weight).sum() / target_weight.sum()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
            progress.update(task, advance=1, loss=smooth)
    return smooth
