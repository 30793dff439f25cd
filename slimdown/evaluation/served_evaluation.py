"""Ask a tuned model once more, as it is served: by what its own files say beside the weights.

The difference to its answers when it is asked as the base was is what its template, BOS, stops and
settings of generation cost. The rest of the loss comes from the weights.
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
    """Find the benchmarks whose prompts or ends of answers differ when the tuned model is served.

    Args:
        tasks: All benchmarks.
        config: How they are asked.
        templates: The chat template with which both models are asked, and the tuned model's own.
        serving: How the tuned model is served.
        base: How the base model is served.

    Returns:
        These benchmarks, by name.
    """
    compared_template, served_template = templates
    has_other_start = serving.start != base.start  # BOS, or nothing
    has_other_chats = compared_template != served_template or serving.doubles_bos(base)
    # Stops that only the tuned model has change nothing: they also end its answers when it is asked
    # as the base. Only a stop of the base that it lacks makes a difference.
    missing_stops = set(base.stops) - set(serving.stops)
    answers_otherwise = bool(missing_stops) or serving.generation != base.generation
    affected = {}
    for name, task in tasks.items():
        uses_template = task.narrow(config).apply_chat_template
        has_other_prompts = has_other_start or (uses_template and has_other_chats)
        if has_other_prompts or (task.generates and answers_otherwise):
            affected[name] = task
    return affected


def evaluate_as_served(
    tasks: Mapping[str, BenchmarkTask],
    config: EvaluationConfig,
    backend: BackendOptions,
    model: LoadedModel,
    evaluation: Evaluation,
    *,
    cache: EvaluationCache | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Evaluation:
    """Ask the same questions of a tuned model as it is served.

    Args:
        tasks: What `find_served_otherwise` found.
        config: How the base was asked.
        backend: How both models were scored.
        model: The tuned model as `ExternalModel.serve` returns it.
        evaluation: The tuned model's answers to all benchmarks when it was asked as the base.
        cache: Where evaluations are found and kept.
        on_progress: As for `Evaluator.evaluate`.

    Returns:
        All benchmarks: those of `tasks` as the served model answered them, and all others from
        `evaluation`. Questions, their order and their targets are the same; prompts differ. The
        seconds and costs are those of the served model alone.
    """
    evaluator = Evaluator(dict(tasks), config, backend=backend)
    n_asked = {name: len(evaluation.benchmarks[name].samples) for name in tasks}

    def find_shorter(answers: dict[str, BenchmarkEvaluation]) -> set[str]:
        """Find the benchmarks that need more questions to have as many as before."""
        return {name for name in answers if len(answers[name].samples) < n_asked[name]}

    # With looks, sequential testing may have ended the asking before all questions were asked.
    may_have_stopped = any(evaluation.benchmarks[name].looks for name in tasks)
    stop_when = find_shorter if may_have_stopped else None
    served = evaluator.evaluate(model, cache, stop_when, on_progress)
    benchmarks = evaluation.benchmarks | served.benchmarks
    return replace(evaluation, benchmarks=benchmarks, seconds=served.seconds, costs=served.costs)
