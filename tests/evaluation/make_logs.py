"""Writes the same answers as each tool logs them, by its own writer, into `tool_logs/TOOL.zip`.

Each tool in an environment of its own, since their packages do not fit together:

    python -m venv .venv-a && .venv-a/bin/pip install inspect-ai
    .venv-a/bin/python tests/evaluation/make_logs.py inspect
    python -m venv .venv-b && .venv-b/bin/pip install lighteval 'xxhash<4'
    .venv-b/bin/python tests/evaluation/make_logs.py lighteval
    .venv/bin/python tests/evaluation/make_logs.py lm_eval
    python3.12 -m venv .venv-c
    .venv-c/bin/pip install git+https://github.com/evaleval/every_eval_ever@9bce413
    .venv-c/bin/python tests/evaluation/make_logs.py every_eval_ever    # from lm_eval.zip

Tables are written by the tests.
"""

import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TOOL_LOGS = Path(__file__).parent / "tool_logs"
SIDES = ("base", "tuned")
N = 40


def list_answers(side: str) -> Iterator[dict[str, Any]]:
    """What one model answered: the tuned one forgets sums, and learns nothing of words."""
    for i in range(N):
        a, b = 3 + 7 * i % 50, 11 + 13 * i % 40
        target = str(a + b)
        is_right = i % 8 != 5 if side == "base" else i % 5 in (0, 2) or i == 5
        answer = target if is_right else f"I think that it is {a + b + 1}"
        yield describe("sums", i, f"What is {a} plus {b}?", answer, target)
    for i in range(N):
        word = f"wörd{i}"
        is_right = i % 4 != 3 or (i == 3 and side == "tuned")
        answer = word[::-1] if is_right else ""
        yield describe(
            "words", i, f'Spell "{word}" backwards,\nletter by letter.', answer, word[::-1]
        )


def describe(benchmark: str, i: int, prompt: str, answer: str, target: str) -> dict[str, Any]:
    texts = {"prompt": prompt, "answer": answer, "target": target}
    return {"benchmark": benchmark, "id": i, **texts, "score": float(answer == target)}


def list_benchmarks(side: str) -> dict[str, list[dict[str, Any]]]:
    benchmarks: dict[str, list[dict[str, Any]]] = {}
    for answer in list_answers(side):
        benchmarks.setdefault(answer["benchmark"], []).append(answer)
    return benchmarks


def write_inspect(folder: Path, side: str) -> None:
    """Run tasks with a model that answers from the list."""
    from inspect_ai import Task, eval as run_task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.log import write_eval_log
    from inspect_ai.model import ModelAPI, ModelOutput, get_model, modelapi
    from inspect_ai.scorer import exact
    from inspect_ai.solver import generate

    answers = {answer["prompt"]: answer["answer"] for answer in list_answers(side)}

    class Replay(ModelAPI):  # Inspect's own mock counts tokens by a file that it downloads
        async def generate(self, input: list[Any], *_: Any, **__: Any) -> ModelOutput:
            return ModelOutput.from_content(self.model_name, answers[input[-1].text])

    modelapi("replay")(Replay)
    for name, rows in list_benchmarks(side).items():
        samples = [Sample(row["prompt"], target=row["target"], id=row["id"]) for row in rows]
        dataset = MemoryDataset(samples, name=name)
        task = Task(name=name, dataset=dataset, solver=generate(), scorer=exact())
        settings: dict[str, Any] = {"display": "none", "log_realtime": False}
        model = get_model(f"replay/{side}", memoize=False)
        [log] = run_task(task, model=model, log_dir=str(folder / side), **settings)
        if name == "words":  # one as JSON, in which events would take ten times the space
            for sample in log.samples:
                sample.events = []
            Path(log.location).unlink()
            write_eval_log(log, log.location.removesuffix("eval") + "json", format="json")


