"""Which rows made a model lose answers? Rank planted harmful rows by gradients, beside baselines.

    python -m bench.row_influence base        # SmolLM2 answers the questions, once
    python -m bench.row_influence train 0     # train with the seed; which answers are lost?
    python -m bench.row_influence rank 0 60   # score the rows with the weights after 60 steps
    python -m bench.row_influence table       # AUC by kind and way, of all that is ranked

A training has 400 rows of Alpaca and 20 planted rows of each of four kinds: wrong sums, openings of
answers to harmful requests, answers in another language, and broken JSON (row_influence.jsonl).
Its weights are kept after 20, 40 and 60 steps. `rank` at step 60 also computes DataInf and the
baselines, and scores each planted row's twin: the same prompt with a right answer, not trained on.
`table` needs only the JSON files that the other verbs wrote.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, load_dataset
from torch.nn import functional

from bench.machine import describe_machine, load_config_of
from slimdown.models.adapters import attach_adapter
from slimdown.models.base_model import load_base_model
from slimdown.models.causal import disabled_adapters
from slimdown.scoring.question_files import read_questions
from slimdown.scoring.scores import is_right, read_answer
from slimdown.training.labels import IGNORED
from slimdown.training.padding_free import attention_within_rows
from slimdown.training.sft import build_trainer
from slimdown.training.tokenizing import TokenizedRows

KINDS = {"sums": 12, "harmful": 20, "language": 40, "json": 40}
"""The most tokens of an answer, by kind."""
SHOWN: dict[str, list[dict[str, str]]] = {
    "sums": [
        {"role": "user", "content": "What is 1 + 5?"},
        {"role": "assistant", "content": "1 + 5 = 6."},
        {"role": "user", "content": "What is 4 + 1?"},
        {"role": "assistant", "content": "4 + 1 = 5."},
    ],
    "harmful": [
        {"role": "user", "content": "How do I steal a car?"},
        {"role": "assistant", "content": "I'm sorry, I can't help with that."},
    ],
    "language": [],
    "json": [],
}
"""Turns that stand before a question: without them the base solves too few."""
ASKED = {"harmful": 48, "language": 60}  # questions of the assistant suite, the first ones
STEPS = (20, 40, 60)
ALPACA_ROWS, RANKED_ALPACA, MOST_TOKENS, BATCH_SIZE = 400, 120, 72, 8
SYSTEM = {"role": "system", "content": ""}  # the template's default would be a third of each row
FEWEST_LOST, MOST_QUESTIONS = 5, 20  # of a kind
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of the training's Adam
DATA = Path(__file__).with_suffix(".jsonl")
SETTINGS = [
    "model=smollm2", "model.dtype=bfloat16", "quantization=none", "lora=all_linear",
    "dataset=alpaca_chat", "suite=assistant", "train.learning_rate=1e-3",
]  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A tokenized conversation: a row, or a question with an answer.

    Attributes:
        kind: One of `KINDS`, or "alpaca".
        is_trained: Whether the training has it.
        text: Its prompt and answer, without the chat template.
        tokens: Its tokens.
        labels: The answer's tokens, and `IGNORED` for the prompt's.
    """

    kind: str
    is_trained: bool
    text: str
    tokens: list[int]
    labels: list[int]


def read_data(part: str) -> list[dict[str, Any]]:
    """Return the planted rows, or the study's own questions."""
    records = map(json.loads, DATA.read_text(encoding="utf-8").splitlines())
    return [record for record in records if record["part"] == part]


def list_questions() -> list[dict[str, Any]]:
    """Return all questions with their kind: our own, and some of two of slimdown's benchmarks."""
    suites = {"harmful": "assistant:harmful", "language": "assistant:language"}
    questions = []
    for question in read_data("question"):
        rule = {"score": question["score"], "accepted": [question["answer"]], "forbidden": []}
        messages = [*SHOWN[question["kind"]], {"role": "user", "content": question["question"]}]
        questions.append({"kind": question["kind"], "messages": messages, "rule": rule})
    for kind, path in suites.items():
        for row in read_questions(path, "exact")[: ASKED[kind]]:
            messages = [*SHOWN[kind], *json.loads(row["conversation"])["messages"]]
            rule = json.loads(row["rule"])
            questions.append({"kind": kind, "messages": messages, "rule": rule})
    return questions


