"""What a GPU does with a model of Llama 3.2 1B's shape: `make gpu-check`, a table to paste back.

    python -m bench.gpu

Runs the tests marked gpu, then `bench.evaluation` and `bench.training` on random weights in 4 bits
and the questions and rows of the pocket world. Nothing is downloaded.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from slimdown.pocket import MODEL_DIR

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
}
TASKS = ["pocket_commonsense:300", "pocket_cs:300:5", "pocket_math:64"]


def write_random_model(folder: Path) -> None:
    """Write random weights in bfloat16, with the pocket model's tokenizer."""
    config = LlamaConfig(**SHAPE, dtype=torch.bfloat16)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for file in MODEL_DIR.glob("tokenizer*"):
        shutil.copy(file, folder)


def main() -> None:
    """Print what the tests and benches say; exit code 1 where one fails."""
    if not torch.cuda.is_available():
        sys.exit("no GPU: torch sees no CUDA device here")
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(Path(folder))
        model = [f"model.id={folder}", "model.device=cuda", "model.dtype=auto"]
        model += ["quantization.bnb_4bit_compute_dtype=auto"]
        tasks = [word for task in TASKS for word in ("--task", task)]
        rows = ["train.per_device_train_batch_size=8", "train.max_length=512"]
        commands = [
            ["pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"],
            ["bench.evaluation", *tasks, "--batch-sizes", "16", "64", "--", "model=pocket", *model],
            ["bench.training", "--rows", "512", "--", "model=pocket", *model, *rows],
        ]
        codes = [subprocess.run([sys.executable, "-m", *words]).returncode for words in commands]
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
