"""Ask SmolLM2 through llama.cpp's server, beside transformers: what docs/serving.md shows.

    python -m bench.served FOLDER

It writes SmolLM2-135M-Instruct as F32, Q8_0 and Q4_0, and asks each file 60 capitals and 50
questions of GSM8K twice: through llama.cpp's server, and read by transformers. Then it trains an
adapter, merges it, writes it as Q4_0, serves that, and compares the stages. It needs the hub and
the package `xllamacpp`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.llama_server import serve_file
from bench.machine import describe_machine
from bench.serving import TRAINED, call_slimdown, run, write_questions
from bench.write_gguf import KINDS, write_gguf

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
CHAT = ["benchmark.capitals.score=contains", "benchmark.capitals.max_gen_toks=32"]
CHAT += ["evaluation.apply_chat_template=true"]
ASKED = ["benchmark=[capitals.jsonl,gsm8k]", *CHAT, "benchmark.gsm8k.limit=50"]
ASKED += ["benchmark.gsm8k.num_fewshot=0", "benchmark.gsm8k.max_gen_toks=128"]
CHAIN = ["benchmark=[capitals.jsonl]", *CHAT]


def read_answers(folder: Path, run_id: str, model: str = "tuned") -> pd.DataFrame:
    """Return a run's answers: benchmark, question, response and score by the primary metric."""
    samples = folder / "mlruns" / "artifacts" / run_id / "artifacts" / "samples"
    parts = [pd.read_parquet(file) for file in sorted(samples.glob(f"{model}-*.parquet"))]
    answers = pd.concat(parts)
    is_primary = answers.metric.isin(["contains", "exact_match.flexible-extract"])
    return answers[is_primary].set_index(["task", "doc_id"])


def show_differences(name: str, served: pd.DataFrame, read: pd.DataFrame) -> None:
    """Print how many answers and scores differ, and each question whose score does."""
    joined = served.join(read.add_suffix("_read"), how="inner")
    differing = joined[joined.score != joined.score_read]
    n_equal = int((joined.response.str.strip() == joined.response_read.str.strip()).sum())
    print(f"{name}: {len(joined)} questions, {n_equal} equal texts, {len(differing)} other scores")
    for place, row in differing.iterrows():
        print(f"  {place}: {row.response_read[:70]!r} -> {row.response[:70]!r}")


def read_rates(folder: Path, run_id: str) -> str:
    """Say how many answers a minute a run got, by benchmark and who answered."""
    file = folder / "mlruns" / "artifacts" / run_id / "artifacts" / "costs.json"
    costs = [cost for cost in json.loads(file.read_text())["costs"] if cost["name"]]
    return ", ".join(
        f"{cost['name']} {cost['work']}: {60 * cost['n'] / cost['seconds']:.1f} a minute"
        for cost in costs
    )


def compare_files(folder: Path, tokenizer: Any) -> None:
    """Ask each file through the server and as transformers reads it; print the differences."""
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype="float32")
    for kind in KINDS:
        file = write_gguf(model, tokenizer, folder / f"{kind}.gguf", kind, pre="smollm")
        with serve_file(file) as server:
            served, shown = run(folder, f"tuned={server.address}", f"name=served {kind}", *ASKED)
        print(f"\n{kind} served\n{shown}\n{read_rates(folder, served)}", flush=True)
        answers = read_answers(folder, served)
        if kind == "F32":  # the base model's own weights
            show_differences("F32 served, base", answers, read_answers(folder, served, "base"))
            continue
        read, shown = run(folder, f"tuned={kind}.gguf", f"name=read {kind}", *ASKED)
        print(f"\n{kind} read by transformers\n{shown}\n{read_rates(folder, read)}")
        print(call_slimdown(folder, "compare", read, served, "--paired"))
        show_differences(f"{kind} served, {kind} read", answers, read_answers(folder, read))


def follow_adapter(folder: Path, tokenizer: Any) -> None:
    """Train an adapter, merge it, write it as Q4_0 and serve that; print the chain."""
    trained = run(folder, *TRAINED, *CHAIN)[0]
    call_slimdown(folder, "merge", trained, "--out", "merged")
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype="float32")
    file = write_gguf(merged, tokenizer, folder / "merged-Q4_0.gguf", "Q4_0", pre="smollm")
    stages = [trained]
    stages += [run(folder, f"tuned={name}", *CHAIN)[0] for name in ("merged", file.name)]
    with serve_file(file) as server:
        stages.append(run(folder, f"tuned={server.address}", *CHAIN)[0])
    print(call_slimdown(folder, "compare", *stages, "--chain", "-o", "stages.html"))


def main() -> None:
    """Measure everything, and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a new one, for models, files and the record")
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True)
    print(describe_machine())
    write_questions(folder)
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    compare_files(folder, tokenizer)
    follow_adapter(folder, tokenizer)


if __name__ == "__main__":
    main()