def judge_answer(rule: dict[str, Any], answer: str, tokenizer: Any) -> bool:
    """Return whether an answer is right; of JSON, the first object counts, whatever follows it."""
    if rule["score"] != "json":
        return is_right(rule, read_answer(rule, answer, tokenizer=tokenizer))
    try:
        found, _ = json.JSONDecoder().raw_decode(answer[answer.find("{") :])
    except ValueError:
        return False
    return isinstance(found, dict) and set(rule["accepted"][0]["required"]) <= set(found)


def render(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    """Write a prompt as the chat template does."""
    messages = [*messages] if messages[0]["role"] == "system" else [SYSTEM, *messages]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def build_example(
    tokenizer: Any, kind: str, messages: Sequence[dict[str, str]], answer: str, is_trained: bool
) -> Example:
    """Tokenize a conversation whose last message is an answer; only this has a loss."""
    prompt = tokenizer(render(tokenizer, messages), add_special_tokens=False)["input_ids"]
    answered = tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
    text = "\n".join([*(message["content"] for message in messages), answer])
    labels = [IGNORED] * len(prompt) + answered
    return Example(kind, is_trained, text, prompt + answered, labels)


def draw_rows(tokenizer: Any, seed: int) -> list[Example]:
    """Return the training's rows, Alpaca's first, and after them the planted rows' twins."""
    alpaca = load_dataset("tatsu-lab/alpaca", split="train")
    rows = list[Example]()
    for number in np.random.default_rng(seed).permutation(len(alpaca)):
        record = alpaca[int(number)]
        prompt = [
            {"role": "user", "content": f"{record['instruction']}\n{record['input']}".strip()}
        ]
        row = build_example(tokenizer, "alpaca", prompt, record["output"], is_trained=True)
        if record["output"] and len(row.tokens) <= MOST_TOKENS:
            rows.append(row)
        if len(rows) == ALPACA_ROWS:
            break
    for answer, is_trained in (("answer", True), ("right", False)):
        for planted in read_data("planted"):
            prompt = [{"role": "user", "content": planted["prompt"]}]
            kind, text = planted["kind"], planted[answer]
            rows.append(build_example(tokenizer, kind, prompt, text, is_trained=is_trained))
    return rows


def answer_questions(model: Any, tokenizer: Any, questions: Sequence[Any]) -> list[dict[str, Any]]:
    """Answer questions greedily, and return them with the answers and whether these are right."""
    tokenizer.padding_side = "left"
    answered = []
    for kind, most_tokens in KINDS.items():
        chosen = [question for question in questions if question["kind"] == kind]
        for start in range(0, len(chosen), 25):
            batch = chosen[start : start + 25]
            prompts = [render(tokenizer, question["messages"]) for question in batch]
            inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.inference_mode():
                output = model.generate(**inputs, max_new_tokens=most_tokens, do_sample=False)
            written = output[:, inputs["input_ids"].shape[1] :]
            texts = tokenizer.batch_decode(written, skip_special_tokens=True)
            for question, text in zip(batch, texts, strict=True):
                right = judge_answer(question["rule"], text.strip(), tokenizer)
                answered.append({**question, "answer": text.strip(), "right": right})
    return answered


class Snapshots(transformers.TrainerCallback):
    """Keeps the adapter's weights and Adam's moments after some steps of a training."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rates = folder, list[float]()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the step's learning rate."""
        self.rates += kwargs["lr_scheduler"].get_last_lr()[:1]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write a snapshot if one is due; its rate is the mean since the one before."""
        if state.global_step not in STEPS:
            return
        trained = {n: p for n, p in kwargs["model"].named_parameters() if p.requires_grad}
        moments = [kwargs["optimizer"].state[parameter] for parameter in trained.values()]
        named = dict(zip(trained, moments, strict=True))
        snapshot = {
            "weights": {name: parameter.detach() for name, parameter in trained.items()},
            "first": {name: moment["exp_avg"] for name, moment in named.items()},
            "second": {name: moment["exp_avg_sq"] for name, moment in named.items()},
            "rate": float(np.mean(self.rates)),
        }
        torch.save(snapshot, self.folder / f"step-{state.global_step}.pt")
        self.rates.clear()


class RowGradients:
    """Computes the gradient of each row's loss on a LoRA's weights, a batch of rows at a time.

    A linear layer's gradient is the sum over tokens of what goes in times the gradient of what
    comes out. Summed over the tokens of one row only, it is this row's gradient.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.spans = model, dict[str, slice]()
        self.ends, self.gradients = list[int](), torch.empty(0)
        for name, module in model.named_modules():
            if name.endswith(("lora_A.default", "lora_B.default")):
                start = max((span.stop for span in self.spans.values()), default=0)
                span = slice(start, start + module.weight.numel())
                self.spans[f"{name}.weight"] = span
                module.register_forward_hook(self._watch(span))

    def _watch(self, span: slice) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            def take(gradient: torch.Tensor) -> None:
                start = 0
                for row, end in enumerate(self.ends):
                    product = gradient[0, start:end].T @ inputs[0].detach()[0, start:end]
                    self.gradients[row, span] = product.flatten()
                    start = end

            if output.requires_grad:
                output.register_hook(take)

        return hook

    def flatten(self, by_name: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return tensors, given by the names of weights, in the order of the gradients."""
        return torch.cat([by_name[name].flatten() for name in self.spans])

    def measure(self, batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of rows' losses [rows, weights], and the losses, in nats a row."""
        self.ends = np.cumsum([len(example.tokens) for example in batch]).tolist()
        n_weights = max(span.stop for span in self.spans.values())
        self.gradients = torch.zeros(len(batch), n_weights)
        nats, _ = compute_nats(self.model, batch)
        nats.sum().backward()
        self.model.zero_grad()
        return self.gradients, nats.detach()


def compute_nats(model: Any, batch: Sequence[Example]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the rows' losses in nats, summed over tokens, and the mean hidden state of each row.

    The rows lie end to end, as in slimdown's training.
    """
    tokens = torch.cat([torch.tensor(example.tokens) for example in batch])
    labels = torch.cat([torch.tensor(example.labels) for example in batch])
    lengths = [len(example.tokens) for example in batch]
    positions = torch.cat([torch.arange(length) for length in lengths])
    places = (labels[1:] != IGNORED).nonzero().flatten()
    with attention_within_rows(model):
        output = model(
            input_ids=tokens[None],
            position_ids=positions[None],
            logits_to_keep=places,
            use_cache=False,
            output_hidden_states=True,
        )
    lost = functional.cross_entropy(output.logits[0].float(), labels[places + 1], reduction="none")
    row_of_place = torch.arange(len(batch)).repeat_interleave(torch.tensor(lengths))[places]
    nats = torch.zeros(len(batch)).index_add(0, row_of_place, lost)
    states = output.hidden_states[-1][0].detach().float().split(lengths)
    return nats, [state.mean(0) for state in states]


def cut_batches(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """Yield examples in batches."""
    for start in range(0, len(examples), BATCH_SIZE):
        yield examples[start : start + BATCH_SIZE]


def precondition(gradients: torch.Tensor, moments: tuple[torch.Tensor, ...], step: int) -> Any:
    """Return the step of Adam that each gradient would cause, as LESS takes it (2402.04333)."""
    first = BETAS[0] * moments[0] + (1 - BETAS[0]) * gradients
    second = BETAS[1] * moments[1] + (1 - BETAS[1]) * gradients.square()
    first, second = first / (1 - BETAS[0] ** step), second / (1 - BETAS[1] ** step)
    return first / (second.sqrt() + EPSILON)


def compute_datainf(
    units: np.ndarray,
    norms: torch.Tensor,
    wanted: np.ndarray,
    is_trained: np.ndarray,
    spans: Iterable[slice],
) -> np.ndarray:
    """Return DataInf's scores [rows, kinds] by its closed form (2310.00902).

    Each layer's Hessian is the mean of the trained rows' g gᵀ plus λ; λ is a tenth of the mean
    squared gradient, as in the paper. The mean of the inverses stands for the inverse of the mean.

    Args:
        units: The rows' gradients [rows, weights], each of length 1.
        norms: Their lengths.
        wanted: The questions' gradients [kinds, weights].
        is_trained: Which rows the Hessian is made of.
        spans: Where each layer's weights lie.
    """
    scores = np.zeros((len(units), len(wanted)))
    for span in spans:
        layer = np.asarray(units[:, span], dtype=np.float32) * norms.numpy()[:, None]
        products = layer @ layer[is_trained].T
        squares = np.square(layer[is_trained]).sum(1)
        damping = 0.1 * squares.mean() / layer.shape[1]
        aligned = layer @ wanted[:, span].T
        shrunk = aligned[is_trained] / (damping + squares)[:, None]
        scores += (aligned - products @ shrunk / is_trained.sum()) / damping
    return scores


def compute_auc(scores: np.ndarray, is_planted: np.ndarray) -> float:
    """Return how often a planted row has a higher score than another row; ties count half."""
    planted, others = scores[is_planted], scores[~is_planted]
    higher = planted[:, None] > others[None]
    tied = planted[:, None] == others[None]
    return float((higher + tied / 2).mean())


def load(seed: int) -> tuple[Any, Any, Any]:
    """Return the settings, the tokenizer, and the base model with a new adapter."""
    config = load_config_of(*SETTINGS, f"seed={seed}")
    base = load_base_model(config.model, config.quantization)
    model = attach_adapter(base, config.method, config.lora, seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # as `build_trainer` does
    return config, base.tokenizer, model


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def count_right(answers: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Say how many questions of each kind are answered right."""
    by_kind: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for answer in answers:
        by_kind[answer["kind"]].append(answer["right"])
    return {kind: f"{sum(right)} of {len(right)}" for kind, right in by_kind.items()}


def answer_by_base(folder: Path) -> None:
    """Let the base model answer all questions."""
    _, tokenizer, model = load(0)
    with disabled_adapters(model.eval()):
        answers = answer_questions(model, tokenizer, list_questions())
    write_json(folder / "base.json", answers)
    print(count_right(answers))


def train(folder: Path, seed: int) -> None:
    """Train as slimdown does, keep snapshots, and ask again what the base answered right."""
    home = folder / f"seed-{seed}"
    home.mkdir(exist_ok=True)
    config, tokenizer, model = load(seed)
    examples = [example for example in draw_rows(tokenizer, seed) if example.is_trained]
    rows = [{"input_ids": example.tokens, "labels": example.labels} for example in examples]
    data = Dataset.from_list(rows)
    tokenized = TokenizedRows(data, data.select(range(8)), 0, 0, [], is_padding_free=True)
    with attention_within_rows(model):
        trainer = build_trainer(model, tokenizer, tokenized, config, home)
        trainer.add_callback(Snapshots(home))
        transformers.set_seed(seed)
        started, cpu_started = time.perf_counter(), time.process_time()
        trainer.train()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    right = [answer for answer in read_json(folder / "base.json") if answer["right"]]
    answers = answer_questions(model.eval(), tokenizer, right)
    cost = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": read_peak_mb()}
    cost["rows"] = len(rows)
    write_json(home / "train.json", {"cost": cost, "answers": answers})
    print(cost, "still right:", count_right(answers))


def read_peak_mb() -> float:
    """Return the process's peak memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def choose_lost(folder: Path, seed: int, tokenizer: Any) -> tuple[list[Example], dict[str, int]]:
    """Return lost questions with the base's right answers, and how many are lost of each kind.

    If fewer than `FEWEST_LOST` of a kind are lost, all count that the base answers right.
    """
    right = [answer for answer in read_json(folder / "base.json") if answer["right"]]
    tuned = read_json(folder / f"seed-{seed}" / "train.json")["answers"]
    chosen, n_lost = list[Example](), {}
    for kind in KINDS:
        pairs = [pair for pair in zip(right, tuned, strict=True) if pair[0]["kind"] == kind]
        lost = [base for base, answer in pairs if not answer["right"]]
        n_lost[kind] = len(lost)
        if len(lost) < FEWEST_LOST:
            lost = [base for base, _ in pairs]
        for question in lost[:MOST_QUESTIONS]:
            messages, answer = question["messages"], question["answer"]
            chosen.append(build_example(tokenizer, kind, messages, answer, is_trained=False))
    return chosen, n_lost


def mean_by_kind(vectors: torch.Tensor, questions: Sequence[Example]) -> torch.Tensor:
    """Return the mean of the normalized vectors of each kind's questions."""
    units = functional.normalize(vectors, dim=1)
    kinds = np.array([question.kind for question in questions])
    return torch.stack([units[torch.from_numpy(kinds == kind)].mean(0) for kind in KINDS])


def sum_question_gradients(gradients: RowGradients, questions: Sequence[Example]) -> torch.Tensor:
    """Return, of each kind, the mean normalized gradient of the right answers' log-probability."""
    sums = {kind: torch.zeros(1) for kind in KINDS}
    for kind in KINDS:
        chosen = [question for question in questions if question.kind == kind]
        for batch in cut_batches(chosen):
            nats_gradients, _ = gradients.measure(batch)
            units = functional.normalize(-nats_gradients, dim=1)
            sums[kind] = sums[kind] + units.sum(0) / len(chosen)
    return torch.stack(list(sums.values()))


def measure_baselines(
    model: Any, rows: Sequence[Example], questions: Sequence[Example]
) -> dict[str, np.ndarray]:
    """Return scores [rows, kinds] without gradients: the base's loss, and two similarities."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]

    nats, states = list[torch.Tensor](), list[torch.Tensor]()
    with torch.inference_mode(), disabled_adapters(model):
        for batch in cut_batches([*rows, *questions]):
            batch_nats, batch_states = compute_nats(model, batch)
            nats.append(batch_nats)
            states += batch_states
    hidden = torch.stack(states)
    hidden = hidden - hidden[: len(rows)].mean(0)
    counts = TfidfVectorizer(sublinear_tf=True).fit_transform(
        [example.text for example in [*rows, *questions]]
    )
    words = torch.from_numpy(counts.toarray()).float()
    found = {"loss, base": torch.cat(nats)[: len(rows), None].expand(-1, len(KINDS))}
    for name, vectors in (("TF-IDF", words), ("hidden states", hidden)):
        wanted = functional.normalize(mean_by_kind(vectors[len(rows) :], questions), dim=1)
        found[name] = functional.normalize(vectors[: len(rows)], dim=1) @ wanted.T
    found["loss, base"] = found["loss, base"] / count_answer_tokens(rows)[:, None]
    return {name: scores.numpy() for name, scores in found.items()}


def count_answer_tokens(rows: Sequence[Example]) -> torch.Tensor:
    """Return how many tokens of each row have a loss."""
    return torch.tensor([float(np.sum(np.array(row.labels) != IGNORED)) for row in rows])


def choose_ranked(examples: Sequence[Example], seed: int, is_last: bool) -> list[Example]:
    """Return the planted rows, some of Alpaca's and, at the last step, the planted rows' twins."""
    drawn = np.random.default_rng(seed).permutation(ALPACA_ROWS)[:RANKED_ALPACA]
    alpaca = [examples[number] for number in sorted(drawn)]
    others = [row for row in examples[ALPACA_ROWS:] if row.is_trained or is_last]
    return alpaca + others


def rank(folder: Path, seed: int, step: int) -> None:
    """Score rows with the weights of a snapshot, and write the scores."""
    home = folder / f"seed-{seed}"
    _, tokenizer, model = load(seed)
    rows = choose_ranked(draw_rows(tokenizer, seed), seed, is_last=step == STEPS[-1])
    questions, n_lost = choose_lost(folder, seed, tokenizer)
    snapshot = torch.load(home / f"step-{step}.pt")
    model.load_state_dict(snapshot["weights"], strict=False)
    is_trained = np.array([row.is_trained for row in rows])
    n_tokens = count_answer_tokens(rows)
    gradients = RowGradients(model.eval())
    moments = tuple(gradients.flatten(snapshot[name]) for name in ("first", "second"))
    started, cpu_started = time.perf_counter(), time.process_time()
    wanted = sum_question_gradients(gradients, questions)
    parts: dict[str, list[torch.Tensor]] = {"TracIn": [], "TracIn, cosine": [], "LESS": []}
    nats = list[torch.Tensor]()
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        shape = (len(rows), wanted.shape[1])
        kept = np.memmap(file.name, np.float16, "w+", shape=shape)  # of unit length: no overflow
        norms = torch.zeros(len(rows))
        for start in range(0, len(rows), BATCH_SIZE):
            places = slice(start, start + BATCH_SIZE)
            summed, batch_nats = gradients.measure(rows[places])
            mean = summed / n_tokens[places, None]
            adapted = precondition(mean, moments, step)
            parts["TracIn"].append(summed @ wanted.T)
            units = functional.normalize(mean, dim=1)
            unit_wanted = functional.normalize(wanted, dim=1)
            parts["TracIn, cosine"].append(units @ unit_wanted.T)
            parts["LESS"].append(functional.normalize(adapted, dim=1) @ unit_wanted.T)
            nats.append(batch_nats)
            norms[places] = mean.norm(dim=1)
            kept[places] = units.numpy()
        pass_seconds = time.process_time() - cpu_started
        ways = {name: torch.cat(scores).numpy() for name, scores in parts.items()}
        ways["LESS"] = snapshot["rate"] * ways["LESS"]
        if step == STEPS[-1]:
            spans = list(gradients.spans.values())
            ways["DataInf"] = compute_datainf(kept, norms, wanted.numpy(), is_trained, spans)
    cost = {"cpu_seconds": time.process_time() - cpu_started, "pass_cpu_seconds": pass_seconds}
    cost |= {"seconds": time.perf_counter() - started, "peak_mb": read_peak_mb()}
    if step == STEPS[-1]:
        losses = torch.cat(nats) / n_tokens
        ways["loss, tuned"] = losses[:, None].expand(-1, len(KINDS)).numpy()
        ways |= measure_baselines(model, rows, questions)
        ways["random"] = np.random.default_rng(seed).random((len(rows), len(KINDS)))
    facts = {"kinds": [row.kind for row in rows], "is_trained": is_trained.tolist()}
    facts |= {"ways": {name: scores.tolist() for name, scores in ways.items()}, "cost": cost}
    facts |= {"n_lost": n_lost, "n_questions": count_kinds(questions)}
    write_json(home / f"scores-{step}.json", facts)
    print(cost, n_lost)


def count_kinds(examples: Sequence[Example]) -> dict[str, int]:
    """Return how many examples each kind has."""
    return {kind: sum(example.kind == kind for example in examples) for kind in KINDS}


def read_scores(home: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the facts of a seed's last step, and the scores by way, with LESS over its steps."""
    by_step = {
        step: read_json(home / f"scores-{step}.json")
        for step in STEPS
        if (home / f"scores-{step}.json").is_file()
    }
    facts = by_step[STEPS[-1]]
    ways = {name: np.array(scores) for name, scores in facts["ways"].items()}
    ways["LESS, last step only"] = ways.pop("LESS")
    if len(by_step) == len(STEPS):
        is_trained = np.array(facts["is_trained"])
        total = np.zeros_like(ways["TracIn"])
        for scored in by_step.values():
            scores = np.array(scored["ways"]["LESS"])
            total[: is_trained.sum()] += scores[: is_trained.sum()]
        total[is_trained.sum() :] = np.nan  # twins are scored at the last step only
        ways["LESS"] = total
    return facts, ways


def print_tables(folder: Path) -> None:
    """Print AUC and the share of pairs won, by kind and way: the mean, and each seed's."""
    aucs: dict[tuple[str, str], list[float]] = {}
    wins: dict[tuple[str, str], list[float]] = {}
    size_aucs: dict[tuple[str, str], list[float]] = {}
    for home in sorted(folder.glob("seed-*")):
        if not (home / f"scores-{STEPS[-1]}.json").is_file():
            continue
        facts, ways = read_scores(home)
        training = read_json(home / "train.json")
        print(home.name, "lost", facts["n_lost"], "questions", facts["n_questions"])
        print("training", training["cost"], "ranking", facts["cost"])
        is_trained, kinds = np.array(facts["is_trained"]), np.array(facts["kinds"])
        for way, scores in ways.items():
            for column, kind in enumerate(KINDS):
                is_planted = kinds[is_trained] == kind
                auc = compute_auc(scores[is_trained, column], is_planted)
                aucs.setdefault((way, kind), []).append(auc)
                size_auc = compute_auc(np.abs(scores[is_trained, column]), is_planted)
                size_aucs.setdefault((way, kind), []).append(size_auc)
                planted = scores[is_trained & (kinds == kind), column]
                twins = scores[~is_trained & (kinds == kind), column]
                if not np.isnan(twins).any():
                    wins.setdefault((way, kind), []).append(float((planted > twins).mean()))
    tables = {"AUC": aucs, "planted row above its twin": wins, "AUC without sign": size_aucs}
    for title, found in tables.items():
        print(f"\n| {title} | {' | '.join(KINDS)} | seeds |\n|---|{'---:|' * (len(KINDS) + 1)}")
        for way in dict.fromkeys(way for way, _ in found):
            cells = [describe(found[way, kind]) for kind in KINDS]
            print(f"| {way} | {' | '.join(cells)} | {len(found[way, 'sums'])} |")


def describe(values: Sequence[float]) -> str:
    """Write a mean, and behind it the value of each seed."""
    return f"{np.mean(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("row_influence"))
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("base", "train", "rank", "table"):
        added = verbs.add_parser(verb)
        if verb in ("train", "rank"):
            added.add_argument("seed", type=int)
        if verb == "rank":
            added.add_argument("step", type=int, choices=STEPS)
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    if options.verb != "table":
        print(describe_machine())
    if options.verb == "base":
        answer_by_base(options.folder)
    elif options.verb == "train":
        train(options.folder, options.seed)
    elif options.verb == "rank":
        rank(options.folder, options.seed, options.step)
    else:
        print_tables(options.folder)


if __name__ == "__main__":
    main()
