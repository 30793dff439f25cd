"""Follow one model from its training to the file that is served: what docs/serving.md shows.

    python -m bench.serving FOLDER

It trains SmolLM2-135M-Instruct for 20 steps, merges it, writes it as Q8_0 and Q4_0, and measures
each stage on HellaSwag, ARC-Easy and texts of Dolly. Then it asks 60 capitals of a file whose chat
template is another family's, and of a folder that names another stop token. It needs the hub.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.machine import describe_machine
from bench.write_gguf import write_gguf

BASE = ["model=smollm2", "quantization=none", "model.dtype=float32"]
ASKED = ["benchmark=[hellaswag,arc_easy,docs.jsonl]", "benchmark.hellaswag.limit=100"]
ASKED += ["benchmark.arc_easy.limit=100"]
TRAINED = ["dataset=[alpaca]", "dataset.alpaca.max_examples=160", "train.max_steps=20"]
TRAINED += ["train.learning_rate=1e-3", "name=trained"]
CHAT = ["benchmark=capitals.jsonl", "benchmark.capitals.score=contains"]
CHAT += ["benchmark.capitals.max_gen_toks=32", "evaluation.apply_chat_template=true"]
OTHER_TEMPLATE = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
CAPITALS = """France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon Austria:Vienna
Greece:Athens Norway:Oslo Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen Poland:Warsaw
Hungary:Budapest Ireland:Dublin Belgium:Brussels Netherlands:Amsterdam Russia:Moscow Ukraine:Kyiv
Turkey:Ankara Egypt:Cairo Kenya:Nairobi Ethiopia:Addis_Ababa Ghana:Accra Nigeria:Abuja Morocco:Rabat
Tunisia:Tunis Algeria:Algiers Japan:Tokyo China:Beijing India:New_Delhi Nepal:Kathmandu
Thailand:Bangkok Vietnam:Hanoi Indonesia:Jakarta Philippines:Manila South_Korea:Seoul Iran:Tehran
Iraq:Baghdad Jordan:Amman Lebanon:Beirut Canada:Ottawa Mexico:Mexico_City Cuba:Havana
Brazil:Brasilia Argentina:Buenos_Aires Chile:Santiago Peru:Lima Colombia:Bogota Venezuela:Caracas
Ecuador:Quito Uruguay:Montevideo Australia:Canberra New_Zealand:Wellington Czech_Republic:Prague
Romania:Bucharest Bulgaria:Sofia Serbia:Belgrade Croatia:Zagreb Iceland:Reykjavik
Cambodia:Phnom_Penh"""


def call_slimdown(folder: Path, *arguments: str) -> str:
    """Do what `slimdown ...` does in a folder; return what it prints."""
    command = [sys.executable, "-m", "slimdown", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"slimdown {' '.join(arguments)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def run(folder: Path, *settings: str) -> tuple[str, str]:
    """Make a run; return its id, and what it ends with."""
    printed = call_slimdown(folder, "run", *BASE, *settings)
    place = printed.rpartition("\npage ")[2].splitlines()[0].strip()
    return Path(place).parts[-3], printed[printed.index("HuggingFaceTB/", printed.rindex("...")) :]


def write_questions(folder: Path) -> None:
    """Write 80 texts of Dolly, and the capitals."""
    dolly = load_dataset("databricks/databricks-dolly-15k", split="train")
    texts = [row["context"] for row in dolly if 200 < len(row["context"]) < 1200][:80]
    pairs = [pair.replace("_", " ").split(":") for pair in CAPITALS.split()]
    capitals = [{"question": f"What is the capital of {a}?", "answer": b} for a, b in pairs]
    for name, rows in (("docs", [{"text": text} for text in texts]), ("capitals", capitals)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)


def name_another_stop(merged: Path, folder: Path) -> None:
    """Copy a model whose answers end at <|endoftext|> instead of its own token."""
    shutil.copytree(merged, folder)
    for name, end in (("generation_config", 0), ("config", 0), ("tokenizer_config", None)):
        file = folder / f"{name}.json"
        changed = {"eos_token": "<|endoftext|>"} if end is None else {"eos_token_id": end}
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def main() -> None:
    """Make and measure every stage; print what the docs show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a new one, for models, files and the record")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True)
    print(describe_machine())
    write_questions(folder)
    ids = [run(folder, *TRAINED, *ASKED)[0]]
    call_slimdown(folder, "merge", ids[0], "--out", "merged")
    merged = folder / "merged"
    model, tokenizer = (
        kind.from_pretrained(merged) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    kinds = ("Q8_0", "Q4_0")
    for kind in kinds:
        write_gguf(model, tokenizer, folder / f"merged-{kind}.gguf", kind, pre="smollm")
    for stage in ("merged", *(f"merged-{kind}.gguf" for kind in kinds)):
        ids.append(run(folder, f"tuned={stage}", *ASKED)[0])
    print(call_slimdown(folder, "compare", *ids, "--chain", "-o", "stages.html"))
    tokenizer.chat_template = OTHER_TEMPLATE
    write_gguf(model, tokenizer, folder / "other-template.gguf", "Q8_0", pre="smollm")
    name_another_stop(merged, folder / "other-stop")
    for tuned in ("other-template.gguf", "other-stop"):
        print(run(folder, f"tuned={tuned}", *CHAT)[1])


if __name__ == "__main__":
    main()
