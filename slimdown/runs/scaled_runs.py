"""Measure a tuned model at several scales of its change from the base; nothing is trained."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from slimdown.config.schema import RunConfig
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.results import Evaluation
from slimdown.models.adapters import check_base, check_scalable, save_scaled_adapter, scale_adapter
from slimdown.models.base_model import LoadedModel, load_base_model
from slimdown.models.causal import disabled_adapters
from slimdown.models.external import open_tuned_model
from slimdown.models.interpolation import pair_models
from slimdown.report import console
from slimdown.runs.inputs import decide_prompts, load_benchmarks, load_tokenizer, read_rows
from slimdown.tracking.base_evaluations import RecordedEvaluations, open_base_cache
from slimdown.tracking.store import local_dir
from slimdown.training.fine_tuning import validate
from slimdown.training.tokenizing import tokenize_rows
from slimdown.utils.errors import ModelError


@dataclass(frozen=True)
class ScaledEvaluations:
    """The answers of a base, and of a tuned model at several scales.

    At scale 0 the tuned model is the base, and at scale 1 it has its whole change from the base.
    """

    base_model: LoadedModel
    save: Callable[[float, Path], None]  # writes the model at a scale to a folder
    base: Evaluation
    tuned: dict[float, Evaluation]  # by scale
    # By scale, in nats per token. A scale whose answers are the run's recorded ones has none here,
    # because the run recorded its loss, too. Empty without rows.
    validation_losses: dict[float, float]


def measure_scales(
    config: RunConfig,
    scales: Sequence[float],
    recorded: tuple[Evaluation, Evaluation],
    origin: str = "",
) -> ScaledEvaluations:
    """Measure a tuned model at several scales of its change from the base; nothing is trained.

    Args:
        config: The settings of the run, with `tuned` set to its adapter or whole model.
        scales: Each above 0.
        recorded: The evaluations of base and tuned model that the run recorded. That of the tuned
            model is used at scale 1 if the base answers as it did then.
        origin: ID@REVISION of a model made elsewhere, as the run recorded it; empty if the run
            trained its model.

    Returns:
        The answers at each scale, and a function that saves the model at a scale. And if the run
        has a dataset, the validation loss at each scale whose answers are not the recorded ones.

    Raises:
        ModelError: The model has changed since, or is not its base at scale 0: DoRA, trained
            biases, a whole model with other tensors than the base.
    """
    tasks, _ = load_benchmarks(config)
    rows = None  # for the validation losses; None if the run trained nothing
    with console.progress_bar(f"loading {config.model.id}"):
        tokenizer = load_tokenizer(config)
        train_data = read_rows(config, tokenizer) if config.dataset else None
        evaluation, _ = decide_prompts(config, tasks, tokenizer, train_data)
        model = _load_scalable(config, tokenizer, origin)
        if train_data:
            on_cpu = model.base.device == "cpu"
            rows = tokenize_rows(train_data, tokenizer, config.train, on_cpu, config.seed)
    evaluator = Evaluator(tasks, evaluation)
    with (
        console.progress_bar("measuring the base", "questions") as on_progress,
        # With an adapter, `model.base.model` is the tuned model: without its adapter, the base.
        disabled_adapters(model.base.model) if model.is_adapter else nullcontext(),
    ):
        base_cache = open_base_cache(config, model.base)
        base_evaluation = evaluator.evaluate(model.base, base_cache, on_progress=on_progress)
    folder = local_dir(config.tracking) / "scales"
    # One cache serves all scales, because the model's identity is part of a key: that of an adapter
    # holds the scale, and that of a whole model the digest of its files.
    cache = RecordedEvaluations(config, "tuned", folder, is_shared=True)
    recorded_base, recorded_tuned = recorded
    # An evaluation that may have stopped early is not reused: here all questions are asked.
    may_have_stopped = any(benchmark.looks for benchmark in recorded_tuned.benchmarks.values())
    can_reuse = not may_have_stopped and _has_same_answers(base_evaluation, recorded_base)
    evaluations, losses = {}, {}
    for scale in scales:
        if scale == 1 and can_reuse:  # the run recorded the validation loss of scale 1, too
            evaluations[scale] = recorded_tuned
            continue
        with (
            console.progress_bar(f"measuring scale {scale:g}", "questions") as on_progress,
            model.open(scale) as scaled,
        ):
            evaluations[scale] = evaluator.evaluate(scaled, cache, on_progress=on_progress)
            if rows:
                losses[scale] = validate(scaled.model, model.base.tokenizer, rows, config)
    return ScaledEvaluations(model.base, model.save, base_evaluation, evaluations, losses)


@dataclass(frozen=True)
class _ScalableModel:
    """A base, and a tuned model that can be taken at any scale of its change from the base."""

    base: LoadedModel
    is_adapter: bool  # the adapter is on the base; disable it to ask the base
    open: Callable[[float], AbstractContextManager[LoadedModel]]  # inside, the model at a scale
    save: Callable[[float, Path], None]  # writes the model at a scale to a folder


def _load_scalable(config: RunConfig, tokenizer: Any, origin: str) -> _ScalableModel:
    """Load a base and its tuned model, so that the change between them can be scaled.

    What the files show to be impossible is refused before anything is loaded.

    Args:
        config: The settings, with `tuned` set to an adapter or a whole model.
        tokenizer: The base's.
        origin: ID@REVISION of the tuned model that the run measured; empty: the run trained it.

    Raises:
        ModelError: The tuned model is not the one that was measured, or cannot be scaled.
    """
    outline = check_base(config)
    unloaded = LoadedModel.without_loading(outline, tokenizer, config.model.id)
    external = open_tuned_model(config, unloaded)
    present = f"{external.config.id}@{external.revision}"
    if origin and origin != present:
        raise ModelError(f"the run measured {origin}, and there is {present}; measure it anew")
    load_base = partial(load_base_model, config.model, config.quantization, tokenizer, outline)
    if external.folder is None:  # a whole model: its weights are mixed with the base's
        # This raises if their tensors differ. Loading the base may take minutes, so it comes later.
        unloaded_pair = pair_models(config.model, external)
        base = load_base()
        pair = replace(unloaded_pair, external=replace(external, base=base))
        return _ScalableModel(base=base, is_adapter=False, open=pair.open, save=pair.save)
    base = load_base()
    tuned = replace(external, base=base).load()
    check_scalable(tuned)
    return _ScalableModel(
        base=replace(base, model=tuned.model),  # the base while its adapter is disabled
        is_adapter=True,
        open=partial(scale_adapter, tuned),
        save=partial(save_scaled_adapter, external.folder),
    )


def _has_same_answers(evaluation: Evaluation, recorded: Evaluation) -> bool:
    """Whether a model gives exactly the recorded answers, by the same backend."""
    return evaluation.backend == recorded.backend and all(
        benchmark.samples == recorded.benchmarks[name].samples
        for name, benchmark in evaluation.benchmarks.items()
    )
