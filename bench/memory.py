"""What `slimdown sizes` estimates of a training beside what a fresh process holds, on a CPU.

    python -m bench.memory

Each row is a process of its own: it loads a model of random weights in float32, and takes two steps
of AdamW as torch does them, without TRL. The rise is that of its peak over what it held after
loading (Linux: /proc/self/status). The estimate is that of `sizes` without the base's weights.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.machine import describe_machine, load_config_of
from slimdown.models.adapters import attach_adapter
from slimdown.models.base_model import load_base_model, load_outline
from slimdown.models.memory_estimates import estimate_weight_bytes
from slimdown.models.training_estimate import estimate_training
from slimdown.pocket import MODEL_DIR

# hidden size, inner size, layers, vocabulary, rows, tokens a row, activations computed again
SHAPES = {
    "small": (512, 1536, 8, 32_000, 4, 256, False),
    "deep (SmolLM2-135M)": (576, 1536, 30, 49_152, 2, 512, False),
    "wide": (1024, 4096, 4, 8_000, 8, 128, False),
    "long": (512, 1536, 8, 8_000, 1, 2048, False),
    "deep, computed again": (576, 1536, 30, 49_152, 4, 512, True),
}
METHODS = ("lora", "dora", "full")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", nargs=2, metavar=("SHAPE", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    print(describe_machine())
    print("\n| shape | method | estimated, MB | measured, MB | estimate is off by |")
    print("|---|---|---:|---:|---:|")
    for shape in SHAPES:
        for method in METHODS:
            command = [sys.executable, "-m", "bench.memory", "--one", shape, method]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            estimated, measured = json.loads(done.stdout.splitlines()[-1])
            off = f"{100 * (estimated / measured - 1):+.0f} %"
            numbers = f"{estimated / 1e6:,.0f} | {measured / 1e6:,.0f} | {off}"
            print(f"| {shape} | {method} | {numbers} |", flush=True)


def measure(shape: str, method: str) -> tuple[int, int]:
    """Return the bytes that a training takes beside the base's weights: estimated, and measured."""
    width, inner, n_layers, n_tokens, n_rows, length, checkpoints = SHAPES[shape]
    with tempfile.TemporaryDirectory() as folder:
        sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": inner}
        sizes |= {"num_hidden_layers": n_layers, "vocab_size": n_tokens}
        sizes |= {"num_attention_heads": width // 64, "tie_word_embeddings": True}
        llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
        llama.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(folder)
        del llama
        again = str(checkpoints).lower()
        settings = [
            "model=any", f"model.id={folder}", "model.dtype=float32", "quantization=none",
            f"method={method}", "lora=all_linear", f"train.max_length={length}",
            f"train.per_device_train_batch_size={n_rows}",
            f"train.gradient_checkpointing={again}",
        ]  # fmt: skip
        config = load_config_of(*settings)
        outline = load_outline(config.model)
        estimate = estimate_training(config, outline, torch.float32)
        assert estimate
        weights = estimate_weight_bytes(outline, config.quantization, torch.float32)
        base = load_base_model(config.model, config.quantization)
    held = read_status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    model = attach_adapter(base, config.method, config.lora, config.seed).train()
    if checkpoints:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for _ in range(2):
        tokens = torch.randint(n_tokens, (n_rows, length))
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return estimate.n_bytes - weights, read_status("VmHWM") - held


def read_status(name: str) -> int:
    """Return a number of bytes of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
