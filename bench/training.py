"""The stock QLoRA script and slimdown's training in turn, on the same rows, seed and order.

    python -m bench.training --model HuggingFaceTB/SmolLM2-135M-Instruct --rows 64 --threads 2

Prints tokens per second, their ratio, peak memory and how far the loss curves lie apart. The stock script is what
TRL's documentation shows: a 4-bit base with bfloat16 compute where the processor has it, `SFTTrainer` with a LoRA
adapter. Each runs in a process of its own, so that one's memory is not counted with the other's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="auto", help="of the computation: auto, bfloat16 or float32")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["stock", "slimdown", "slimdown-4bit"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        print("RESULT " + json.dumps(train(asked)))
        return
    found = {}
    for way in ("stock", "slimdown-4bit", "slimdown"):
        command = [sys.executable, "-m", "bench.training", *sys.argv[1:], "--only", way]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            sys.exit(f"{way} failed:\n{done.stderr[-2000:]}")
        found[way] = json.loads(lines[0].removeprefix("RESULT "))
    stock = found["stock"]
    print(
        f"{asked.model}, {stock['dtype']}, {asked.rows} Alpaca rows in batches of {asked.batch}, "
        f"{asked.threads} threads"
    )
    print("| training | tokens/s | ratio | peak MB | final loss | largest step difference |")
    print("|---|---:|---:|---:|---:|---:|")
    for way, result in found.items():
        apart = max(abs(a - b) / b for a, b in zip(result["losses"], stock["losses"], strict=True))
        speed = result["tokens"] / result["seconds"]
        ratio = speed / (stock["tokens"] / stock["seconds"])
        print(
            f"| {way} | {speed:.0f} | {ratio:.2f} | {result['peak_bytes'] / 2**20:.0f} | {result['losses'][-1]:.4f} "
            f"| {100 * apart:.2f} % |"
        )


def train(asked: argparse.Namespace) -> dict[str, Any]:
    """Train one way; losses by step, tokens, seconds of the steps alone, peak bytes."""
    import torch

    from slimdown.config import Device, Dtype, LoraConfig, ModelConfig, QuantizationConfig, TrainConfig
    from slimdown.data import load_data
    from slimdown.model import load_model
    from slimdown.train import fine_tune, peak_memory_bytes

    torch.set_num_threads(asked.threads)
    dtype = Dtype(asked.dtype)
    base = load_model(
        ModelConfig(id=asked.model, dtype=dtype, device=Device.cpu),
        QuantizationConfig(load_in_4bit=True, load_in_8bit=False, bnb_4bit_compute_dtype=dtype),
    )
    data = load_data({"alpaca": alpaca(asked.rows)}, 0, base.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        if asked.only == "stock":
            result = stock_script(base, data, asked, folder)
        else:
            lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj"])
            config = TrainConfig(
                num_train_epochs=1, max_steps=-1, per_device_train_batch_size=asked.batch,
                gradient_accumulation_steps=1, per_device_eval_batch_size=8, learning_rate=2e-4,
                lr_scheduler_type="linear", warmup_steps=0.0, weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch",
                max_length=1024, completion_only_loss=False, gradient_checkpointing=False,
            )  # fmt: skip
            rule = "false" if asked.only == "slimdown-4bit" else "true"
            trained = fine_tune(base, data, lora, config, 0, Path(folder), rule).result
            result = {
                "losses": [record.values["loss"] for record in trained.history],
                "tokens": trained.tokens,
                "seconds": trained.runtime_seconds,
            }
    return {**result, "peak_bytes": peak_memory_bytes(), "dtype": base.dtype}


def alpaca(rows: int) -> Any:
    """The dataset of the paper, cut."""
    from slimdown.config import DatasetConfig

    return DatasetConfig(
        path="tatsu-lab/alpaca", template="alpaca", instruction="instruction", input="input", output="output",
        max_examples=rows, validation_examples=8,
    )  # fmt: skip


def stock_script(base: Any, data: Any, asked: argparse.Namespace, folder: str) -> dict[str, Any]:
    """What TRL's documentation shows for QLoRA: trainer and adapter from their own defaults."""
    import time

    import peft
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=base.model,
        args=SFTConfig(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=asked.batch, learning_rate=2e-4,
            completion_only_loss=False, logging_steps=1, report_to="none", save_strategy="no", seed=0, data_seed=0,
            disable_tqdm=True, use_cpu=True, max_length=1024, bf16=base.dtype == "bfloat16",
        ),
        train_dataset=data.train,
        processing_class=base.tokenizer,
        peft_config=peft.LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM"
        ),
    )  # fmt: skip
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": [s["loss"] for s in steps], "tokens": steps[-1]["num_tokens"], "seconds": seconds}


if __name__ == "__main__":
    main()
