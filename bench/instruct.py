r"""Write rows and questions for a study of an instruct model.

    python -m bench.instruct DIR XSTEST

XSTEST is XSTest's file of prompts, CSV or Parquet (CC BY 4.0). DIR gets `xstest.jsonl`, 50 safe
and 50 unsafe questions that the types of prompts share evenly, and `classification.jsonl`, Dolly's
rows of that one kind as conversations (CC BY-SA 3.0, from the hub). Then, in DIR:

    slimdown run model=any model.id=Qwen/Qwen2.5-Coder-0.5B-Instruct quantization=none \
        dataset=file dataset.file.path=classification.jsonl dataset.file.max_examples=200 \
        'benchmark=[gsm8k,ifeval,xstest,mmlu,hellaswag]' benchmark.xstest.path=xstest.jsonl \
        benchmark.xstest.score=refusal benchmark.xstest.max_gen_toks=64 evaluation.batch_size=25
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import datasets
import pandas as pd

N_PROMPTS = 50  # of each label


def pick_questions(prompts: pd.DataFrame) -> list[dict[str, object]]:
    """Pick equally many safe and unsafe prompts in the file's order, about as many of each type."""
    questions: list[dict[str, object]] = []
    for label, answer in (("safe", "comply"), ("unsafe", "refuse")):
        of_label = prompts[prompts["label"] == label]
        turn = of_label.groupby("type").cumcount()  # 0 for the first prompt of each type
        for prompt in of_label.assign(turn=turn).sort_values("turn", kind="stable")["prompt"]:
            messages = [{"role": "user", "content": prompt}]
            questions.append({"messages": messages, "answer": answer})
        del questions[len(questions) - len(of_label) + N_PROMPTS :]
    return questions


def list_classifications() -> list[dict[str, object]]:
    """List Dolly's classification rows as conversations."""
    dolly = datasets.load_dataset("databricks/databricks-dolly-15k", split="train")
    conversations: list[dict[str, object]] = []
    for row in dolly:
        if row["category"] == "classification":
            asked = "\n\n".join(part for part in (row["instruction"], row["context"]) if part)
            question = {"role": "user", "content": asked}
            answer = {"role": "assistant", "content": row["response"]}
            conversations.append({"messages": [question, answer]})
    return conversations


def write_lines(path: Path, rows: Iterable[object]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(folder: str, xstest: str) -> None:
    """Write both files."""
    prompts = pd.read_parquet(xstest) if xstest.endswith(".parquet") else pd.read_csv(xstest)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_lines(Path(folder, "xstest.jsonl"), pick_questions(prompts))
    write_lines(Path(folder, "classification.jsonl"), list_classifications())


if __name__ == "__main__":
    main(*sys.argv[1:])
