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
    model: str = str(MODEL_DIR),
    adapter: str | None = None,
    topics: Sequence[str] = (),
    **options: Any,
) -> None:
    """Do what its command line does with `--model hf --log_samples --output_path FOLDER`.

    Args:
        folder: Where the logs go.
        tasks: Their names.
        extra: Folders with task files of one's own.
        model: What `pretrained` names.
        adapter: What `peft` names.
        topics: The harness's folders that hold its tasks; to read all of them takes half a minute.
        options: Those of `simple_evaluate`, such as `limit`, `num_fewshot` and `gen_kwargs`.
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
            batch_size=16,
            device="cpu",
            task_manager=TaskManager(include_path=include, include_defaults=False),
            evaluation_tracker=tracker,
            **options,
        )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])


def ask_harness(*arguments: Any, **options: Any) -> Any:
    """Ask as `simple_evaluate` does, but for its text about the machine, which takes a second."""
    with patch("torch.utils.collect_env.get_pretty_env_info", return_value=""):
        return simple_evaluate(*arguments, **options)
