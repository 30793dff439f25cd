"""What `pytest -m gpu` checks: our paths on a device beside those of stock libraries.

The model has random weights in the shape of Llama 3.2 1B; questions and rows are those of the
pocket world. Nothing is downloaded.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
import transformers
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from slimdown.api.measuring import measure
from slimdown.data.training_data import load_training_data
from slimdown.models import device_memory, memory_estimates, quiet
from slimdown.models.base_model import load_base_model, load_outline, load_tokenizer
from slimdown.pocket import MODEL_DIR
from slimdown.sweep.command_line import compose_runs, read_command_line
from slimdown.training.fine_tuning import fine_tune, prepare_training
from slimdown.utils.errors import ModelError

LLAMA_1B = {"hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 128_256}
LLAMA_1B |= {"num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
N_QUESTIONS, N_ROWS = 300, 512
# With it all prompts share a beginning that is long enough for `PrefixLM`.
_TEMPLATE = "Think well. " * 32 + "{% for message in messages %}{{ message.content }}{% endfor %}"

Load = Callable[..., tuple[Any, Any, Any]]
"""Takes settings; returns a run's settings, and its model and rows, newly loaded."""
Finding = tuple[str, str]
"""What is wrong, empty if nothing is; and what was found."""
Check = Callable[[Load, int], Finding]
"""Takes what loads, and how many questions of each benchmark are asked."""


def check_answers(
    quantization: str, benchmark: str, load: Load, limit: int, **settings: Any
) -> Finding:
    """Compare answers with HFLM's at the same batch size, and the bytes held with the estimate."""
    before = torch.cuda.memory_allocated()
    config, base, _ = load(f"quantization={quantization}")
    held = torch.cuda.memory_allocated() - before or base.memory_bytes
    outline = load_outline(config.model)
    estimated = memory_estimates.estimate_weight_bytes(
        outline, config.quantization, base.model.dtype
    )
    base.tokenizer.chat_template = _TEMPLATE
    ask = partial(measure, base.model, base.tokenizer, benchmark, limit=limit, **settings)
    with device_memory.measure_peak_memory(base.device) as peak:
        ours, our_peak = ask(), peak()
    size = ours.evaluator.backend.batch_size  # type: ignore[union-attr]
    with device_memory.measure_peak_memory(base.device) as peak:
        stock, stock_peak = ask(stock=True, batch_size=size), peak()
    mine, theirs = (evaluation.benchmarks[benchmark] for evaluation in (ours, stock))
    n_unlike, off = 0, 0.0
    for sample, expected in zip(mine.samples, theirs.samples, strict=True):
        n_unlike += sample.response != expected.response
        nats = zip(sample.log_likelihoods, expected.log_likelihoods, strict=True)
        off = max([off, *(abs(a - b) for a, b in nats)])
    # 0.3 is for half precision; an answer that sees another's tokens is more than a nat off.
    most = 5e-4 if base.dtype == "float32" else 0.3
    differs = "answers are not HFLM's; " if n_unlike or off > most else ""
    if len({sample.response or sample.log_likelihoods for sample in mine.samples}) == 1:
        differs += "all answers are alike, which shows nothing; "
    # cuBLAS may take 64 MiB in between
    differs += "" if abs(held / estimated - 1) <= 0.1 else "memory is not as estimated"
    n_tokens = sum(len(base.tokenizer(s.prompt + s.response).input_ids) for s in mine.samples)
    line = f"{n_unlike} of {len(mine.samples)} texts, {off:.2g} nats off; "
    line += f"{n_tokens / mine.seconds:,.0f} tokens/s, HFLM {n_tokens / theirs.seconds:,.0f}; "
    line += f"weights {held / 1e6:,.0f} MB, estimated {estimated / 1e6:,.0f}; "
    line += f"peak {our_peak / 1e6:,.0f}, HFLM {stock_peak / 1e6:,.0f}"
    return differs, line


