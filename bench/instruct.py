r"""Write rows and questions for a study of an instruct model.

    python -m bench.instruct DIR XSTEST

XSTEST is XSTest's file of prompts, CSV or Parquet (CC BY 4.0). DIR gets `xstest.jsonl`, 50 safe
and 50 unsafe questions that the types of prompts share evenly; `harmless.jsonl` and
`harmful.jsonl`, 100 of each; `prompts.jsonl`, 100 others of each and 100 questions of GSM8K's
train split, in turn; `other_harmful.jsonl` and `other_harmless.jsonl`, the questions of these
prompts; and `classification.jsonl`, Dolly's rows of that one kind as conversations
(CC BY-SA 3.0, from the hub). Then, in DIR:

    slimdown run model=any model.id=Qwen/Qwen2.5-Coder-0.5B-Instruct quantization=none \
        dataset=file dataset.file.path=classification.jsonl dataset.file.max_examples=200 \
        'benchmark=[gsm8k,ifeval,xstest,mmlu,hellaswag]' benchmark.xstest.path=xstest.jsonl \
        benchmark.xstest.score=refusal benchmark.xstest.max_gen_toks=64 evaluation.batch_size=25 \
        train.assistant_only_loss=false
"""

import json
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import datasets
import pandas as pd

ANSWERS = {"safe": "comply", "unsafe": "refuse"}


def sort_prompts(prompts: pd.DataFrame, label: str) -> list[str]:
    """Sort safe or unsafe prompts so that the first ones are about as many of each type."""
    chosen = prompts[prompts["label"] == label]
    turn = chosen.groupby("type").cumcount()  # 0 for the first prompt of each type
    return list(chosen.assign(turn=turn).sort_values("turn", kind="stable")["prompt"])


def pick_questions(
    prompts: pd.DataFrame, label: str, n: int, begin: int = 0
) -> list[dict[str, object]]:
    """Pick prompts of a kind as questions."""
    return [
        {"messages": [{"role": "user", "content": prompt}], "answer": ANSWERS[label]}
        for prompt in sort_prompts(prompts, label)[begin : begin + n]
    ]


def list_classifications() -> list[dict[str, object]]:
    """List Dolly's classification rows as conversations."""
    dolly = datasets.load_dataset("databricks/databricks-dolly-15k", split="train")
    conversations: list[dict[str, object]] = []
    for row in dolly:
        if row["category"] == "classification":
            prompt = "\n\n".join(part for part in (row["instruction"], row["context"]) if part)
            question = {"role": "user", "content": prompt}
            answer = {"role": "assistant", "content": row["response"]}
            conversations.append({"messages": [question, answer]})
    return conversations


def write_lines(path: Path, rows: Iterable[object]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(folder: str, xstest: str) -> None:
    """Write the files."""
    prompts = pd.read_parquet(xstest) if xstest.endswith(".parquet") else pd.read_csv(xstest)
    Path(folder).mkdir(parents=True, exist_ok=True)
    safe, unsafe = (pick_questions(prompts, label, 50) for label in ANSWERS)
    write_lines(Path(folder, "xstest.jsonl"), [*safe, *unsafe])
    for name, label in (("harmless", "safe"), ("harmful", "unsafe")):
        for kind, begin in (("", 0), ("other_", 100)):
            questions = pick_questions(prompts, label, 100, begin)
            write_lines(Path(folder, f"{kind}{name}.jsonl"), questions)
    kinds = [sort_prompts(prompts, label)[100:200] for label in reversed(ANSWERS)]
    kinds.append(datasets.load_dataset("openai/gsm8k", "main", split="train[:100]")["question"])
    in_turn = chain.from_iterable(zip(*kinds, strict=True))
    write_lines(Path(folder, "prompts.jsonl"), ({"prompt": prompt} for prompt in in_turn))
    write_lines(Path(folder, "classification.jsonl"), list_classifications())


if __name__ == "__main__":
    main(*sys.argv[1:])
