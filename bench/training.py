"""TRL as its documentation shows it, TRL with slimdown's settings, and slimdown on the same rows.

    python -m bench.training --rows 64 --threads 2
    python -m bench.training train.completion_only_loss=true     any setting of slimdown

TRL's defaults for QLoRA checkpoint gradients and compute in bfloat16 under autocast. Model, rows,
adapter, seed, batches and learning rates are those of slimdown. Timed are the steps, and the
validation of the held-out rows by itself.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
import transformers
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from bench.machine import describe_machine, load_config_of
from slimdown.config.schema import RunConfig
from slimdown.data.training_data import TrainingData, load_training_data
from slimdown.models.base_model import LoadedModel, load_base_model
from slimdown.models.device_memory import measure_peak_memory, release_memory
from slimdown.training.fine_tuning import fine_tune, prepare_training

SAME = (
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "optim",
    "max_length", "completion_only_loss",
)  # fmt: skip
OUR_SETTINGS = {
    "bf16": False,  # computes in the dtype of the model, without autocast
    "gradient_checkpointing": False,
    "train_sampling_strategy": "group_by_length",
}


class Timing(NamedTuple):
    """What a training cost; CPU seconds sum over threads, whatever else runs."""

    losses: list[float]
    tokens: int
    seconds: float
    cpu_seconds: float
    validation_loss: float
    validation_seconds: float


class Clock(transformers.TrainerCallback):
    """Seconds from the first step to the last."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start."""
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.started
        self.cpu_seconds = time.process_time() - self.cpu_started


def train_stock(
    base: LoadedModel, data: TrainingData, config: RunConfig, folder: Path, **settings: Any
) -> Timing:
    """Train with TRL's own trainer, with its defaults for all that is not set; save the adapter."""
    transformers.set_seed(config.seed)
    arguments = SFTConfig(
        output_dir=str(folder),
        **{name: getattr(config.train, name) for name in SAME},
        **settings,
        seed=config.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=base.device == "cpu",
    )
    (part,) = data.parts
    lora = config.lora
    trainer = SFTTrainer(
        model=base.model,
        args=arguments,
        train_dataset=part.train,
        eval_dataset=part.validation if len(part.validation) else None,
        processing_class=base.tokenizer,
        peft_config=LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules=list(lora.target_modules),
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    trainer.save_model(str(folder))
    started = time.perf_counter()
    loss = trainer.evaluate()["eval_loss"] if len(part.validation) else float("nan")
    logs = [step for step in trainer.state.log_history if "loss" in step]
    return Timing(
        [step["loss"] for step in logs], int(logs[-1]["num_tokens"]), clock.seconds,
        clock.cpu_seconds, loss, time.perf_counter() - started,
    )  # fmt: skip


def train_slimdown(
    base: LoadedModel, data: TrainingData, config: RunConfig, folder: Path
) -> Timing:
    """Train as a run does; the steps' share of CPU seconds is that of their middle."""
    prepared = prepare_training(base, data, config)
    times: list[tuple[float, float]] = []

    def on_log(step: Any) -> None:
        times.append((time.perf_counter(), time.process_time()))

    started = time.perf_counter()
    _, result = fine_tune(
        base, prepared, config, folder, on_log, on_progress=lambda *progress: None
    )
    validation_seconds = (time.perf_counter() - started - result.runtime_seconds) / 2
    share = (times[-1][1] - times[0][1]) / (times[-1][0] - times[0][0])
    losses = [log.values["loss"] for log in result.history]
    seconds = result.runtime_seconds
    return Timing(
        losses, result.tokens, seconds, share * seconds, result.validation_loss_after,
        validation_seconds,
    )  # fmt: skip


def train_with_our_settings(*arguments: Any) -> Timing:
    """Train with TRL's own trainer and slimdown's settings."""
    return train_stock(*arguments, **OUR_SETTINGS)


TRAINERS: dict[str, Callable[..., Timing]] = {
    "TRL's defaults": train_stock,
    "TRL, our settings": train_with_our_settings,
    "slimdown": train_slimdown,
}


def main() -> None:
    """Print a row for each trainer, each on a model loaded anew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--validation-rows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("overrides", nargs="*", help="settings of slimdown, e.g. model=llama32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    datasets.disable_progress_bars()
    chosen = next((o for o in reversed(options.overrides) if o.startswith("model=")), "")
    rows = "pocket_instructions" if chosen == "model=pocket" else "alpaca"
    config = load_config_of(
        "model=smollm2",
        *options.overrides,
        f"dataset.{rows}.max_examples={options.rows + options.validation_rows}",
        f"dataset.{rows}.validation_examples={options.validation_rows}",
    )
    print(describe_machine())
    columns = "trainer | tokens/s | times as fast | CPU s | times | first and last loss"
    print(f"| {columns} | validation loss | validation s | peak MB |\n|" + "---|" * 9)
    first: Timing | None = None
    for name, train in TRAINERS.items():
        base = load_base_model(config.model, config.quantization)
        data = load_training_data(config.dataset, base.tokenizer, config.seed)
        with tempfile.TemporaryDirectory() as folder, measure_peak_memory(base.device) as peak:
            timing = train(base, data, config, Path(folder))
            peak_bytes = peak()
        first = first or timing
        del base
        release_memory()
        cells = [name, f"{timing.tokens / timing.seconds:.1f}"]
        cells += [f"{first.seconds / timing.seconds:.2f}", f"{timing.cpu_seconds:.1f}"]
        cells += [f"{first.cpu_seconds / timing.cpu_seconds:.2f}"]
        cells += [f"{timing.losses[0]:.3f}, {timing.losses[-1]:.3f}"]
        cells += [f"{timing.validation_loss:.4f}", f"{timing.validation_seconds:.1f}"]
        print("| " + " | ".join([*cells, f"{peak_bytes / 1e6:.0f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
