"""The scores of one model on the questions of `suite=assistant`, and how long they take.

    python -m bench.assistant HuggingFaceTB/SmolLM2-135M-Instruct --answers answers.jsonl
    python -m bench.assistant Qwen/Qwen2.5-Coder-0.5B-Instruct --suite assistant
    python -m bench.assistant HuggingFaceTB/SmolLM2-135M-Instruct --suite assistant --draws 4

`suite=assistant` asks the first 25 questions of each benchmark, `assistant_full` all. With
`--draws` the model draws several answers to each question at temperature 0.7. Each draw is then
judged against each other one as if it were a tuned model: every claim of a change is false.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import median

from scipy.stats import binomtest

from bench.machine import describe_machine, load_config_of
from slimdown.config.paths import read_group
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation, Sample
from slimdown.evaluation.tasks import load_tasks
from slimdown.judging.findings import judge
from slimdown.judging.verdicts import Verdict
from slimdown.models.base_model import load_base_model
from slimdown.utils.errors import DataError

TEMPERATURE = 0.7


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


def write_answers(name: str, evaluation: BenchmarkEvaluation) -> Iterator[str]:
    """Write each answer as a line of JSON."""
    metric = evaluation.benchmark.metric
    for sample in evaluation.samples:
        row = {"benchmark": name, "number": sample.doc_id, "right": sample.scores[metric]}
        row |= {"read": sample.answers[metric], "answer": sample.response}
        yield json.dumps(row, ensure_ascii=False) + "\n"


def select_draw(evaluation: Evaluation, number: int) -> Evaluation:
    """Return the evaluation in which each question has only the drawn answer of a number."""
    benchmarks = {}
    for name, benchmark in evaluation.benchmarks.items():
        samples = list[Sample]()
        for sample in benchmark.samples:
            scores = {metric: drawn[number] for metric, drawn in sample.repeated_scores.items()}
            samples.append(replace(sample, scores=scores, repeated_scores={}))
        benchmarks[name] = replace(benchmark, samples=tuple(samples))
    return replace(evaluation, benchmarks=benchmarks)


def describe_draws(evaluation: Evaluation, n_draws: int) -> str:
    """Say how many pairs of draws have a false claim, and what was claimed."""
    draws = [select_draw(evaluation, number) for number in range(n_draws)]
    pairs = list(combinations(draws, 2))
    n_claims, verdicts = 0, Counter[str]()
    for first, second in pairs:
        found = [change.verdict for change in judge(first, second).benchmarks.values()]
        n_claims += bool({Verdict.forgotten, Verdict.improved} & set(found))
        verdicts.update(str(verdict) for verdict in found)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())
    return f"{n_claims} of {len(pairs)} pairs of draws claim a change ({counts})"


def main() -> None:
    """Print a table of all benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a hub id or a folder")
    parser.add_argument("--suite", default="assistant_full")
    parser.add_argument("--answers", type=Path, help="a file to which every answer is added")
    parser.add_argument("--draws", type=int, default=0, help="answers drawn to each question")
    parser.add_argument("overrides", nargs="*", help="settings, e.g. model.dtype=float32")
    options = parser.parse_intermixed_args()
    overrides = [f"suite={options.suite}", "quantization=none", *options.overrides]
    if options.draws:
        for name in read_group("benchmark"):
            if name.startswith("assistant_"):
                overrides += [f"benchmark.{name}.temperature={TEMPERATURE}"]
                overrides += [f"benchmark.{name}.repeats={options.draws}"]
    config = load_config_of("model=any", f"model.id={options.model}", *overrides)
    model = load_base_model(config.model, config.quantization)
    print(describe_machine(), f"{model.id}, {model.quantization}, {model.dtype}", sep="\n")
    print("| benchmark | right | share | 95 % interval | median tokens | cut at 128 | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    evaluations = list[Evaluation]()
    for name, task in load_tasks(config.benchmark).items():
        try:
            task.check_prompts(model.tokenizer, config.evaluation)
        except DataError as error:
            print(f"| {name} | not asked: {error} | | | | | |")
            continue
        evaluations.append(Evaluator({name: task}, config.evaluation).evaluate(model))
        evaluation = evaluations[-1].benchmarks[name]
        answers = [sample.response for sample in evaluation.samples]
        n_tokens = [len(model.tokenizer(text)["input_ids"]) for text in answers]
        print(describe_benchmark(name, evaluation, n_tokens), flush=True)
        if options.answers:
            with options.answers.open("a", encoding="utf-8") as file:
                file.writelines(write_answers(name, evaluation))
    benchmarks = {}
    for evaluation in evaluations:
        benchmarks |= evaluation.benchmarks
    seconds = sum(benchmark.seconds for benchmark in benchmarks.values())
    print(f"{seconds / 60:.1f} minutes of answers, without loading the model")
    if options.draws:
        print(describe_draws(replace(evaluations[0], benchmarks=benchmarks), options.draws))


if __name__ == "__main__":
    main()
