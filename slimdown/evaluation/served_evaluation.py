"""Ask a tuned model once more, as it is served: by what its own files say beside the weights.

What it answers so, minus what it answered as the base was asked, is what its template, BOS, stops
and settings of generation cost; the rest of the loss is the weights'.
"""

from collections.abc import Mapping
from dataclasses import replace

from slimdown.config.schema import EvaluationConfig
from slimdown.evaluation.backend import BackendOptions
from slimdown.evaluation.evaluation_cache import EvaluationCache
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation
from slimdown.evaluation.tasks import BenchmarkTask
from slimdown.models.base_model import LoadedModel
from slimdown.models.serving_settings import Serving
from slimdown.utils.progress import OnProgress


def find_served_otherwise(
    tasks: Mapping[str, BenchmarkTask],
    config: EvaluationConfig,
    templates: tuple[str | None, str | None],
    serving: Serving,
    base: Serving,
) -> dict[str, BenchmarkTask]:
    """Find the benchmarks that the tuned model is asked otherwise, or whose answers end otherwise.

    Args:
        tasks: All benchmarks.
        config: How they are asked.
        templates: The chat template of both models as they are compared, and the served one.
        serving: The tuned model's.
        base: The base's.
    """
    found = {}
    for name, task in tasks.items():
        by_template = task.narrow(config).apply_chat_template
        is_other = serving.begins_otherwise(base)
        is_other |= bool(by_template) and templates[0] != templates[1]
        is_other |= bool(by_template) and serving.doubles_bos(base)
        # Where it is asked as the base, its own stops end an answer, too: none is missing then.
        lacks_stops = not set(base.stops) <= set(serving.stops)
        answers_otherwise = lacks_stops or serving.generation != base.generation
        if is_other or (task.generates and answers_otherwise):
            found[name] = task
    return found


def evaluate_as_served(
    tasks: Mapping[str, BenchmarkTask],
    config: EvaluationConfig,
    backend: BackendOptions,
    model: LoadedModel,
    asked: Evaluation,
    cache: EvaluationCache | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Evaluation:
    """Ask the same questions of a tuned model as it is served.

    Args:
        tasks: What `find_served_otherwise` found.
        config: How the base was asked.
        backend: How both models were scored.
        model: See `ExternalModel.serve`.
        asked: The model's answers, asked as the base was.
        cache: Where evaluations are found and kept.
        on_progress: As for `Evaluator.evaluate`.

    Returns:
        All benchmarks; those that are served alike are those of `asked`. Questions, their order and
        their targets are the same, and prompts differ.
    """
    evaluator = Evaluator(dict(tasks), config, backend=backend)
    n_asked = {name: len(asked.benchmarks[name].samples) for name in tasks}

    def ask_as_many(so_far: dict[str, BenchmarkEvaluation]) -> set[str]:
        return {name for name, one in so_far.items() if len(one.samples) < n_asked[name]}

    has_looks = any(asked.benchmarks[name].looks for name in tasks)
    stop_when = ask_as_many if has_looks else None
    served = evaluator.evaluate(model, cache, stop_when, on_progress)
    benchmarks = asked.benchmarks | served.benchmarks
    return replace(asked, benchmarks=benchmarks, seconds=served.seconds, costs=served.costs)
