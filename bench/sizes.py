"""What a run was said to hold in memory, and what it held: a random model of Llama-3.2-1B's shape, or any other.

    python -m bench.sizes                                     # 2.5 GB of weights in a temporary folder, half an hour
    python -m bench.sizes --model smollm2                     # one of the hub
    python -m bench.sizes --model pocket train.max_steps=20   # the embedded one; settings of a run follow

Each quantization is a run of its own process: the estimates and the peaks are what its record says. A step's seconds
are those of this machine, with whatever else it is doing.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, LlamaConfig

from slimdown.pocket import MODEL_DIR
from slimdown.report.numbers import size
from slimdown.tracking.provenance import environment

SHAPE = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131_072,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
}
# Rows and questions of the embedded world, as many as fill a batch and a forward.
SETTINGS = [
    "train.max_steps=2",
    "train.per_device_train_batch_size=16",
    "dataset.pocket_instructions.max_examples=32",
    "dataset.pocket_instructions.validation_examples=8",
    "benchmark=[pocket_commonsense]",
    "benchmark.pocket_commonsense.limit=32",
    "evaluation.token_budget=null",
]
WAYS = {"nf4": [], "bfloat16": ["quantization=none", "model.dtype=bfloat16"]}


def random_model(folder: Path, shape: dict[str, Any] = SHAPE) -> None:
    """Random weights of a shape in bfloat16, with the embedded model's tokenizer."""
    config = LlamaConfig(**shape, dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for file in MODEL_DIR.glob("tokenizer*"):
        shutil.copy(file, folder)


def measured(folder: Path, settings: list[str]) -> dict[str, float]:
    """The metrics of one run of these settings."""
    store = f"sqlite:///{folder}/mlruns/mlflow.db"
    by_key = {setting.partition("=")[0]: setting for setting in settings}  # of several the last
    command = [
        sys.executable,
        "-m",
        "slimdown.run",
        *by_key.values(),
        f"tracking.uri={store}",
        "baseline.reuse=false",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    client = MlflowClient(store)
    [experiment] = [e.experiment_id for e in client.search_experiments() if e.name == "slimdown"]
    run = client.search_runs(
        [experiment], "tags.`slimdown.kind` = 'tuned'", order_by=["start_time DESC"]
    )[0]
    n_steps = len(client.get_metric_history(run.info.run_id, "train/loss"))
    return {**run.data.metrics, "seconds_a_step": run.data.metrics["cost/train_seconds"] / n_steps}


def main() -> None:
    """Print a row for each quantization and peak."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="random", help="random, or a file of conf/model")
    parser.add_argument("--ways", default=",".join(WAYS), help="of these, separated by commas")
    options, settings = parser.parse_known_args()
    here = environment()
    print(
        f"{here['processor']}, {here['torch_threads']} threads, torch {here['torch']}", flush=True
    )
    print(
        "| weights | peak of | estimated | measured | error | seconds a step |\n|---|---|---:|---:|---:|---:|",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = (
            [f"model={options.model}"]
            if options.model != "random"
            else [f"model.id={folder}/model", *SETTINGS]
        )
        if options.model == "random":
            random_model(folder / "model")
            base += ["model.dtype=bfloat16", "quantization.bnb_4bit_compute_dtype=bfloat16"]
        for way in options.ways.split(","):
            found = measured(folder, [*base, *WAYS[way], *settings])
            for what, key in (("training", "training"), ("evaluation", "base_evaluation")):
                told, held = (
                    found[f"cost/estimated_{what}_peak_bytes"],
                    found[f"cost/{key}_peak_bytes"],
                )
                seconds = f"{found['seconds_a_step']:.1f}" if what == "training" else ""
                print(
                    f"| {way} | {what} | {size(told)} | {size(held)} | {told / held - 1:+.1%} | {seconds} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
