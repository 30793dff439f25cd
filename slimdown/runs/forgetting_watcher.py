"""Look at a model in training: ask a few questions, judge the losses, bring good weights back."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback

from slimdown.config.engines import Backend
from slimdown.config.schema import RunConfig
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.results import Evaluation
from slimdown.evaluation.tasks import load_tasks
from slimdown.judging.budgets import default_budgets, judge_look
from slimdown.judging.findings import Findings, judge
from slimdown.judging.holdout import open_part
from slimdown.models.base_model import LoadedModel
from slimdown.models.causal import copy_trained_weights, restore_weights, wrap_model
from slimdown.training.padding_free import attention_as_loaded
from slimdown.utils.errors import ModelError


class WatchingCallback(TrainerCallback):  # type: ignore[misc]
    """Ask the same few questions every few steps; end a training that loses more than its budgets.

    The model then has the weights of the last look within all budgets, if there was one. Each look
    tests another model, so its level is 5 % divided by the number of looks: the chance that any
    look ends a training that keeps its budgets is at most 5 %.

    Attributes:
        stopped: Why the training ended early; empty where it did not.
        kept_step: The step of the last look within all budgets; None where there was none.
    """

    stopped = ""
    kept_step: int | None = None

    def __init__(
        self, evaluator: Evaluator, every: int, budgets: Mapping[str, float], holdout: float = 0.0
    ) -> None:
        """Take what is asked, when, and what may be lost.

        Args:
            evaluator: Has the questions of a look.
            every: Steps between two looks; 0: there are none.
            budgets: By benchmark, the most that it may lose; if empty, no look ends the training.
            holdout: The share of the questions that no look may judge.
        """
        self._evaluator, self._every, self._budgets = evaluator, every, budgets
        self._holdout = holdout
        self._base: Any = None  # the base's evaluation; None until `measure_base`
        self._kept: dict[str, Any] = {}  # the trained weights of `kept_step`, by parameter name

    def measure_base(self, base: LoadedModel) -> Evaluation:
        """Ask the base the questions of a look, which each look compares with.

        Returns:
            Its answers to the questions that are not held out.

        Raises:
            DataError: Its answers cannot be judged by the budgets.
        """
        evaluation = self._base = self._ask(base)
        if self._budgets:
            # Compare the base with itself: this raises now what a look would raise in the training.
            judge(evaluation, evaluation)
        return evaluation

    def keep(self, step: int, model: Any) -> None:
        """Keep a copy of what is trained, to be restored when a later look ends the training.

        Args:
            step: The number of steps that the model has been trained.
            model: The model in training.
        """
        self.kept_step, self._kept = step, copy_trained_weights(model)

    def report_look(self, findings: Findings, state: Any) -> None:
        """Receive what a look found, before it may end the training.

        Here nothing is done with it. A subclass may show or log it.

        Args:
            findings: The changes on the questions of the look.
            state: The trainer's `TrainerState`: its step, and how many steps there are.
        """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse a training that ends before the first look."""
        if self._budgets and self._every > state.max_steps:
            raise ModelError(
                f"a look every {self._every} steps is beyond the {state.max_steps} steps of the "
                "training; set fewer"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the model if it is time; end the training if a loss is beyond its budget."""
        if not self._every or state.global_step % self._every:
            return
        if is_last_step(state, control) and not self._budgets:
            # Nothing is left to end. The model is asked all questions after this step, so a look
            # at a few of them would add nothing.
            return
        loaded = wrap_trained(kwargs)
        findings = judge(self._base, self._ask(loaded))
        self.report_look(findings, state)
        if not self._budgets:
            return
        n_looks = max(1, state.max_steps // self._every)
        is_within, proven_losses = judge_look(findings, self._budgets, n_looks)
        if is_within:
            self.keep(state.global_step, loaded.model)
        if proven_losses:  # in words; empty if no loss is proven to exceed its budget
            self.stopped = f"{proven_losses} at step {state.global_step}"
            if self.kept_step is not None:
                restore_weights(loaded.model, self._kept)
                self.stopped += f"; step {self.kept_step} is kept"
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Release the memory of the weights that were kept."""
        self._kept = {}

    def _ask(self, model: LoadedModel) -> Evaluation:
        """Return a model's answers to the questions of a look that are not held out."""
        with attention_as_loaded(model.model):
            return open_part(self._evaluator.evaluate(model), self._holdout)


def is_last_step(state: Any, control: Any) -> bool:
    """Return whether no step follows."""
    return bool(state.global_step >= state.max_steps or control.should_training_stop)


def wrap_trained(kwargs: Mapping[str, Any]) -> LoadedModel:
    """Wrap the model that a trainer passes to its callbacks.

    Its `memory_bytes` decide how many rows are asked at once. While it is trained, they include a
    gradient and Adam's two states for each trained number, 4 bytes each.

    Args:
        kwargs: The keyword arguments that `transformers.Trainer` gives to each method of a
            callback: its model and tokenizer among them.
    """
    loaded = wrap_model(kwargs["model"], kwargs["processing_class"])
    n_trained = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    return replace(loaded, memory_bytes=loaded.memory_bytes + 12 * n_trained)


def build_watcher(config: RunConfig) -> WatchingCallback:
    """Build the callback for `train.stop_on_forgetting`.

    Call its `measure_base` before the training. Only benchmarks that have a budget are asked.
    """
    budgets = default_budgets(config.benchmark)  # by benchmark: its max_loss, or its margin
    most_questions = config.train.look_questions
    shortened = {}  # the benchmarks with as many questions as a look asks
    for name in budgets:
        benchmark = config.benchmark[name]
        limit = min(benchmark.limit or most_questions, most_questions)
        shortened[name] = replace(benchmark, limit=limit)
    evaluator = Evaluator(
        load_tasks(shortened, config.evaluation.include_path),
        # vLLM reads models from files, and a model in training is in none.
        replace(config.evaluation, backend=Backend.hf),
        share_prefixes=not config.method.facts.learns_prompt,
    )
    holdout = config.evaluation.holdout
    return WatchingCallback(evaluator, config.train.look_steps, budgets, holdout)
