"""A stock TRL script and slimdown's `fine_tune` on the same rows, in one process: speed, memory, loss curves.

    python -m bench.training --model HuggingFaceTB/SmolLM2-135M-Instruct --rows 64 --threads 2
    python -m bench.training --validation --validation-rows 100 --threads 2

Stock is what TRL's documentation shows for QLoRA: `SFTConfig` with its defaults (gradient checkpointing, bfloat16 where
the machine has it) on the 4-bit model. Model, rows, adapter, seed, batches and learning rates are those of slimdown.

With `--validation` nothing is trained: TRL's `evaluate()`, in the dtype that the model has, and `validation_loss` take
the held-out rows in turn, twice.
"""

import argparse
import ctypes
import gc
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from hydra import compose, initialize_config_dir
from trl import SFTConfig, SFTTrainer

from slimdown.config.files import CONF_DIR
from slimdown.config.loader import load_config
from slimdown.config.schema import RunConfig
from slimdown.data.loading import SftData, load_data
from slimdown.evaluation.validation import validation_loss
from slimdown.models.model import LoadedModel, load_model
from slimdown.training.adapters import adapter_config
from slimdown.training.fine_tune import fine_tune
from slimdown.training.rows import prepare_rows


class Measured(NamedTuple):
    """One way to train: its steps' losses and its cost. `cpu_seconds` sums over threads, whatever else runs."""

    losses: list[float]
    tokens: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


class Clock(transformers.TrainerCallback):  # type: ignore[misc]
    """Seconds from the first step to the last, without preparing the rows or validating."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.started
        self.cpu_seconds = time.process_time() - self.cpu_started


def stock_trainer(
    base: LoadedModel, data: SftData, config: RunConfig, folder: Path, **settings: Any
) -> SFTTrainer:
    """TRL's trainer with its own defaults where nothing is said."""
    said = (
        "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate",
        "lr_scheduler_type", "warmup_steps", "optim", "max_length", "completion_only_loss",
    )  # fmt: skip
    transformers.set_seed(config.seed)
    arguments = SFTConfig(
        output_dir=str(folder),
        **{name: getattr(config.train, name) for name in said},
        seed=config.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=base.device == "cpu",
        **settings,
    )
    trainer = SFTTrainer(
        model=base.model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=base.tokenizer,
        peft_config=adapter_config(config.method, config.lora, base),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def stock(base: LoadedModel, data: SftData, config: RunConfig, folder: Path) -> Measured:
    """Plain TRL."""
    clock = Clock()
    trainer = stock_trainer(base, data, config, folder)
    trainer.add_callback(clock)
    trainer.train()
    trainer.save_model(str(folder))
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Measured(
        [e["loss"] for e in logs], int(logs[-1]["num_tokens"]), clock.seconds, clock.cpu_seconds, 0
    )


def lean(base: LoadedModel, data: SftData, config: RunConfig, folder: Path) -> Measured:
    """slimdown; `runtime_seconds` is of the steps alone, the validations left out as they are from stock."""
    times: list[tuple[float, float]] = []
    rule = config.quantization.dequantize_for_training
    result = fine_tune(
        base, prepare_rows(base, data, config.train), config.method, config.lora, config.train, config.seed, folder,
        rule,
        on_step=lambda record: times.append((time.perf_counter(), time.process_time())),
    ).training  # fmt: skip
    share = (times[-1][1] - times[0][1]) / (times[-1][0] - times[0][0])
    losses = [record.values["loss"] for record in result.history]
    return Measured(
        losses, result.tokens, result.runtime_seconds, share * result.runtime_seconds, 0
    )


def measure(
    train: Callable[[LoadedModel, SftData, RunConfig, Path], Measured],
    config: RunConfig,
    dequantize: str,
) -> Measured:
    """Load the model afresh, train it one way, and read the highest memory of all that."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    config.quantization.dequantize_for_training = dequantize
    base = load_model(
        config.model, config.quantization
    )  # keeps bitsandbytes' packed kernel, which cannot train, off
    data = load_data(config.dataset, config.seed, base.tokenizer)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak that VmHWM reports
    with tempfile.TemporaryDirectory() as folder:
        result = train(base, data, config, Path(folder))
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return result._replace(peak_bytes=int(peak.split()[1]) * 1024)


def compare_validations(config: RunConfig) -> None:
    """Print the seconds, CPU seconds and losses of both ways to validate, each made twice."""
    base = load_model(config.model, config.quantization)
    data = load_data(config.dataset, config.seed, base.tokenizer)
    rows = prepare_rows(base, data, config.train).validation
    rule = config.quantization.dequantize_for_training
    with tempfile.TemporaryDirectory() as folder:
        trainer = stock_trainer(base, data, config, Path(folder), bf16=False)
        ways: dict[str, Callable[[], float]] = {
            "stock TRL": lambda: float(trainer.evaluate()["eval_loss"]),
            "slimdown": lambda: validation_loss(base, trainer.model, rows, config.train, rule),
        }
        print("| way | dtype | seconds | CPU seconds | loss |\n|---|---|---:|---:|---:|")
        for name, loss in [*ways.items(), *ways.items()]:
            started, cpu_started = time.perf_counter(), time.process_time()
            value = loss()
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            print(
                f"| {name} | {base.dtype} | {seconds:.1f} | {cpu_seconds:.1f} | {value:.5f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--validation-rows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--packed", action="store_true", help="also slimdown without dequantizing")
    parser.add_argument(
        "--validation", action="store_true", help="the held-out rows alone, without any training"
    )
    parser.add_argument(
        "overrides", nargs="*", help="settings of slimdown, e.g. train.completion_only_loss=true"
    )
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    overrides = [
        "model=smollm2", f"model.id={args.model}", f"dataset.alpaca.max_examples={args.rows}",
        f"dataset.alpaca.validation_examples={args.validation_rows}", *args.overrides,
    ]  # fmt: skip
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = load_config(compose("config", overrides=overrides))
    n_rows = args.validation_rows if args.validation else args.rows
    print(
        f"{args.model}, {n_rows} rows, {args.threads} threads, load {os.getloadavg()[0]:.1f} at the start"
    )
    if args.validation:
        compare_validations(config)
        return
    ways: dict[str, tuple[Callable[..., Measured], str]] = {
        "stock TRL": (stock, "false"),
        "slimdown": (lean, "auto"),
    }
    if args.packed:
        ways["slimdown, 4-bit layers"] = (lean, "false")
    print("| way | tokens/s | ratio | CPU seconds | ratio | peak MB | largest step difference |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    first: Measured | None = None
    for name, (train, dequantize) in ways.items():
        result = measure(train, config, dequantize)
        first = first or result
        distance = max(abs(a - b) / a for a, b in zip(first.losses, result.losses, strict=True))
        print(
            f"| {name} | {result.tokens / result.seconds:.0f} | {first.seconds / result.seconds:.2f} "
            f"| {result.cpu_seconds:.1f} | {first.cpu_seconds / result.cpu_seconds:.2f} "
            f"| {result.peak_bytes / 1e6:.0f} | {100 * distance:.2f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