def check_training(quantization: str, load: Load, limit: int) -> Finding:
    """Train after a measurement, and compare the first steps with those of TRL's own trainer."""
    config, base, data = load(f"quantization={quantization}")
    measure(base.model, base.tokenizer, "pocket_cs", limit=limit)
    rows = prepare_training(base, data, config)
    with TemporaryDirectory() as folder:
        silent: Any = lambda *_: None  # noqa: E731
        _, result = fine_tune(base, rows, config, Path(folder), silent, on_progress=silent)
    _, base, _ = load(f"quantization={quantization}")
    lora = {name: value for name, value in asdict(config.lora).items() if name != "args"}
    # TRL checkpoints gradients, and has a loss of its own; no row is a conversation.
    ours = {"gradient_checkpointing", "loss_type", "assistant_only_loss"}
    names = set(SFTConfig.__dataclass_fields__) - ours
    settings = {name: value for name, value in asdict(config.train).items() if name in names}
    settings |= {"bf16": base.dtype == "bfloat16", "fp16": base.dtype == "float16"}
    settings |= {"seed": config.seed, "use_cpu": base.device == "cpu", "logging_steps": 1}
    settings |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    with TemporaryDirectory() as folder, device_memory.measure_peak_memory(base.device) as peak:
        arguments: Any = SFTConfig(folder, **settings)
        arguments._n_gpu = min(arguments.n_gpu, 1)  # see `build_trainer`
        adapter = peft.LoraConfig(**lora, task_type="CAUSAL_LM")
        parts: Any = {"train_dataset": data.parts[0].train, "processing_class": base.tokenizer}
        trainer: Any = SFTTrainer(base.model, arguments, peft_config=adapter, **parts)
        trainer.remove_callback(transformers.PrinterCallback)
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:  # TRL's bfloat16 has no scaler: huggingface/trl#4901
                parameter.data = parameter.data.float()
        seconds, stock_peak = trainer.train().metrics["train_runtime"], peak()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    # TRL's float16 scaler skips the first steps.
    compared = ["loss", "grad_norm"][: 1 + (base.dtype != "float16")]
    steps = list(zip(result.history[:4], logs, strict=False))
    off = max(abs(step.values[name] / log[name] - 1) for step, log in steps for name in compared)
    # If rows saw each other, the norm would be 15 % off.
    differs = "" if off <= 0.02 else "losses or gradients are not TRL's; "
    differs += "" if rows.is_padding_free else "rows are padded"
    speed = f"{result.tokens_per_second:,.0f} tokens/s, TRL {logs[-1]['num_tokens'] / seconds:,.0f}"
    peaks = f"peak {result.peak_bytes / 1e6:,.0f} MB, TRL {stock_peak / 1e6:,.0f}"
    return differs, f"losses and gradients {off:.2%} off; {speed}; {peaks}"


def check_scarce_memory(load: Load, limit: int) -> Finding:
    """Ask and train on more at once than fits: the batch must be halved, or the user told."""
    config, base, data = load("train.per_device_train_batch_size=256")
    rows, message = prepare_training(base, data, config), "training ran all the same"
    # Half a GiB cannot hold the logits of 256 questions or rows.
    n_taken = torch.cuda.mem_get_info()[0] - 2**29 if base.device == "cuda" else 0
    taken = torch.empty(n_taken, dtype=torch.uint8, device=base.device)
    evaluation = measure(base.model, base.tokenizer, "pocket_cs", limit=limit, batch_size=256)
    try:
        with TemporaryDirectory() as folder:
            silent: Any = lambda *_: None  # noqa: E731
            fine_tune(base, rows, config, Path(folder), silent, on_progress=silent)
    except ModelError as error:
        message = str(error)
    del taken
    notes = evaluation.evaluator.notes[-1:]
    return "" if notes and "halve" in message else "you are not told", " ".join([*notes, message])


CHECKS: dict[str, Check] = {}
for _name in ("nf4", "fp4", "int8"):
    CHECKS[f"{_name}: choices"] = partial(check_answers, _name, "pocket_commonsense")
    CHECKS[f"{_name}: training"] = partial(check_training, _name)
CHECKS["texts"] = partial(check_answers, "nf4", "pocket_math")
CHECKS["a shared beginning"] = partial(check_answers, "nf4", "pocket_cs", apply_chat_template=True)
CHECKS["scarce memory"] = check_scarce_memory


@contextmanager
def make_loader(
    device: str = "cuda", shape: Any = LLAMA_1B, n_rows: int = N_ROWS
) -> Iterator[Load]:
    """Make a model with random weights, and yield what loads it with a run's settings and rows.

    Args:
        device: Where it is loaded.
        shape: The model's shape, as `LlamaConfig` takes it.
        n_rows: How many rows are trained on.
    """
    with TemporaryDirectory() as folder:
        dtype, rows = "auto" if device == "cuda" else "float32", "dataset.pocket_instructions"
        common = ["model=pocket", f"model.id='{folder}'", f"model.device={device}", "train=default"]
        common += [f"model.dtype={dtype}", f"quantization.bnb_4bit_compute_dtype={dtype}"]
        common += [f"{rows}.max_examples={n_rows}", f"{rows}.validation_examples=8"]
        common += ["train.per_device_eval_batch_size=1"]

        def load(*settings: str) -> tuple[Any, Any, Any]:
            config = compose_runs(read_command_line([*common, *settings])).runs[0].config
            base = load_base_model(config.model, config.quantization)
            return config, base, load_training_data(config.dataset, base.tokenizer, config.seed)

        for file in MODEL_DIR.glob("tokenizer*"):
            shutil.copy(file, folder)
        torch.manual_seed(0)
        architecture = transformers.LlamaConfig(**shape, tie_word_embeddings=True, dtype="bfloat16")
        with quiet.quiet_libraries():
            model = transformers.AutoModelForCausalLM.from_config(architecture)
            # A token that the tokenizer does not know must never be the likeliest.
            model.get_input_embeddings().weight.data[len(load_tokenizer(folder)) :] = 0
            model.save_pretrained(folder)
        yield load


def run_check(check: Check, load: Load, n_questions: int = N_QUESTIONS) -> Finding:
    """Run a check with the warnings of libraries switched off, which differ between machines."""
    with quiet.quiet_libraries():
        device_memory.release_memory()  # fails after an error that a GPU does not recover from
        return check(load, n_questions)
