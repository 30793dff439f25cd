"""What a million rows take to be checked, read, tokenized and trained on for a few steps, against a thousand.

    python -m bench.rows [ROWS ...] [--format instruction|messages|prompt_completion|text]

The files are made on the fly, in the folder for temporary files (TMPDIR). Each is measured in a process of its own.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def row(i: int, format_: str, dice: random.Random) -> dict[str, Any]:
    """A row of about 300 characters."""
    question = f"Question {i}: which of the {dice.randrange(10**6)} words of the list comes next, and why is that so?"
    answer = " ".join(
        dice.choices(("because", "the", "list", "word", "is", "longer", "than", "it", "was"), k=40)
    )
    match format_:
        case "messages":
            return {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
            }
        case "prompt_completion":
            return {"prompt": question, "completion": answer}
        case "text":
            return {"text": f"{question} {answer}"}
        case _:
            return {"instruction": question, "output": answer}


def measure(file: str) -> None:
    """Take one file through all that a run does with it, and print the seconds and the most memory."""
    import resource

    from hydra import compose, initialize_config_dir

    from slimdown.config.files import CONF_DIR
    from slimdown.config.loader import load_config
    from slimdown.data.rows import check_file

    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def done(what: str) -> None:
        nonlocal began
        seconds[what] = round(time.perf_counter() - began, 2)
        began = time.perf_counter()

    overrides = ["dataset=[file]", f"dataset.file.path={file}", "train.max_steps=3"]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = load_config(compose("config", overrides=overrides))
    began = time.perf_counter()
    check_file(config.dataset["file"])
    done("check")
    from slimdown.data.loading import load_data
    from slimdown.models.model import load_model
    from slimdown.training.fine_tune import fine_tune
    from slimdown.training.rows import prepare_rows

    base = load_model(config.model, config.quantization)
    base.tokenizer.chat_template = CHAT
    done("load the model")
    data = load_data(config.dataset, config.seed, base.tokenizer)
    done("read")
    n_texts = sum(len(batch) for batch in data.texts())
    done("go through the texts")
    rows = prepare_rows(base, data, config.train)
    done("tokenize")
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(base, rows, config.method, config.lora, config.train, config.seed, Path(folder))
    done("train")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": n_texts, "seconds": seconds, "peak MB": round(peak)}))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    asked.add_argument("rows", nargs="*", type=int, default=[1_000, 1_000_000])
    asked.add_argument("--format", default="instruction")
    asked.add_argument("--measure", help=argparse.SUPPRESS)
    chosen = asked.parse_args()
    if chosen.measure:
        measure(chosen.measure)
        return
    for n in chosen.rows:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            dice = random.Random(0)
            for i in range(n):
                file.write(json.dumps(row(i, chosen.format, dice)) + "\n")
            file.flush()
            subprocess.run([sys.executable, "-m", "bench.rows", "--measure", file.name], check=True)


if __name__ == "__main__":
    main()
