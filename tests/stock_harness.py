"""The stock harness, asked in this process: a process of its own imports it for ten seconds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lm_eval.tasks
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from slimdown.pocket import MODEL_DIR, TASKS_DIR


def run_lm_eval(
    folder: Path,
    tasks: list[str],
    *extra: Path,
    limit: int,
    model: str = str(MODEL_DIR),
    topics: Sequence[str] = (),
    adapter: str | None = None,
    num_fewshot: int | None = None,
    max_gen_toks: int | None = None,
) -> None:
    """Do what its command line does with `--model hf --log_samples --output_path FOLDER`.

    Args:
        folder: Where the logs go.
        tasks: Their names.
        extra: Folders with task files of one's own.
        limit: The questions of each task.
        model: What `pretrained` names.
        topics: The harness's folders that hold its tasks; to read all of them takes half a minute.
        adapter: What `peft` names.
        num_fewshot: The worked examples; None: as the task says.
        max_gen_toks: The most tokens of a generated answer; likewise.
    """
    tracker = EvaluationTracker(output_path=str(folder))
    harness = Path(lm_eval.tasks.__file__).parent
    include: list[str | Path] = [*(harness / topic for topic in topics), TASKS_DIR, *extra]
    # Which would take seconds, for a text about the machine.
    with patch("torch.utils.collect_env.get_pretty_env_info", return_value=""):
        results: Any = simple_evaluate(
            model="hf",
            model_args={"pretrained": model, "dtype": "float32", "peft": adapter},
            tasks=tasks,
            num_fewshot=num_fewshot,
            gen_kwargs={"max_gen_toks": max_gen_toks} if max_gen_toks else None,
            limit=limit,
            batch_size=16,
            device="cpu",
            task_manager=TaskManager(include_path=include, include_defaults=False),
            evaluation_tracker=tracker,
        )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])


def ask_harness(*arguments: Any, **options: Any) -> Any:
    """Ask as `simple_evaluate` does, but for its text about the machine, which takes a second."""
    with patch("torch.utils.collect_env.get_pretty_env_info", return_value=""):
        return simple_evaluate(*arguments, **options)