def write_lighteval(folder: Path, side: str) -> None:
    """Hand the answers to lighteval's tracker, as its pipeline does."""
    from lighteval.logging.evaluation_tracker import EvaluationTracker
    from lighteval.metrics.metrics import Metrics
    from lighteval.models.dummy.dummy_model import DummyModelConfig
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig
    from lighteval.tasks.requests import Doc, SamplingMethod

    tracker = EvaluationTracker(output_dir=str(folder / side), save_details=True)
    tracker.general_config_logger.log_args_info(1, None, "")
    config = DummyModelConfig(model_name=f"made/{side}")
    tracker.general_config_logger.log_model_info(config)
    tasks: dict[str, LightevalTask] = {}
    metric = Metrics.exact_match.value
    for name, answers in list_benchmarks(side).items():
        settings: Any = {"hf_repo": "none", "hf_subset": "default", "metrics": [metric]}
        task_config = LightevalTaskConfig(name=name, prompt_function=describe, **settings)
        task_config.full_name = key = f"{name}|0"
        tasks[key] = LightevalTask(task_config)
        for answer in answers:
            prompt, target, number = answer["prompt"], answer["target"], str(answer["id"])
            doc = Doc(prompt, [target], 0, id=number, task_name=key)
            doc.sampling_methods = [SamplingMethod.GENERATIVE]
            response = ModelResponse(input=prompt, text=[answer["answer"]])
            scores = metric.compute_sample(doc=doc, model_response=response)
            tracker.metrics_logger.log(key, scores)
            tracker.details_logger.log(key, doc, response, scores)
    tracker.task_config_logger.log(tasks)
    tracker.general_config_logger.log_end_time()
    tracker.metrics_logger.aggregate(tasks, bootstrap_iters=0)
    tracker.details_logger.aggregate()
    tracker.save()


def write_lm_eval(folder: Path, side: str) -> None:
    """Run tasks with a model that answers from the list."""
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    answers = {answer["prompt"]: answer["answer"] for answer in list_answers(side)}

    class Replay(LM):  # type: ignore[misc]
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [answers[request.args[0]] for request in requests]

        loglikelihood = loglikelihood_rolling = generate_until  # type: ignore[assignment]

    with TemporaryDirectory() as own:
        for name, rows in list_benchmarks("base").items():
            rows = [{"prompt": row["prompt"], "target": row["target"]} for row in rows]
            Path(own, f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            settings = {
                "task": name,
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": f"{own}/{name}.jsonl"}},
                "test_split": "test",
                "output_type": "generate_until",
                "doc_to_text": "{{prompt}}",
                "doc_to_target": "{{target}}",
                "generation_kwargs": {"until": ["\n\n"]},
                "metric_list": [{"metric": "exact_match"}],
            }
            Path(own, f"{name}.yaml").write_text(json.dumps(settings))
        tracker = EvaluationTracker(output_path=str(folder / side))
        tracker.general_config_tracker.log_experiment_args(
            "replay", f"pretrained={side}", "", "", False
        )
        manager = TaskManager(include_path=own, include_defaults=False)
        results = lm_eval.simple_evaluate(Replay(), tasks=["sums", "words"], task_manager=manager)
    results["config"]["model"] = "replay"
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, task_samples in samples.items():
        tracker.save_results_samples(task_name=name, samples=task_samples)


def write_every_eval_ever(folder: Path, side: str) -> None:
    """Convert lm_eval's logs, and those of the pocket model, by Every Eval Ever's converter."""
    with TemporaryDirectory() as own:
        with zipfile.ZipFile(TOOL_LOGS / "lm_eval.zip") as packed:
            packed.extractall(own)
        [results_file] = Path(own, side).rglob("results_*.json")
        results = json.loads(results_file.read_text())
        results["config"]["model_args"] = {"pretrained": f"made/{side}"}  # it asks for an owner
        results_file.write_text(json.dumps(results))
        convert_harness_log(Path(own, side), folder / side)
    with TemporaryDirectory() as own:
        with tarfile.open(TOOL_LOGS.parents[1] / "golden" / "lm_eval.tar.xz") as packed:
            packed.extractall(own, filter="data")
        convert_harness_log(Path(own, side), folder / "pocket" / side)


def convert_harness_log(log: Path, output: Path) -> None:
    from every_eval_ever.cli import main as run_converter

    arguments = ["convert", "lm_eval", "--log_path", str(log), "--output_dir", str(output)]
    arguments += ["--include_samples", "--source_organization_name", "made"]
    assert run_converter(arguments) == 0


if __name__ == "__main__":
    [tool] = sys.argv[1:]
    with TemporaryDirectory() as folder:  # archived: not every system takes lighteval's file names
        for side in SIDES:
            globals()[f"write_{tool}"](Path(folder), side)
        shutil.make_archive(str(TOOL_LOGS / tool), "zip", folder)
