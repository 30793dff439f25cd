"""The scores of one model on the questions of `suite=assistant`, and how long they take.

    python -m bench.assistant HuggingFaceTB/SmolLM2-135M-Instruct --answers answers.jsonl
    python -m bench.assistant Qwen/Qwen2.5-Coder-0.5B-Instruct --suite assistant

`suite=assistant` asks the first 25 questions of each benchmark, `assistant_full` all.
"""

import argparse
import json
from pathlib import Path
from statistics import median

from scipy.stats import binomtest

from bench.machine import describe_machine, load_config_of
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.evaluation.tasks import load_tasks
from slimdown.models.base_model import load_base_model
from slimdown.utils.errors import DataError


def describe_benchmark(name: str, evaluation: BenchmarkEvaluation, n_tokens: list[int]) -> str:
    """Write the row of a benchmark: right answers with Wilson's interval, lengths, seconds."""
    n = len(evaluation.samples)
    n_right = round(evaluation.score.value * n)
    interval = binomtest(n_right, n).proportion_ci(method="wilson")
    n_cut = sum(sample.ran_out for sample in evaluation.samples)
    cells = [name, f"{n_right} of {n}", f"{n_right / n:.1%}"]
    cells += [f"{interval.low:.1%} to {interval.high:.1%}"]
    cells += [f"{median(n_tokens):.0f}", f"{n_cut / n:.0%}", f"{evaluation.seconds:.0f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print a table of all benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a hub id or a folder")
    parser.add_argument("--suite", default="assistant_full")
    parser.add_argument("--answers", type=Path, help="a file to which every answer is added")
    parser.add_argument("overrides", nargs="*", help="settings, e.g. model.dtype=float32")
    options = parser.parse_intermixed_args()
    overrides = [f"suite={options.suite}", "quantization=none", *options.overrides]
    config = load_config_of("model=any", f"model.id={options.model}", *overrides)
    model = load_base_model(config.model, config.quantization)
    print(describe_machine(), f"{model.id}, {model.quantization}, {model.dtype}", sep="\n")
    print("| benchmark | right | share | 95 % interval | median tokens | cut at 128 | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    seconds = 0.0
    for name, task in load_tasks(config.benchmark).items():
        try:
            task.check_prompts(model.tokenizer, config.evaluation)
        except DataError as error:
            print(f"| {name} | not asked: {error} | | | | | |")
            continue
        evaluator = Evaluator({name: task}, config.evaluation)
        evaluation = evaluator.evaluate(model).benchmarks[name]
        answers = [sample.response for sample in evaluation.samples]
        n_tokens = [len(model.tokenizer(text)["input_ids"]) for text in answers]
        print(describe_benchmark(name, evaluation, n_tokens), flush=True)
        seconds += evaluation.seconds
        lines = list[str]()
        for sample in evaluation.samples:
            read = sample.answers[evaluation.benchmark.metric]
            right = sample.scores[evaluation.benchmark.metric]
            row = {"benchmark": name, "number": sample.doc_id, "right": right, "read": read}
            lines.append(json.dumps(row | {"answer": sample.response}, ensure_ascii=False) + "\n")
        if options.answers:
            with options.answers.open("a", encoding="utf-8") as file:
                file.writelines(lines)
    print(f"{seconds / 60:.1f} minutes of answers, without loading the model")


if __name__ == "__main__":
    main()
